"""Sends messages over TCP: `syslog_client.py HOST FRAMING COUNT`.

FRAMING is lines, counted, or both (by turns). Message n is `<13>... n=NNNNN. PADDING`. It takes
about two seconds, so that something can happen on the way.
"""

import socket
import sys
import time

host, framing, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
connection = socket.create_connection((host, 514))
for n in range(count):
    text = b"<13>1 2024-05-06T07:08:09Z host needle-app - - - n=%05d. %s" % (n, b"needle" * 10)
    if framing == "counted" or (framing == "both" and n % 2):
        # A line feed inside of a counted message is part of it.
        connection.sendall(b"%d %s" % (len(text), text))
    else:
        connection.sendall(text + b"\n")
    if n % 100 == 99:
        time.sleep(2 * 100 / count)
connection.close()
