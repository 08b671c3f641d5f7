"""What asyncpg does where policies let it read, and write to t alone."""

import asyncio
import os
import sys

import asyncpg


async def refused(awaitable):
    try:
        await awaitable
    except asyncpg.PostgresError as error:
        return type(error).__name__
    return "carried"


async def main():
    connection = await asyncpg.connect(
        host=sys.argv[1], user="postgres", password=os.environ["PGPASSWORD"], ssl=False
    )
    print("select:", await connection.fetchval("select $1::int + 2", 5))
    print("refused:", await refused(connection.execute("delete from t")))
    await connection.executemany(
        "insert into t values ($1)", [(number,) for number in range(1500)]
    )
    print("executemany:", await connection.fetchval("select count(*) from t"))
    async with connection.transaction():
        count = 0
        async for _ in connection.cursor("select generate_series(1, 100)", prefetch=7):
            count += 1
        print("cursor:", count)
    transaction = connection.transaction()
    await transaction.start()
    first = await refused(connection.fetch("select * from salaries where a = $1", 1))
    then = await refused(connection.fetch("select 1"))
    await transaction.rollback()
    print("transaction:", first, "then", then)
    await connection.copy_records_to_table("t", records=[(number,) for number in range(100)])
    print("copy:", await connection.fetchval("select count(*) from t") - 1500)
    print("end:", await connection.fetchval("select 1"))
    await connection.close()


asyncio.run(main())
