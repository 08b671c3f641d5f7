//! Does this host have what mantled needs? Asked by doing it: each program is loaded and attached
//! to a cgroup that is made for it and removed.

mod capabilities;
mod others;

use std::{fs, net::TcpListener, path::Path, time::Duration};

use crate::{Error, bpffs, cgroup::Cgroup, interceptor::Interceptor, sys};

/// How an answer is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but for something.
    Warn,
    /// It does not work.
    Fail,
}

impl Level {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// How it is to be taken.
    pub level: Level,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            check: check.into(),
            level: Level::Ok,
            detail: detail.into(),
            remedy: None,
        }
    }

    /// Something is not, and this can be done about it.
    pub fn bad(
        level: Level,
        check: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            check: check.into(),
            level,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// Examines the host, and what stands in the way of enrolling these groups. Nothing stays behind.
pub fn examine(planned: &[Cgroup]) -> Vec<Finding> {
    let mut findings = vec![
        finding("kernel", kernel()),
        finding(
            "cgroup v2",
            crate::cgroup::mount_point().map(|path| path.display().to_string()),
        ),
        finding("network namespaces", netns()),
        bpf_file_system(),
        finding("BTF", btf()),
    ];
    findings.extend(capabilities::examine());
    match Interceptor::load(None) {
        Ok(interceptor) => {
            findings.push(finding(
                "load programs",
                Ok::<_, Error>("all of them".to_owned()),
            ));
            findings.extend(attach_each(&interceptor));
        }
        Err(error) => findings.push(finding("load programs", Err(error))),
    }
    findings.extend(others::examine(planned));
    findings
}

/// The text of an error says what to do.
fn finding(check: &str, result: Result<String, impl std::fmt::Display>) -> Finding {
    match result {
        Ok(detail) => Finding::ok(check, detail),
        Err(error) => Finding {
            check: check.to_owned(),
            level: Level::Fail,
            detail: error.to_string(),
            remedy: None,
        },
    }
}

fn bpf_file_system() -> Finding {
    const CHECK: &str = "bpf file system";
    if bpffs::is_mounted() {
        Finding::ok(CHECK, bpffs::MOUNT_POINT)
    } else {
        Finding::bad(
            Level::Warn,
            CHECK,
            "not mounted",
            format!(
                "`mantled run` mounts it where it may, else: mount -t bpf bpf {}; `mantled exec` needs none",
                bpffs::MOUNT_POINT
            ),
        )
    }
}

fn kernel() -> Result<String, Error> {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map(|text| text.trim().to_owned())
        .map_err(|source| Error::io("reading the kernel's version", source))
}

fn netns() -> Result<String, Error> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(sys::netns_cookie)
        .map(|cookie| format!("SO_NETNS_COOKIE works ({cookie})"))
        .map_err(|source| Error::Kernel {
            action: "asking for SO_NETNS_COOKIE (Linux 5.14)".to_owned(),
            reason: source.to_string(),
        })
}

fn btf() -> Result<String, Error> {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    if Path::new(PATH).exists() {
        Ok(PATH.to_owned())
    } else {
        Err(Error::Kernel {
            action: format!("reading {PATH}"),
            reason: "the kernel was built without CONFIG_DEBUG_INFO_BTF".to_owned(),
        })
    }
}

fn attach_each(interceptor: &Interceptor) -> Vec<Finding> {
    let name = format!("mantled-doctor-{}", std::process::id());
    let cgroup = match Cgroup::create_below_own(&name) {
        Ok(cgroup) => cgroup,
        Err(error) => return vec![finding("make a cgroup", Err(error))],
    };
    let mut findings: Vec<Finding> = Interceptor::hooks()
        .map(|hook| {
            let result = interceptor.try_attach(hook, &cgroup);
            finding(
                &format!("attach {}", hook.name),
                result.map(|()| format!("Linux {}", hook.since)),
            )
        })
        .collect();
    let removed = cgroup.destroy(Duration::from_secs(1));
    if let Err(error) = removed {
        findings.push(finding("remove a cgroup", Err::<String, _>(error)));
    }
    findings
}
