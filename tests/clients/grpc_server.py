"""A gRPC server that speaks TLS alone; its methods take bytes as they are.

usage: grpc_server.py HOST PORT CERTIFICATE KEY
"""
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

host, port, certificate, key = sys.argv[1:5]


def stream(request, context):
    for n in range(100):
        yield request + b" %d" % n


def metadata(request, context):
    context.set_trailing_metadata([("x-sum", str(len(request)))])
    return dict(context.invocation_metadata()).get("x-needle", "").encode()


methods = {
    "Echo": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
    "Stream": grpc.unary_stream_rpc_method_handler(stream),
    "Metadata": grpc.unary_unary_rpc_method_handler(metadata),
}
limits = [("grpc.max_receive_message_length", -1)]
server = grpc.server(ThreadPoolExecutor(4), options=limits)
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("lab.Lab", methods)])
pair = (Path(key).read_bytes(), Path(certificate).read_bytes())
server.add_secure_port(f"{host}:{port}", grpc.ssl_server_credentials([pair]))
server.start()
server.wait_for_termination()
