//! A turn: a path is started, checked, loaded and stopped.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::Stdio,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use mantled_tests::{Lab, eventually, run};
use serde_json::Value;

use crate::{
    path::{Path, Running},
    process::{Memory, cpu_seconds, memory},
    site::{FACTS, HYBRID_FACTS, Port, Site},
};

/// What a turn has measured, by the names in [`crate::report::METRICS`].
pub(crate) type Sample = BTreeMap<&'static str, f64>;

/// How much of each load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Times the large file.
    pub(crate) files: usize,
    /// Small requests.
    pub(crate) requests: usize,
    /// Milliseconds of new connections, for each kind of handshake.
    pub(crate) connecting: usize,
    /// Idle sessions.
    pub(crate) sessions: usize,
}

impl Load {
    /// The default.
    pub(crate) const FULL: Self = Self {
        files: 6,
        requests: 10_000,
        connecting: 3000,
        sessions: 1000,
    };
    /// Enough to see that everything works.
    pub(crate) const QUICK: Self = Self {
        files: 2,
        requests: 3000,
        connecting: 1000,
        sessions: 1000,
    };
}

/// One turn of a path.
pub(crate) fn measure(
    lab: &Lab,
    site: &Site,
    path: &dyn Path,
    load: Load,
    verify: bool,
) -> Result<Sample> {
    let running = path.start(lab)?;
    let turn = Turn {
        lab,
        site,
        path,
        running: running.as_ref(),
    };
    turn.ready()?;
    if verify {
        turn.verifies()?;
    }
    let mut sample = Sample::new();
    // First, while the proxy is fresh: memory that an earlier load has left would hide it.
    turn.idle(load.sessions, &mut sample)?;
    turn.small(load.requests, &mut sample)?;
    turn.connections(load.connecting, &mut sample)?;
    turn.bulk(load.files, &mut sample)?;
    Ok(sample)
}

/// A turn with nothing but idle sessions.
pub(crate) fn idle(lab: &Lab, site: &Site, path: &dyn Path, sessions: usize) -> Result<Sample> {
    let running = path.start(lab)?;
    let turn = Turn {
        lab,
        site,
        path,
        running: running.as_ref(),
    };
    turn.ready()?;
    let mut sample = Sample::new();
    turn.idle(sessions, &mut sample)?;
    Ok(sample)
}

struct Turn<'a> {
    lab: &'a Lab,
    site: &'a Site,
    path: &'a dyn Path,
    running: &'a dyn Running,
}

/// What a load has cost.
struct Cost {
    client: Value,
    proxy_cpu: Option<f64>,
    client_cpu: f64,
    site_cpu: f64,
}

impl Cost {
    fn number(&self, key: &str) -> Result<f64> {
        self.client
            .get(key)
            .and_then(Value::as_f64)
            .with_context(|| format!("the client told no {key}"))
    }
}

impl Turn<'_> {
    /// What the server says of a connection.
    fn check(&self, port: Port) -> Result<String> {
        let call = self.running.call(self.lab, port);
        let output = run(
            &mut call.check(self.running.client(self.lab)?),
            Duration::from_secs(30),
        )?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let told: Value = serde_json::from_slice(&output.stdout)?;
        Ok(told
            .get("said")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned())
    }

    fn ready(&self) -> Result<()> {
        let mut last = None;
        eventually("the path to work", Duration::from_secs(10), || {
            self.check(Port::Tls)
                .map_err(|error| last = Some(error))
                .ok()
                .map(drop)
        })
        .with_context(|| format!("{:?}", last))
    }

    /// The comparison is fair only if every path does the same: the version, cipher suite and key
    /// exchange that the server tells, and no talk with a server that proves nothing.
    fn verifies(&self) -> Result<()> {
        if !self.path.has_tls() {
            return Ok(());
        }
        let mut expected = vec![(Port::Tls, FACTS), (Port::Full, FACTS)];
        if self.path.is_hybrid() {
            expected.extend([(Port::Classic, FACTS), (Port::Hybrid, HYBRID_FACTS)]);
        }
        for (port, facts) in expected {
            let said = self.check(port)?;
            ensure!(
                said.starts_with(facts),
                "{port:?}: {said:?} instead of {facts:?}"
            );
        }
        for port in [Port::WrongAuthority, Port::WrongName] {
            if let Ok(said) = self.check(port) {
                bail!("{port:?} was not refused but said {said:?}");
            }
        }
        Ok(())
    }

    /// Puts a load on the path.
    fn load(&self, port: Port, kind: &str, count: usize) -> Result<Cost> {
        let proxy = || self.running.pid().map(cpu_seconds).transpose();
        let (proxy_before, site_before) = (proxy()?, self.site.cpu_seconds()?);
        let call = self.running.call(self.lab, port);
        let client = call.load(self.running.client(self.lab)?, kind, count)?;
        // The ends of the last connections.
        thread::sleep(Duration::from_millis(300));
        let proxy_cpu = proxy()?
            .zip(proxy_before)
            .map(|(after, before)| after - before);
        let site_cpu = self.site.cpu_seconds()? - site_before;
        let client_cpu = client
            .get("cpu")
            .and_then(Value::as_f64)
            .context("the client told no cpu")?;
        Ok(Cost {
            client,
            proxy_cpu,
            client_cpu,
            site_cpu,
        })
    }

    fn bulk(&self, files: usize, sample: &mut Sample) -> Result<()> {
        let cost = self.load(Port::Tls, "bulk", files)?;
        let (bytes, seconds) = (cost.number("bytes")?, cost.number("seconds")?);
        sample.insert("bulk_mb_s", bytes / 1e6 / seconds);
        if let Some(cpu) = cost.proxy_cpu {
            sample.insert("bulk_proxy_cpu_s_per_gb", cpu / (bytes / 1e9));
        }
        let host = cost.proxy_cpu.unwrap_or_default() + cost.client_cpu;
        sample.insert("bulk_host_cpu_s_per_gb", host / (bytes / 1e9));
        sample.insert("bulk_site_cpu_s_per_gb", cost.site_cpu / (bytes / 1e9));
        Ok(())
    }

    fn small(&self, requests: usize, sample: &mut Sample) -> Result<()> {
        let cost = self.load(Port::Tls, "small", requests)?;
        sample.insert("small_p50_us", cost.number("p50")?);
        sample.insert("small_p99_us", cost.number("p99")?);
        if let Some(cpu) = cost.proxy_cpu {
            sample.insert("small_proxy_cpu_us", cpu * 1e6 / cost.number("requests")?);
        }
        Ok(())
    }

    fn connections(&self, milliseconds: usize, sample: &mut Sample) -> Result<()> {
        let mut one = |port, names: [&'static str; 5]| -> Result<()> {
            let cost = self.load(port, "connections", milliseconds)?;
            let made = cost.number("connections")?;
            ensure!(made > 0.0, "no connection was made");
            let [rate, proxy, host, site, resumed] = names;
            sample.insert(rate, made / cost.number("seconds")?);
            if let Some(cpu) = cost.proxy_cpu {
                sample.insert(proxy, cpu * 1000.0 / made);
            }
            sample.insert(
                host,
                (cost.proxy_cpu.unwrap_or_default() + cost.client_cpu) * 1000.0 / made,
            );
            // nginx is not the server of the post-quantum ports.
            if !site.is_empty() {
                sample.insert(site, cost.site_cpu * 1000.0 / made);
            }
            if self.path.has_tls() && !resumed.is_empty() {
                sample.insert(resumed, 100.0 * cost.number("resumed")? / made);
            }
            Ok(())
        };
        one(
            Port::Tls,
            [
                "connections_s",
                "connections_proxy_cpu_s_per_1000",
                "connections_host_cpu_s_per_1000",
                "connections_site_cpu_s_per_1000",
                "connections_resumed_percent",
            ],
        )?;
        if self.path.has_tls() {
            one(
                Port::Full,
                [
                    "full_s",
                    "full_proxy_cpu_s_per_1000",
                    "full_host_cpu_s_per_1000",
                    "full_site_cpu_s_per_1000",
                    "full_resumed_percent",
                ],
            )?;
        }
        if self.path.is_hybrid() {
            one(
                Port::Classic,
                [
                    "classic_s",
                    "classic_proxy_cpu_s_per_1000",
                    "classic_host_cpu_s_per_1000",
                    "",
                    "",
                ],
            )?;
            one(
                Port::Hybrid,
                [
                    "hybrid_s",
                    "hybrid_proxy_cpu_s_per_1000",
                    "hybrid_host_cpu_s_per_1000",
                    "",
                    "",
                ],
            )?;
        }
        Ok(())
    }

    /// Memory of the proxy before and with idle sessions.
    fn idle(&self, sessions: usize, sample: &mut Sample) -> Result<()> {
        let Some(pid) = self.running.pid() else {
            return Ok(());
        };
        let before = memory(pid)?;
        let call = self.running.call(self.lab, Port::Tls);
        let mut client = call
            .command(self.running.client(self.lab)?, "idle", sessions)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = client.stdin.take();
        let mut stdout = BufReader::new(client.stdout.take().context("no pipe")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        // Whatever a proxy does after a while it has done.
        thread::sleep(Duration::from_secs(1));
        let during: Result<Memory> = memory(pid);
        drop(stdin);
        let rest = std::io::read_to_string(stdout);
        let status = client.wait()?;
        ensure!(
            line == "open\n" && status.success(),
            "client idle: {status}"
        );
        rest?;
        let during = during?;
        sample.insert("idle_before_mib", before.pss / 1024.0);
        sample.insert("idle_with_mib", during.pss / 1024.0);
        sample.insert("idle_rss_before_mib", before.rss / 1024.0);
        sample.insert("idle_rss_with_mib", during.rss / 1024.0);
        sample.insert(
            "idle_session_kib",
            (during.pss - before.pss) / sessions as f64,
        );
        sample.insert("bpf_mib", during.bpf / 1024.0);
        Ok(())
    }
}
