"""What a MySQL client meets where policies let it read, and write to t alone."""

import os
import struct
import sys
import tempfile

import pymysql
from pymysql.constants import CLIENT, COMMAND

db = pymysql.connect(
    host=sys.argv[1], user="alice", password=os.environ["PGPASSWORD"], database="shop",
    ssl_disabled=True, client_flag=CLIENT.MULTI_STATEMENTS, autocommit=True, local_infile=True,
    max_allowed_packet=64 << 20,
)
cursor = db.cursor()


def attempt(act):
    try:
        return act()
    except pymysql.MySQLError as error:
        return error.args


def code(act):
    outcome = attempt(act)
    return outcome[0] if isinstance(outcome, tuple) else outcome


def ask(text):
    cursor.execute(text)
    return cursor.fetchone()[0]


def prepare(text):
    db._execute_command(COMMAND.COM_STMT_PREPARE, text)
    packet = db._read_packet()
    number, columns, parameters = struct.unpack("<xIHH", packet.get_all_data()[:9])
    for count in (parameters, columns):
        if count:
            for _ in range(count + 1):
                db._read_packet()
    return number


def execute(number):
    db._execute_command(COMMAND.COM_STMT_EXECUTE, struct.pack("<IBI", number, 0, 1))
    count = db._read_packet().get_all_data()[0]
    for _ in range(count + 1):
        db._read_packet()
    row = db._read_packet().get_all_data()
    db._read_packet()
    return row[2]


print("simple:", ask("select 1"))
code_, text = attempt(lambda: cursor.execute("delete from t"))
print("refused:", code_, text)
cursor.execute("insert into t (a) values (1), (2), (3)")
print("goes on:", ask("select count(*) from t"))
print("several:", code(lambda: cursor.execute("select 1; delete from t")))
cursor.execute("begin")
cursor.execute("insert into t values (10)")
attempt(lambda: cursor.execute("drop table t"))
cursor.execute("insert into t values (11)")
cursor.execute("commit")
print("transaction:", ask("select count(*) from t where a = 10"), "row before the refusal and",
      ask("select count(*) from t where a = 11"), "behind it")
number = prepare("select 3 + 4")
print(f"prepared: {execute(number)}, refused {code(lambda: prepare('update salaries set a = ?'))}")
print("a string with escapes:", ask("select 'it\\'s \\\\\\\\ 5' -- from salaries"))
print("another database:", code(lambda: db.select_db("mysql")))
print("kill:", code(lambda: db.kill(1)))


def change_user():
    db._execute_command(COMMAND.COM_CHANGE_USER, b"nobody\0\0shop\0")
    return db._read_packet()


print("change user:", code(change_user))
# After that nobody here knows how strings are read.
cursor.execute("set sql_mode = 'NO_BACKSLASH_ESCAPES'")
print("sql_mode:", code(lambda: cursor.execute("select '\\'; delete from t; -- '")))
print("long:", code(lambda: cursor.execute("select '" + "x" * 20_000_000 + "'")))
with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
    file.write("".join(f"{number}\n" for number in range(100, 5100)))
    file.flush()
    cursor.execute(f"load data local infile '{file.name}' into table shop.t")
    print("load data:", ask("select count(*) from shop.t where a >= 100"))
    refused = code(lambda: cursor.execute(f"load data local infile '{file.name}' into table salaries"))
    print("load data into another table:", refused)
print("end:", ask("select 1"))
# No server takes this for a command; nobody lets it get so far.
db._sock.sendall(b"\x0d\0\0\x01\x03drop table t")
try:
    answer = db._sock.recv(100)
except ConnectionError:
    answer = b""
print("a packet of another number:", "answered" if answer else "closed")
