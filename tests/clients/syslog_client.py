"""Sends messages over TCP, or each as a datagram: `syslog_client.py HOST FRAMING COUNT`.

FRAMING is lines, counted, both (by turns), or datagrams. Message n is `<13>... n=NNNNN. PADDING`. It takes
about two seconds, so that something can happen on the way.
"""

import socket
import sys
import time

host, framing, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
if framing == "datagrams":
    connection = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
else:
    connection = socket.create_connection((host, 514))
for n in range(count):
    text = b"<13>1 2024-05-06T07:08:09Z host needle-app - - - n=%05d. %s" % (n, b"needle" * 10)
    if framing == "datagrams":
        connection.sendto(text, (host, 514))
    elif framing == "counted" or (framing == "both" and n % 2):
        # A line feed inside of a counted message is part of it.
        connection.sendall(b"%d %s" % (len(text), text))
    else:
        connection.sendall(text + b"\n")
    if n % 100 == 99:
        time.sleep(2 * 100 / count)
connection.close()
