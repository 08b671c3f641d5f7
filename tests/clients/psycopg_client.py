"""psycopg 3 at work; prints what it saw, so that two ways to the server can be compared.

usage: psycopg_client.py CONNINFO MEGABYTES
"""
import hashlib
import sys
import threading
import time

import psycopg

conninfo, megabytes = sys.argv[1], int(sys.argv[2])
row = "x" * 1000

with psycopg.connect(conninfo, autocommit=True) as connection:
    print("simple", connection.execute("select 1 as a; select 2 as b").fetchall())
    print("extended", connection.execute("select %s::int + 1, %s::text", (41, "déjà vu")).fetchall())
    with connection.cursor(binary=True) as cursor:
        cursor.execute(
            "select g, g::float8 / 7, decode(md5(g::text), 'hex'), array[g, g + 1], now() - now()"
            " from generate_series(1, 5000) g where g > %s order by g",
            (10,),
        )
        rows = cursor.fetchall()
        print("binary", len(rows), hashlib.sha256(repr(rows).encode()).hexdigest())
    with connection.pipeline():
        results = [connection.execute("select %s::int", (n,)) for n in range(200)]
    print("pipeline", sum(result.fetchone()[0] for result in results))
    with connection.transaction(), connection.cursor("named") as cursor:
        cursor.execute("select g from generate_series(1, 3000) g")
        print("server cursor", sum(r[0] for r in cursor))

    connection.execute("create temp table t (id int, v text)")
    with connection.cursor() as cursor:
        with cursor.copy("copy t from stdin") as copy:
            for block in range(megabytes):
                copy.write("".join(f"{block * 1000 + n}\t{row}\n" for n in range(1000)))
        print("copy in", cursor.rowcount)
        digest, length = hashlib.sha256(), 0
        with cursor.copy("copy (select * from t order by id) to stdout") as copy:
            for data in copy:
                digest.update(data)
                length += len(data)
        print("copy out", length, digest.hexdigest())

    with psycopg.connect(conninfo, autocommit=True) as listener:
        listener.execute("listen news")
        connection.execute("notify news, 'hello'")
        note = next(listener.notifies(timeout=10, stop_after=1))
        print("notify", note.channel, note.payload)

    def cancel():
        time.sleep(0.5)
        connection.cancel_safe(timeout=10)

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        connection.execute("select pg_sleep(30)")
        sys.exit("the query was not cancelled")
    except psycopg.errors.QueryCanceled as error:
        print("cancel", error.sqlstate)
    thread.join()
    print("after", connection.execute("select 'still here'").fetchone())
