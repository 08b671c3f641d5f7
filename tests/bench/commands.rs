//! What it costs to judge commands: `pgbench -S` through the daemon, by an agent whose statements are
//! put to policies and by one whose are not, in turns.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use mantled_tests::{Daemon, Group, Lab, PASSWORD, Postgres, run, succeed};

/// Seconds of one turn.
const SECONDS: u64 = 8;

/// Connections of pgbench.
const CLIENTS: &str = "4";

/// What one turn has shown.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// Transactions a second.
    throughput: f64,
    /// Median, in microseconds.
    p50: f64,
}

pub(crate) fn main(rounds: usize) -> Result<()> {
    let lab = Lab::new()?;
    let _server = Postgres::start(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let connection = "host=10.99.0.2 user=postgres dbname=postgres";
    succeed(
        lab.host
            .command("pgbench")
            .args([
                "-i",
                "-q",
                "-s",
                "5",
                &format!("{connection} sslmode=require"),
            ])
            .env("PGPASSWORD", PASSWORD),
    )?;
    let [plain, judged] = [Group::new()?, Group::new()?];
    let unit = |group: &Group| -> Result<String> {
        let name = group.path().file_name().context("a group without a name")?;
        Ok(name.to_string_lossy().into_owned())
    };
    let dir = lab.path("policies");
    fs::create_dir_all(&dir)?;
    fs::write(
        dir.join("bench.cedar"),
        format!(
            "permit(principal, action in Action::\"access\", resource);\n\
             @id(\"bench\") permit(principal in Unit::\"{}\", action == Action::\"sql.read\", resource)\n\
             unless {{ context.statement.tables.contains(\"salaries\") }};\n",
            unit(&judged)?
        ),
    )?;
    let other = format!(
        "[policy]\ndir = \"policies\"\n[[enroll]]\ncgroup = \"{}\"\nmode = \"enforce\"\n",
        judged.path().display()
    );
    let daemon = Daemon::start(&lab, &plain, "enforce", &other)?;
    println!("pgbench -S, {CLIENTS} connections, {SECONDS} s a turn, judged against not judged");
    for mode in ["simple", "extended", "prepared"] {
        let mut ratios = Vec::new();
        for round in 0..rounds {
            let mut turns = [None, None];
            // Each begins every other round.
            for place in [round % 2, 1 - round % 2] {
                let group = if place == 0 { &plain } else { &judged };
                turns[place] = Some(turn(&lab, group, mode, connection)?);
            }
            if let [Some(plain), Some(judged)] = turns {
                println!(
                    "{mode}: {:.0} against {:.0} transactions/s, p50 {:.0} against {:.0} us",
                    judged.throughput, plain.throughput, judged.p50, plain.p50
                );
                ratios.push((judged.throughput / plain.throughput, judged.p50 / plain.p50));
            }
        }
        let spread = |values: Vec<f64>| {
            let mut values = values;
            values.sort_by(f64::total_cmp);
            let (first, last) = (values.first().copied(), values.last().copied());
            format!(
                "{:.3} ({:.3} to {:.3})",
                values.get(values.len() / 2).copied().unwrap_or_default(),
                first.unwrap_or_default(),
                last.unwrap_or_default()
            )
        };
        println!(
            "{mode}: throughput {}, p50 {}",
            spread(ratios.iter().map(|(throughput, _)| *throughput).collect()),
            spread(ratios.iter().map(|(_, p50)| *p50).collect())
        );
    }
    let records = daemon.records();
    let refused: u64 = records
        .iter()
        .filter_map(|record| record["mantled.commands.refused"].as_u64())
        .sum();
    ensure!(refused == 0, "{refused} statements were refused");
    let judged: u64 = records
        .iter()
        .filter_map(|record| record["mantled.commands"].as_u64())
        .sum();
    ensure!(judged > 1000, "{judged} statements were judged");
    Ok(())
}

fn turn(lab: &Lab, group: &Group, mode: &str, connection: &str) -> Result<Turn> {
    let log = lab.path("pgbench-log");
    let _ = fs::remove_dir_all(&log);
    fs::create_dir(&log)?;
    let output = run(
        group
            .command(&lab.host, "pgbench")
            .args(["-S", "-n", "-c", CLIENTS, "-j", "1", "-M", mode])
            .args(["-T", &SECONDS.to_string(), "-l"])
            .arg(format!("--log-prefix={}", log.join("turn").display()))
            .arg(format!("{connection} sslmode=disable"))
            .env("PGPASSWORD", PASSWORD),
        Duration::from_secs(SECONDS + 60),
    )?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let throughput = said
        .lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
        .with_context(|| format!("pgbench told no throughput: {said}"))?;
    let mut latencies = Vec::new();
    for entry in fs::read_dir(&log)? {
        let text = fs::read_to_string(entry?.path())?;
        let of_line = |line: &str| line.split(' ').nth(2)?.parse::<u32>().ok();
        latencies.extend(text.lines().filter_map(of_line));
    }
    latencies.sort_unstable();
    let p50 = latencies.get(latencies.len() / 2).context("no latencies")?;
    Ok(Turn {
        throughput,
        p50: f64::from(*p50),
    })
}
