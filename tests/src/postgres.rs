//! A real PostgreSQL server in the site.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{Lab, Leaf, succeed};

/// The password of user `postgres`.
pub const PASSWORD: &str = "correct horse battery";

/// A server of its own cluster; stopped when it is dropped.
#[derive(Debug)]
pub struct Postgres {
    directory: PathBuf,
    programs: PathBuf,
}

impl Postgres {
    /// Starts one on port 5432 of the site that accepts TLS connections alone (`hostssl`), with
    /// SCRAM passwords.
    ///
    /// # Errors
    /// PostgreSQL is not installed, or does not start.
    pub fn start(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        Self::start_with(lab, Some(leaf), "hostssl all all all scram-sha-256\n")
    }

    /// Starts one with this `pg_hba.conf`; without a certificate it has no TLS.
    ///
    /// # Errors
    /// PostgreSQL is not installed, or does not start.
    pub fn start_with(lab: &Lab, leaf: Option<&Leaf>, hba: &str) -> Result<Self> {
        let programs = fs::read_dir("/usr/lib/postgresql")
            .context("PostgreSQL is not installed; `cargo xtask setup` installs it")?
            .filter_map(Result::ok)
            .map(|entry| entry.path().join("bin"))
            .find(|path| path.join("initdb").exists())
            .context("PostgreSQL's server is not installed; `cargo xtask setup` installs it")?;
        let directory = lab.path("postgres");
        fs::create_dir(&directory)?;
        succeed(Command::new("chown").arg("postgres").arg(&directory))?;
        let password = lab.path("postgres-password");
        fs::write(&password, PASSWORD)?;
        let data = directory.join("data");
        succeed(
            as_postgres(&programs.join("initdb"))
                .args([
                    "-A",
                    "scram-sha-256",
                    "-U",
                    "postgres",
                    "--no-sync",
                    "-E",
                    "UTF8",
                    "--locale=C",
                ])
                .arg(format!("--pwfile={}", password.display()))
                .arg(&data),
        )?;
        let mut settings = format!(
            "listen_addresses = '*'\nunix_socket_directories = '{}'\nfsync = off\nmax_connections = 300\n",
            directory.display()
        );
        if let Some(leaf) = leaf {
            fs::write(data.join("server.crt"), &leaf.certificate)?;
            fs::write(data.join("server.key"), &leaf.key)?;
            succeed(
                Command::new("chmod")
                    .arg("600")
                    .arg(data.join("server.key")),
            )?;
            succeed(
                Command::new("chown")
                    .arg("postgres")
                    .arg(data.join("server.key"))
                    .arg(data.join("server.crt")),
            )?;
            settings += "ssl = on\n";
        }
        let mut configuration = fs::read_to_string(data.join("postgresql.conf"))?;
        configuration += &settings;
        fs::write(data.join("postgresql.conf"), configuration)?;
        fs::write(
            data.join("pg_hba.conf"),
            format!("local all all trust\n{hba}"),
        )?;
        succeed(
            lab.site
                .command("setpriv")
                .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
                .arg(programs.join("pg_ctl"))
                .args(["-w", "-D"])
                .arg(&data)
                .arg("-l")
                .arg(directory.join("log"))
                .arg("start"),
        )
        .with_context(|| fs::read_to_string(directory.join("log")).unwrap_or_default())?;
        Ok(Self {
            directory,
            programs,
        })
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }
}

fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
        .arg(program);
    command
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = succeed(
            as_postgres(&self.programs.join("pg_ctl"))
                .args(["-m", "immediate", "-w", "-D"])
                .arg(self.data())
                .arg("stop"),
        );
    }
}
