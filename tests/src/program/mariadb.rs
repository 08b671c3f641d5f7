//! MariaDB, which lets nobody in without TLS.

use std::fs;

use anyhow::Result;

use crate::{Lab, Leaf, PASSWORD, Program, succeed};

impl Program {
    /// MariaDB on port 3306, with `require_secure_transport`. Accounts: `alice`
    /// (mysql_native_password), `edward` (ed25519, by another plugin than the server's default)
    /// and `nobody` (without a password); the first two have [`PASSWORD`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn mariadb(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        Self::mariadb_with(lab, leaf, &["--require-secure-transport=ON"])
    }

    /// The same with options of its own; it requires no TLS unless they say so.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn mariadb_with(lab: &Lab, leaf: &Leaf, options: &[&str]) -> Result<Self> {
        fs::write(lab.path("mariadb.pem"), &leaf.certificate)?;
        fs::write(lab.path("mariadb.key"), &leaf.key)?;
        fs::write(
            lab.path("mariadb.sql"),
            format!(
                "INSTALL SONAME 'auth_ed25519';\n\
                 CREATE DATABASE shop;\n\
                 CREATE USER alice IDENTIFIED VIA mysql_native_password USING PASSWORD('{PASSWORD}');\n\
                 CREATE USER edward IDENTIFIED VIA ed25519 USING PASSWORD('{PASSWORD}');\n\
                 CREATE USER nobody;\n\
                 GRANT ALL ON *.* TO alice, edward, nobody;\n"
            ),
        )?;
        let directory = lab.path("mariadb");
        let data = format!("--datadir={}", directory.display());
        if !directory.exists() {
            succeed(lab.site.command("mariadb-install-db").args([
                "--no-defaults",
                "--user=root",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                &data,
            ]))?;
        }
        let mut command = lab.site.command("mariadbd");
        command
            .args(["--no-defaults", "--user=root", &data])
            .args(["--port=3306", "--bind-address=10.99.0.2", "--local-infile"])
            .args(["--max-allowed-packet=256M", "--skip-name-resolve"])
            .arg(format!("--socket={}", lab.path("mariadb.sock").display()))
            .arg(format!("--init-file={}", lab.path("mariadb.sql").display()))
            .arg(format!("--ssl-cert={}", lab.path("mariadb.pem").display()))
            .arg(format!("--ssl-key={}", lab.path("mariadb.key").display()))
            .args(options);
        Self::start(lab, command, 3306)
    }
}
