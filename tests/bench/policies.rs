//! What a decision costs, of few policies and of many.
//!
//! The policies are those of a fleet: each names the unit or the host that it is about, and one is
//! about everybody. The question is one that two of them concern, whatever their number; loading is not
//! measured.

use std::{net::IpAddr, time::Instant};

use anyhow::{Result, anyhow, ensure};
use mantled_policy::{Action, Facts, Policies, Service, Workload};

/// Numbers of policies; the ratio is that of the last to the first.
const COUNTS: [usize; 3] = [50, 500, 5_000];

/// Questions that are timed as one: some tens of milliseconds, so that the clock does not show.
const QUESTIONS: u32 = 1_000;

/// Measures, and prints medians, spread and ratio.
pub(crate) fn main(rounds: usize) -> Result<()> {
    ensure!(rounds > 0, "at least one round");
    let sets: Vec<Policies> = COUNTS
        .iter()
        .map(|count| fleet(*count))
        .collect::<Result<_>>()?;
    let mut took = vec![Vec::new(); COUNTS.len()];
    let mut ratios = Vec::new();
    // The sets take turns, for the machine's speed drifts. The first round warms up.
    for round in 0..=rounds {
        let mut of_round = Vec::new();
        for policies in &sets {
            of_round.push(microseconds(policies)?);
        }
        if round == 0 {
            continue;
        }
        if let (Some(few), Some(many)) = (of_round.first(), of_round.last()) {
            ratios.push(many / few);
        }
        for (all, one) in took.iter_mut().zip(of_round) {
            all.push(one);
        }
    }
    println!("policies  a decision in us: median (least to most), {rounds} rounds");
    for (count, times) in COUNTS.iter().zip(&mut took) {
        println!("{count:8}  {}", told(times, 1));
    }
    println!("most to fewest: {}", told(&mut ratios, 3));
    Ok(())
}

/// Median and range.
fn told(values: &mut [f64], digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    format!(
        "{:.digits$} ({:.digits$} to {:.digits$})",
        at(values.len() / 2),
        at(0),
        at(values.len().saturating_sub(1)),
    )
}

/// So many policies. Half are about units, half about hosts; every fiftieth pair has a condition.
fn fleet(count: usize) -> Result<Policies> {
    let mut text = String::from(
        "@id(\"mine\") permit(principal in Unit::\"shipper.service\", action in Action::\"access\", \
         resource in Host::\"logs.example.com\");\n\
         @id(\"udp\") forbid(principal, action == Action::\"connect\", resource) \
         when { context.transport == \"udp\" };\n",
    );
    for number in 2..count {
        let scope = match number % 2 {
            0 => format!("principal in Unit::\"unit-{number}.service\", action, resource"),
            _ => format!("principal, action, resource in Host::\"host-{number}.example.com\""),
        };
        let condition = match number % 100 {
            0 | 1 => " when { principal.uid >= 1000 }",
            _ => "",
        };
        text.push_str(&format!("permit({scope}){condition};\n"));
    }
    let policies = Policies::load(&[("fleet.cedar".to_owned(), text)])
        .map_err(|mistakes| anyhow!("{mistakes:?}"))?;
    ensure!(policies.count() == count, "{} policies", policies.count());
    Ok(policies)
}

/// What one decision takes.
fn microseconds(policies: &Policies) -> Result<f64> {
    let facts = Facts {
        workload: Workload {
            name: "shipper",
            executable: Some("/usr/bin/shipper"),
            uid: 1000,
            gid: 1000,
            cgroup: Some("/system.slice/shipper.service"),
            unit: Some("shipper.service"),
            container: None,
            pod: None,
        },
        service: Service {
            host: Some("logs.example.com"),
            address: IpAddr::from([192, 0, 2, 7]),
            port: 5432,
        },
        action: Action::Connect,
        now: "2026-01-02T03:04:05.678Z",
        transport: "tcp",
    };
    let begin = Instant::now();
    for _ in 0..QUESTIONS {
        let decision = policies.decide(&facts);
        ensure!(decision.policies == ["mine"], "{decision:?}");
    }
    Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(QUESTIONS))
}
