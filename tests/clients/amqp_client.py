"""pika at work, AMQP 0-9-1 in clear: publishes, fetches and consumes; prints what it saw.

usage: amqp_client.py HOST PORT BODY MEGABYTES
"""
import sys

import pika

host, port, body, megabytes = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
large = b"m" * (megabytes << 20)

connection = pika.BlockingConnection(
    pika.ConnectionParameters(host, port, blocked_connection_timeout=20, socket_timeout=5)
)
channel = connection.channel()
channel.confirm_delivery()
channel.queue_declare("lab", exclusive=True)
channel.basic_publish("", "lab", body.encode(), pika.BasicProperties(message_id="one"))
channel.basic_publish("", "lab", large)
method, properties, payload = channel.basic_get("lab")
print("got", properties.message_id, payload.decode())
channel.basic_ack(method.delivery_tag)
for method, properties, payload in channel.consume("lab", inactivity_timeout=20):
    print("consumed", len(payload), payload == large)
    channel.basic_ack(method.delivery_tag)
    break
connection.close()
print("closed")
