//! OpenSSH's server.

use std::{fs, path::PathBuf, process::Command};

use anyhow::Result;

use super::Program;
use crate::{Lab, succeed};

impl Program {
    /// sshd on port 22 that lets root in with the key that is returned.
    ///
    /// # Errors
    /// As [`Program::start`].
    pub fn sshd(lab: &Lab) -> Result<(Self, PathBuf)> {
        let key = |name: &str| -> Result<PathBuf> {
            let file = lab.path(name);
            let mut command = Command::new("ssh-keygen");
            command
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(&file);
            succeed(&mut command)?;
            Ok(file)
        };
        let (host, agent) = (key("ssh-host")?, key("ssh-agent")?);
        let directory = lab.dir().display();
        let configuration = lab.path("sshd.conf");
        fs::write(
            &configuration,
            format!(
                "ListenAddress 10.99.0.2\nPort 22\nHostKey {}\nPidFile none\nUsePAM no\n\
                 StrictModes no\nPermitRootLogin prohibit-password\nUseDNS no\n\
                 AuthorizedKeysFile {directory}/ssh-agent.pub\n",
                host.display()
            ),
        )?;
        // Where it drops its privileges to.
        fs::create_dir_all("/run/sshd")?;
        let mut command = lab.site.command("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(&configuration);
        Ok((Self::start(lab, command, 22)?, agent))
    }
}
