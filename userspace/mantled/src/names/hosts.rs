//! Names that the operator has written into /etc/hosts.

use std::{
    collections::HashMap,
    fs::{self, Metadata},
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// The file, read again when it has changed.
#[derive(Debug)]
pub(super) struct Hosts {
    file: PathBuf,
    read: Mutex<Read>,
}

#[derive(Debug, Default)]
struct Read {
    stamp: Option<Stamp>,
    names: HashMap<IpAddr, Vec<Arc<str>>>,
}

/// Device, inode, size and time of change: a file that was written or replaced has another.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(metadata: &Metadata) -> Stamp {
    (
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    )
}

impl Hosts {
    pub(super) fn of(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            read: Mutex::default(),
        }
    }

    /// The names of an address.
    pub(super) fn of_address(&self, address: IpAddr) -> Vec<Arc<str>> {
        // Nothing panics while it holds the lock.
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let now = fs::metadata(&self.file).ok().map(|found| stamp(&found));
        if now != read.stamp {
            *read = Read {
                stamp: now,
                names: parse(&fs::read_to_string(&self.file).unwrap_or_default()),
            };
        }
        read.names.get(&address).cloned().unwrap_or_default()
    }
}

/// hosts(5). A line names one host and its aliases: where one of them is a full name, that is the
/// one which a certificate can prove.
fn parse(text: &str) -> HashMap<IpAddr, Vec<Arc<str>>> {
    let mut found: HashMap<IpAddr, Vec<Arc<str>>> = HashMap::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else {
            continue;
        };
        let all: Vec<&str> = words.collect();
        let full: Vec<&str> = all
            .iter()
            .copied()
            .filter(|name| name.contains('.'))
            .collect();
        let names = found.entry(address.to_canonical()).or_default();
        for name in if full.is_empty() { all } else { full } {
            let name: Arc<str> = name.trim_end_matches('.').to_ascii_lowercase().into();
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_names_come_before_aliases() {
        let hosts = parse(
            "192.0.2.1 DB.example db # the database\n\
             192.0.2.2 short\n::ffff:192.0.2.3 a.example b.example\nnonsense\n192.0.2.2 other\n",
        );
        let names = |address: &str| -> Vec<String> {
            let names = &hosts[&address.parse::<IpAddr>().unwrap()];
            names.iter().map(ToString::to_string).collect()
        };
        assert_eq!(names("192.0.2.1"), ["db.example"]);
        assert_eq!(names("192.0.2.2"), ["short", "other"]);
        assert_eq!(names("192.0.2.3"), ["a.example", "b.example"]);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("hosts");
        let hosts = Hosts::of(&file);
        let address = [192, 0, 2, 1].into();
        assert!(hosts.of_address(address).is_empty());
        fs::write(&file, "192.0.2.1 db.example\n").unwrap();
        assert_eq!(&*hosts.of_address(address)[0], "db.example");
        let next = directory.path().join("next");
        fs::write(&next, "192.0.2.1 web.example\n").unwrap();
        fs::rename(&next, &file).unwrap();
        assert_eq!(&*hosts.of_address(address)[0], "web.example");
    }
}
