//! A steady load: so many connections a second, each with words whose echo is checked, and each
//! accounted for.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{eventually, wait};

/// The longest that a connection of the last moment may hang.
const LAST: Duration = Duration::from_secs(40);

/// The agent under load. It is ended when this is dropped.
#[derive(Debug)]
pub struct Load {
    agent: Option<Child>,
    tally: Arc<Mutex<Tally>>,
    reader: Option<JoinHandle<()>>,
}

/// How its connections went so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Those that got their echo.
    pub served: u64,
    /// The others, by the agent's error. One that begins with "connect: " never got through.
    pub failed: BTreeMap<String, u64>,
    /// What the slowest took, served or not.
    pub longest: Duration,
}

impl Tally {
    /// How many were not served.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    fn count(&mut self, line: &str) {
        let (took, error) = match line.split_once(' ') {
            Some((took, error)) => (took, Some(error)),
            None => (line, None),
        };
        match (took.parse(), error) {
            (Ok(took), None) => {
                self.served += 1;
                self.longest = self.longest.max(Duration::from_millis(took));
            }
            (Ok(took), Some(error)) => {
                *self.failed.entry(error.to_owned()).or_default() += 1;
                self.longest = self.longest.max(Duration::from_millis(took));
            }
            // What it says of itself.
            (Err(_), _) => *self.failed.entry(line.to_owned()).or_default() += 1,
        }
    }
}

impl Load {
    /// Starts it. `agent` is a command that becomes the tests' agent, in a group
    /// ([`crate::Group::command`]) or as a unit of a machine ([`crate::Installed::start_load`]).
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        mut agent: Command,
        address: SocketAddr,
        per_second: u32,
        words: &str,
    ) -> Result<Self> {
        let mut agent = agent
            .args(["load", &address.to_string()])
            .arg(format!("{per_second} {words}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {agent:?}"))?;
        let lines = BufReader::new(agent.stdout.take().context("no output")?).lines();
        let tally = Arc::new(Mutex::new(Tally::default()));
        let counted = Arc::clone(&tally);
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut tally = counted.lock().unwrap_or_else(PoisonError::into_inner);
                tally.count(&line);
            }
        });
        Ok(Self {
            agent: Some(agent),
            tally,
            reader: Some(reader),
        })
    }

    /// Up to now.
    pub fn tally(&self) -> Tally {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.clone()
    }

    /// Waits until so many more connections were served.
    ///
    /// # Errors
    /// They are not.
    pub fn serves(&self, more: u64) -> Result<()> {
        let before = self.tally().served;
        eventually(
            &format!("{more} more connections served"),
            Duration::from_secs(20),
            || (self.tally().served >= before + more).then_some(()),
        )
        .with_context(|| format!("{:?}", self.tally()))
    }

    /// Waits until somebody has failed for this reason, or a part of it, since `before`.
    ///
    /// # Errors
    /// Nobody does.
    pub fn fails(&self, before: &Tally, why: &str) -> Result<()> {
        let count = |tally: &Tally| -> u64 {
            let reasons = tally.failed.iter();
            reasons
                .filter(|(reason, _)| reason.contains(why))
                .map(|(_, count)| count)
                .sum()
        };
        eventually(
            &format!("a connection that fails with {why:?}"),
            Duration::from_secs(20),
            || (count(&self.tally()) > count(before)).then_some(()),
        )
        .with_context(|| format!("{:?}", self.tally()))
    }

    /// Ends it once every connection has ended, and tells how they went.
    ///
    /// # Errors
    /// The agent fails, or hangs.
    pub fn finish(mut self) -> Result<Tally> {
        let mut agent = self.agent.take().context("finished before")?;
        // The end of its input.
        drop(agent.stdin.take());
        let output = wait(agent, LAST)?;
        ensure!(output.status.success(), "the agent: {}", output.status);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        Ok(self.tally())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            drop(agent.stdin.take());
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}
