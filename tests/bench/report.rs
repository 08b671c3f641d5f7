//! What was measured, as a table for people and as JSON for programs.

use std::{collections::BTreeMap, fmt::Write as _, process::Command};

use anyhow::Result;
use mantled_tests::{Lab, mantled, succeed};
use serde_json::{Map, Value, json};

use crate::{
    machine,
    path::Path,
    process::Cpus,
    turn::{Load, Sample},
};

/// Which way is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
    /// A fact, no merit.
    Neither,
}

/// A number that a turn gives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric {
    name: &'static str,
    title: &'static str,
    better: Better,
}

const fn metric(name: &'static str, title: &'static str, better: Better) -> Metric {
    Metric {
        name,
        title,
        better,
    }
}

use Better::{Higher, Lower, Neither};

/// All of them, in sections of the table.
pub(crate) const METRICS: &[(&str, &[Metric])] = &[
    (
        "Bulk: 256 MiB replies on one connection",
        &[
            metric("bulk_mb_s", "MB/s", Higher),
            metric("bulk_proxy_cpu_s_per_gb", "CPU s per GB, proxy", Lower),
            metric(
                "bulk_host_cpu_s_per_gb",
                "CPU s per GB, proxy and client",
                Lower,
            ),
            metric("bulk_site_cpu_s_per_gb", "CPU s per GB, server", Neither),
        ],
    ),
    (
        "Small requests, one after the other on one connection",
        &[
            metric("small_p50_us", "round trip p50, µs", Lower),
            metric("small_p99_us", "round trip p99, µs", Lower),
            metric("small_proxy_cpu_us", "CPU µs per request, proxy", Lower),
        ],
    ),
    (
        "New connections, one small request each; sessions resumed as each program does by default",
        &[
            metric("connections_s", "connections/s", Higher),
            metric(
                "connections_proxy_cpu_s_per_1000",
                "CPU s per 1,000, proxy",
                Lower,
            ),
            metric(
                "connections_host_cpu_s_per_1000",
                "CPU s per 1,000, proxy and client",
                Lower,
            ),
            metric(
                "connections_site_cpu_s_per_1000",
                "CPU s per 1,000, server",
                Neither,
            ),
            metric("connections_resumed_percent", "resumed, %", Neither),
        ],
    ),
    (
        "The same with a full handshake each, since the server resumes nothing",
        &[
            metric("full_s", "connections/s", Higher),
            metric("full_proxy_cpu_s_per_1000", "CPU s per 1,000, proxy", Lower),
            metric(
                "full_host_cpu_s_per_1000",
                "CPU s per 1,000, proxy and client",
                Lower,
            ),
            metric(
                "full_site_cpu_s_per_1000",
                "CPU s per 1,000, server",
                Neither,
            ),
            metric("full_resumed_percent", "resumed, %", Neither),
        ],
    ),
    (
        "Full handshakes with another server (rustls), X25519",
        &[
            metric("classic_s", "connections/s", Higher),
            metric(
                "classic_proxy_cpu_s_per_1000",
                "CPU s per 1,000, proxy",
                Lower,
            ),
            metric(
                "classic_host_cpu_s_per_1000",
                "CPU s per 1,000, proxy and client",
                Lower,
            ),
        ],
    ),
    (
        "The same, post-quantum (X25519MLKEM768)",
        &[
            metric("hybrid_s", "connections/s", Higher),
            metric(
                "hybrid_proxy_cpu_s_per_1000",
                "CPU s per 1,000, proxy",
                Lower,
            ),
            metric(
                "hybrid_host_cpu_s_per_1000",
                "CPU s per 1,000, proxy and client",
                Lower,
            ),
        ],
    ),
    (
        "Memory of the proxy (Pss)",
        &[
            metric("idle_before_mib", "fresh, MiB", Lower),
            metric("idle_with_mib", "with the idle sessions, MiB", Lower),
            metric("idle_session_kib", "per idle session, KiB", Lower),
            metric("idle_rss_before_mib", "RSS fresh, MiB", Neither),
            metric(
                "idle_rss_with_mib",
                "RSS with the idle sessions, MiB",
                Neither,
            ),
            metric(
                "bpf_mib",
                "eBPF maps and programs in the kernel, MiB",
                Neither,
            ),
        ],
    ),
];

/// The path that this is all about.
const OURS: &str = "mantled";
/// The path that it is compared with next to the proxies.
const BOUND: &str = "direct-tls";

/// Everything that a run gives.
#[derive(Debug)]
pub(crate) struct Report {
    facts: Value,
    load: Load,
    paths: Vec<(&'static str, bool)>,
    samples: Vec<(&'static str, Sample)>,
    background: Vec<f64>,
}

/// Of some numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Summary {
    median: f64,
    min: f64,
    max: f64,
}

impl Summary {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let median = if values.len() % 2 == 1 {
            upper
        } else {
            f64::midpoint(*values.get(middle - 1)?, upper)
        };
        Some(Self { median, min, max })
    }
}

impl Report {
    /// With the facts of the run.
    pub(crate) fn new(
        lab: &Lab,
        paths: &[Box<dyn Path>],
        load: Load,
        rounds: usize,
        cpus: &Cpus,
        revision: &str,
        quick: bool,
    ) -> Result<Self> {
        let versions = paths
            .iter()
            .map(|path| Ok((path.name().to_owned(), Value::from(path.version()?))))
            .chain([Ok(("server".to_owned(), Value::from(server_version()?)))])
            .collect::<Result<Map<_, _>>>()?;
        let binary = mantled()?;
        let digest = succeed(Command::new("sha256sum").arg(&binary))?;
        let mtu = lab.host.ip(&["-o", "link", "show", "wire"])?;
        let mtu = mtu
            .split_whitespace()
            .skip_while(|word| *word != "mtu")
            .nth(1)
            .map(str::to_owned);
        let facts = json!({
            "format": 1,
            "date": machine::now(),
            "machine": machine::facts(),
            "mantled": {
                "revision": revision,
                "sha256": digest.split_whitespace().next(),
                "release_build": binary.to_string_lossy().contains("release"),
            },
            "versions": versions,
            "settings": {
                "rounds": rounds,
                "quick": quick,
                "cpu_of_server": cpus.site,
                "cpu_of_client_and_proxy": cpus.host,
                "wire_mtu": mtu,
                "tls": crate::site::FACTS,
                "bulk_bytes": crate::site::BULK,
                "bulk_replies": load.files,
                "small_requests": load.requests,
                "connecting_ms": load.connecting,
                "idle_sessions": load.sessions,
            },
        });
        let paths = paths
            .iter()
            .map(|path| (path.name(), path.is_proxy()))
            .collect();
        Ok(Self {
            facts,
            load,
            paths,
            samples: Vec::new(),
            background: Vec::new(),
        })
    }

    /// What others used of the machine before a round.
    pub(crate) fn background(&mut self, busy: f64) {
        self.background.push(busy);
    }

    /// A turn of a path.
    pub(crate) fn add(&mut self, path: &'static str, sample: Sample) {
        self.samples.push((path, sample));
    }

    fn values(&self, path: &str, metric: &str) -> Vec<f64> {
        let of_path = self.samples.iter().filter(|(name, _)| *name == path);
        of_path
            .filter_map(|(_, sample)| sample.get(metric).copied())
            .collect()
    }

    fn summary(&self, path: &str, metric: &str) -> Option<Summary> {
        Summary::of(self.values(path, metric))
    }

    /// How much better than `other` mantled is in this metric; below 1: worse.
    fn ratio(&self, metric: &Metric, other: &str) -> Option<f64> {
        let ours = self.summary(OURS, metric.name)?.median;
        let theirs = self.summary(other, metric.name)?.median;
        let (above, below) = match metric.better {
            Higher => (ours, theirs),
            Lower => (theirs, ours),
            Neither => return None,
        };
        (above > 0.0 && below > 0.0).then(|| above / below)
    }

    /// The best of the other proxies, and how much better than it mantled is.
    fn best_peer(&self, metric: &Metric) -> Option<(&'static str, f64)> {
        self.paths
            .iter()
            .filter(|(name, is_proxy)| *is_proxy && *name != OURS)
            .filter_map(|(name, _)| Some((*name, self.ratio(metric, name)?)))
            .min_by(|(_, one), (_, other)| one.total_cmp(other))
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let metrics = || METRICS.iter().flat_map(|(_, metrics)| metrics.iter());
        let paths: BTreeMap<_, BTreeMap<_, _>> = self
            .paths
            .iter()
            .map(|(path, _)| {
                let of_path = metrics().filter_map(|metric| {
                    let Summary { median, min, max } = self.summary(path, metric.name)?;
                    let spread = (median != 0.0).then(|| (max - min) / median);
                    let values = self.values(path, metric.name);
                    let told = json!({ "median": median, "min": min, "max": max, "spread": spread, "values": values });
                    Some((metric.name, told))
                });
                (*path, of_path.collect())
            })
            .collect();
        let ratios: BTreeMap<_, _> = metrics()
            .filter_map(|metric| {
                let (peer, bound) = (self.best_peer(metric), self.ratio(metric, BOUND));
                (peer.is_some() || bound.is_some()).then(|| {
                    let told = json!({
                        "best_peer": peer.map(|(name, _)| name),
                        "vs_best_peer": peer.map(|(_, ratio)| ratio),
                        "vs_direct_tls": bound,
                    });
                    (metric.name, told)
                })
            })
            .collect();
        let mut all = self.facts.clone();
        all["background_busy"] = json!(self.background);
        all["metrics"] = metrics()
            .map(|metric| (metric.name.to_owned(), metric.title.into()))
            .collect::<Map<_, Value>>()
            .into();
        all["paths"] = json!(paths);
        all["ratios_above_1_mean_mantled_is_better"] = json!(ratios);
        all
    }

    /// For people.
    pub(crate) fn markdown(&self) -> String {
        let text = |pointer: &str| match self.facts.pointer(pointer) {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => "?".into(),
        };
        let mut out = format!(
            "{}, {} CPUs, {} memory, Linux {}, {}; {}; {} rounds. {} ({}{}).\n\
             Medians over the rounds (min..max). Ratios: above 1 mantled is better, below 1 worse.\n\
             Idle sessions: {}. Before the rounds, others used {} % of the machine.\n",
            text("/machine/cpu"),
            text("/machine/cores"),
            text("/machine/memory"),
            text("/machine/kernel"),
            text("/machine/system"),
            text("/date"),
            text("/settings/rounds"),
            text("/versions/mantled"),
            text("/mantled/revision"),
            if text("/mantled/release_build") == "true" {
                ""
            } else {
                "; NOT A RELEASE BUILD"
            },
            self.load.sessions,
            self.background
                .iter()
                .map(|busy| format!("{:.0}", busy * 100.0))
                .collect::<Vec<_>>()
                .join(", "),
        );
        for (section, metrics) in METRICS {
            let _ = write!(out, "\n**{section}**\n\n| |");
            // A column that would stay empty is left out.
            let shown: Vec<_> = self
                .paths
                .iter()
                .map(|(path, _)| *path)
                .filter(|path| {
                    metrics
                        .iter()
                        .any(|metric| self.summary(path, metric.name).is_some())
                })
                .collect();
            for path in &shown {
                let _ = write!(out, " {path} |");
            }
            let _ = writeln!(
                out,
                " vs best other proxy | vs direct-tls |\n|---|{}",
                "---:|".repeat(shown.len() + 2)
            );
            for metric in *metrics {
                let _ = write!(out, "| {} |", metric.title);
                for path in &shown {
                    let cell = self.summary(path, metric.name).map_or_else(
                        || "–".into(),
                        |Summary { median, min, max }| {
                            format!("{} ({}..{})", number(median), number(min), number(max))
                        },
                    );
                    let _ = write!(out, " {cell} |");
                }
                let peer = self
                    .best_peer(metric)
                    .map(|(name, ratio)| format!("{ratio:.2} ({name})"));
                let bound = self.ratio(metric, BOUND).map(|ratio| format!("{ratio:.2}"));
                let or_none = |text: Option<String>| text.unwrap_or_else(|| "–".into());
                let _ = writeln!(out, " {} | {} |", or_none(peer), or_none(bound));
            }
        }
        out
    }
}

/// A line about a turn, to watch while it runs.
pub(crate) fn brief(sample: &Sample) -> String {
    let told = |name: &str| {
        sample
            .get(name)
            .map_or_else(|| "–".into(), |value| number(*value))
    };
    format!(
        "{} MB/s, p50 {} µs, p99 {} µs, {} connections/s ({} full), {} KiB a session",
        told("bulk_mb_s"),
        told("small_p50_us"),
        told("small_p99_us"),
        told("connections_s"),
        told("full_s"),
        told("idle_session_kib"),
    )
}

/// What idle sessions take.
pub(crate) fn memory(sample: &Sample) -> String {
    let told: Vec<String> = sample
        .iter()
        .map(|(name, value)| format!("{name} {}", number(*value)))
        .collect();
    told.join(", ")
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

fn server_version() -> Result<String> {
    machine::version("nginx", "-V", "nginx version")
}
