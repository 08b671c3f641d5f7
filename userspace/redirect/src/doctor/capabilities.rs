//! What this process may do, of what the daemon has to.

use std::fs;

use super::{Finding, Level};

/// A capability: its name, its number (capabilities(7)), what it is for, and what is missing without.
struct Needed {
    name: &'static str,
    number: u32,
    purpose: &'static str,
    without: Level,
}

/// As in systemd/README.md.
const NEEDED: [Needed; 5] = [
    Needed {
        name: "CAP_BPF",
        number: 39,
        purpose: "load programs, read and write maps",
        without: Level::Fail,
    },
    Needed {
        name: "CAP_PERFMON",
        number: 38,
        purpose: "load programs that follow kernel pointers",
        without: Level::Fail,
    },
    Needed {
        name: "CAP_NET_ADMIN",
        number: 12,
        purpose: "attach programs to cgroups, end connections from before enrolment",
        without: Level::Fail,
    },
    Needed {
        name: "CAP_SYS_PTRACE",
        number: 19,
        purpose: "tell which executable an agent of another user runs, find its connections from before",
        without: Level::Warn,
    },
    Needed {
        name: "CAP_DAC_READ_SEARCH",
        number: 2,
        purpose: "read certificates and keys that other users own",
        without: Level::Warn,
    },
];

/// One finding for each.
pub(super) fn examine() -> Vec<Finding> {
    let held = fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| effective(&status))
        .unwrap_or(0);
    NEEDED
        .iter()
        .map(|needed| {
            if held & (1 << needed.number) != 0 {
                Finding::ok(needed.name, needed.purpose)
            } else {
                Finding::bad(
                    needed.without,
                    needed.name,
                    format!("this process lacks it; it is needed to {}", needed.purpose),
                    "run as root, or with `setpriv --ambient-caps`; the unit of systemd/ has it",
                )
            }
        })
        .collect()
}

/// The effective set, of a process' status file.
fn effective(status: &str) -> Option<u64> {
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000008000001000\n";
        assert_eq!(effective(status), Some(1 << 39 | 1 << 12));
        assert_eq!(effective("Name:\tx\n"), None);
    }
}
