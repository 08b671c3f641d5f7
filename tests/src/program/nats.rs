//! nats-server, which lets nobody in without TLS.

use std::fs;

use anyhow::Result;

use crate::{Lab, Leaf, Program};

impl Program {
    /// nats-server with TLS required on port 4222.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn nats(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        fs::write(lab.path("nats.pem"), &leaf.certificate)?;
        fs::write(lab.path("nats.key"), &leaf.key)?;
        let directory = lab.dir().display();
        Self::nats_with(
            lab,
            &format!(
                "tls {{ cert_file: \"{directory}/nats.pem\", key_file: \"{directory}/nats.key\" }}\n"
            ),
        )
    }

    /// nats-server without TLS on port 4222.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn nats_without_tls(lab: &Lab) -> Result<Self> {
        Self::nats_with(lab, "")
    }

    fn nats_with(lab: &Lab, config: &str) -> Result<Self> {
        fs::write(
            lab.path("nats.conf"),
            format!("listen: \"10.99.0.2:4222\"\nmax_payload: 8MB\n{config}"),
        )?;
        let mut command = lab.site.command("nats-server");
        command.arg("-c").arg(lab.path("nats.conf"));
        Self::start(lab, command, 4222)
    }
}
