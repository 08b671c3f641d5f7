//! A session in one line, as a person would like to read it.

use mantled_record::{Path, SessionRecord, Verdict};

/// Who spoke with whom, and how.
pub fn describe(record: &SessionRecord) -> String {
    let who = record
        .process
        .as_ref()
        .map_or("?", |process| process.name.as_str());
    let address = record.server_address.as_deref().unwrap_or("?");
    let port = record.upstream_port.or(record.server_port).unwrap_or(0);
    let protocol = record
        .protocol
        .map(|name| format!(" {name}"))
        .unwrap_or_default();
    let tls = &record.tls;
    let how = match (record.verdict, record.path) {
        (Verdict::Refused | Verdict::Failed | Verdict::Aborted, _) => format!(
            "{} ({})",
            match record.verdict {
                Verdict::Refused => "REFUSED",
                Verdict::Failed => "failed",
                _ => "cut",
            },
            record.error.unwrap_or("?")
        ),
        (_, Some(Path::Verified)) => format!(
            "TLS {} {} verified as {}",
            tls.version.as_deref().unwrap_or("?"),
            tls.group.as_deref().unwrap_or(""),
            tls.verified_name.as_deref().unwrap_or("?")
        ),
        (_, Some(Path::Exposed)) => {
            format!(
                "IN CLEAR (enforce would refuse: {})",
                record.would_refuse.unwrap_or("exempt")
            )
        }
        (_, Some(Path::Native)) => format!(
            "the agent's own TLS {}, {}",
            tls.version.as_deref().unwrap_or("?"),
            match &tls.server_checked {
                Some(name) => format!("to a server that proved {name} when it was asked"),
                None => "unverified".to_owned(),
            }
        ),
        (_, Some(Path::Resolver)) => "a resolver".to_owned(),
        (_, None) => "closed without a word".to_owned(),
    };
    let reason = record
        .reason
        .as_deref()
        .map(|reason| format!(": {reason}"))
        .unwrap_or_default();
    format!(
        "{who} -> {address}:{port}{protocol}, {how}, {} B out, {} B in, {} ms{reason}",
        record.sent, record.received, record.duration_ms
    )
}
