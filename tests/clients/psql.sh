#!/bin/sh
# psql at work; prints what it saw, so that two ways to the server can be compared.
# usage: psql.sh CONNINFO MEGABYTES DIRECTORY
set -eu
conninfo=$1 megabytes=$2 directory=$3
seq 1 "$((megabytes * 1000))" | awk -v row="$(printf '%01000d' 0)" '{ print $1 "\t" row }' > "$directory/in.tsv"
psql -XAt -v ON_ERROR_STOP=1 "$conninfo" > "$directory/printed" <<SQL
select 1 as a\; select 2 as b;
prepare p (int, text) as select \$1 + 1, \$2;
execute p (41, 'words');
create temp table t (id int, v text);
\\copy t from '$directory/in.tsv'
\\copy (select * from t order by id) to '$directory/out.tsv'
listen news;
notify news, 'hello';
select 'after';
SQL
# The notification names the server's process, which is another one every time.
sed 's/PID [0-9]*/PID n/' "$directory/printed"
cmp "$directory/in.tsv" "$directory/out.tsv" && echo "copied $(wc -c < "$directory/out.tsv")"
# An interrupt makes psql cancel its query, over a connection of its own.
# In the foreground: otherwise timeout signals its whole group too, and psql cancels twice or once.
timeout --foreground -s INT 2 psql -XAt "$conninfo" -c 'select pg_sleep(30)' 2>&1 || true
rm "$directory/in.tsv" "$directory/out.tsv"
