//! What trust is made of, as it was read from files; and whether the files are still the same.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustls::pki_types::CertificateDer;

use crate::{
    ca,
    config::{Config, Trust},
};

/// Everything that connectors are built from.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Material {
    /// `[tls]`.
    pub(super) default: Trust,
    /// Those of the routes.
    pub(super) routes: Vec<Option<Trust>>,
    /// The roots of the host; empty where no trust names them.
    pub(super) system: Vec<CertificateDer<'static>>,
    /// A route ends the TLS of agents.
    pub(super) terminates: bool,
    /// The host's own authority: with its key where a route needs it, and without where it is
    /// there all the same.
    pub(super) authority: Option<ca::Files>,
}

impl Material {
    /// Of a configuration whose files have just been read.
    pub(super) fn new(config: &Config) -> Result<Self, String> {
        let directory = &config.ca().dir;
        let authority =
            match config.terminates() {
                Some(route) => Some(ca::Files::read(directory).map_err(|error| {
                    format!("route {route} says tls = \"terminate\", and {error}")
                })?),
                None => ca::Files::read_certificate(directory).ok(),
            };
        let system = if wants_system(config) {
            // Files that cannot be read are left out; where nothing is left, the connectors
            // cannot be built.
            rustls_native_certs::load_native_certs().certs
        } else {
            Vec::new()
        };
        Ok(Self {
            default: config.trust().clone(),
            routes: config
                .routes()
                .iter()
                .map(|route| route.trust().cloned())
                .collect(),
            system,
            terminates: config.terminates().is_some(),
            authority,
        })
    }
}

/// The files that a configuration's trust is read from, the host's roots among them.
pub(super) fn files(config: &Config) -> Vec<PathBuf> {
    let mut files = config.files().to_vec();
    files.extend(ca::Files::paths(&config.ca().dir));
    if wants_system(config) {
        let found = openssl_probe::probe();
        files.extend(found.cert_file);
        // A directory changes when a file in it is added, removed or replaced.
        files.extend(found.cert_dir);
    }
    files
}

fn wants_system(config: &Config) -> bool {
    let of_routes = config.routes().iter().filter_map(|route| route.trust());
    of_routes
        .chain([config.trust()])
        .any(|trust| trust.roots.system())
}

/// How a file looks from outside. Symbolic links are followed to the end, so a link anywhere on
/// the path that is pointed elsewhere is another file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark(Option<[i128; 5]>);

impl Mark {
    pub(super) fn of(file: &Path) -> Self {
        let nanoseconds =
            |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self(fs::metadata(file).ok().map(|data| {
            [
                data.dev().into(),
                data.ino().into(),
                data.size().into(),
                nanoseconds(data.mtime(), data.mtime_nsec()),
                // Also tells of another owner or mode.
                nanoseconds(data.ctime(), data.ctime_nsec()),
            ]
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn whatever_way_a_file_is_replaced_it_looks_different() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let file = path("file");
        let mut last = Mark::of(&file);
        let mut changed = |what: &str| {
            let now = Mark::of(&file);
            assert_ne!(now, last, "{what}");
            assert_eq!(now, Mark::of(&file), "{what}: nothing happened since");
            last = now;
        };
        fs::write(&file, "one").unwrap();
        changed("written");
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&file, "two").unwrap();
        changed("written in place");
        fs::write(path("new"), "two").unwrap();
        fs::rename(path("new"), &file).unwrap();
        changed("renamed over");
        fs::remove_file(&file).unwrap();
        changed("removed");
        // As Kubernetes does it: the file is a link into a directory that is a link.
        for version in ["v1", "v2"] {
            fs::create_dir(path(version)).unwrap();
            fs::write(path(version).join("file"), "same").unwrap();
        }
        symlink("v1", path("data")).unwrap();
        symlink("data/file", &file).unwrap();
        changed("linked");
        symlink("v2", path("data.new")).unwrap();
        fs::rename(path("data.new"), path("data")).unwrap();
        changed("link of the directory swapped");
    }
}
