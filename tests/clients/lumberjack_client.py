"""A writer of Lumberjack in clear, written from the protocol's PROTOCOL.md: windows of version 1,
of version 2, and compressed; prints what was acknowledged.

usage: lumberjack_client.py HOST PORT TEXT
"""
import json
import socket
import struct
import sys
import zlib

address, text = (sys.argv[1], int(sys.argv[2])), sys.argv[3]


def number(value):
    return struct.pack("!I", value)


def counted(data):
    return number(len(data)) + data


def data(sequence, fields):
    pairs = b"".join(counted(k.encode()) + counted(v.encode()) for k, v in fields.items())
    return b"1D" + number(sequence) + number(len(fields)) + pairs


def event(sequence, fields):
    return b"2J" + number(sequence) + counted(json.dumps(fields).encode())


def acknowledged(connection):
    frame = b""
    while len(frame) < 6:
        more = connection.recv(6 - len(frame))
        if not more:
            sys.exit("closed")
        frame += more
    return frame[:2].decode(), struct.unpack("!I", frame[2:])[0]


with socket.create_connection(address, timeout=20) as connection:
    connection.sendall(b"1W" + number(1) + data(1, {"line": text, "host": "h"}))
    print(*acknowledged(connection))
with socket.create_connection(address, timeout=20) as connection:
    connection.sendall(b"2W" + number(2) + event(1, {"m": text}) + event(2, {"m": text}))
    print(*acknowledged(connection))
    batch = b"".join(event(n, {"m": text * 100}) for n in range(3, 503))
    connection.sendall(b"2W" + number(500) + b"2C" + counted(zlib.compress(batch)))
    print(*acknowledged(connection))
