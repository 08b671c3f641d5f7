"""A WebSocket server that speaks TLS alone, sends back what it gets, and serves its own origin
only.

usage: websocket_server.py HOST PORT CERTIFICATE KEY
"""
import ssl
import sys

from websockets.sync.server import serve

host, port, certificate, key = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)


def echo(connection):
    for message in connection:
        connection.send(message)


own = f"https://{host}:{port}"
serve(echo, host, port, ssl=context, origins=[own], max_size=None).serve_forever()
