"""Sends every attempt of a file of tests/evasions that is to be denied, over one connection where
that is possible, and prints those that were not refused."""

import os
import socket
import sys
import tomllib

kind, host, path = sys.argv[1:4]
with open(path, "rb") as file:
    cases = tomllib.load(file)["case"]
denied = [case for case in cases if case.get("expect") != "allow"]


def postgresql():
    from psycopg import pq

    conninfo = f"host={host} user=postgres dbname=postgres sslmode=disable"
    connection = pq.PGconn.connect(conninfo.encode())
    assert connection.status == pq.ConnStatus.OK, connection.error_message
    send = {
        "simple": lambda text: connection.exec_(text),
        "extended": lambda text: connection.exec_params(text, []),
        "prepared": lambda text: connection.prepare(b"", text),
    }
    for case in denied:
        for text in case["sql"]:
            for way, act in send.items():
                result = act(text.encode())
                words = result.error_message.decode().splitlines() or ["(no error)"]
                yield text, way, "refused by mantled" in words[0], words[0]
                state = connection.transaction_status
                assert state == pq.TransactionStatus.IDLE, (text, way, state)
    result = connection.exec_(b"select 'alive'")
    assert result.get_value(0, 0) == b"alive"


def mysql():
    import pymysql
    from pymysql.constants import CLIENT, COMMAND

    connection = pymysql.connect(
        host=host, user="alice", password=os.environ["PGPASSWORD"], database="shop",
        ssl_disabled=True, client_flag=CLIENT.MULTI_STATEMENTS, local_infile=True,
    )
    for case in denied:
        for text in case["sql"]:
            for way in (COMMAND.COM_QUERY, COMMAND.COM_STMT_PREPARE):
                try:
                    connection._execute_command(way, text)
                    connection._read_packet()
                    words = "(no error)"
                except pymysql.MySQLError as error:
                    words = str(error)
                yield text, way, "refused by mantled" in words, words
                assert words != "(no error)", text
    cursor = connection.cursor()
    cursor.execute("select 'alive'")
    assert cursor.fetchone() == ("alive",)


def redis():
    stream = socket.create_connection((host, 6379)).makefile("rwb")
    for case in denied:
        for text in case["redis"]:
            words = [word.encode() for word in text.split()]
            parts = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
            for way, command in (
                ("array", b"*%d\r\n%s" % (len(words), parts)),
                ("inline", None if "'" in text else b" ".join(words) + b"\n"),
            ):
                if command is None:
                    continue
                stream.write(command)
                stream.flush()
                answer = stream.readline().decode()
                yield text, way, answer.startswith("-NOPERM refused by mantled"), answer.strip()


def http():
    def exchange(request):
        with socket.create_connection((host, 80)) as connection:
            connection.sendall(request)
            connection.settimeout(5)
            answer = b""
            try:
                while part := connection.recv(65536):
                    answer += part
            except (TimeoutError, ConnectionError) as error:
                answer += repr(error).encode()
            return answer.decode(errors="replace")

    for case in denied:
        for text in case["request"]:
            head = f"{text} HTTP/1.1\r\nHost: web.example.com\r\nConnection: close\r\n\r\n"
            answer = exchange(head.encode())
            # What is no request at all ends the session.
            refused = " 403 " in answer or "mantled refused" in answer or "Reset" in answer or answer == ""
            yield text, "request", refused, answer


tried = 0
for text, way, refused, answer in {"postgresql": postgresql, "mysql": mysql, "redis": redis, "http": http}[kind]():
    tried += 1
    if not refused:
        print(f"{way}: {text!r}: {answer}")
print(f"{tried} tried")
