//! Does this host have what mantled needs? Asked by doing it: each program is loaded and attached
//! to a cgroup that is made for it and removed.

use std::{fs, net::TcpListener, path::Path, time::Duration};

use crate::{Error, bpffs, cgroup::Cgroup, interceptor::Interceptor, sys};

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// What was found.
    pub detail: String,
    /// What is missing and what to do; None where nothing is.
    pub problem: Option<String>,
}

/// Examines the host. Nothing stays behind.
pub fn examine() -> Vec<Finding> {
    let mut findings = vec![
        finding("kernel", kernel()),
        finding(
            "cgroup v2",
            crate::cgroup::mount_point().map(|path| path.display().to_string()),
        ),
        finding("network namespaces", netns()),
        Finding {
            check: "bpf file system".to_owned(),
            detail: if bpffs::is_mounted() {
                bpffs::MOUNT_POINT.to_owned()
            } else {
                format!(
                    "not mounted; `mantled run` mounts it at {}, `mantled exec` needs none",
                    bpffs::MOUNT_POINT
                )
            },
            problem: None,
        },
        finding("BTF", btf()),
    ];
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
    findings
}

fn finding(check: &str, result: Result<String, impl std::fmt::Display>) -> Finding {
    match result {
        Ok(detail) => Finding {
            check: check.to_owned(),
            detail,
            problem: None,
        },
        Err(error) => Finding {
            check: check.to_owned(),
            detail: String::new(),
            problem: Some(error.to_string()),
        },
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
