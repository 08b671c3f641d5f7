//! Prosody, an XMPP server.

use std::fs;

use anyhow::Result;

use super::Program;
use crate::{Lab, Leaf, PASSWORD, succeed};

impl Program {
    /// Prosody on port 5222 for the domain `site.example`, with users `alice` and `bob` who have
    /// the lab's password. Clients must encrypt.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn prosody(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        fs::write(lab.path("prosody.pem"), &leaf.certificate)?;
        fs::write(lab.path("prosody.key"), &leaf.key)?;
        fs::create_dir_all(lab.path("prosody"))?;
        let directory = lab.dir().display();
        let configuration = lab.path("prosody.cfg.lua");
        fs::write(
            &configuration,
            format!(
                "run_as_root = true\n\
                 daemonize = false\n\
                 pidfile = \"{directory}/prosody.pid\"\n\
                 data_path = \"{directory}/prosody\"\n\
                 modules_enabled = {{ \"roster\", \"saslauth\", \"tls\", \"disco\", \"ping\" }}\n\
                 modules_disabled = {{ \"s2s\" }}\n\
                 interfaces = {{ \"10.99.0.2\" }}\n\
                 c2s_require_encryption = true\n\
                 allow_unencrypted_plain_auth = false\n\
                 authentication = \"internal_hashed\"\n\
                 ssl = {{ certificate = \"{directory}/prosody.pem\", key = \"{directory}/prosody.key\" }}\n\
                 log = {{ {{ levels = {{ min = \"info\" }}, to = \"console\" }} }}\n\
                 VirtualHost \"site.example\"\n"
            ),
        )?;
        for user in ["alice", "bob"] {
            succeed(
                lab.site
                    .command("prosodyctl")
                    .arg("--config")
                    .arg(&configuration)
                    .args(["register", user, "site.example", PASSWORD]),
            )?;
        }
        let mut command = lab.site.command("prosody");
        command.arg("-F").arg("--config").arg(&configuration);
        Self::start(lab, command, 5222)
    }
}
