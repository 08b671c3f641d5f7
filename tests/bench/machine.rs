//! Facts of the machine.

use std::{fs, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use time::OffsetDateTime;

/// What part of the machine's CPU time others use, seen for a second in which this program sleeps.
pub(crate) fn busy() -> Result<f64> {
    let sample = || -> Result<(f64, f64)> {
        let text = fs::read_to_string("/proc/stat")?;
        let ticks: Vec<f64> = text
            .lines()
            .next()
            .context("/proc/stat is empty")?
            .split_whitespace()
            .skip(1)
            .take(8) // the rest is part of user time
            .filter_map(|field| field.parse().ok())
            .collect();
        let idle = ticks
            .get(3)
            .zip(ticks.get(4))
            .map(|(idle, wait)| idle + wait);
        Ok((ticks.iter().sum(), idle.context("/proc/stat is short")?))
    };
    let (total, idle) = sample()?;
    thread::sleep(Duration::from_secs(1));
    let (total_after, idle_after) = sample()?;
    Ok(1.0 - (idle_after - idle) / (total_after - total).max(1.0))
}

/// CPU, memory, kernel and system.
pub(crate) fn facts() -> Value {
    let cpu = line_of("/proc/cpuinfo", "model name", ':').unwrap_or_default();
    let memory = line_of("/proc/meminfo", "MemTotal", ':').unwrap_or_default();
    let system = line_of("/etc/os-release", "PRETTY_NAME", '=').unwrap_or_default();
    let read = |path: &str| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    json!({
        "cpu": cpu,
        "cores": cores(),
        "virtual": line_of("/proc/cpuinfo", "flags", ':')
            .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor")),
        "memory": memory,
        "kernel": read("/proc/sys/kernel/osrelease"),
        "system": system.trim_matches('"'),
        "load_average": read("/proc/loadavg"),
        // A priority that whoever started this has given to all of it, against other load.
        "autogroup": read("/proc/self/autogroup"),
    })
}

/// All that are online, whichever this program may use.
fn cores() -> usize {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .filter(|line| line.starts_with("processor"))
        .count()
}

/// Now, as RFC 3339 writes it.
pub(crate) fn now() -> String {
    let now = OffsetDateTime::now_utc();
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        now.year(),
        u8::from(now.month()),
        now.day(),
        now.hour(),
        now.minute(),
        now.second()
    )
}

/// The first line that a program prints about its version, on either stream.
pub(crate) fn version(program: &str, argument: &str, mark: &str) -> Result<String> {
    let output = Command::new(program)
        .arg(argument)
        .output()
        .with_context(|| format!("{program} is missing; `cargo xtask setup bench` installs it"))?;
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text)
        .lines()
        .find(|line| line.contains(mark))
        .map(|line| line.trim().to_owned())
        .with_context(|| format!("{program} {argument} does not tell its version"))
}

fn line_of(path: &str, key: &str, separator: char) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(separator)?.1.trim().to_owned())
}
