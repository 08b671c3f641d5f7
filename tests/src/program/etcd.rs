use std::fs;

use anyhow::Result;

use super::Program;
use crate::{Lab, Leaf};

impl Program {
    /// etcd whose clients speak TLS, on port 2379.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn etcd(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        fs::write(lab.path("etcd.pem"), &leaf.certificate)?;
        fs::write(lab.path("etcd.key"), &leaf.key)?;
        let mut command = lab.site.command("etcd");
        command
            .args(["--name", "lab", "--log-level", "error", "--data-dir"])
            .arg(lab.path("etcd"))
            .args(["--listen-client-urls", "https://10.99.0.2:2379"])
            .args(["--advertise-client-urls", "https://10.99.0.2:2379"])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
            .args(["--initial-advertise-peer-urls", "http://127.0.0.1:2380"])
            .args(["--initial-cluster", "lab=http://127.0.0.1:2380"])
            .arg("--cert-file")
            .arg(lab.path("etcd.pem"))
            .arg("--key-file")
            .arg(lab.path("etcd.key"));
        Self::start(lab, command, 2379)
    }
}
