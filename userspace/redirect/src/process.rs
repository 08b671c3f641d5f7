//! What /proc tells of a process, for a flow that the kernel has described.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, OwnedFd},
};

use nix::{
    fcntl::{OFlag, open, openat, readlinkat},
    sys::stat::Mode,
};

use crate::cgroup;

/// A process that is in the cgroup that it was looked for in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The path of that cgroup, below the hierarchy's root.
    pub cgroup: String,
    /// Its executable; None where that must not be read, or the process ends.
    pub executable: Option<OsString>,
}

/// Looks at a process. None where it has gone, or is in another cgroup than the one that the
/// kernel saw it in: it has moved then, or its number is another process's by now. Everything is
/// read through one descriptor of its directory, so that it is all of one process.
pub fn look(pid: u32, cgroup: u64) -> Option<Seen> {
    let directory = directory(pid).ok()?;
    let path = cgroup_of(&directory).ok()?;
    (cgroup::id_of(&path).ok()? == cgroup).then(|| Seen {
        executable: readlinkat(&directory, "exe").ok(),
        cgroup: path,
    })
}

fn directory(pid: u32) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(format!("/proc/{pid}").as_str(), flags, Mode::empty())?)
}

fn cgroup_of(process: &OwnedFd) -> io::Result<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(process.as_fd(), "cgroup", flags, Mode::empty())?);
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    cgroup::path_in(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_in_its_own_cgroup_alone() {
        let pid = std::process::id();
        let path = cgroup::of_process(pid).unwrap();
        let id = cgroup::id_of(&path).unwrap();
        let seen = look(pid, id).unwrap();
        assert_eq!(seen.cgroup, path);
        let own = std::env::current_exe().unwrap();
        assert_eq!(seen.executable, Some(own.into_os_string()));
        assert_eq!(look(pid, id + 1), None);
    }
}
