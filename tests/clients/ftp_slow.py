"""Begins a download and waits for its end: `ftp_slow.py HOST passive|active`."""

import ftplib
import sys

ftp = ftplib.FTP(sys.argv[1], timeout=60)
ftp.login()
ftp.set_pasv(sys.argv[2] == "passive")
data = ftp.transfercmd("RETR file")
received = len(data.recv(1))
print("begun", flush=True)
while part := data.recv(65536):
    received += len(part)
sys.exit(received != 5_000_000)
