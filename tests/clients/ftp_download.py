"""Downloads by PASV and prints what came: `ftp_download.py HOST`."""

import ftplib
import sys

ftp = ftplib.FTP(sys.argv[1], timeout=20)
# The address is taken from the reply, as many clients do.
ftp.trust_server_pasv_ipv4_address = True
ftp.login("needle-user", "needle-password")
ftp.retrbinary("RETR file", lambda part: print(part.decode(), end="", flush=True))
