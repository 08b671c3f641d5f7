"""Ten thousand statements by a fixed seed, and what becomes of each: number, whether policies keep it
back, the statement, and its outcome."""

import random
import sys

import psycopg

SEED = 20261124
COUNT = 10_000

dice = random.Random(SEED)
TABLES = ["orders", "items", "people", "salaries"]


def name(table):
    forms = [table, table.upper(), f'"{table}"', f"public.{table}", f'public . "{table}"', f"/* {table} */ {table}"]
    return dice.choice(forms)


def value():
    return dice.choice(
        ["1", "-7", "2.5", "null", "'x'", "'it''s'", "'a\\b'", "E'a\\'b'", "$$from salaries$$", "$t$;$t$", "true",
         "date '2020-02-29'", "array[1,2,3]", "'{\"a\": [1]}'::jsonb", "x'1f'", "current_date - current_date"]
    )


def expression(depth=0):
    if depth > 2 or dice.random() < 0.4:
        return value()
    a, b = expression(depth + 1), expression(depth + 1)
    return dice.choice(
        [f"coalesce({a}, null)", f"({a})", f"{a} is distinct from {b}", f"{a} is null", f"length({a}::text)",
         f"case when {a} is null then {b} end", f"cast({a} as text)", f"{a}::text || {b}::text",
         f"nullif({a}::text, {b}::text)", f"extract(year from date '2021-01-01')", f"upper({a}::text)",
         f"array_length(array[{a}], 1)", f"substring({a}::text from 1 for 2)"]
    )


def condition():
    return dice.choice([f"a > {dice.randrange(50)}", f"a in ({dice.randrange(9)}, 2)", "b like '%x%'", "a % 2 = 0", "true"])


def statement(table, other):
    t, u = name(table), name(other)
    kinds = [
        lambda: f"select {expression()}",
        lambda: f"select {expression()}, {expression()} -- from salaries",
        lambda: f"select a, b from {t} where {condition()} order by 1, 2",
        lambda: f"select count(*), max(a) from {t} x join {u} y using (a) where x.{condition()}",
        lambda: f"with w as (select a from {t}) select count(*) from w, {u} where w.{condition()}",
        lambda: f"select (select count(*) from {t}), exists (select 1 from {u} where {condition()})",
        lambda: f"insert into {t} (a, b) values ({dice.randrange(99)}, 'x') returning a",
        lambda: f"update {t} set b = b || 'y' where {condition()}",
        lambda: f"delete from {t} where a = {dice.randrange(99)}",
        lambda: f"select a from {t} union select a from {u} order by 1 limit {dice.randrange(5)}",
        lambda: f"explain (costs off) select a from {t} where {condition()}",
        lambda: f"select sum(a) over (partition by b order by a) from {t} order by 1 limit 3",
        lambda: f"table {t} order by 1, 2 limit 2",
        lambda: f"select * from (values (1, 'z'), (2, {value()}::text)) v (p, q)",
        lambda: f"select a from {t}; select a from {u} order by a limit 1",
        lambda: f"begin; insert into {t} values (100, 'gone'); rollback",
        lambda: f"savepoint s",
        lambda: f"select * from {t} where nothing = 1",
        lambda: f"selec a from {t}",
        lambda: f"copy (select a from {t} order by a limit 3) to stdout",
        lambda: f"truncate {t}" if dice.random() < 0.02 else f"lock table {t}",
    ]
    return dice.choice(kinds)()


with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    setup = "".join(
        f"drop table if exists {table}; create table {table} (a int, b text); "
        f"insert into {table} select n, 'row' || n from generate_series(1, 20) n; "
        for table in TABLES
        if table != "salaries"
    )
    connection.execute(setup)
    for number in range(COUNT):
        table, other = dice.choice(TABLES), dice.choice(TABLES)
        text = statement(table, other)
        kept = "salaries" in text.replace("-- from salaries", "").replace("$$from salaries$$", "").lower()
        # What nobody can read policies do not permit either.
        kept = kept or text.startswith("selec a")
        binary = dice.random() < 0.3
        try:
            if text.startswith("copy"):
                with connection.cursor().copy(text) as copy:
                    outcome = repr(b"".join(bytes(part) for part in copy))
            else:
                cursor = connection.execute(text, binary=binary)
                rows = []
                while True:
                    rows.append(cursor.fetchall() if cursor.description else cursor.statusmessage)
                    if not cursor.nextset():
                        break
                outcome = repr(rows)
        except psycopg.Error as error:
            message = str(error).splitlines()[0]
            outcome = type(error).__name__ + (" refused" if "refused by mantled" in message else " " + message)
            if connection.info.transaction_status:
                connection.rollback()
        print(number, "kept" if kept else "-", text, outcome, sep="\t")
