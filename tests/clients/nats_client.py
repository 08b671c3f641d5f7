"""nats-py, without TLS: works through what a NATS connection carries, and prints what it saw."""

import asyncio
import sys

import nats


async def main(url):
    problems = []

    async def note(error):
        problems.append(repr(error))

    nc = await nats.connect(url, error_cb=note, allow_reconnect=False, connect_timeout=10)
    other = await nats.connect(url, error_cb=note, allow_reconnect=False, connect_timeout=10)
    print("told of TLS", [key for key in nc._server_info if "tls" in key])

    # One to many.
    sub = await nc.subscribe("needle.subject.*")
    await nc.flush()
    for n in range(1000):
        await other.publish(f"needle.subject.{n}", b"needle-payload-%d" % n)
    await other.flush()
    got = [await sub.next_msg(10) for _ in range(1000)]
    print("messages", [m.data for m in got] == [b"needle-payload-%d" % n for n in range(1000)])

    # A payload that looks like the protocol's own words, with headers and without.
    trap = b'INFO {"tls_required":true,"tls_available":true}\r\nMSG a 1 5\r\n-ERR \'x\'\r\n'
    await other.publish("needle.subject.trap", trap)
    await other.publish("needle.subject.trap", trap, headers={"needle-header": "one"})
    first, second = await sub.next_msg(10), await sub.next_msg(10)
    print("trap", first.data == trap, second.data == trap, second.headers)

    async def answer(message):
        await message.respond(b"re: " + message.data)

    await other.subscribe("needle.service", cb=answer)
    await other.flush()
    print("reply", (await nc.request("needle.service", b"question", timeout=10)).data)
    megabyte = b"needle-megabyte-" * 65536
    reply = await nc.request("needle.service", megabyte[:-4], timeout=20)
    print("megabyte", reply.data == b"re: " + megabyte[:-4])
    await other.drain()
    await nc.close()
    print("problems", problems)


try:
    asyncio.run(main(sys.argv[1]))
except Exception as error:
    print("refused", repr(error))
