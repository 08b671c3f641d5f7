//! The protocols whose way to TLS is a dialogue in clear: the driver of
//! [`mantled_wire::starttls::Dialogue`], and which protocol has one.

use mantled_wire::{
    imap, managesieve, nats, nntp, pop3, smtp,
    starttls::{Dialogue, DialogueError, Step},
};
use tokio::time::timeout;

use super::{Upgrade, Way};
use crate::{
    config::Protocol,
    error::{Cause, Failure},
    proxy::{detect::Dialling, upstream::Dialled},
    tls::Alpn,
};

/// Most bytes that a server may say before the handshake.
const MAX_WORDS: usize = 64 * 1024;

/// The dialogue of a protocol; None where it has none, or one that needs a driver of its own.
pub(super) fn dialogue(protocol: Protocol) -> Option<Box<dyn Dialogue>> {
    Some(match protocol {
        Protocol::Smtp => Box::new(smtp::StartTls::smtp()),
        Protocol::Lmtp => Box::new(smtp::StartTls::lmtp()),
        Protocol::Imap => Box::new(imap::StartTls::default()),
        Protocol::Pop3 => Box::new(pop3::Stls::default()),
        Protocol::Nntp => Box::new(nntp::StartTls::default()),
        Protocol::Managesieve => Box::new(managesieve::StartTls::default()),
        Protocol::Nats => Box::new(nats::Upgrade::default()),
        _ => return None,
    })
}

impl Upgrade<'_> {
    pub(super) async fn starttls(
        &mut self,
        dialling: Dialling,
        mut dialogue: Box<dyn Dialogue>,
    ) -> Result<Way, Failure> {
        let dialled = self.go_ahead(dialling, &mut *dialogue).await?;
        let upstream = self.verify(dialled, Alpn::None).await?;
        let welcome = dialogue.welcome();
        self.agent.say(&welcome.to_agent).await.map_err(|error| {
            Failure::new(Cause::AgentClosed, format!("the agent closed: {error}"))
        })?;
        Ok(Way {
            upstream,
            from_agent: welcome.from_agent.into(),
            from_server: welcome.from_server.into(),
        })
    }

    /// Leads the dialogue on the dialled connection; the handshake comes next.
    pub(super) async fn go_ahead(
        &mut self,
        dialling: Dialling,
        dialogue: &mut dyn Dialogue,
    ) -> Result<Dialled, Failure> {
        let mut dialled = self.dialled(dialling).await?;
        let patience = self.context.config.limits().starttls;
        timeout(patience, converse(&mut dialled, dialogue))
            .await
            .unwrap_or_else(|_| {
                Err(Failure::new(
                    Cause::UpgradeTimeout,
                    "the server did not go ahead with TLS in time",
                ))
            })?;
        Ok(dialled)
    }
}

/// Leads the dialogue up to the handshake.
pub(super) async fn converse(
    dialled: &mut Dialled,
    dialogue: &mut dyn Dialogue,
) -> Result<(), Failure> {
    let closed = |error: std::io::Error| {
        Failure::new(
            Cause::TlsNotOffered,
            format!("the server closed before the TLS handshake: {error}"),
        )
    };
    let mut heard = Vec::new();
    loop {
        match dialogue.step(&heard).map_err(refused)? {
            Step::Say { consumed, words } => {
                heard.drain(..consumed.min(heard.len()));
                dialled.say(&words).await.map_err(closed)?;
            }
            Step::Handshake { consumed } if consumed < heard.len() => {
                return Err(Failure::new(
                    Cause::UpgradeInjected,
                    "bytes came between the go-ahead and the TLS handshake: \
                     somebody on the path injects them, or the server is broken",
                ));
            }
            Step::Handshake { .. } => return Ok(()),
            Step::NeedMore if heard.len() >= MAX_WORDS => {
                return Err(Failure::new(
                    Cause::UpgradeProtocol,
                    "the server talks on and on instead of going ahead with TLS",
                ));
            }
            Step::NeedMore => {
                let mut more = [0; 4096];
                match dialled.hear(&mut more).await.map_err(closed)? {
                    0 => return Err(closed(std::io::ErrorKind::UnexpectedEof.into())),
                    length => heard.extend_from_slice(more.get(..length).unwrap_or_default()),
                }
            }
        }
    }
}

fn refused(error: DialogueError) -> Failure {
    let cause = match error {
        DialogueError::NotOffered(_) | DialogueError::Declined(_) => Cause::UpgradeDeclined,
        DialogueError::Protocol(_) => Cause::UpgradeProtocol,
    };
    Failure::new(cause, error.to_string())
}
