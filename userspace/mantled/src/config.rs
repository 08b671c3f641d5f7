//! The configuration file: raw serde -> a [`Config`] that cannot be invalid.
//!
//! Three steps, and no way around them. `raw` is what was typed, each value with its place;
//! `reader` turns a place and a mistake into an error that names line and remedy; the modules of
//! the sections (`enroll`, `route`, ...) turn what was typed into what was meant. All of them run
//! to the end, so that an operator sees every mistake of a file at once. If there was none, what
//! they made is the configuration: addresses are addresses, certificates were read and parsed,
//! defaults are filled in. Nothing later in the program checks a configuration again.

mod admin;
mod bypass;
mod ca;
mod dns;
mod enroll;
mod error;
mod field;
mod limits;
mod policy;
mod raw;
mod reader;
mod record;
mod route;
#[cfg(test)]
mod tests;
mod trust;

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use admin::{Admin, DEFAULT_SOCKET};
pub use bypass::{BYPASS_PORTS, Bypass};
pub use ca::Ca;
pub use dns::Dns;
pub use enroll::{CgroupPath, Enrollment, Inbound, Mode, OnDown, Target, UnitName};
pub use error::{ConfigError, ConfigErrors};
pub use limits::Limits;
pub use policy::Policy;
pub use record::{OnFailure, Record};
pub use route::{HostPattern, Protocol, Route, TlsMode};
pub use trust::{ClientIdentity, Crls, MinVersion, Pin, Roots, Trust};

use error::Document;
use raw::RawConfig;
use reader::Reader;
use trust::RawTrust;

/// The port of syslog over UDP (RFC 5426).
const SYSLOG: u16 = 514;

/// Where the configuration is looked for if nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/mantled/mantled.toml";

/// The configuration. There is no way to make an invalid one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    listen_port: u16,
    on_daemon_down: Option<OnDown>,
    enrollments: Vec<Enrollment>,
    routes: Vec<Route>,
    trust: Trust,
    ca: Ca,
    bypasses: Vec<Bypass>,
    dns: Dns,
    record: Record,
    limits: Limits,
    admin: Admin,
    policy: Policy,
    source: Option<Arc<Source>>,
}

/// Where a configuration was read, so that the files that it names can be read again.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    path: PathBuf,
    text: String,
    files: Vec<PathBuf>,
}

impl Config {
    /// The defaults: what an empty file means, and what `mantled exec` runs with if there is none.
    pub fn builtin() -> Self {
        Self::default()
    }

    /// Reads a file, and those that it names.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let bytes = Disk.read(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let hint = "write one, or name another file with `--config`; an empty one is valid";
                ConfigErrors::unreadable(path, "there is no such file".into(), hint.into())
            }
            _ => {
                let hint = "name a file that the user that mantled runs as can read";
                ConfigErrors::unreadable(path, format!("cannot be read: {error}"), hint.into())
            }
        })?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => {
                let files = Noted::default();
                let mut config = Self::parse_with(text, path, &files)?;
                config.source = Some(Arc::new(Source {
                    path: path.to_owned(),
                    text: text.to_owned(),
                    files: files.0.into_inner(),
                }));
                Ok(config)
            }
            Err(error) => {
                let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
                let text = String::from_utf8_lossy(valid);
                let place = text.len()..text.len();
                let hint = "save the file as UTF-8";
                let error = Document::new(&text).error(&place, "this is not UTF-8", hint);
                Err(ConfigErrors::new(path, vec![error]))
            }
        }
    }

    /// The file that was read; None: these are the defaults.
    pub fn path(&self) -> Option<&Path> {
        self.source.as_deref().map(|source| source.path.as_path())
    }

    /// The files that the configuration names, and that were read with it.
    pub fn files(&self) -> &[PathBuf] {
        self.source.as_deref().map_or(&[], |source| &source.files)
    }

    /// The same text, with its files read again. The text itself is not.
    ///
    /// # Errors
    /// What is wrong with a file now.
    pub fn reread(&self) -> Result<Self, ConfigErrors> {
        match &self.source {
            Some(source) => Self::parse(&source.text, &source.path),
            None => Ok(self.clone()),
        }
    }

    /// Parses the text of the file `path`, and reads the files that it names.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigErrors> {
        Self::parse_with(text, path, &Disk)
    }

    /// Parses the text of the file `path`; the files that it names are read through `files`.
    ///
    /// With [`NoFiles`] this is a pure function of its arguments, which must not panic whatever
    /// they are: the entry for fuzzing.
    pub fn parse_with(text: &str, path: &Path, files: &dyn Files) -> Result<Self, ConfigErrors> {
        let dir = path.parent().unwrap_or(Path::new(""));
        let mut reader = Reader::new(text, dir, files);
        let document = reader.syntax::<RawConfig>();
        let raw = reader.known(document);
        let config = Self::resolve(&mut reader, raw);
        match reader.finish() {
            errors if errors.is_empty() => Ok(config),
            errors => Err(ConfigErrors::new(path, errors)),
        }
    }

    /// What was meant; only valid if the reader noted no mistake.
    fn resolve(reader: &mut Reader, raw: RawConfig) -> Self {
        let listen = reader.table("listen", raw.listen).value;
        let tls = reader.table("tls", raw.tls).value;
        let ca = reader.table("ca", raw.ca).value;
        let dns = reader.table("dns", raw.dns).value;
        let record = reader.table("record", raw.record).value;
        let limits = reader.table("limits", raw.limits).value;
        let admin = reader.table("admin", raw.admin).value;
        let policy = reader.table("policy", raw.policy).value;

        let on_daemon_down = reader.word("on_daemon_down", raw.on_daemon_down);
        let tls = RawTrust {
            roots: tls.roots,
            min_version: tls.min_version,
            client_certificate: tls.client_certificate,
            client_key: tls.client_key,
            pins: tls.pins,
            crls: tls.crls,
        };
        let trust = tls.resolve(reader, &Trust::default()).unwrap_or_default();
        Self {
            listen_port: reader
                .number("port", listen.port, 0..=65535)
                .unwrap_or_default(),
            on_daemon_down,
            enrollments: enroll::resolve(reader, raw.enroll, on_daemon_down),
            routes: route::resolve(reader, raw.route, &trust),
            trust,
            ca: ca::resolve(reader, ca),
            bypasses: bypass::resolve(reader, raw.bypass),
            dns: dns::resolve(reader, dns),
            record: record::resolve(reader, record),
            limits: limits::resolve(reader, limits),
            admin: admin::resolve(reader, admin, raw.state_dir),
            policy: policy::resolve(reader, policy),
            source: None,
        }
    }

    /// Where policies are.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The port to listen on; 0: the kernel picks one.
    pub fn listen_port(&self) -> u16 {
        self.listen_port
    }

    /// What the file says for all groups; `None`: it depends on the mode.
    pub fn on_daemon_down(&self) -> Option<OnDown> {
        self.on_daemon_down
    }

    /// What happens to a group that is enrolled by command, while the daemon is down.
    pub fn on_daemon_down_for(&self, mode: Mode) -> OnDown {
        self.on_daemon_down.unwrap_or(mode.default_on_down())
    }

    /// The same configuration for one command: without the groups that it enrols, and with
    /// little time for sessions that outlive the command.
    #[must_use]
    pub fn for_command(mut self) -> Self {
        const DRAIN: std::time::Duration = std::time::Duration::from_secs(2);
        self.enrollments.clear();
        self.limits.drain = self.limits.drain.min(DRAIN);
        self
    }

    /// The groups to enrol at start; no two are the same.
    pub fn enrollments(&self) -> &[Enrollment] {
        &self.enrollments
    }

    /// The routes, in the order in which they are tried.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The first route that matches a destination that the agent knows by these names, and its
    /// index; an IPv4-mapped address counts as IPv4.
    pub fn route_for<N: AsRef<str>>(
        &self,
        names: &[N],
        address: IpAddr,
        port: u16,
    ) -> Option<(usize, &Route)> {
        self.routes
            .iter()
            .enumerate()
            .find(|(_, route)| route.matches(names, address, port))
    }

    /// UDP ports whose datagrams are carried as syslog over TLS: the usual one, and those of the
    /// routes that say `protocol = "syslog"`.
    pub fn relayed_ports(&self) -> Vec<u16> {
        let of_routes = self
            .routes
            .iter()
            .filter(|route| route.protocol() == Some(Protocol::Syslog))
            .filter_map(Route::port);
        let mut ports: Vec<u16> = std::iter::once(SYSLOG).chain(of_routes).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// The trust of connections that no route gives another one: `[tls]`.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The trust that counts on a route, or without one.
    pub fn trust_for<'a>(&'a self, route: Option<&'a Route>) -> &'a Trust {
        route.and_then(Route::trust).unwrap_or(&self.trust)
    }

    /// The authority of this host.
    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    /// The first route that ends the TLS of agents, counted from 1; `None`: there is none.
    pub fn terminates(&self) -> Option<usize> {
        let terminates = |route: &Route| route.tls() == TlsMode::Terminate;
        self.routes
            .iter()
            .position(terminates)
            .map(|index| index + 1)
    }

    /// Destinations that need no TLS.
    pub fn bypasses(&self) -> &[Bypass] {
        &self.bypasses
    }

    /// The resolvers that may be asked.
    pub fn dns(&self) -> &Dns {
        &self.dns
    }

    /// Where session records go.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// How the daemon is asked and told.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// Where the daemon keeps what commands have enrolled.
    pub fn state_dir(&self) -> &Path {
        &self.admin.state_dir
    }

    /// How long, and how many.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }
}

/// The JSON Schema of the file, for editors. It knows types and words; what takes more (no two
/// enrolments alike, readable certificates) only [`Config::parse`] knows.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(RawConfig).to_value()
}

/// How the files that a configuration names are read.
pub trait Files {
    /// All that the file holds.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
}

/// The files of this host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

/// The largest file that is read: many times what all public roots take. A path that was mistyped
/// may name a device without end.
const FILE_MAX: u64 = 16 << 20;

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let mut bytes = Vec::new();
        if file.take(FILE_MAX + 1).read_to_end(&mut bytes)? as u64 > FILE_MAX {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        Ok(bytes)
    }
}

/// The files of this host, and which of them were asked for.
#[derive(Debug, Default)]
struct Noted(RefCell<Vec<PathBuf>>);

impl Files for Noted {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.borrow_mut().push(path.to_owned());
        Disk.read(path)
    }
}

/// No files at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFiles;

impl Files for NoFiles {
    fn read(&self, _path: &Path) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }
}
