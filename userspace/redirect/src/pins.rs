//! Where maps and links outlive the daemon.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use mantled_abi as abi;

use crate::{Error, bpffs, link::Link};

/// Where maps and links are pinned.
#[derive(Clone, Debug)]
pub struct Pins {
    base: PathBuf,
}

impl Default for Pins {
    fn default() -> Self {
        Self {
            base: Path::new(bpffs::MOUNT_POINT).join("mantled"),
        }
    }
}

impl Pins {
    /// In another directory of a bpf file system: a unit may see the usual one there alone.
    pub fn at(base: &Path) -> Self {
        Self {
            base: base.to_owned(),
        }
    }

    /// The directory of this version's layout.
    pub(crate) fn current(&self) -> PathBuf {
        self.base.join(format!("v{}", abi::VERSION))
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.current().join("maps").join(name)
    }

    pub(crate) fn link(&self, hook: &str) -> PathBuf {
        self.current().join("links").join(hook)
    }

    pub(crate) fn group(&self, id: u64, hook: &str) -> PathBuf {
        self.current().join("groups").join(format!("{id}-{hook}"))
    }

    /// Is a program pinned for this cgroup itself? As the file system shows it: nothing but its
    /// permissions is needed to ask.
    pub fn has_group(&self, id: u64) -> bool {
        self.group(id, "egress").exists()
    }

    /// Makes the directories, and refuses pins of another version.
    pub(crate) fn prepare(&self) -> Result<(), Error> {
        bpffs::ensure(&self.base)?;
        let current = self.current();
        for entry in fs::read_dir(&self.base).into_iter().flatten().flatten() {
            if entry.path() != current {
                return Err(Error::OtherVersion { path: entry.path() });
            }
        }
        for directory in ["maps", "links", "groups"] {
            let path = current.join(directory);
            fs::create_dir_all(&path)
                .map_err(|source| Error::io(format!("making {}", path.display()), source))?;
        }
        Ok(())
    }

    /// Is anything pinned? The directory itself may have been made for a daemon that cannot.
    pub fn exist(&self) -> bool {
        fs::read_dir(&self.base).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Detaches every program, also under a daemon that still runs, and removes every pin, of
    /// whichever version. Returns what was detached.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Privilege`].
    pub fn remove(&self) -> Result<Vec<String>, Error> {
        let mut detached = Vec::new();
        let failed = |source| Error::io(format!("removing {}", self.base.display()), source);
        remove_below(&self.base, &mut detached).map_err(failed)?;
        match fs::remove_dir(&self.base) {
            // It is a mount point, or in a directory that is another's: it was made for this
            // process, and stays, empty.
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT | libc::EBUSY | libc::EPERM | libc::EACCES | libc::EROFS) => {
                    Ok(detached)
                }
                _ => Err(failed(error)),
            },
            Ok(()) => Ok(detached),
        }
    }
}

fn remove_below(path: &Path, detached: &mut Vec<String>) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path(), detached)?;
            fs::remove_dir(entry.path())?;
            continue;
        }
        let is_link = path.ends_with("links") || path.ends_with("groups");
        if is_link && let Ok(link) = Link::open(&entry.path()) {
            link.detach()?;
            detached.push(entry.file_name().to_string_lossy().into_owned());
        }
        fs::remove_file(entry.path())?;
    }
    Ok(())
}
