//! `[[bypass]]`: destinations that enrolled groups reach past the proxy.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::field::{At, Field, Span, Tables};
use super::raw::RawBypass;
use super::reader::Reader;

/// How many ports one prefix may name, those of the prefixes around it included: what a value of
/// the kernel's map holds (`mantled_abi::BYPASS_PORTS`).
pub const BYPASS_PORTS: usize = 16;

/// A destination that needs no TLS, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bypass {
    cidr: IpNet,
    port: Option<u16>,
    reason: String,
}

impl Bypass {
    /// The destinations.
    pub fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// The port; `None`: every port of every protocol.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Why; not empty.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// All entries.
pub(super) fn resolve(reader: &mut Reader, tables: Field<Tables<RawBypass>>) -> Vec<Bypass> {
    let mut entries = Vec::new();
    for At { value: raw, span } in reader.tables("bypass", tables) {
        reader.required("cidr", &raw.cidr, &span, "cidr = \"192.0.2.0/24\"");
        reader.required(
            "reason",
            &raw.reason,
            &span,
            "reason = \"NTP, agreed in CHG-123\"",
        );
        let every_port = matches!(raw.port, Field::Absent);
        let port = reader.port("port", raw.port);
        let reason = reader.get("reason", raw.reason);
        let cidr = reader.cidr("cidr", raw.cidr);

        if let Some(reason) = &reason
            && reason.value.trim().is_empty()
        {
            let hint = "say why this needs no TLS; `mantled status` and reports show it";
            reader.error(&reason.span, "`reason` is empty", hint);
        }
        let Some(At { value: cidr, span }) = cidr else {
            continue;
        };
        if every_port || port.is_some() {
            let reason = reason
                .map(|at| at.value.trim().to_owned())
                .unwrap_or_default();
            entries.push(At {
                value: Bypass { cidr, port, reason },
                span,
            });
        }
    }
    everything(reader, &entries);
    too_many_ports(reader, &entries);
    entries.into_iter().map(|at| at.value).collect()
}

/// Reports the entry with which all addresses of a family are bypassed, be it alone (`0.0.0.0/0`)
/// or together with others (`0.0.0.0/1`, `128.0.0.0/1`).
fn everything(reader: &mut Reader, entries: &[At<Bypass>]) {
    let mut whole: Vec<IpNet> = Vec::new();
    let everything = |nets: &[IpNet]| nets.iter().filter(|net| net.prefix_len() == 0).count();
    for At { value, span } in entries.iter().filter(|at| at.value.port.is_none()) {
        let before = everything(&whole);
        whole.push(value.cidr);
        whole = IpNet::aggregate(&whole);
        if value.cidr.prefix_len() == 0 || everything(&whole) > before {
            let message = "this bypasses every destination, which would disable mantled";
            let hint = "write the networks that are meant, or a `port`";
            reader.error(span, message, hint);
        }
    }
}

/// Reports the entries with which a prefix gets more ports than the kernel's map can hold.
fn too_many_ports(reader: &mut Reader, entries: &[At<Bypass>]) {
    let prefixes: BTreeSet<IpNet> = entries.iter().map(|at| at.value.cidr).collect();
    let mut reported: BTreeSet<usize> = BTreeSet::new();
    for prefix in prefixes {
        let around = entries.iter().filter(|at| at.value.cidr.contains(&prefix));
        // With one entry for every port, the others do not count.
        let ports: Option<Vec<(u16, &Span)>> =
            around.map(|at| Some((at.value.port?, &at.span))).collect();
        let mut distinct = BTreeSet::new();
        let first_over = ports.into_iter().flatten().find(|(port, _)| {
            distinct.insert(*port);
            distinct.len() > BYPASS_PORTS
        });
        if let Some((_, span)) = first_over
            && reported.insert(span.start)
        {
            let message = format!(
                "{prefix} has more than {BYPASS_PORTS} bypassed ports, those of the networks \
                 around it included"
            );
            reader.error(
                span,
                &message,
                "bypass fewer ports, or a smaller network without `port`",
            );
        }
    }
}
