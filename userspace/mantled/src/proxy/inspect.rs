//! Commands, put to the operator's policies.
//!
//! Which sessions are inspected, policies say themselves: those for whose agent and service one of them
//! names an action of the protocol's family. Of such a session nothing is carried that cannot be read,
//! so it is refused where its protocol has no inspector, or is hidden in the agent's own TLS.

mod judge;
mod notes;

use mantled_mask::Masks;
use mantled_policy::Family;
use mantled_record::Path;
use mantled_redirect::{Peer, abi};
use mantled_wire::{
    http::{self, Ports},
    mysql, postgres, redis,
};

use super::{Context, agent::Agent, ledger::Session, plan::Plan, spoken::Spoken, upgrade::Way};
use crate::{
    config::Protocol,
    error::{Cause, Failure},
    policy::{Case, Rules},
};
use judge::{Judge, Language, Task};

pub(super) use notes::Notes;

/// The family that a protocol's commands are of.
fn family(protocol: Option<&str>) -> Option<Family> {
    match protocol? {
        "postgresql" | "mysql" | "tds" => Some(Family::Sql),
        "http" | "http2" => Some(Family::Http),
        "redis" => Some(Family::Redis),
        _ => None,
    }
}

/// Protocols whose commands can be read.
const READ: &[&str] = &["postgresql", "mysql", "http", "redis"];

/// Protocols that the server has shown to speak when they are recognised. Of others only the agent's
/// own words tell, and whoever wants to get around an inspector begins like somebody else.
const SHOWN: &[&str] = &[
    "ftp",
    "imap",
    "lmtp",
    "managesieve",
    "mysql",
    "nats",
    "nntp",
    "pop3",
    "smtp",
    "ssh",
];

/// Protocols whose answers can be masked.
const MASKED: &[&str] = &["postgresql"];

/// Can everything that has to be permitted in this session be read, and what is masked in it be masked?
pub(super) fn is_legible(rules: &Rules, case: &Case) -> Result<(), Failure> {
    let Some(way) = case.opened.as_ref() else {
        return Ok(());
    };
    let protocol = way.protocol.as_deref();
    let is_native = way.path == Path::Native.name();
    let masks = rules.masks(case);
    if !masks.is_empty()
        && (is_native || !protocol.is_some_and(|protocol| MASKED.contains(&protocol)))
    {
        let protocol = match protocol {
            _ if is_native => "TLS of the agent's own",
            Some(protocol) => protocol,
            None => "a protocol that is not known",
        };
        return Err(Failure::new(
            Cause::PolicyDenied,
            format!(
                "a policy masks what this service answers ({masks}), and mantled cannot mask \
                 {protocol}"
            ),
        ));
    }
    let families = rules.families(case);
    if families.is_empty() {
        return Ok(());
    }
    let is_judged = family(protocol).is_some_and(|family| families.contains(&family));
    let why = match protocol {
        _ if is_native && protocol != Some("ssh") => "the agent speaks TLS of its own",
        Some("tls") => "the agent speaks TLS of its own",
        None => "its protocol is not known; a route with protocol tells which it is",
        Some(protocol) if is_judged && READ.contains(&protocol) => return Ok(()),
        Some(_) if is_judged => "mantled cannot read the commands of its protocol",
        // Nothing of it is for policies to judge.
        Some(protocol) if way.is_named || SHOWN.contains(&protocol) => return Ok(()),
        Some(_) => {
            "it is the agent alone that says it speaks another protocol; a route with protocol \
             confirms that, or policies that name the services whose commands they judge"
        }
    };
    let names: Vec<&str> = families.iter().map(|family| family.name()).collect();
    Err(Failure::new(
        Cause::PolicyDenied,
        format!(
            "policies judge the commands of this agent to this service ({}), and {why}",
            names.join(", ")
        ),
    ))
}

/// Puts an inspector into the way of a session, where policies judge its commands. What it has seen is
/// noted for the record.
pub(super) fn inspected(
    context: &Context,
    peer: &Peer,
    plan: &Plan,
    session: &Session,
    agent: &Agent,
    spoken: Spoken,
    way: Way,
) -> (Way, Option<Notes>) {
    let Some(path) = session.record.path else {
        return (way, None);
    };
    let case = Case::of(&session.record, plan.destination, &plan.name).opened(
        &session.record,
        path,
        plan.protocol,
    );
    let families = context.rules.families(&case);
    let is_judged =
        family(session.record.protocol).is_some_and(|family| families.contains(&family));
    let observes = peer.flow.mode == abi::MODE_OBSERVE;
    let masks = match observes {
        // It changes nothing.
        true => Masks::default(),
        false => context.rules.masks(&case),
    };
    if !is_judged && masks.is_empty() {
        return (way, None);
    }
    let notes = Notes::of(&session.record);
    let judge = Box::new(Judge::new(
        context.changes.subscribe(),
        case,
        &session.record,
        notes.clone(),
        Task {
            language: match spoken {
                Spoken::Known(Protocol::Mysql) => Language::Mysql,
                _ => Language::Postgresql,
            },
            observes,
            judges: is_judged,
            can_mask: session
                .record
                .protocol
                .is_some_and(|protocol| MASKED.contains(&protocol)),
            masks,
        },
    ));
    let way = match spoken {
        Spoken::Known(Protocol::Postgresql) => {
            let (from_agent, from_server) = postgres::inspect(judge);
            way.through(from_agent, from_server)
        }
        Spoken::Known(Protocol::Mysql) => {
            let (from_agent, from_server) = mysql::inspect(judge, agent.no_backslash_escapes);
            way.through(from_agent, from_server)
        }
        Spoken::Known(Protocol::Redis) => {
            let (from_agent, from_server) = redis::inspect(judge);
            way.through(from_agent, from_server)
        }
        Spoken::Known(Protocol::Http) => {
            // It translates as well what the rewriting that it replaces does.
            let ports = (path == Path::Verified).then(|| Ports {
                agent: plan.destination.port(),
                server: session
                    .record
                    .upstream_port
                    .unwrap_or(plan.destination.port()),
            });
            let (from_agent, from_server) = http::inspect(ports, judge);
            Way::plain(way.upstream).through(from_agent, from_server)
        }
        _ => return (way, None),
    };
    (way, Some(notes))
}
