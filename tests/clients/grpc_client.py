"""A gRPC client on an insecure channel; prints what it saw.

usage: grpc_client.py HOST PORT TEXT MEGABYTES
"""
import sys

import grpc

host, port, text, megabytes = sys.argv[1], sys.argv[2], sys.argv[3].encode(), int(sys.argv[4])

limits = [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
with grpc.insecure_channel(f"{host}:{port}", options=limits) as channel:
    echo = channel.unary_unary("/lab.Lab/Echo")
    try:
        print("echo", echo(text, timeout=20).decode())
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
    large = b"g" * (megabytes << 20)
    print("large", echo(large, timeout=20) == large)
    print("stream", sum(1 for _ in channel.unary_stream("/lab.Lab/Stream")(text, timeout=20)))
    answer, call = channel.unary_unary("/lab.Lab/Metadata").with_call(
        text, timeout=20, metadata=[("x-needle", text.decode())]
    )
    print("metadata", answer.decode(), dict(call.trailing_metadata())["x-sum"])
