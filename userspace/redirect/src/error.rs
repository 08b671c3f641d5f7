//! What can go wrong with the kernel side, and what to do about it.

use std::{io, path::PathBuf};

use crate::neighbours::Neighbour;

/// An error of this crate. The text is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A capability is missing.
    #[error("{action}: not permitted; run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN")]
    Privilege {
        /// What was tried.
        action: String,
    },
    /// The kernel lacks a hook or helper.
    #[error("{action}: this kernel cannot do it ({reason}); mantled needs Linux 5.15 or later")]
    Kernel {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        reason: String,
    },
    /// No cgroup v2 hierarchy is mounted.
    #[error(
        "no cgroup v2 hierarchy is mounted here; mount one: mkdir -p /sys/fs/cgroup && \
         mount -t cgroup2 none /sys/fs/cgroup (`ip netns exec` hides it: use `nsenter --net=FILE`)"
    )]
    NoCgroup2,
    /// The bpf file system is not mounted and could not be.
    #[error(
        "{path} is no bpf file system and could not be mounted ({source}); \
         mount it: mount -t bpf bpf {path}"
    )]
    NoBpffs {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: nix::Error,
    },
    /// The cgroup that was named is not there.
    #[error(
        "cgroup {path} does not exist; `systemctl show -p ControlGroup UNIT` tells a unit's, `cat /proc/PID/cgroup` a process's"
    )]
    NoSuchCgroup {
        /// As it was named.
        path: String,
    },
    /// A unit without a cgroup.
    #[error(
        "unit {unit} has no cgroup; start it first (`systemctl start {unit}`), or name a cgroup"
    )]
    NoSuchUnit {
        /// As it was named.
        unit: String,
    },
    /// The cgroup cannot be enrolled.
    #[error("cgroup {path} cannot be enrolled: {reason}")]
    CannotEnroll {
        /// Its path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another network namespace cannot be looked after.
    #[error(
        "{action}: {source}; connections from there are refused (enforce) or pass mantled by \
         (observe); entering it takes CAP_SYS_ADMIN, finding it CAP_SYS_PTRACE"
    )]
    Namespaces {
        /// What was tried.
        action: String,
        /// Why not.
        source: io::Error,
    },
    /// Pins of another version of mantled.
    #[error(
        "{path} holds the state of another version of mantled; `mantled detach --all` removes it \
         (enrolled agents are unprotected until the daemon runs again)"
    )]
    OtherVersion {
        /// The directory.
        path: PathBuf,
    },
    /// An attachment was refused because of another program.
    #[error(
        "{} cannot be attached to {cgroup}: {obstacle} holds that hook of {} for itself alone; \
         `bpftool cgroup show {}` shows it, and whoever attached it has to do so with \
         BPF_F_ALLOW_MULTI, or take it away",
        obstacle.hook, obstacle.cgroup.display(), obstacle.cgroup.display()
    )]
    Exclusive {
        /// What was to be attached to.
        cgroup: PathBuf,
        /// The other program.
        obstacle: Neighbour,
    },
    /// The kernel object could not be loaded.
    #[error("the kernel programs could not be loaded: {0}")]
    Load(String),
    /// Anything else that the system refused.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// Sorts what the system said into the cases above.
    pub(crate) fn io(action: impl Into<String>, source: io::Error) -> Self {
        let action = action.into();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Privilege { action },
            _ => Self::Io { action, source },
        }
    }

    pub(crate) fn namespaces(action: String, source: io::Error) -> Self {
        Self::Namespaces { action, source }
    }

    /// Is it the kernel or its permissions that are missing, rather than something the operator
    /// wrote?
    pub fn is_environment(&self) -> bool {
        matches!(
            self,
            Self::Privilege { .. }
                | Self::Kernel { .. }
                | Self::NoCgroup2
                | Self::NoBpffs { .. }
                | Self::Exclusive { .. }
                | Self::OtherVersion { .. }
                | Self::Load(_)
        )
    }
}
