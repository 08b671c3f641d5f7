//! PostgreSQL clients: the programs of `tests/clients`, each on a driver that people use.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};

use crate::Lab;

/// A client that connects to the site's PostgreSQL, works through the protocol's corners, and
/// prints what it saw: lines that are the same at each run. It makes three connections: for its
/// work, for notifications (psql: for the query that is cancelled), and to cancel a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostgresClient {
    /// libpq's own.
    Psql,
    /// psycopg 3, on the libpq of its wheel.
    Psycopg,
    /// asyncpg, which speaks the protocol itself.
    Asyncpg,
    /// PostgreSQL's JDBC driver.
    Jdbc,
}

/// Who encrypts, in the words of `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Nothing is said: the driver does what it does by default, which is `prefer` for all four.
    Default,
    /// No TLS.
    Disable,
    /// TLS, whoever the server is.
    Require,
    /// TLS, and the lab's authority vouches for the server.
    VerifyFull,
}

impl PostgresClient {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Psql, Self::Psycopg, Self::Asyncpg, Self::Jdbc];

    /// The command that runs it, with `PGPASSWORD` expected in its environment; it copies that
    /// many megabytes in, and out again.
    ///
    /// # Errors
    /// A part of it is not installed.
    pub fn command(self, lab: &Lab, mode: SslMode, megabytes: u32) -> Result<Vec<OsString>> {
        let megabytes = megabytes.to_string().into();
        let authority = lab.path("ca.pem");
        let parameters = match mode {
            SslMode::Default => vec![],
            SslMode::Disable => vec!["sslmode=disable".to_owned()],
            SslMode::Require => vec!["sslmode=require".to_owned()],
            SslMode::VerifyFull => vec![
                "sslmode=verify-full".to_owned(),
                format!("sslrootcert={}", authority.display()),
            ],
        };
        let conninfo = || {
            let base = ["host=10.99.0.2 user=postgres dbname=postgres".to_owned()];
            [&base, &parameters[..]].concat().join(" ").into()
        };
        Ok(match self {
            Self::Psql => vec![
                "sh".into(),
                program("psql.sh")?.into(),
                conninfo(),
                megabytes,
                lab.dir().into(),
            ],
            Self::Psycopg => vec![
                python()?.into(),
                program("psycopg_client.py")?.into(),
                conninfo(),
                megabytes,
            ],
            Self::Asyncpg => vec![
                python()?.into(),
                program("asyncpg_client.py")?.into(),
                "10.99.0.2".into(),
                megabytes,
                match mode {
                    SslMode::Default => "default".into(),
                    SslMode::Disable => "disable".into(),
                    SslMode::Require => "require".into(),
                    SslMode::VerifyFull => authority.into(),
                },
            ],
            Self::Jdbc => vec![
                "java".into(),
                "-cp".into(),
                there(Path::new("/usr/share/java/postgresql.jar"))?.into(),
                program("JdbcClient.java")?.into(),
                format!(
                    "jdbc:postgresql://10.99.0.2/postgres?{}",
                    parameters.join("&")
                )
                .into(),
                megabytes,
            ],
        })
    }
}

/// The words of a command that runs a Python program of `tests/clients`.
///
/// # Errors
/// A part of it is not installed.
pub fn python_client(name: &str) -> Result<Vec<OsString>> {
    Ok(vec![python()?.into(), program(name)?.into()])
}

/// A command that runs a Python program of `tests/clients`: the interpreter and its argument.
///
/// # Errors
/// A part of it is not installed.
pub fn python_program(name: &str) -> Result<[PathBuf; 2]> {
    Ok([python()?, program(name)?])
}

/// A program of `tests/clients`.
fn program(name: &str) -> Result<PathBuf> {
    there(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("clients")
            .join(name),
    )
}

/// The interpreter with what the programs import. Its path is not resolved: a virtual environment is
/// found by the path of its interpreter.
fn python() -> Result<PathBuf> {
    there(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/venv/bin/python"))
}

fn there(path: &Path) -> Result<PathBuf> {
    ensure!(
        path.exists(),
        "{} is missing; `cargo xtask setup` brings it",
        path.display()
    );
    Ok(path.to_owned())
}
