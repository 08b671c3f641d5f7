"""Transfers that go otherwise than wished, on one control connection: `ftp_corners.py HOST`."""

import ftplib
import io
import sys

ftp = ftplib.FTP(sys.argv[1], timeout=60)
ftp.login("anonymous", "x")


def told(act):
    try:
        return act()[:3]
    except ftplib.all_errors as error:
        return str(error)[:3]


for passive in (True, False):
    ftp.set_pasv(passive)
    empty = "in/empty-passive" if passive else "in/empty-active"
    print("empty", told(lambda: ftp.storbinary("STOR " + empty, io.BytesIO())), ftp.size(empty))
    print("missing", told(lambda: ftp.retrbinary("RETR no-such-file", print)))
    print("forbidden", told(lambda: ftp.storbinary("STOR outside", io.BytesIO(b"x" * 100000))))
    # The agent does not want the rest.
    connection = ftp.transfercmd("RETR large")
    connection.recv(1000)
    connection.close()
    print("given up", told(ftp.voidresp))
    whole = io.BytesIO()
    print("whole", told(lambda: ftp.retrbinary("RETR large", whole.write)), len(whole.getvalue()))
print("elsewhere", told(lambda: ftp.sendport(sys.argv[1], 5000)))
print("privileged", told(lambda: ftp.sendport("127.0.0.1", 22)))
ftp.quit()
