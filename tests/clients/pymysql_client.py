"""PyMySQL, without TLS: works through what a MySQL connection carries, and prints what it saw."""

import hashlib
import os
import sys
import tempfile

import pymysql

host, user, megabytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
db = pymysql.connect(
    host=host,
    user=user,
    password=os.environ.get("MYSQL_PWD", ""),
    database="shop",
    ssl_disabled=True,
    local_infile=True,
    max_allowed_packet=256 << 20,
    connect_timeout=20,
)
cursor = db.cursor()


def ask(*query):
    cursor.execute(*query)
    return cursor.fetchall()


print("user", ask("select substring_index(current_user(), '@', 1), database()")[0])
print("server sees", ask("show status like 'Ssl_version'")[0][1])
cursor.execute("create or replace table t (n int primary key, s varchar(100), b longblob)")
cursor.execute("prepare p from 'select ? + 1, concat(?, ?)'")
print("prepared", ask("execute p using 41, 'a', 'needle-prepared'")[0])
cursor.executemany(
    "insert into t (n, s) values (%s, %s)", [(n, f"needle-row-{n}") for n in range(1000)]
)
db.commit()
print("rows", ask("select count(*), min(s), sum(n) from t")[0])

with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
    file.writelines(f"{n}\tneedle-loaded-{n}\n" for n in range(10_000, 30_000))
    file.flush()
    print("loaded", cursor.execute(f"load data local infile '{file.name}' into table t (n, s)"))
db.commit()

blob = b"needle-blob-" * (megabytes * 1024 * 1024 // 12)
cursor.execute("insert into t (n, b) values (-1, %s)", (blob,))
db.commit()
(stored, digest), = ask("select length(b), sha2(b, 256) from t where n = -1")
print("stored", stored == len(blob), digest == hashlib.sha256(blob).hexdigest())
print("fetched", ask("select b from t where n = -1")[0][0] == blob)

try:
    ask("select * from missing")
except pymysql.Error as error:
    print("error", error.args[0])
print("still here", ask("select 1")[0][0])
db.close()
