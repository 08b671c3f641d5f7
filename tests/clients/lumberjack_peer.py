"""A reader of Lumberjack 1 and 2, written from the protocol's PROTOCOL.md, that speaks TLS alone;
prints each event, and acknowledges each window.

usage: lumberjack_peer.py HOST PORT CERTIFICATE KEY
"""
import io
import json
import socketserver
import ssl
import struct
import sys
import zlib

host, port, certificate, key = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)


def number(stream):
    return struct.unpack("!I", stream.read(4))[0]


def counted(stream):
    return stream.read(number(stream))


def events(stream):
    """Version, sequence and event of each, or (version, None, window)."""
    while header := stream.read(2):
        version, kind = header[:1], header[1:]
        if kind == b"W":
            yield version, None, number(stream)
        elif kind == b"C":
            yield from events(io.BytesIO(zlib.decompress(counted(stream))))
        elif kind == b"J":
            sequence = number(stream)
            yield version, sequence, json.loads(counted(stream))
        elif kind == b"D":
            sequence, pairs = number(stream), number(stream)
            fields = [(counted(stream).decode(), counted(stream).decode()) for _ in range(pairs)]
            yield version, sequence, dict(fields)
        else:
            raise ValueError(header)


class Connection(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            socket = context.wrap_socket(self.request, server_side=True)
        except (ssl.SSLError, OSError):
            return
        left = 0
        for version, sequence, event in events(socket.makefile("rb")):
            if sequence is None:
                left = event
                continue
            print(version.decode(), json.dumps(event)[:200], flush=True)
            left -= 1
            if left == 0:
                socket.sendall(version + b"A" + struct.pack("!I", sequence))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server((host, port), Connection).serve_forever()
