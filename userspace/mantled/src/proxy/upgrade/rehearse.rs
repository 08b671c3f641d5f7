//! The way to TLS without an agent: what would a server do?

use mantled_record::TlsFacts;
use mantled_wire::{ftp, ldap, postgres::SslAnswer};
use tokio::time::timeout;

use super::{implicit::alpn, mysql, postgres, proven_name, ssh, starttls};
use crate::{
    config::{Limits, Protocol, TlsMode},
    error::{Cause, Failure},
    proxy::{
        detect::dial_failure,
        plan::Plan,
        spoken::Spoken,
        upstream::{Dial, Dialled},
    },
    tls::{Connector, Offer},
};

/// Goes the way that a session of this plan would go, up to the verified certificate.
///
/// # Errors
/// What would refuse the session.
pub async fn rehearse(
    plan: &Plan,
    mut dial: Dial,
    connector: &Connector,
    spoken: Spoken,
    limits: &Limits,
) -> Result<TlsFacts, Failure> {
    if spoken == Spoken::Known(Protocol::Ssh) {
        return Err(ssh::needs_route());
    }
    let name = proven_name(plan)?;
    let dialogue = match spoken {
        _ if plan.tls == TlsMode::Implicit => None,
        Spoken::Known(Protocol::Ldap) => Some(Box::new(ldap::StartTls::default()) as _),
        Spoken::Known(Protocol::Ftp) => Some(Box::new(ftp::AuthTls::default()) as _),
        Spoken::Known(protocol) => starttls::dialogue(protocol),
        _ => None,
    };
    if plan.tls != TlsMode::Implicit
        && let Spoken::Known(Protocol::Xmpp | Protocol::Tds) = spoken
    {
        return Err(Failure::new(
            Cause::NoUpgrade,
            "its way to TLS depends on what the agent says, so it cannot be tried without one",
        ));
    }
    let own = matches!(
        spoken,
        Spoken::Known(Protocol::Postgresql | Protocol::Mysql)
    );
    let by_dialogue = dialogue.is_some() || (own && plan.tls != TlsMode::Implicit);
    if !by_dialogue {
        if spoken == Spoken::ServerFirst {
            return Err(Failure::new(
                Cause::NoUpgrade,
                "the server speaks first, and mantled knows no way to TLS for its protocol",
            ));
        }
        dial.address.set_port(plan.implicit_port());
    }
    let mut dialled = dial.connect().await.map_err(|error| match error {
        // The port is only where TLS usually is.
        _ if dial.address != plan.address() => Failure::new(
            Cause::TlsNotOffered,
            format!("port {}: {error}", dial.address.port()),
        ),
        error => dial_failure(&error),
    })?;
    let lead = async {
        match dialogue {
            Some(mut dialogue) => starttls::converse(&mut dialled, &mut *dialogue).await,
            None if by_dialogue && spoken == Spoken::Known(Protocol::Mysql) => {
                mysql::rehearse(&mut dialled).await
            }
            None if by_dialogue => ask(&mut dialled).await,
            None => Ok(()),
        }
    };
    timeout(limits.starttls, lead).await.unwrap_or_else(|_| {
        Err(Failure::new(
            Cause::UpgradeTimeout,
            "the server did not go ahead with TLS in time",
        ))
    })?;
    let verified = dialled
        .verify(connector, name, Offer::One(alpn(spoken)), limits.handshake)
        .await?;
    Ok(verified.facts().clone())
}

async fn ask(dialled: &mut Dialled) -> Result<(), Failure> {
    match postgres::ask(dialled).await? {
        SslAnswer::Willing => Ok(()),
        _ => Err(Failure::new(
            Cause::UpgradeDeclined,
            "the server declines SSLRequest",
        )),
    }
}
