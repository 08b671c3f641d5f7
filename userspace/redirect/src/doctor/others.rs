//! Programs of others where mantled's are, or are to be.

use super::{Finding, Level};
use crate::{
    Error, Pins,
    cgroup::Cgroup,
    interceptor::{GROUP_HOOKS, Hook, ROOT_HOOKS},
    map::Map,
    neighbours, sys,
};

const CHECK: &str = "other programs";

/// Looks at the root of the hierarchy, at every group that a daemon has enrolled, and above those that
/// are to be.
pub(super) fn examine(planned: &[Cgroup]) -> Vec<Finding> {
    let Ok(root) = Cgroup::root() else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    // These can change where a connection goes, before mantled looks or after; at the other hooks a
    // program can only refuse what is refused then.
    look(&root, &ROOT_HOOKS, Level::Warn, &mut findings);
    look(&root, &GROUP_HOOKS, Level::Ok, &mut findings);
    for cgroup in enrolled() {
        look(&cgroup, &ROOT_HOOKS, Level::Warn, &mut findings);
        look(&cgroup, &GROUP_HOOKS, Level::Ok, &mut findings);
    }
    for cgroup in planned {
        for hook in &GROUP_HOOKS {
            if let Some(obstacle) = neighbours::obstacle(hook.name, hook.attach, cgroup) {
                let error = Error::Exclusive {
                    cgroup: cgroup.path().to_owned(),
                    obstacle,
                };
                findings.push(super::finding(CHECK, Err(error)));
            }
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            "none at the hooks of the root cgroup and of enrolled groups",
        ));
    }
    findings
}

fn look(cgroup: &Cgroup, hooks: &'static [Hook], level: Level, findings: &mut Vec<Finding>) {
    let place = cgroup.path().display();
    let show = format!("`bpftool cgroup show {place}` shows it");
    for hook in hooks {
        let found = match neighbours::at(hook, cgroup) {
            Ok(found) => found,
            Err(error) => {
                findings.push(Finding::bad(
                    Level::Warn,
                    CHECK,
                    format!("what is attached to {place} cannot be told: {error}"),
                    "run as root, or with CAP_NET_ADMIN",
                ));
                return;
            }
        };
        if found.iter().any(|neighbour| neighbour.name.is_none()) {
            findings.push(Finding::bad(
                Level::Warn,
                CHECK,
                format!("whose programs are attached to {place} cannot be told"),
                "run as root: their names take CAP_SYS_ADMIN",
            ));
            return;
        }
        if let Some(first) = found.first()
            && neighbours::is_exclusive(hook, cgroup)
        {
            findings.push(Finding::bad(
                Level::Fail,
                CHECK,
                format!("{first} holds {} of {place} for itself alone", hook.name),
                format!("{show}; whoever attached it has to do so with BPF_F_ALLOW_MULTI, or take it away"),
            ));
            continue;
        }
        for neighbour in found {
            let detail = format!("{neighbour} runs at {} of {place} too", hook.name);
            findings.push(match level {
                Level::Ok => Finding::ok(CHECK, detail),
                level => Finding::bad(
                    level,
                    CHECK,
                    detail,
                    format!("{show}; see that it does not change where connections go"),
                ),
            });
        }
    }
}

/// The groups that a daemon has enrolled, also one that is dead.
fn enrolled() -> Vec<Cgroup> {
    let ids = sys::open_pin(&Pins::default().map("GROUPS"))
        .and_then(Map::<u64, mantled_abi::Group>::new)
        .and_then(|groups| groups.keys())
        .unwrap_or_default();
    ids.into_iter()
        .filter_map(|id| Cgroup::by_id(id).ok())
        .collect()
}
