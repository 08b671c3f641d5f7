use super::*;

const POSTGRESQL: Dialect = Dialect::Postgresql {
    standard_strings: Some(true),
};
const MYSQL: Dialect = Dialect::Mysql {
    no_backslash_escapes: Some(false),
};

/// What is read of a text, in one line a statement.
fn told(text: &str, dialect: Dialect) -> Vec<String> {
    let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(",");
    read(text.as_bytes(), dialect)
        .iter()
        .map(|statement| {
            let actions: Vec<&str> = statement
                .actions
                .iter()
                .map(|action| action.name())
                .collect();
            format!(
                "{} {} [{}] ({}){}",
                statement.kind,
                actions.join("+"),
                list(&statement.tables),
                list(&statement.functions),
                if statement.unbounded {
                    " unbounded"
                } else {
                    ""
                }
            )
        })
        .collect()
}

#[test]
fn postgresql_is_read() {
    for (text, expected) in [
        ("select 1", "select read [] ()"),
        (
            "SELECT a, b FROM t, s.u x JOIN \"V\" USING (id) WHERE a = 'from w'",
            "select read [V,t,u] ()",
        ),
        (
            "select * from (a join b on a.x = b.x), c",
            "select read [a,b,c] ()",
        ),
        (
            "select * from ((a cross join b) join c on true) where x in (select y from d)",
            "select read [a,b,c,d] ()",
        ),
        (
            "select extract(year from t.x), trim(both from y) from t",
            "select read [t] (extract,trim)",
        ),
        ("select x is distinct from y from t", "select read [t] ()"),
        (
            "with u as (select * from u) select * from u",
            "select read [u] ()",
        ),
        ("with w as (select 1) select * from w", "select read [] ()"),
        (
            "with recursive w(n) as (select 1 union all select n + 1 from w) select * from w, v",
            "select read [v] ()",
        ),
        (
            "with w as (delete from t returning *) select * from w",
            "select read+write [t] () unbounded",
        ),
        (
            "with a as (select 1), b as (select * from a) update t set x = 1 from b where true",
            "update read+write [t] ()",
        ),
        ("select * from t for update", "select read+write [t] ()"),
        ("select * into n from t", "select read+write+ddl [n,t] ()"),
        (
            "select count(*), lower(x) from t",
            "select read [t] (count,lower)",
        ),
        ("select mine(x) from t", "select read+write [t] (mine)"),
        ("select public.lower(x)", "select read+write [] (lower)"),
        ("select pg_catalog.lower(x)", "select read [] (lower)"),
        (
            "select pg_read_file('/etc/passwd')",
            "select read+admin [] (pg_read_file)",
        ),
        (
            "select query_to_xml('select 1', true, true, '')",
            "select read+unparsed [] (query_to_xml)",
        ),
        (
            "select * from generate_series(1, 3) g",
            "select read [] (generate_series)",
        ),
        (
            "select * from t a, lateral (select * from u) b, v",
            "select read [t,u,v] ()",
        ),
        ("insert into t (a, b) values (1, 2)", "insert write [t] ()"),
        (
            "insert into t select * from u on conflict (a) do update set b = 1, c = 2",
            "insert read+write [t,u] ()",
        ),
        ("update t set a = 1, b = 2", "update write [t] () unbounded"),
        (
            "update only t as x set a = (select 1 from u where true) where b",
            "update read+write [t,u] ()",
        ),
        (
            "delete from t using u, v where t.a = u.a",
            "delete read+write [t,u,v] ()",
        ),
        ("delete from t", "delete write [t] () unbounded"),
        (
            "merge into t using s on t.a = s.a when matched then update set b = 1, c = 2 when not matched then insert (a) values (1)",
            "merge read+write [s,t] ()",
        ),
        (
            "truncate table only a, b cascade",
            "truncate write [a,b] () unbounded",
        ),
        ("table t", "table read [t] ()"),
        ("values (1), (2)", "values read [] ()"),
        ("(select 1) union (select * from t)", "select read [t] ()"),
        ("begin", "begin read [] ()"),
        ("set search_path = x", "set read [] ()"),
        ("set local role 'x'", "set admin [] ()"),
        ("set \"role\" = x", "set admin [] ()"),
        ("set session authorization x", "set admin [] ()"),
        (
            "explain (analyze, costs off) delete from t where x",
            "explain read+write [t] ()",
        ),
        ("explain select * from t", "explain read [t] ()"),
        ("copy t (a) from stdin", "copy write [t] ()"),
        ("copy t to stdout with (format csv)", "copy read [t] ()"),
        ("copy t to '/tmp/x'", "copy read+admin [t] ()"),
        ("copy t from program 'id'", "copy write+admin [t] ()"),
        (
            "copy (delete from t returning *) to stdout",
            "copy read+write [t] () unbounded",
        ),
        (
            "prepare p (int) as delete from t where a = $1",
            "prepare write [t] ()",
        ),
        ("execute p(lower('x'))", "execute read [] (lower)"),
        (
            "declare c cursor for select * from t",
            "declare read [t] ()",
        ),
        (
            "create table t (a varchar(10) references u on delete cascade, check (a > 'x'))",
            "create table ddl [t] (varchar)",
        ),
        (
            "create temp table t as with d as (delete from u returning *) select * from d",
            "create table read+write+ddl [t,u] () unbounded",
        ),
        (
            "create or replace function f(a int) returns int language sql as $$ delete from t $$",
            "create function ddl [] ()",
        ),
        (
            "create index i on t (lower(a))",
            "create index ddl [t] (lower)",
        ),
        ("drop table if exists a, s.b", "drop table ddl [a,b] ()"),
        (
            "alter table t disable row level security",
            "alter table ddl [t] ()",
        ),
        ("create role x", "create role admin [] ()"),
        ("alter system set x = 1", "alter system admin [] ()"),
        ("grant select, insert on t to x", "grant admin [t] ()"),
        (
            "do $$ begin delete from t; end $$",
            "unparsed unparsed [] ()",
        ),
        ("call p(1)", "call write [] (p)"),
        ("lock table a, b in exclusive mode", "lock write [a,b] ()"),
        ("select * from a set, b", "select read [a,b] ()"),
        (
            "select * from a lock, b values, c",
            "select read [a,b,c] ()",
        ),
        (
            "select 'it''s', E'it\\'s', $x$ it's $x$ from t -- from u\n, v /* , w /* */ */",
            "select read [t,v] ()",
        ),
        (
            "select date '2020-01-01' + interval '1 day'",
            "select read [] ()",
        ),
        (
            "select x::varchar(3), cast(x as numeric(3, 1)) from t",
            "select read [t] (cast)",
        ),
        (
            "select row_number() over (partition by a order by b) from t window w as (order by a)",
            "select read [t] (row_number)",
        ),
        (
            "select count(*) filter (where a) from t group by rollup (a, b)",
            "select read [t] (count,rollup)",
        ),
        (
            "select array(select a from t), exists (select 1 from u)",
            "select read [t,u] ()",
        ),
        ("insert into t table u", "insert read+write [t,u] ()"),
        (
            "insert into t overriding system value table u",
            "insert read+write [t,u] ()",
        ),
        (
            "update t set a = u.b from u",
            "update read+write [t,u] () unbounded",
        ),
        (
            "delete from t where a returning b",
            "delete read+write [t] ()",
        ),
        (
            "select * from a join b using (x, y), c",
            "select read [a,b,c] ()",
        ),
        (
            "merge into t using (u cross join v) on true when matched then delete",
            "merge read+write [t,u,v] ()",
        ),
    ] {
        assert_eq!(told(text, POSTGRESQL), [expected], "{text}");
    }
}

#[test]
fn mysql_is_read() {
    for (text, expected) in [
        (
            "select `a`, \"from u\", 'it\\'s' from t # , u",
            "select read [t] ()",
        ),
        (
            "select * from a straight_join b, db.c where x",
            "select read [a,b,c] ()",
        ),
        ("select * from a offset, b", "select read [a,b] ()"),
        ("select a into @x from t", "select read [t] ()"),
        (
            "select a into outfile '/tmp/x' from t",
            "select read+admin [t] ()",
        ),
        (
            "select load_file('/etc/passwd')",
            "select read+admin [] (load_file)",
        ),
        ("select sleep(5)", "select read+write [] (sleep)"),
        ("insert ignore t set a = 1", "insert write [t] ()"),
        (
            "insert into t (a) values (1) on duplicate key update a = 2, b = 3",
            "insert write [t] ()",
        ),
        ("replace into t values (1)", "replace write [t] ()"),
        (
            "select replace('a', 'b', 'c'), insert('a', 1, 1, 'b')",
            "select read [] (insert,replace)",
        ),
        (
            "update a, b set a.x = 1, b.y = 2 where true",
            "update write [a,b] ()",
        ),
        (
            "delete low_priority from t",
            "delete write [t] () unbounded",
        ),
        (
            "delete a, b from a join b where true",
            "delete read+write [a,b] ()",
        ),
        (
            "load data local infile 'x' into table t (a, b)",
            "load data write [t] ()",
        ),
        (
            "load data infile 'x' into table t",
            "load data write+admin [t] ()",
        ),
        ("set global x = 1", "set admin [] ()"),
        ("set @@global.x = 1", "set admin [] ()"),
        ("set names utf8mb4", "set read [] ()"),
        ("set @a = (select b from t)", "set read [t] ()"),
        ("use db", "use read [] ()"),
        ("show tables", "show read [] ()"),
        ("describe t", "explain read [t] ()"),
        ("prepare s from 'delete from t'", "unparsed unparsed [] ()"),
        (
            "create table t (a int, key (a), index x (a))",
            "create table ddl [t] (x)",
        ),
        ("kill 5", "kill admin [] ()"),
        ("begin not atomic delete from t", "unparsed unparsed [] ()"),
        ("select 1 /*! , delete */", "unparsed unparsed [] ()"),
        ("select 1 --x", "unparsed unparsed [] ()"),
        ("insert into t table u", "insert read+write [t,u] ()"),
        (
            "select * from a use index for join (i), b",
            "select read [a,b] ()",
        ),
        (
            "select * from a force index for order by (i), b",
            "select read [a,b] ()",
        ),
        (
            "select * from a for system_time all, b",
            "select read [a,b] ()",
        ),
        (
            "update (a join b) set x = 1 where true",
            "update read+write [a,b] ()",
        ),
    ] {
        assert_eq!(told(text, MYSQL), [expected], "{text}");
    }
}

#[test]
fn several_statements_are_each_read() {
    assert_eq!(
        told("select 1; ; delete from t where a; -- end\n;", POSTGRESQL),
        ["select read [] ()", "delete write [t] ()"]
    );
    assert!(told(" ; /* nothing */ ;", POSTGRESQL).is_empty());
}

#[test]
fn the_shape_has_no_values() {
    let shape = |text: &str| read(text.as_bytes(), POSTGRESQL)[0].shape.clone();
    assert_eq!(
        shape(
            "SELECT  a.\"B\", 'secret' FROM t WHERE x = $1 AND y = E'secret\\'' AND z IN (1, 2.5)"
        ),
        "select a.\"B\", ? from t where x = ? and y = ? and z in(?, ?)"
    );
    assert_eq!(
        shape("alter role x password 'secret'"),
        "alter role x password ?"
    );
}

#[test]
fn what_a_setting_decides_is_unparsed_where_it_is_not_known() {
    let unknown = Dialect::Postgresql {
        standard_strings: None,
    };
    assert_eq!(told("select 'a\\'", unknown), ["unparsed unparsed [] ()"]);
    assert_eq!(told("select 'a'", unknown), ["select read [] ()"]);
    let old = Dialect::Postgresql {
        standard_strings: Some(false),
    };
    assert_eq!(
        told("select '\\'; drop table t; --'", old),
        ["select read [] ()"]
    );
    assert_eq!(
        told("select '\\'; drop table t; --'", POSTGRESQL),
        ["select read [] ()", "drop table ddl [t] ()"]
    );
}

#[test]
fn it_is_linear() {
    for piece in [
        "with a(",
        "explain ",
        "prepare a as ",
        "declare c cursor for ",
        "((((",
        "select ",
        "from ",
        "$a$ $b$ ",
        "/*",
        "a.",
        ", ",
    ] {
        let text = format!("select {}", piece.repeat(200_000 / piece.len()));
        let started = std::time::Instant::now();
        let _ = read(text.as_bytes(), POSTGRESQL);
        let _ = read(piece.repeat(200_000 / piece.len()).as_bytes(), MYSQL);
        // Quadratic, it would be minutes.
        assert!(started.elapsed().as_secs() < 20, "{piece}");
    }
}
