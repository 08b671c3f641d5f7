//! A kernel program attached to a cgroup.
//!
//! aya's own links cannot be updated in place, so this crate makes them itself.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya_obj::generated::bpf_attach_type;

use crate::sys;

/// The attachment lasts as long as a descriptor of it or a pin.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    pub(crate) fn create(
        program: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
        attach: bpf_attach_type,
    ) -> io::Result<Self> {
        sys::link_create(program, cgroup, attach).map(Self)
    }

    pub(crate) fn pin(&self, path: &Path) -> io::Result<()> {
        sys::pin(self.0.as_fd(), path)
    }

    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        sys::open_pin(path).map(Self)
    }

    pub(crate) fn replace(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        sys::link_update(self.0.as_fd(), program)
    }

    pub(crate) fn detach(&self) -> io::Result<()> {
        if self.is_attached() {
            sys::link_detach(self.0.as_fd())
        } else {
            Ok(())
        }
    }

    /// Does the kernel still run it? Removing the cgroup severs a link for good.
    pub fn is_attached(&self) -> bool {
        sys::link_info(self.0.as_fd()).is_ok_and(|(_, cgroup)| cgroup != 0)
    }

    /// Id of the program behind it.
    pub(crate) fn program(&self) -> io::Result<u32> {
        sys::link_info(self.0.as_fd()).map(|(program, _)| program)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
