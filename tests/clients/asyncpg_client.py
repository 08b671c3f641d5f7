"""asyncpg at work; prints what it saw, so that two ways to the server can be compared.

usage: asyncpg_client.py HOST MEGABYTES CA_FILE|default|disable|require
"""
import asyncio
import hashlib
import os
import ssl
import sys
import time

import asyncpg

host, megabytes, trust = sys.argv[1], int(sys.argv[2]), sys.argv[3]
row = "x" * 1000


async def connect():
    if trust == "default":
        tls = None  # as if nothing was said
    elif trust in ("disable", "require"):
        tls = trust
    else:
        tls = ssl.create_default_context(cafile=trust)
    return await asyncpg.connect(
        host=host, user="postgres", database="postgres", password=os.environ["PGPASSWORD"], ssl=tls
    )


async def source():
    for block in range(megabytes):
        yield "".join(f"{block * 1000 + n}\t{row}\n" for n in range(1000)).encode()


async def main():
    connection = await connect()
    print("simple", await connection.execute("create temp table t (id int, v text); select 1"))
    print("extended", [tuple(r) for r in await connection.fetch("select $1::int + 1, $2::text", 41, "déjà vu")])
    # asyncpg takes every result in binary.
    rows = await connection.fetch(
        "select g, g::float8 / 7, decode(md5(g::text), 'hex'), array[g, g + 1], now() - now()"
        " from generate_series(1, 5000) g order by g"
    )
    print("binary", len(rows), hashlib.sha256(repr([tuple(r) for r in rows]).encode()).hexdigest())
    async with connection.transaction():
        total = 0
        async for record in connection.cursor("select g from generate_series(1, 3000) g"):
            total += record[0]
        print("cursor", total)
    print("copy in", await connection.copy_to_table("t", source=source()))
    digest, length = hashlib.sha256(), 0

    async def sink(data):
        nonlocal length
        digest.update(data)
        length += len(data)

    print("copy out", await connection.copy_from_query("select * from t order by id", output=sink))
    print("copied", length, digest.hexdigest())

    listener = await connect()
    heard = asyncio.get_running_loop().create_future()
    await listener.add_listener("news", lambda c, pid, channel, payload: heard.set_result((channel, payload)))
    await connection.execute("notify news, 'hello'")
    print("notify", await asyncio.wait_for(heard, 10))
    await listener.close()

    begun = time.monotonic()
    try:
        # It cancels the query on the server when its time is over.
        await connection.fetch("select pg_sleep(30)", timeout=0.5)
        sys.exit("the query was not cancelled")
    except asyncio.TimeoutError:
        print("cancel")
    print("after", await connection.fetchval("select 'still here'"))
    # It gives up its query in any case, but the next one waits for the server's end of it.
    if time.monotonic() - begun > 10:
        sys.exit("the query was not cancelled on the server")
    await connection.close()


try:
    asyncio.run(main())
except asyncpg.PostgresError as error:
    sys.exit(f"{error.sqlstate} {error}")
