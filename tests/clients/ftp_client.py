"""A plaintext FTP client on Python's ftplib: `ftp_client.py HOST MODE FILE`.

MODE is pasv, epsv, or active (PORT to an IPv4 server, EPRT to an IPv6 one). Prints what it saw:
the features, how the server answers AUTH, and the digest of FILE after a trip there and back.
"""

import ftplib
import hashlib
import socket
import sys

host, mode, path = sys.argv[1:]
ftp = ftplib.FTP(host, timeout=60)
features = ftp.sendcmd("FEAT").upper()
print("features of TLS:", [word for word in ("AUTH", "PBSZ", "PROT") if word in features])
for command in ("AUTH TLS", "PROT C"):
    try:
        print(command, ftp.sendcmd(command)[:3])
    except ftplib.error_perm as error:
        print(command, "refused" if str(error)[0] == "5" else error)
ftp.login("anonymous", "needle-password@example.com")
ftp.set_pasv(mode != "active")
if mode == "epsv":
    # ftplib says EPSV where it takes the control connection for IPv6.
    ftp.af = socket.AF_INET6
ftp.cwd("in")
name = "needle-" + mode
with open(path, "rb") as file:
    print(ftp.storbinary("STOR " + name, file)[:3])
digest = hashlib.sha256()
print(ftp.retrbinary("RETR " + name, digest.update)[:3])
print(digest.hexdigest())
lines = []
ftp.retrlines("LIST", lines.append)
print([line.split()[-1] for line in lines if name in line])
ftp.quit()
