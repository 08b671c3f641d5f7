"""PyMySQL, without TLS: logs in, asks for 1, and prints the answer or the error."""

import os
import sys

import pymysql

host, user = sys.argv[1], sys.argv[2]
key = open(sys.argv[3], "rb").read() if len(sys.argv) > 3 else None
try:
    db = pymysql.connect(
        host=host,
        user=user,
        password=os.environ.get("MYSQL_PWD", ""),
        ssl_disabled=True,
        server_public_key=key,
        connect_timeout=20,
    )
    cursor = db.cursor()
    cursor.execute("select 1")
    print("answer", cursor.fetchone()[0])
    db.close()
except pymysql.Error as error:
    print("error", *error.args)
