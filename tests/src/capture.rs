//! What crosses the wire.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
    thread::JoinHandle,
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
    last_words: Option<JoinHandle<Vec<String>>>,
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
                "524288",
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
        // At its end it says how many packets it has lost.
        let last_words = std::thread::spawn(move || lines.map_while(Result::ok).collect());
        Ok(Self {
            child,
            file,
            last_words: Some(last_words),
        })
    }

    /// Ends it and returns every byte that it saw, headers included.
    ///
    /// # Errors
    /// Nothing was captured, or not everything, so the capture proves nothing.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        std::thread::sleep(Duration::from_millis(200));
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT);
        self.child.wait()?;
        let said = self
            .last_words
            .take()
            .and_then(|words| words.join().ok())
            .unwrap_or_default();
        ensure!(
            said.iter()
                .any(|line| line == "0 packets dropped by kernel"),
            "the capture has lost packets: {said:?}"
        );
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

/// The shortest needle worth a search. Ciphertext is random: a capture of 10 MB holds three given
/// bytes as often as not, and five given ones once in a hundred thousand runs.
const SHORTEST_NEEDLE: usize = 5;

/// Fails where one of the needles crossed the wire.
///
/// # Errors
/// Names the needle. A needle of under five bytes is an error: chance would find it.
pub fn assert_clean(wire: &[u8], needles: &[&str]) -> Result<()> {
    for needle in needles {
        ensure!(
            needle.len() >= SHORTEST_NEEDLE,
            "{needle:?} is too short to be looked for in ciphertext"
        );
        ensure!(
            !contains(wire, needle.as_bytes()),
            "{needle:?} crossed the wire in clear"
        );
    }
    Ok(())
}
