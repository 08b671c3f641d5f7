use std::fs;

use anyhow::Result;

use super::Program;
use crate::{Lab, Leaf};

impl Program {
    /// memcached with TLS on port 11211 and no other port.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn memcached(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        fs::write(lab.path("memcached.pem"), &leaf.certificate)?;
        fs::write(lab.path("memcached.key"), &leaf.key)?;
        let directory = lab.dir().display();
        let mut command = lab.site.command("memcached");
        command
            .args([
                "-u",
                "root",
                "-l",
                "10.99.0.2",
                "-p",
                "11211",
                "-U",
                "0",
                "-m",
                "16",
            ])
            .args(["-Z", "-o"])
            .arg(format!(
                "ssl_chain_cert={directory}/memcached.pem,ssl_key={directory}/memcached.key"
            ));
        Self::start(lab, command, 11211)
    }
}
