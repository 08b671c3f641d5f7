"""A server of Fluentd's forward protocol, written from "Forward Protocol Specification v1", that
speaks TLS alone; prints each event, and acknowledges chunks. With a key it speaks first (HELO).

usage: fluentd_peer.py HOST PORT CERTIFICATE KEY [SHARED_KEY]
"""
import hashlib
import socketserver
import ssl
import sys

import msgpack

host, port, certificate, key = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
shared = sys.argv[5].encode() if len(sys.argv) > 5 else None
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)


class Connection(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            self.stream = context.wrap_socket(self.request, server_side=True)
        except (ssl.SSLError, OSError):
            return
        self.unpacker = msgpack.Unpacker(raw=False, timestamp=0)
        if shared is None or self.is_greeted():
            for message in self.messages():
                self.take(message)

    def messages(self):
        while data := self.stream.recv(65536):
            self.unpacker.feed(data)
            yield from self.unpacker

    def is_greeted(self):
        nonce = b"0123456789abcdef"
        helo = ["HELO", {"nonce": nonce, "auth": "", "keepalive": True}]
        self.stream.sendall(msgpack.packb(helo))
        kind, name, salt, digest, _, _ = next(self.messages())
        assert kind == "PING", kind
        right = hashlib.sha512(salt + name.encode() + nonce + shared).hexdigest() == digest
        own = hashlib.sha512(salt + b"peer" + nonce + shared).hexdigest()
        pong = ["PONG", right, "" if right else "shared_key mismatch", "peer", own]
        self.stream.sendall(msgpack.packb(pong))
        return right

    def take(self, message):
        tag, second = message[0], message[1]
        if isinstance(second, list):
            events = second
        elif isinstance(second, (bytes, str)):
            events = msgpack.Unpacker(timestamp=0)
            events.feed(second)
        else:
            events = [message[1:3]]
        for _, record in events:
            sys.stdout.write(f"{tag} {record}\n")  # a line at once, whoever else writes
            sys.stdout.flush()
        option = message[-1] if isinstance(message[-1], dict) else {}
        if "chunk" in option:
            self.stream.sendall(msgpack.packb({"ack": option["chunk"]}))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server((host, port), Connection).serve_forever()
