"""Sends a megabyte over TLS and leaves without close_notify, as Python's sockets do.

Usage: tls_leaver.py ADDRESS PORT NAME AUTHORITY
"""

import socket
import ssl
import sys

address, port, name, authority = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
with socket.create_connection((address, int(port)), timeout=20) as plain:
    with context.wrap_socket(plain, server_hostname=name) as stream:
        stream.sendall(b"m" * (1 << 20))
print("sent")
