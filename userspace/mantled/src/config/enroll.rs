//! `[[enroll]]`: the groups of processes whose connections are redirected.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::quoted;
use super::field::{At, Field, Span, Tables, Words};
use super::raw::RawEnroll;
use super::reader::Reader;

/// What is done to the connections of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// No plaintext leaves.
    Enforce,
    /// Plaintext leaves where the server offers no TLS, and is recorded as exposed.
    Observe,
}

impl Words for Mode {
    const WORDS: &'static [(&'static str, Self)] =
        &[("enforce", Self::Enforce), ("observe", Self::Observe)];
    const LATER: &'static [(&'static str, &'static str)] = &[(
        "survey",
        "`mantled survey` looks at a group without enrolling it; write `mode = \"observe\"` here",
    )];
}

impl Mode {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        }
    }

    /// What happens while the daemon is down if nobody chose.
    pub fn default_on_down(self) -> OnDown {
        match self {
            Self::Enforce => OnDown::Closed,
            Self::Observe => OnDown::Open,
        }
    }

    /// Whether peers may reach servers inside the group if nobody chose.
    pub fn default_inbound(self) -> Inbound {
        match self {
            Self::Enforce => Inbound::Refuse,
            Self::Observe => Inbound::Allow,
        }
    }
}

/// What happens to a group's connections while the daemon is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDown {
    /// They are refused.
    Closed,
    /// They go out as the agent made them: an exception to the first promise.
    Open,
}

impl Words for OnDown {
    const WORDS: &'static [(&'static str, Self)] =
        &[("closed", Self::Closed), ("open", Self::Open)];
}

/// Whether servers inside a group may answer peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Inbound {
    /// Their replies are dropped.
    Refuse,
    /// Their replies go out: an exception to the first promise.
    Allow,
}

impl Words for Inbound {
    const WORDS: &'static [(&'static str, Self)] =
        &[("refuse", Self::Refuse), ("allow", Self::Allow)];
}

/// One group to enrol, with every choice made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrollment {
    target: Target,
    mode: Mode,
    inbound: Inbound,
    on_daemon_down: OnDown,
}

impl Enrollment {
    /// Which group.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// What is done to its connections.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether servers inside may answer; [`Inbound::Allow`] in observe mode unless refused.
    pub fn inbound(&self) -> Inbound {
        self.inbound
    }

    /// What happens while the daemon is down: the group's choice, the file's, or the mode's.
    pub fn on_daemon_down(&self) -> OnDown {
        self.on_daemon_down
    }
}

/// Names a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// By the systemd unit that runs it.
    Unit(UnitName),
    /// By its place.
    Cgroup(CgroupPath),
}

impl Target {
    /// What is named on a command line: a path is a cgroup, anything else a unit.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub fn parse(typed: &str) -> Result<Self, String> {
        let parsed = if typed.starts_with('/') {
            CgroupPath::parse(typed.to_owned()).map(Self::Cgroup)
        } else {
            UnitName::parse(typed.to_owned()).map(Self::Unit)
        };
        parsed.map_err(|(message, hint)| format!("{message}; {hint}"))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Unit(unit) => f.write_str(unit.as_str()),
            Self::Cgroup(path) => f.write_str(path.as_str()),
        }
    }
}

/// The name of a systemd service, scope or slice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UnitName(String);

/// What systemd allows (`UNIT_NAME_MAX`).
const UNIT_NAME_MAX: usize = 255;

impl UnitName {
    /// The name, with its suffix.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is wrong with a name, and what to do; nothing if it is one.
    fn parse(name: String) -> Result<Self, (String, String)> {
        let shown = quoted(&name);
        let example = "write a unit such as `unit = \"shipper.service\"`".to_owned();
        if name.contains(['*', '?', '[']) {
            let hint = "write one `[[enroll]]` for each unit, or enrol the slice that holds them";
            return Err((format!("unit {shown} is a pattern"), hint.into()));
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || ":_.\\-@".contains(c);
        if name.len() > UNIT_NAME_MAX || !name.chars().all(legal) {
            return Err((format!("{shown} is no unit name"), example));
        }
        match name.rsplit_once('.') {
            Some((stem, "service" | "scope" | "slice")) if !stem.is_empty() => {
                if stem.ends_with('@') {
                    let hint = "write the name of an instance, such as `shipper@1.service`".into();
                    return Err((
                        format!("unit {shown} is a template, which runs nothing"),
                        hint,
                    ));
                }
                if name == "-.slice" {
                    return Err(everything(&shown));
                }
                Ok(Self(name))
            }
            Some((stem, "socket" | "mount" | "swap" | "timer" | "path" | "target"))
                if !stem.is_empty() =>
            {
                let hint = "write the service that it starts, or its `cgroup`".into();
                Err((format!("unit {shown} is no service, scope or slice"), hint))
            }
            _ if name.is_empty() => Err(("`unit` is empty".into(), example)),
            _ => {
                let hint = format!("did you mean `{name}.service`?");
                Err((format!("unit {shown} lacks its suffix"), hint))
            }
        }
    }
}

/// A cgroup's path below the root of the cgroup2 hierarchy: `/system.slice/x.service`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CgroupPath(String);

/// Where systemd mounts the hierarchy: on a unified host, and on a hybrid one.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

impl CgroupPath {
    /// The path; it starts with a slash, ends with none, and has no `.` or `..` in it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The group's directory in the hierarchy mounted at `mount`.
    pub fn under(&self, mount: &Path) -> PathBuf {
        mount.join(self.0.trim_start_matches('/'))
    }

    /// What is wrong with a path, and what to do; nothing if it is one.
    fn parse(typed: String) -> Result<Self, (String, String)> {
        let shown = quoted(&typed);
        if typed.contains(['*', '?', '[']) {
            let hint = "write one `[[enroll]]` for each group, or enrol the one that holds them";
            return Err((format!("cgroup {shown} is a pattern"), hint.into()));
        }
        let below = MOUNTS.iter().find_map(|mount| {
            typed
                .strip_prefix(mount)
                .filter(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        let path = below.unwrap_or(&typed);
        if below.is_none() && !path.starts_with('/') {
            let hint = format!("write the path below the cgroup2 root: `/{path}`");
            return Err((format!("cgroup {shown} is relative"), hint));
        }
        let names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
        let odd = |name: &&str| matches!(*name, "." | "..") || name.contains(char::is_control);
        if names.iter().any(odd) {
            let hint = "write the path that /proc/PID/cgroup shows after `0::`".into();
            return Err((format!("{shown} is no path of a cgroup"), hint));
        }
        if names.is_empty() {
            return Err(everything(&shown));
        }
        Ok(Self(format!("/{}", names.join("/"))))
    }
}

/// Redirecting the daemon's own connections to the daemon would end every connection.
fn everything(shown: &str) -> (String, String) {
    let message = format!("{shown} is the whole host, mantled included");
    (
        message,
        "enrol the groups below it, such as `cgroup = \"/user.slice\"`".into(),
    )
}

/// All enrolments; `global` is the file's `on_daemon_down`.
pub(super) fn resolve(
    reader: &mut Reader,
    tables: Field<Tables<RawEnroll>>,
    global: Option<OnDown>,
) -> Vec<Enrollment> {
    let mut first: HashMap<Target, usize> = HashMap::new();
    let mut enrollments = Vec::new();
    for At { value: raw, span } in reader.tables("enroll", tables) {
        reader.required("mode", &raw.mode, &span, "mode = \"enforce\"");
        let target = target(reader, raw.unit, raw.cgroup, &span);
        let mode = reader.word("mode", raw.mode);
        let inbound = reader.word("inbound", raw.inbound);
        let on_daemon_down = reader.word("on_daemon_down", raw.on_daemon_down);

        let Some(At {
            value: target,
            span,
        }) = target
        else {
            continue;
        };
        if let Some(line) = first.get(&target) {
            let message = format!("`{target}` is already enrolled in line {line}");
            reader.error(&span, &message, "remove one of the two");
            continue;
        }
        first.insert(target.clone(), reader.line(&span));
        let Some(mode) = mode else { continue };
        enrollments.push(Enrollment {
            target,
            mode,
            inbound: inbound.unwrap_or(mode.default_inbound()),
            on_daemon_down: on_daemon_down.or(global).unwrap_or(mode.default_on_down()),
        });
    }
    enrollments
}

fn target(
    reader: &mut Reader,
    unit: Field<String>,
    cgroup: Field<String>,
    table: &Span,
) -> Option<At<Target>> {
    let both = "`[[enroll]]` has both `unit` and `cgroup`";
    match (unit.span(), cgroup.span()) {
        (None, None) => {
            let hint = "write `unit = \"shipper.service\"` or `cgroup = \"/system.slice/...\"`";
            reader.missing(table, "`[[enroll]]` names no group", hint);
        }
        (Some(_), Some(second)) => reader.error(&second, both, "remove one of the two"),
        _ => {}
    }
    let unit = reader
        .get("unit", unit)
        .map(|at| (UnitName::parse(at.value), at.span));
    let cgroup = reader
        .get("cgroup", cgroup)
        .map(|at| (CgroupPath::parse(at.value), at.span));
    let unit = unit.map(|(unit, span)| (unit.map(Target::Unit), span));
    let cgroup = cgroup.map(|(path, span)| (path.map(Target::Cgroup), span));
    let mut target = None;
    for (parsed, span) in [unit, cgroup].into_iter().flatten() {
        match parsed {
            Ok(value) => target = Some(At { value, span }),
            Err((message, hint)) => reader.error(&span, &message, &hint),
        }
    }
    target
}
