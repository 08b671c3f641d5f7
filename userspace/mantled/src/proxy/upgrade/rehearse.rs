//! The way to TLS without an agent: what would a server do?

use mantled_record::TlsFacts;
use mantled_wire::postgres::SslAnswer;
use tokio::time::timeout;

use super::{implicit::alpn, postgres, proven_name, starttls};
use crate::{
    config::{Limits, Protocol, TlsMode},
    error::{Cause, Failure},
    proxy::{
        detect::dial_failure,
        plan::Plan,
        spoken::Spoken,
        upstream::{Dial, Dialled},
    },
    tls::{Connector, Handshake},
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
    let name = proven_name(plan)?;
    let dialogue = match spoken {
        _ if plan.tls == TlsMode::Implicit => None,
        Spoken::Known(protocol) => starttls::dialogue(protocol),
        _ => None,
    };
    let by_dialogue = dialogue.is_some() || spoken == Spoken::Known(Protocol::Postgresql);
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
        .verify(
            connector,
            name,
            Handshake::Bare(alpn(spoken)),
            limits.handshake,
        )
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
