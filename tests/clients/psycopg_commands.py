"""What psycopg does where policies let it read, and write to t alone."""

import sys

import psycopg
from psycopg import errors, pq

conninfo = sys.argv[1]


def name(error):
    return type(error).__name__


def attempt(act):
    try:
        return act()
    except psycopg.Error as error:
        return name(error)


def status(connection):
    return pq.TransactionStatus(connection.info.transaction_status).name


with psycopg.connect(conninfo) as connection:
    print("simple:", connection.execute("select 1").fetchone()[0])
    before = status(connection)
    error = attempt(lambda: connection.execute("delete from t"))
    print(f"refused: {error} {before}->{status(connection)}")
    connection.rollback()

    connection.autocommit = True
    error = attempt(lambda: connection.execute("drop table t"))
    print(f"autocommit refused: {error} {status(connection)}")
    connection.autocommit = False

    # One pipeline is one transaction: what stands before the refusal is rolled back with it.
    cursors = []
    try:
        with connection.pipeline():
            for statement in ("insert into t values (1)", "delete from t", "insert into t values (2)"):
                cursors.append(connection.execute(statement))
        outcome = "carried"
    except psycopg.Error as error:
        outcome = name(error)
    print(f"pipeline: {outcome}, first {cursors[0].rowcount}, {status(connection)}")
    connection.rollback()
    print("rows after the pipeline:", connection.execute("select count(*) from t").fetchone()[0])
    connection.rollback()

    connection.autocommit = True
    results = []
    with connection.pipeline() as pipeline:
        one = connection.execute("select %s::int", (1,))
        pipeline.sync()
        results.append(one.fetchone())
        try:
            connection.execute("select * from salaries")
            pipeline.sync()
        except psycopg.Error as error:
            results.append(name(error))
        two = connection.execute("select %s::int", (2,))
        pipeline.sync()
        results.append(two.fetchone())
    print("pipeline of syncs:", results)
    connection.autocommit = False

    with connection.cursor("mine") as cursor:
        cursor.itersize = 100
        cursor.execute("select generate_series(1, 1000)")
        print("server-side cursor:", sum(1 for _ in cursor), "rows")
    row = connection.execute(
        "select %b::int4, %b::bytea, %b::float8", (7, b"\x00\xff", 1.5), binary=True
    ).fetchone()
    print("binary:", row)
    for turn in range(20):
        connection.execute("select %s::int + 1", (turn,), prepare=True).fetchone()
    connection.commit()
    error = attempt(lambda: connection.execute("update salaries set a = %s", (1,), prepare=True))
    connection.rollback()
    print("prepared: 20 executions, refused", error)
    with connection.cursor().copy("copy t from stdin") as copy:
        for turn in range(1000):
            copy.write_row((turn,))
    print("copy in:", connection.execute("select count(*) from t").fetchone()[0])
    with connection.cursor().copy("copy t to stdout") as copy:
        print("copy out:", sum(1 for _ in copy.rows()))
    connection.rollback()

    # PQfn, by which libpq's large objects work.
    result = pq.PGconn.connect(conninfo.encode())
    result.finish()
    error = attempt(lambda: connection.execute("select lo_import('/etc/passwd')"))
    connection.rollback()
    print("function call:", error)
    print("end:", connection.execute("select 1").fetchone()[0])
