//! `mantled run`: the daemon.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use mantled_redirect::Pins;
use nix::fcntl::{Flock, FlockArg};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{Exit, load, runtime};
use crate::{
    app::{self, App, Options},
    config::DEFAULT_PATH,
    helper::Helper,
};

/// One daemon a host: two would take the pins from each other.
const LOCK: &str = "/run/mantled/lock";

/// Arguments of `mantled run`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration file.
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Ask the `mantled helper` at this socket about processes, rather than looking at them with
    /// privileges of this process.
    #[arg(long, value_name = "SOCKET")]
    helper: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, verbose: u8) -> Result<(), Exit> {
    let config = load(&arguments.config)?;
    let output = app::record_output(&config)?;
    let _lock = lock()?;
    let options = Options {
        pins: Some(Pins::default()),
        helper: Helper::at(arguments.helper.as_deref()),
        debug: verbose > 1,
        copies: None,
    };
    let mut app = App::build(config, output, options)?;
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let stop = stop_signal().map_err(|error| Exit::failed(format!("signals: {error}")))?;
        if verbose > 1 {
            let logger = app.interceptor.logger()?;
            tokio::spawn(logger);
        }
        let _ = sd_notify::notify(&[NotifyState::Ready]);
        tracing::info!("ready");
        app.run(stop).await.map_err(Exit::failed)
    });
    // A writer that hangs must not keep the process.
    runtime.shutdown_background();
    result
}

fn lock() -> Result<Flock<File>, Exit> {
    let path = Path::new(LOCK);
    let failed = |error: std::io::Error| Exit::failed(format!("{LOCK}: {error}"));
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    let file = File::create(path).map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        if error == nix::errno::Errno::EWOULDBLOCK {
            Exit::failed(format!(
                "another mantled runs on this host (it holds {LOCK}); stop it first"
            ))
        } else {
            failed(error.into())
        }
    })
}

/// Turns true at SIGTERM or SIGINT.
fn stop_signal() -> std::io::Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        tracing::info!(
            "stopping; enrolled groups stay as on_daemon_down says (`mantled detach --all` ends that)"
        );
        let _ = sender.send(true);
    });
    Ok(receiver)
}
