"""Sends events to Fluentd in clear: by fluent-logger; as a forwarder that wants acknowledgements;
and, with a key, as one that waits for HELO. The last two are written from "Forward Protocol
Specification v1". Prints what it was told.

usage: fluentd_client.py HOST PORT TEXT [SHARED_KEY]
"""
import hashlib
import socket
import sys
import time

import msgpack
from fluent.sender import FluentSender

address, text = (sys.argv[1], int(sys.argv[2])), sys.argv[3]
shared = sys.argv[4].encode() if len(sys.argv) > 4 else None


def forward(connection, unpacker):
    entries = msgpack.packb([int(time.time()), {"packed": text}])
    connection.sendall(msgpack.packb(["app.packed", entries, {"chunk": "c1"}]))
    return answer(connection, unpacker)


def answer(connection, unpacker):
    while True:
        for message in unpacker:
            return message
        data = connection.recv(65536)
        if not data:
            sys.exit("closed")
        unpacker.feed(data)


if shared is None:
    logger = FluentSender("app", host=address[0], port=address[1], timeout=10)
    print("logged", logger.emit("test", {"message": text}), logger.last_error)
    logger.close()

with socket.create_connection(address, timeout=20) as connection:
    unpacker = msgpack.Unpacker(raw=False)
    if shared is not None:
        helo, options = answer(connection, unpacker)
        salt, name = b"salt", b"agent"
        digest = hashlib.sha512(salt + name + options["nonce"] + shared).hexdigest()
        connection.sendall(msgpack.packb(["PING", name.decode(), salt, digest, "", ""]))
        print(helo, *answer(connection, unpacker)[:3])
    print(forward(connection, unpacker))
