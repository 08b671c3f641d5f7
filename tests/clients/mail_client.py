"""Python's own clients for mail and news at work, in clear; prints what they saw.

usage: mail_client.py smtp|lmtp|imap|pop3|nntp HOST PORT USER PASSWORD
       mail_client.py greeting HOST PORT

A message is read from standard input. `greeting` prints what a server says until it closes.
"""
import imaplib
import poplib
import smtplib
import socket
import sys
import time
import warnings

protocol, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
user, password = (sys.argv + [""] * 2)[4:6]
TIMEOUT = 20


def message():
    return sys.stdin.buffer.read()


def smtp():
    with smtplib.SMTP(host, port, timeout=TIMEOUT) as client:
        client.ehlo()
        print("offers", sorted(set(client.esmtp_features) & {"starttls", "auth", "pipelining"}))
        print("starttls", *client.docmd("STARTTLS"))
        if password:
            print("login", client.login(user, password)[0])
        refused = client.sendmail("agent@host.example", [f"{user}@site.example"], message())
        print("sent", refused)


def lmtp():
    with smtplib.LMTP(host, port, timeout=TIMEOUT) as client:
        print("sent", client.sendmail("agent@host.example", [f"{user}@site.example"], message()))


def imap():
    client = imaplib.IMAP4(host, port, timeout=TIMEOUT)
    print("greeting", client.welcome)
    words = client.capabilities
    print("offers", [word for word in words if word in ("STARTTLS", "LOGINDISABLED", "AUTH=PLAIN")])
    try:
        print("starttls", client.xatom("STARTTLS"))
    except imaplib.IMAP4.error as error:
        print("starttls", error)
    print("login", client.login(user, password)[0])
    text = message()
    print("append", client.append("INBOX", None, None, text)[0])
    print("select", client.select("INBOX")[0])
    newest = client.search(None, "ALL")[1][0].split()[-1]
    fetched = client.fetch(newest, "(RFC822)")[1][0][1]
    print("same", fetched == text)
    client.logout()


def pop3():
    client = poplib.POP3(host, port, timeout=TIMEOUT)
    print("greeting", client.getwelcome())
    print("offers", [word for word in ("STLS", "USER") if word in client.capa()])
    try:
        print("stls", client._shortcmd("STLS"))
    except poplib.error_proto as error:
        print("stls", error)
    client.user(user)
    client.pass_(password)
    newest = client.stat()[0]
    lines = client.retr(newest)[1]
    text = b"".join(line + b"\r\n" for line in lines)
    print("same", text.endswith(message()))
    client.quit()


def nntp():
    warnings.simplefilter("ignore")
    import nntplib

    client = nntplib.NNTP(host, port, timeout=TIMEOUT)
    offered = client.getcapabilities()
    print("offers", [word for word in ("STARTTLS", "POST") if word in offered])
    try:
        print("starttls", client._shortcmd("STARTTLS"))
    except nntplib.NNTPError as error:
        print("starttls", error)
    text = message()
    print("posted", client.post(text)[:3])
    for _ in range(100):
        count = client.group("site.test")[1]
        if count:
            break
        time.sleep(0.05)
    lines = client.article("1")[1].lines
    body = b"".join(line + b"\r\n" for line in lines[lines.index(b"") + 1 :])
    print("same", text.endswith(b"\r\n\r\n" + body))
    client.quit()


def greeting():
    with socket.create_connection((host, port), timeout=TIMEOUT) as client:
        while words := client.recv(4096):
            sys.stdout.write(words.decode())


try:
    globals()[protocol]()
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
