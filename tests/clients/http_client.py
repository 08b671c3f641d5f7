"""HTTP/1.1 in clear with what libraries rarely do: pipelined requests, HEAD, chunked bodies with
trailers in both directions, on one connection that is kept; prints what it saw.

usage: http_client.py HOST PORT TEXT
"""
import socket
import sys

host, port, text = sys.argv[1], int(sys.argv[2]), sys.argv[3]
own = f"Host: {host}:{port}\r\n"


def response(stream, has_body=True):
    status = stream.readline().split()[1].decode()
    fields = {}
    while (line := stream.readline().decode().rstrip("\r\n")) != "":
        name, _, value = line.partition(": ")
        fields[name.lower()] = value
    body = b""
    if has_body and fields.get("transfer-encoding") == "chunked":
        while size := int(stream.readline(), 16):
            body += stream.read(size)
            stream.readline()
        while (line := stream.readline().decode().rstrip("\r\n")) != "":
            print("trailer", line)
    elif has_body:
        body = stream.read(int(fields.get("content-length", 0)))
    return status, fields, body


with socket.create_connection((host, port), timeout=20) as connection:
    stream = connection.makefile("rb")
    chunked = f"5;x=y\r\n{text[:5]}\r\n{len(text) - 5:x}\r\n{text[5:]}\r\n0\r\nX-Sum: 1\r\n\r\n"
    connection.sendall(
        (
            f"GET /old HTTP/1.1\r\n{own}\r\n"
            f"HEAD /new HTTP/1.1\r\n{own}\r\n"
            f"POST /echo HTTP/1.1\r\n{own}Transfer-Encoding: chunked\r\n\r\n{chunked}"
            f"GET /chunked HTTP/1.1\r\n{own}\r\n"
            f"GET /new HTTP/1.1\r\n{own}If-None-Match: *\r\n\r\n"
            f"GET /nothing HTTP/1.1\r\n{own}\r\n"
        ).encode()
    )
    status, fields, _ = response(stream)
    print("old", status, fields["location"])
    status, fields, _ = response(stream, has_body=False)
    print("head", status, fields["content-length"])
    status, fields, body = response(stream)
    print("echo", status, body.decode())
    status, fields, body = response(stream)
    print("chunked", status, fields["transfer-encoding"], len(body), body == b"c" * len(body))
    print("new", response(stream)[0])
    print("nothing", response(stream)[0])
    connection.sendall(f"GET /new HTTP/1.1\r\n{own}Connection: close\r\n\r\n".encode())
    print("kept", response(stream)[2].decode().strip())
    print("closed", stream.read() == b"")
