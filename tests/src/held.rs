//! Sessions that an agent keeps open while something happens to them.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    process::{Child, ChildStdout, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{Group, Lab, eventually};

/// An agent (the lab's `agent` program) with open sessions to an echo server, each of which has
/// carried something.
#[derive(Debug)]
pub struct Held {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Held {
    /// Opens so many. `program` is the lab's `agent`.
    ///
    /// # Errors
    /// One of them cannot be opened.
    pub fn open(
        lab: &Lab,
        group: &Group,
        program: &str,
        server: SocketAddr,
        count: usize,
    ) -> Result<Self> {
        let mut child = group
            .command(&lab.host, program)
            .args(["many", &server.to_string(), &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut held = Self { child, output };
        let mut opened = String::new();
        held.output.read_line(&mut opened)?;
        ensure!(opened == "open\n", "{opened}");
        Ok(held)
    }

    /// Uses each of them once more and closes it.
    ///
    /// # Errors
    /// One of them has ended before.
    pub fn finish(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = eventually("the agent to end", Duration::from_secs(20), || {
            self.child.try_wait().ok().flatten()
        })?;
        let mut said = String::new();
        self.output.read_to_string(&mut said)?;
        ensure!(status.success() && said == "done\n", "{status}: {said}");
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
