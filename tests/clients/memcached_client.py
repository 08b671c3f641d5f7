"""pymemcache at work, the text protocol in clear, then a session in the binary protocol; prints
what it saw.

usage: memcached_client.py HOST PORT VALUE
"""
import socket
import struct
import sys

from pymemcache.client.base import Client

address, value = (sys.argv[1], int(sys.argv[2])), sys.argv[3].encode()

client = Client(address, connect_timeout=5, timeout=10)
print("set", client.set("key", value, noreply=False))
print("get", client.get("key").decode())
print("many", sorted(client.get_many(["key", "none"])))
large = b"v" * 900_000
print("large", client.set("large", large, noreply=False), client.get("large") == large)
print("incr", client.set("n", "41", noreply=False), client.incr("n", 1))
client.quit()


def request(opcode, key=b"", extras=b"", body=b""):
    length = len(key) + len(extras) + len(body)
    header = struct.pack("!BBHBBHIIQ", 0x80, opcode, len(key), len(extras), 0, 0, length, 7, 0)
    return header + extras + key + body


def response(stream):
    header = stream.read(24)
    magic, opcode, key, extras, _, status, length, opaque, _ = struct.unpack("!BBHBBHIIQ", header)
    assert (magic, opaque) == (0x81, 7), header
    return status, stream.read(length)[extras + key :]


with socket.create_connection(address, timeout=10) as connection:
    stream = connection.makefile("rwb")
    stream.write(request(0x00, b"key"))
    stream.flush()
    print("binary get", *response(stream))
