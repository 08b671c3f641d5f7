//! `mantled run`: the daemon.

use std::{
    fs::{self, File, TryLockError},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use mantled_redirect::Pins;
use sd_notify::NotifyState;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{Exit, load, no_helper, runtime};
use crate::{
    app::{self, App, Options},
    config::DEFAULT_PATH,
    handover::{self, Predecessor},
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
    /// Where the unit shows /sys/fs/bpf/mantled to a daemon that must not see what is around it.
    #[arg(long, value_name = "DIRECTORY", hide = true)]
    pins: Option<PathBuf>,
    /// Take over from the daemon at standard input, which has started this one.
    #[arg(long, hide = true)]
    take_over: bool,
    /// Start the daemon that takes over, and end.
    #[arg(long, hide = true)]
    start_successor: bool,
}

pub(super) fn run(arguments: &Arguments, verbose: u8) -> Result<(), Exit> {
    if arguments.start_successor {
        return handover::start_and_leave().map_err(Exit::failed);
    }
    let predecessor = if arguments.take_over {
        let predecessor = Predecessor::of_stdin().map_err(|error| {
            Exit::failed(format!("--take-over is for `mantled upgrade` ({error})"))
        })?;
        Some(predecessor)
    } else {
        None
    };
    // It is asked to say why, should this fail.
    let told = predecessor
        .as_ref()
        .and_then(|predecessor| predecessor.try_clone().ok());
    let result = start(arguments, verbose, predecessor);
    if let (Some(predecessor), Err(exit)) = (told, &result) {
        predecessor.refuse(exit.message.as_deref().unwrap_or("see the log"));
    }
    let (app, runtime) = result?;
    let result = runtime.block_on(serve(app, verbose));
    // A writer that hangs must not keep the process.
    runtime.shutdown_background();
    result
}

fn start(
    arguments: &Arguments,
    verbose: u8,
    predecessor: Option<Predecessor>,
) -> Result<(App, Runtime), Exit> {
    // Where it is found when it is read again, whatever the working directory is by then.
    let path = std::path::absolute(&arguments.config).map_err(Exit::failed)?;
    let config = load(&path)?;
    let output = app::record_output(&config)?;
    let lock = match &predecessor {
        Some(_) => None,
        None => Some(lock()?),
    };
    let options = Options {
        pins: Some(
            arguments
                .pins
                .as_deref()
                .map_or_else(Pins::default, Pins::at),
        ),
        helper: Helper::at(arguments.helper.as_deref()).map_err(no_helper)?,
        debug: verbose > 1,
        copies: None,
        lock,
        predecessor,
    };
    Ok((App::build(config, output, options)?, runtime()?))
}

async fn serve(mut app: App, verbose: u8) -> Result<(), Exit> {
    let stop = stop_signal().map_err(|error| Exit::failed(format!("signals: {error}")))?;
    if verbose > 1 {
        let logger = app.interceptor.logger()?;
        tokio::spawn(logger);
    }
    app.run(stop).await.map_err(Exit::failed)
}

/// Held until the process ends.
fn lock() -> Result<OwnedFd, Exit> {
    let path = Path::new(LOCK);
    let failed = |error: std::io::Error| Exit::failed(format!("{LOCK}: {error}"));
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    let file = File::create(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file.into()),
        Err(TryLockError::WouldBlock) => Err(Exit::failed(format!(
            "another mantled runs on this host (it holds {LOCK}); stop it first, or `mantled upgrade`"
        ))),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
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
