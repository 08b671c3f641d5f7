//! `mantled doctor`: what does this host offer, and what is missing?

use mantled_redirect::doctor::{self, Finding};

use super::{ENVIRONMENT, Exit};

/// Arguments of `mantled doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Exit> {
    let findings = doctor::examine();
    if arguments.json {
        let list: Vec<_> = findings
            .iter()
            .map(|finding| {
                serde_json::json!({
                    "check": finding.check,
                    "ok": finding.problem.is_none(),
                    "detail": finding.detail,
                    "problem": finding.problem,
                })
            })
            .collect();
        println!("{:#}", serde_json::Value::from(list));
    } else {
        for finding in &findings {
            print(finding);
        }
    }
    if findings.iter().any(|finding| finding.problem.is_some()) {
        return Err(Exit::code(ENVIRONMENT));
    }
    Ok(())
}

fn print(finding: &Finding) {
    match &finding.problem {
        None => println!("ok      {:<24} {}", finding.check, finding.detail),
        Some(problem) => println!("MISSING {:<24} {problem}", finding.check),
    }
}
