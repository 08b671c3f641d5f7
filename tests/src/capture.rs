//! What crosses the wire.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::Lab;

/// tcpdump on the site's end of the wire.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    /// Starts it, and waits until it listens.
    ///
    /// # Errors
    /// tcpdump does not start.
    pub fn start(lab: &Lab) -> Result<Self> {
        let file = lab.path(&format!("wire-{}.pcap", std::process::id()));
        let mut child = lab
            .site
            .command("tcpdump")
            .args([
                "-i",
                "wire",
                "-U",
                "--immediate-mode",
                "-s",
                "0",
                "-B",
                "65536",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&file)
            .stderr(Stdio::piped())
            .spawn()
            .context("starting tcpdump")?;
        let stderr = child.stderr.take().context("no standard error")?;
        let mut lines = BufReader::new(stderr).lines();
        let listening = lines
            .by_ref()
            .map_while(Result::ok)
            .any(|line| line.contains("listening on"));
        ensure!(listening, "tcpdump did not start");
        // It writes two more lines at its end.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { child, file })
    }

    /// Ends it and returns every byte that it saw, headers included.
    ///
    /// # Errors
    /// Nothing was captured, so the capture proves nothing.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        std::thread::sleep(Duration::from_millis(200));
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT);
        self.child.wait()?;
        let bytes = fs::read(&self.file)?;
        ensure!(bytes.len() > 24, "the capture is empty");
        Ok(bytes)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Does `needle` stand in `bytes`?
pub(crate) fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// Fails where one of the needles crossed the wire.
///
/// # Errors
/// Names the needle.
pub fn assert_clean(wire: &[u8], needles: &[&str]) -> Result<()> {
    for needle in needles {
        ensure!(
            !contains(wire, needle.as_bytes()),
            "{needle:?} crossed the wire in clear"
        );
    }
    Ok(())
}
