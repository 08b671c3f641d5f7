//! Asking the operator's policies, and what follows.

use mantled_redirect::{Peer, abi};

use super::{Context, inspect::is_legible, ledger::Session};
use crate::{
    error::Failure,
    policy::{Case, denial},
};

/// May the session be as `case` says? The record tells which policies decided. Observe mode refuses
/// nothing; the record says what enforce mode would have done.
pub(super) fn permit(
    context: &Context,
    peer: &Peer,
    session: &mut Session,
    case: &Case,
) -> Result<(), Failure> {
    let Some(decision) = context.rules.decide(case) else {
        return Ok(());
    };
    let record = &mut session.record;
    record.policy_host.clone_from(&case.host);
    for policy in &decision.policies {
        if !record.policies.contains(policy) {
            record.policies.push(policy.clone());
        }
    }
    let judged = if decision.allowed {
        is_legible(&context.rules, case)
    } else {
        Err(denial(&decision))
    };
    let Err(failure) = judged else {
        return Ok(());
    };
    if peer.flow.mode == abi::MODE_OBSERVE {
        if record.would_refuse.is_none() {
            record.would_refuse = Some(failure.cause.name());
            record.reason = Some(failure.text);
        }
        return Ok(());
    }
    Err(failure)
}
