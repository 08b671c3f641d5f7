//! Which functions read and nothing else.

use std::{collections::HashSet, sync::LazyLock};

/// What calling a function may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Nothing but compute and read.
    Harmless,
    /// Nobody knows: users make their own.
    Unknown,
    /// It reaches the server's files, settings, other sessions, or other servers.
    Admin,
    /// It executes SQL that it is given as text.
    Text,
}

static POSTGRESQL: LazyLock<HashSet<&str>> =
    LazyLock::new(|| include_str!("functions/postgresql.txt").lines().collect());
static MYSQL: LazyLock<HashSet<&str>> =
    LazyLock::new(|| include_str!("functions/mysql.txt").lines().collect());

/// How the names of such functions of PostgreSQL begin.
const ADMIN: &[&str] = &[
    "dblink",
    "lo_export",
    "lo_import",
    "pg_backup_",
    "pg_cancel_backend",
    "pg_copy_",
    "pg_create_",
    "pg_current_logfile",
    "pg_drop_",
    "pg_execute_server_program",
    "pg_export_snapshot",
    "pg_file_",
    "pg_hba_",
    "pg_import_",
    "pg_log_backend",
    "pg_log_standby",
    "pg_logical_",
    "pg_ls_",
    "pg_promote",
    "pg_read_",
    "pg_reload_conf",
    "pg_replication_",
    "pg_rotate_logfile",
    "pg_start_backup",
    "pg_stat_file",
    "pg_stat_reset",
    "pg_stop_backup",
    "pg_switch_wal",
    "pg_terminate_backend",
    "pg_wal_replay",
    "set_config",
];

/// The same for those that take SQL.
const TEXT: &[&str] = &[
    "cursor_to_xml",
    "database_to_xml",
    "query_to_xml",
    "schema_to_xml",
    "table_to_xml",
    "ts_rewrite",
    "ts_stat",
    "crosstab",
    "connectby",
];

pub(crate) fn class(name: &str, mysql: bool) -> Class {
    if mysql {
        return match name {
            "load_file" | "sys_eval" | "sys_exec" => Class::Admin,
            name if MYSQL.contains(name) => Class::Harmless,
            _ => Class::Unknown,
        };
    }
    let begins = |names: &[&str]| names.iter().any(|begin| name.starts_with(begin));
    if begins(TEXT) {
        Class::Text
    } else if begins(ADMIN) {
        Class::Admin
    } else if POSTGRESQL.contains(name) {
        Class::Harmless
    } else {
        Class::Unknown
    }
}
