"""A WebSocket client in clear, that names its own origin; prints what it saw.

usage: websocket_client.py HOST PORT TEXT MEGABYTES
"""
import sys

from websockets.sync.client import connect

host, port, text, megabytes = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])

own = f"{host}:{port}"
with connect(f"ws://{own}/chat", origin=f"http://{own}", compression=None, max_size=None) as socket:
    socket.send(text)
    print("text", socket.recv(timeout=20))
    large = b"w" * (megabytes << 20)
    socket.send(large)
    print("large", socket.recv(timeout=20) == large)
    # Looks like HTTP, and is none any more.
    like = "HTTP/1.1 200 OK\r\nStrict-Transport-Security: max-age=1\r\n\r\n"
    socket.send(like)
    print("unchanged", socket.recv(timeout=20) == like)
    print("pong", socket.ping().wait(20))
