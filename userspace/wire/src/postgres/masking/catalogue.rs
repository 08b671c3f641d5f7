//! Which columns of the server's are masked: asked of its own catalogue.
//!
//! A policy names a table and a column. Masked with them are, as RowDescription would name them: the
//! columns of the same name in its partitions and descendants and in what it is a part of; and all
//! columns of every view that takes the column, or takes rows whole. Where anything is masked, so is
//! what the server keeps of values for its planner (`pg_stats` and its like).

use std::collections::{BTreeSet, HashMap};

use mantled_mask::{Column, Style};

use crate::{
    command::{Masked, Reach},
    postgres::session::framed,
    reader::Reader,
};

/// What the statement and the portal are called that ask.
const NAME: &[u8] = b"mantled catalogue\0";

/// Longest answer, in origins: a server with more of them would need more memory than a session may
/// have.
const ORIGINS: usize = 64 * 1024;

/// What the server has answered.
#[derive(Debug, Default)]
pub(in crate::postgres) struct Catalogue {
    /// Which of the columns that policies name (by their places) a column stands for, by table
    /// (`pg_class.oid`) and number (`pg_attribute.attnum`; 0: all columns).
    origins: HashMap<(u32, u16), Vec<usize>>,
    /// By place: the names by which a statement can reach it.
    names: HashMap<usize, Names>,
}

/// Names in lower case.
#[derive(Debug, Default)]
struct Names {
    tables: BTreeSet<String>,
    columns: BTreeSet<String>,
    /// All of whose columns are masked.
    views: BTreeSet<String>,
}

/// The question: rows of place, table's oid, column's number, table's name, column's name.
///
/// Every name is written out whole, operators too: what the agent sets as `search_path` changes
/// nothing.
const QUESTION: &str = "
WITH RECURSIVE wanted (place, schema, relation, name) AS (VALUES {wanted}),
masked (place, relation, number) AS (
    SELECT w.place, c.oid, a.attnum
      FROM wanted w
      JOIN pg_catalog.pg_class c
        ON pg_catalog.lower(c.relname::pg_catalog.text) OPERATOR(pg_catalog.=) w.relation
      JOIN pg_catalog.pg_namespace n
        ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
       AND (w.schema IS NULL
            OR pg_catalog.lower(n.nspname::pg_catalog.text) OPERATOR(pg_catalog.=) w.schema)
      JOIN pg_catalog.pg_attribute a
        ON a.attrelid OPERATOR(pg_catalog.=) c.oid
       AND a.attnum OPERATOR(pg_catalog.>) 0::pg_catalog.int2
       AND pg_catalog.lower(a.attname::pg_catalog.text) OPERATOR(pg_catalog.=) w.name
    UNION
    SELECT m.place, more.relation, more.number
      FROM masked m
     CROSS JOIN LATERAL (
        SELECT theirs.attrelid, theirs.attnum
          FROM pg_catalog.pg_inherits i
          JOIN pg_catalog.pg_attribute ours
            ON ours.attrelid OPERATOR(pg_catalog.=) m.relation
           AND ours.attnum OPERATOR(pg_catalog.=) m.number
          JOIN pg_catalog.pg_attribute theirs
            ON theirs.attname OPERATOR(pg_catalog.=) ours.attname
           AND (i.inhparent OPERATOR(pg_catalog.=) m.relation
                AND theirs.attrelid OPERATOR(pg_catalog.=) i.inhrelid
                OR i.inhrelid OPERATOR(pg_catalog.=) m.relation
                AND theirs.attrelid OPERATOR(pg_catalog.=) i.inhparent)
        UNION ALL
        SELECT r.ev_class, 0::pg_catalog.int2
          FROM pg_catalog.pg_depend d
          JOIN pg_catalog.pg_rewrite r ON r.oid OPERATOR(pg_catalog.=) d.objid
         WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_rewrite'::pg_catalog.regclass
           AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
           AND d.refobjid OPERATOR(pg_catalog.=) m.relation
           AND r.ev_class OPERATOR(pg_catalog.<>) m.relation
           AND (m.number OPERATOR(pg_catalog.=) 0::pg_catalog.int2
                OR d.refobjsubid OPERATOR(pg_catalog.=) m.number::pg_catalog.int4
                OR r.ev_action::pg_catalog.text OPERATOR(pg_catalog.~~) '%:varattno 0 %')
     ) more (relation, number)
)
SELECT m.place, m.relation, m.number, c.relname, coalesce(a.attname, '')
  FROM masked m
  JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) m.relation
  LEFT JOIN pg_catalog.pg_attribute a
    ON a.attrelid OPERATOR(pg_catalog.=) m.relation AND a.attnum OPERATOR(pg_catalog.=) m.number
UNION ALL
SELECT -1, c.oid, 0::pg_catalog.int2, c.relname, ''
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
 WHERE n.nspname OPERATOR(pg_catalog.=) 'pg_catalog'::pg_catalog.name
   AND (c.relname OPERATOR(pg_catalog.~~) 'pg_statistic%'
        OR c.relname OPERATOR(pg_catalog.~~) 'pg_stats%')";

/// The messages that ask for these columns. `ends`: no pipeline of the agent's is open, and Sync closes
/// this one.
pub(in crate::postgres) fn question(columns: &[Column], ends: bool) -> Vec<u8> {
    let literal = |text: &str| {
        let text = text
            .to_lowercase()
            .replace('\\', "\\\\")
            .replace('\'', "''");
        format!("E'{text}'::pg_catalog.text")
    };
    let wanted: Vec<String> = columns
        .iter()
        .enumerate()
        .map(|(place, column)| {
            let schema = column.schema.as_deref();
            let schema = schema.map_or("NULL::pg_catalog.text".to_owned(), literal);
            format!(
                "({place}, {schema}, {}, {})",
                literal(&column.table),
                literal(&column.column)
            )
        })
        .collect();
    let text = QUESTION.replace("{wanted}", &wanted.join(", "));
    let close = |kind: u8| framed(b'C', &[&[kind][..], NAME].concat());
    let mut messages = framed(b'P', &[NAME, text.as_bytes(), &[0, 0, 0]].concat());
    messages.extend(framed(b'B', &[NAME, NAME, &[0; 6]].concat()));
    messages.extend(framed(b'E', &[NAME, &[0; 4]].concat()));
    messages.extend(close(b'P'));
    messages.extend(close(b'S'));
    if ends {
        messages.extend(framed(b'S', &[]));
    }
    messages
}

impl Catalogue {
    /// A DataRow of the answer. None: it is none that was asked for.
    pub(in crate::postgres) fn learn(&mut self, body: &[u8]) -> Option<()> {
        let mut reader = Reader(body);
        reader.u16().filter(|count| *count == 5)?;
        let mut text = || {
            let length = reader.u32()?;
            std::str::from_utf8(reader.take(length as usize)?).ok()
        };
        let place: i64 = text()?.parse().ok()?;
        let table: u32 = text()?.parse().ok()?;
        let number: u16 = text()?.parse().ok()?;
        let relation = text()?.to_lowercase();
        let column = text()?.to_lowercase();
        if self.origins.len() >= ORIGINS {
            return None;
        }
        // What concerns all of them.
        let place = usize::try_from(place).unwrap_or(ALL);
        self.origins.entry((table, number)).or_default().push(place);
        let names = self.names.entry(place).or_default();
        if number == 0 {
            names.views.insert(relation);
        } else {
            names.tables.insert(relation);
            names.columns.insert(column);
        }
        Some(())
    }

    /// How a column is masked.
    pub(super) fn style(&self, table: u32, number: u16, masked: &Masked) -> Option<Style> {
        let masks = masked.masker.masks();
        let of = |number: u16| self.origins.get(&(table, number));
        let places = of(number).into_iter().chain(of(0)).flatten();
        places
            .filter_map(|place| match masked.columns.get(*place) {
                Some(column) => masks.of_column(column),
                None => masks.columns().map(|(_, style)| style).max(),
            })
            .max()
    }

    /// Can a command not have looked at the column of this place?
    pub(super) fn is_clear(&self, place: usize, reach: &Reach) -> bool {
        let Some(named) = &reach.names else {
            return false;
        };
        let names_any = |names: &BTreeSet<String>| names.iter().any(|name| named.contains(name));
        [self.names.get(&place), self.names.get(&ALL)]
            .into_iter()
            .flatten()
            .all(|names| {
                let takes = reach.takes_rows || names_any(&names.columns);
                !(names_any(&names.views) || takes && names_any(&names.tables))
            })
    }
}

/// The place of what is masked with every column.
const ALL: usize = usize::MAX;
