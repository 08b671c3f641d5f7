//! Starting a process inside a cgroup.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    process::Command,
};

use crate::cgroup::Cgroup;

/// Makes `command` join `cgroup` before its program starts, so that no socket of it is made
/// outside, and die with this thread: call and spawn on a thread that lives as long as the
/// process.
///
/// # Errors
/// As open(2) of `cgroup.procs`.
pub fn inside(command: &mut Command, cgroup: &Cgroup) -> io::Result<()> {
    let mut processes = OpenOptions::new()
        .write(true)
        .open(cgroup.path().join("cgroup.procs"))?;
    let parent = nix::unistd::getpid();
    let join = move || {
        processes.write_all(b"0")?;
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        if nix::unistd::getppid() != parent {
            // The parent died before the line above.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes four system calls (write, prctl, getppid
    // and, by errors, none that allocates); it takes no lock and touches no memory of other
    // threads.
    unsafe { command.pre_exec(join) };
    Ok(())
}
