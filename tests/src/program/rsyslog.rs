//! rsyslog: messages over TLS alone.

use std::{fs, path::PathBuf};

use anyhow::Result;

use super::Program;
use crate::{Lab, Leaf};

impl Program {
    /// rsyslogd with TLS on port 6514, as RFC 5425 has it. It appends every message, as it came, to
    /// [`Self::rsyslog_file`]. Its own memory is all that holds what it has not written yet.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn rsyslog(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        fs::write(lab.path("syslog.pem"), &leaf.certificate)?;
        fs::write(lab.path("syslog.key"), &leaf.key)?;
        let directory = lab.dir().display();
        let file = lab.path("rsyslog.conf");
        fs::write(
            &file,
            format!(
                "global(workDirectory=\"{directory}\" defaultNetstreamDriver=\"gtls\"\n\
                   defaultNetstreamDriverCAFile=\"{directory}/ca.pem\"\n\
                   defaultNetstreamDriverCertFile=\"{directory}/syslog.pem\"\n\
                   defaultNetstreamDriverKeyFile=\"{directory}/syslog.key\")\n\
                 module(load=\"imtcp\" streamDriver.name=\"gtls\" streamDriver.mode=\"1\"\n\
                   streamDriver.authMode=\"anon\")\n\
                 input(type=\"imtcp\" port=\"6514\")\n\
                 template(name=\"raw\" type=\"string\" string=\"%rawmsg%\\n\")\n\
                 *.* action(type=\"omfile\" file=\"{}\" template=\"raw\")\n",
                Self::rsyslog_file(lab).display()
            ),
        )?;
        let mut command = lab.site.command("rsyslogd");
        command
            .arg("-n")
            .arg("-f")
            .arg(&file)
            .arg("-i")
            .arg(lab.path("rsyslog.pid"));
        let _ = fs::remove_file(lab.path("rsyslog.pid"));
        Self::start(lab, command, 6514)
    }

    /// Where its messages are.
    pub fn rsyslog_file(lab: &Lab) -> PathBuf {
        lab.path("messages")
    }

    /// Ends it as a crash would.
    ///
    /// # Errors
    /// As kill(2).
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}
