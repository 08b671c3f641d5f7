//! Control groups, version 2: finding, making and ending them.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mantled_abi::MAX_DEPTH;

use crate::Error;

/// Where the cgroup v2 hierarchy is mounted. On hybrid hosts that is not `/sys/fs/cgroup`.
///
/// # Errors
/// [`Error::NoCgroup2`] where it is not.
pub fn mount_point() -> Result<PathBuf, Error> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|source| Error::io("reading /proc/self/mountinfo", source))?;
    mounts
        .lines()
        .find_map(|line| {
            // proc_pid_mountinfo(5): ... root mount-point options [tags] - type source options
            let (fields, rest) = line.split_once(" - ")?;
            (rest.split(' ').next()? == "cgroup2").then_some(())?;
            fields.split(' ').nth(4).map(PathBuf::from)
        })
        .ok_or(Error::NoCgroup2)
}

/// The cgroup of a process, as a path below the hierarchy's root ("/system.slice/x.service").
///
/// # Errors
/// As reading `/proc/PID/cgroup`; the process may be gone.
pub fn of_process(pid: u32) -> io::Result<String> {
    path_in(&fs::read_to_string(format!("/proc/{pid}/cgroup"))?)
}

/// The path in what `/proc/PID/cgroup` says.
pub(crate) fn path_in(text: &str) -> io::Result<String> {
    text.lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(str::to_owned)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup v2 line"))
}

/// The id of a cgroup that is named by a path below the hierarchy's root.
///
/// # Errors
/// As stat(2); [`io::ErrorKind::NotFound`] without a hierarchy.
pub fn id_of(path: &str) -> io::Result<u64> {
    let root = mount_point().map_err(|_| io::ErrorKind::NotFound)?;
    Ok(fs::metadata(root.join(path.trim_start_matches('/')))?.ino())
}

/// The numbers in a file of every cgroup from this one down.
fn numbers(path: &Path, file: &str) -> Vec<u32> {
    subtree(path)
        .iter()
        .filter_map(|directory| fs::read_to_string(directory.join(file)).ok())
        .flat_map(|text| {
            text.lines()
                .filter_map(|line| line.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The threads in a cgroup and below it; none where it is not there any more.
pub fn threads(path: &Path) -> Vec<u32> {
    numbers(path, "cgroup.threads")
}

/// An open cgroup directory.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
    id: u64,
}

impl Cgroup {
    /// Opens a cgroup by a path below the hierarchy's root, or by its path in the file system.
    ///
    /// # Errors
    /// [`Error::NoSuchCgroup`], [`Error::NoCgroup2`].
    pub fn open(named: &Path) -> Result<Self, Error> {
        let root = mount_point()?;
        let path = if named.starts_with(&root) {
            named.to_owned()
        } else {
            root.join(named.strip_prefix("/").unwrap_or(named))
        };
        let missing = || Error::NoSuchCgroup {
            path: named.display().to_string(),
        };
        // A path with `..` could name something outside the hierarchy.
        let path = match path.canonicalize() {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(Error::io(format!("reading {}", path.display()), error));
            }
            path => path.map_err(|_| missing())?,
        };
        if !path.starts_with(&root) || !path.join("cgroup.procs").exists() {
            return Err(missing());
        }
        let directory = fs::File::open(&path)
            .map_err(|source| Error::io(format!("opening {}", path.display()), source))?;
        let id = directory
            .metadata()
            .map_err(|source| Error::io(format!("reading {}", path.display()), source))?
            .ino();
        Ok(Self {
            path,
            directory: directory.into(),
            id,
        })
    }

    /// The root of the hierarchy.
    ///
    /// # Errors
    /// [`Error::NoCgroup2`].
    pub fn root() -> Result<Self, Error> {
        Self::open(&mount_point()?)
    }

    /// The cgroup of this id, found by looking at all of them.
    ///
    /// # Errors
    /// [`Error::NoSuchCgroup`], [`Error::NoCgroup2`].
    pub fn by_id(id: u64) -> Result<Self, Error> {
        let found = subtree(&mount_point()?)
            .into_iter()
            .find(|path| fs::metadata(path).is_ok_and(|metadata| metadata.ino() == id));
        let missing = || Error::NoSuchCgroup {
            path: format!("number {id}"),
        };
        // Another one may have taken its place on the way.
        let cgroup = Self::open(&found.ok_or_else(missing)?)?;
        if cgroup.id() == id {
            Ok(cgroup)
        } else {
            Err(missing())
        }
    }

    /// Its path below the hierarchy's root, as [`of_process`] has it.
    pub fn below_root(&self) -> String {
        let root = mount_point().unwrap_or_default();
        let below = self.path.strip_prefix(root).unwrap_or(&self.path);
        format!("/{}", below.display())
    }

    /// The cgroup of a systemd unit of the system: the directory of that name. Units lie below
    /// slices; what is below another unit (a container, a user's manager, a service with cgroups of
    /// its own) is not looked at, since names are chosen freely there.
    ///
    /// # Errors
    /// [`Error::NoSuchUnit`]; [`Error::CannotEnroll`] where several have that name; [`Error::Io`]
    /// where the hierarchy cannot be read, which does not say that the unit is not there.
    pub fn of_unit(unit: &str) -> Result<Self, Error> {
        fn find(
            directory: &Path,
            unit: &str,
            depth: u32,
            found: &mut Vec<PathBuf>,
        ) -> io::Result<()> {
            let children = match fs::read_dir(directory) {
                // It has gone meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                children => children?,
            };
            for child in children {
                let child = child?;
                let name = child.file_name();
                if !child.file_type()?.is_dir() {
                    continue;
                }
                if name == unit {
                    found.push(child.path());
                } else if depth > 0 && name.as_encoded_bytes().ends_with(b".slice") {
                    find(&child.path(), unit, depth - 1, found)?;
                }
            }
            Ok(())
        }
        let mut found = Vec::new();
        find(&mount_point()?, unit, MAX_DEPTH, &mut found)
            .map_err(|source| Error::io(format!("looking for the cgroup of {unit}"), source))?;
        match found.as_slice() {
            [path] => Self::open(path),
            [] => Err(Error::NoSuchUnit {
                unit: unit.to_owned(),
            }),
            [first, second, ..] => Err(Error::CannotEnroll {
                path: first.clone(),
                reason: format!(
                    "{} has the same name; name a cgroup instead",
                    second.display()
                ),
            }),
        }
    }

    /// Makes a cgroup below the one of this process. Its own has no controllers to share out
    /// (it holds a process), so the new one may hold processes as well.
    ///
    /// # Errors
    /// As mkdir(2).
    pub fn create_below_own(name: &str) -> Result<Self, Error> {
        let own = of_process(std::process::id())
            .map_err(|source| Error::io("reading /proc/self/cgroup", source))?;
        let path = mount_point()?.join(own.trim_start_matches('/')).join(name);
        fs::create_dir(&path)
            .map_err(|source| Error::io(format!("making cgroup {}", path.display()), source))?;
        Self::open(&path)
    }

    /// Its id: the inode number, which the kernel programs know it by.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its path in the file system.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Can it be enrolled? The root, the daemon's own cgroup and what lies too deep cannot.
    ///
    /// # Errors
    /// [`Error::CannotEnroll`] with the reason.
    pub fn check_enrollable(&self) -> Result<(), Error> {
        let root = mount_point()?;
        let refuse = |reason: String| {
            Err(Error::CannotEnroll {
                path: self.path.clone(),
                reason,
            })
        };
        let below = self.path.strip_prefix(&root).unwrap_or(&self.path);
        let depth = below.components().count() as u32;
        if depth == 0 {
            return refuse("it is the root of the hierarchy; enrol slices or units".to_owned());
        }
        if depth > MAX_DEPTH {
            return refuse(format!(
                "it lies {depth} levels deep, and the kernel programs look at {MAX_DEPTH}; \
                 enrol one of the cgroups above it"
            ));
        }
        let own = of_process(std::process::id())
            .map_err(|source| Error::io("reading /proc/self/cgroup", source))?;
        if root
            .join(own.trim_start_matches('/'))
            .starts_with(&self.path)
        {
            return refuse(
                "mantled itself runs in it, and its connections would come back to it; \
                 run mantled as a unit of its own"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// The processes in it and below it.
    pub fn processes(&self) -> Vec<u32> {
        numbers(&self.path, "cgroup.procs")
    }

    /// Its id, and those of the cgroups below it.
    pub fn ids(&self) -> Vec<u64> {
        subtree(&self.path)
            .iter()
            .filter_map(|directory| fs::metadata(directory).ok())
            .map(|metadata| metadata.ino())
            .collect()
    }

    /// Ends every process in it and removes it. Processes that do not die in `patience` (they
    /// hang in the kernel) leave it standing.
    ///
    /// # Errors
    /// As rmdir(2).
    pub fn destroy(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            // cgroup.kill (Linux 5.14) reaches children that are being forked as well.
            let _ = fs::write(self.path.join("cgroup.kill"), "1");
            match fs::remove_dir(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
                Ok(()) => return Ok(()),
            }
        }
    }
}

/// A cgroup's directory, and those of every cgroup below it.
fn subtree(top: &Path) -> Vec<PathBuf> {
    let mut found = vec![top.to_owned()];
    let mut next = 0;
    while let Some(directory) = found.get(next) {
        let children: Vec<_> = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        found.extend(children);
        next += 1;
    }
    found
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}
