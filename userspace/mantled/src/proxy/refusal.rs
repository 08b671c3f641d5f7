//! Telling the agent that it is refused, in its own protocol where that is known.

use mantled_wire::{
    ftp, http, imap, ldap, managesieve, memcached, mqtt, mysql, nats, nntp, pop3, postgres, redis,
    smtp, tds, tls, xmpp,
};

use super::{agent::Agent, spoken::Spoken};
use crate::{
    config::Protocol,
    error::{Cause, Failure},
};

/// SQLSTATE "sqlserver rejected establishment of sqlconnection".
const REJECTED: &str = "08004";

/// Says why and closes; resets where there is no way to say it. A failed dial is always a reset:
/// agents with several addresses then try the next.
pub async fn tell(mut agent: Agent, spoken: Option<Spoken>, failure: &Failure) {
    if failure.cause == Cause::DialFailed {
        return;
    }
    // It was the agent that refused.
    if failure.cause == Cause::AgentDistrustsCa {
        return;
    }
    let text = &failure.text;
    if let Some(words) = agent.parting.take() {
        agent.dismiss(&words).await;
        return;
    }
    let words = match spoken {
        Some(_) if agent.expects_tls => alert(failure.cause),
        Some(Spoken::Known(Protocol::Postgresql)) => postgres::error_response(
            postgres::Severity::Fatal,
            REJECTED,
            &format!("mantled refused this connection: {text}"),
            Some(failure.cause.name()),
            None,
        ),
        Some(Spoken::Known(Protocol::Http)) => http::refusal(text),
        Some(Spoken::Known(Protocol::Ftp)) => ftp::refusal(text),
        Some(Spoken::Known(Protocol::Redis)) => redis::refusal(text),
        Some(Spoken::Known(Protocol::Ldap)) => ldap::refusal(&agent.head, text),
        Some(Spoken::Known(Protocol::Tds)) => tds::refusal(&agent.head, text),
        Some(Spoken::Known(Protocol::Xmpp)) => xmpp::refusal(text),
        Some(Spoken::Known(Protocol::Mysql)) => mysql::refusal(0, text),
        Some(Spoken::Known(Protocol::Nats)) => nats::refusal(text),
        Some(Spoken::Known(Protocol::Mqtt)) => mqtt::refusal(&agent.head, text),
        Some(Spoken::Known(Protocol::Memcached)) => memcached::refusal(&agent.head, text),
        Some(Spoken::Known(Protocol::Smtp | Protocol::Lmtp)) => smtp::refusal(text),
        Some(Spoken::Known(Protocol::Imap)) => imap::refusal(text),
        Some(Spoken::Known(Protocol::Pop3)) => pop3::refusal(text),
        Some(Spoken::Known(Protocol::Nntp)) => nntp::refusal(text),
        Some(Spoken::Known(Protocol::Managesieve)) => managesieve::refusal(text),
        Some(Spoken::Tls) => alert(failure.cause),
        _ => return,
    };
    agent.dismiss(&words).await;
}

fn alert(cause: Cause) -> Vec<u8> {
    let description = match cause {
        Cause::TlsVersion => tls::PROTOCOL_VERSION,
        _ => tls::ACCESS_DENIED,
    };
    tls::fatal_alert(description).to_vec()
}
