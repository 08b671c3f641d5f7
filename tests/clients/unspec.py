"""Socket calls with AF_UNSPEC addresses, which no safe library makes.

usage: unspec.py replay HOST PORT PROXY_PORT   connect, disconnect, connect to the proxy itself
       unspec.py sendto HOST PORT WORDS        wait for input, then send a datagram
"""
import ctypes
import os
import socket
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])


def unspecified(address="0.0.0.0", port=0):
    return struct.pack("=HH4s8x", socket.AF_UNSPEC, socket.htons(port), socket.inet_aton(address))


if kind == "replay":
    s = socket.create_connection((host, port), timeout=10)
    s.sendall(b"honest")
    print(s.recv(6).decode())
    if libc.connect(s.fileno(), unspecified(), 16) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    s.connect(("127.0.0.1", int(sys.argv[4])))
    s.sendall(b"replayed")
    print(s.recv(8).decode())
else:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    print("made", flush=True)
    sys.stdin.read()
    words = sys.argv[4].encode()
    if libc.sendto(s.fileno(), words, len(words), 0, unspecified(host, port), 16) < 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    print("sent")
