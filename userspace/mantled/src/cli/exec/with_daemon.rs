//! `mantled exec` where a daemon runs: it enrols the cgroup, carries the connections, and tells of
//! them.
//!
//! The enrolment hangs on the connection to the daemon. The guard has a copy of it, so that the group
//! stays enrolled until its last process is gone, also when this process is killed. Should the daemon
//! end first, the command is ended: a daemon that starts would not know its group.

use std::{
    io::{self, Write},
    os::fd::AsFd as _,
    thread,
};

use tokio::sync::oneshot;

use super::{Arguments, Guard, NO_SESSIONS, Signals, create_cgroup, exit_as, start};
use crate::{
    admin::{
        Request,
        lease::{Message, Tenancy},
    },
    app::open_log,
    cli::{Exit, runtime},
    config::Mode,
};

pub(super) fn run(arguments: &Arguments, mode: Mode) -> Result<(), Exit> {
    let failed = |what: &str, error: io::Error| Exit::failed(format!("{what}: {error}"));
    let log = arguments.record.as_deref().map(open_log).transpose()?;
    let cgroup = create_cgroup()?;
    let guard = Guard::start(&cgroup)?;
    let request = Request::Exec {
        cgroup: cgroup.below_root(),
        mode,
    };
    let tenancy = Tenancy::begin(&arguments.socket, &request).map_err(Exit::failed)?;
    guard.hold(&[tenancy.as_fd()])?;
    let ender = tenancy
        .ender()
        .map_err(|error| failed("the daemon", error))?;
    let (gone, daemon_gone) = oneshot::channel();
    let listener = thread::spawn(move || {
        let told = listen(tenancy, log);
        // Nobody waits for it once the command has ended.
        let _ = gone.send(());
        told
    });

    let runtime = runtime()?;
    let status = runtime.block_on(async {
        let signals = Signals::new()?;
        let child = start(&arguments.command, &cgroup)?;
        tokio::select! {
            status = signals.wait_for(child) => status.map(Some),
            _ = daemon_gone => Ok(None),
        }
    });
    // Whatever the command has left behind goes with it.
    let cleared = guard.clear();
    runtime.shutdown_background();
    // A daemon that is gone cannot be told.
    let _ = ender.end();
    let told = listener
        .join()
        .map_err(|_| Exit::failed("the thread that listens to the daemon panicked"))?;
    let Some(status) = status? else {
        return Err(Exit::failed(
            "the daemon has ended, and the command was ended with it: it must not go on unprotected",
        ));
    };
    if !arguments.quiet {
        told.print();
    }
    cleared?;
    exit_as(status)
}

/// What the daemon has told.
#[derive(Default)]
struct Told {
    sessions: Vec<String>,
    missed: u64,
    /// The daemon has ended before it had told everything, or a record could not be written.
    trouble: Option<String>,
}

/// Hears the daemon to its end.
fn listen(mut tenancy: Tenancy, mut log: Option<Box<dyn Write + Send>>) -> Told {
    let mut told = Told::default();
    loop {
        match tenancy.hear() {
            Ok(Some(Message::Session { summary, record })) => {
                told.sessions.push(summary);
                if let Some(log) = &mut log
                    && let Err(error) = log.write_all(record.as_bytes())
                {
                    told.trouble = Some(format!("records could not be written: {error}"));
                }
            }
            Ok(Some(Message::End { missed })) => {
                told.missed = missed;
                return told;
            }
            Ok(None) => {
                told.trouble = Some("the daemon has ended before it had told everything".into());
                return told;
            }
            Err(error) => {
                told.trouble = Some(format!("the daemon is not understood: {error}"));
                return told;
            }
        }
    }
}

impl Told {
    fn print(&self) {
        for session in &self.sessions {
            eprintln!("mantled: {session}");
        }
        if self.missed > 0 {
            eprintln!(
                "mantled: and {} more sessions; the daemon's session log has them",
                self.missed
            );
        }
        match &self.trouble {
            Some(trouble) => eprintln!("mantled: {trouble}"),
            None if self.sessions.is_empty() && self.missed == 0 => eprintln!("{NO_SESSIONS}"),
            None => {}
        }
    }
}
