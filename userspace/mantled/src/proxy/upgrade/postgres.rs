//! PostgreSQL: SSLRequest, one byte of answer, TLS.
//!
//! An agent that asks for encryption itself (libpq's `prefer`) is told `N` in enforce mode: on
//! this host it goes on in clear, and what leaves is verified by the proxy, which `prefer` would
//! not have done. Where native TLS is allowed its request is relayed instead.

use mantled_record::Path;
use mantled_wire::{
    Progress,
    postgres::{
        AuthenticationFilter, SSL_REQUEST, SslAnswer, Startup, UNWILLING, parse_ssl_answer,
        parse_startup,
    },
    starttls::Preamble,
};
use tokio::time::timeout;

use super::{Upgrade, Way};
use crate::{
    config::TlsMode,
    error::{Cause, Failure},
    proxy::{
        checks::Before,
        detect::Dialling,
        filter::Filter,
        upstream::{Dialled, Upstream},
    },
    tls::Alpn,
};

/// What the agent wants, after its questions about encryption.
enum Wants {
    /// A session, or to cancel a query; the packet is still in the agent's head.
    Startup(Startup),
    /// TLS of its own, and it may have it.
    Tls,
}

impl Upgrade<'_> {
    pub(super) async fn postgres(&mut self, dialling: Dialling) -> Result<Way, Failure> {
        let patience = self.context.config.limits().starttls;
        let wants = timeout(patience, self.negotiate())
            .await
            .unwrap_or_else(|_| {
                Err(Failure::new(
                    Cause::AgentProtocol,
                    "the agent did not finish its start-up packet",
                ))
            })?;
        let mut dialled = self.dialled(dialling).await?;
        let answer = timeout(patience, ask(&mut dialled))
            .await
            .unwrap_or_else(|_| Err(no_answer()))?;
        match (wants, answer) {
            (Wants::Startup(startup), SslAnswer::Willing) => {
                let from_server = match startup {
                    // The connection of a CancelRequest gets no answer.
                    Startup::Cancel => Filter::None,
                    _ => Filter::Rewrite(Box::new(AuthenticationFilter::default())),
                };
                let upstream = self.verify(dialled, Alpn::Postgresql).await?;
                Ok(Way {
                    upstream,
                    from_agent: Filter::None,
                    from_server,
                })
            }
            (Wants::Tls, SslAnswer::Willing) => {
                self.agent.consume(SSL_REQUEST.len());
                self.tell(b"S").await?;
                if self.plan.tls == TlsMode::Terminate {
                    let way = self
                        .terminate(Dialling::Ready(dialled), Before::SslRequest)
                        .await?;
                    return Ok(without_binding(way));
                }
                self.native(Dialling::Ready(dialled), Before::SslRequest)
                    .await
            }
            (wants, SslAnswer::Unwilling) => {
                let declined = Failure::new(
                    Cause::UpgradeDeclined,
                    "the server has no TLS (it answered N to SSLRequest)",
                );
                // It is waiting for the start-up packet, so there is no need to dial again.
                let Some(permit) = self.plan.clear_text else {
                    return Err(declined);
                };
                if matches!(wants, Wants::Tls) {
                    self.agent.consume(SSL_REQUEST.len());
                    self.tell(UNWILLING).await?;
                }
                self.would_refuse(declined);
                self.goes(Path::Exposed)?;
                Ok(Way::plain(Upstream::Exposed(dialled.expose(permit))))
            }
            (_, SslAnswer::Error(message)) => Err(Failure::new(
                Cause::UpgradeDeclined,
                format!(
                    "the server answered SSLRequest with an error: {}",
                    message.as_deref().unwrap_or("(no message)")
                ),
            )),
        }
    }

    /// Answers the agent's questions about encryption until it says what it wants.
    async fn negotiate(&mut self) -> Result<Wants, Failure> {
        // Each may be asked once; who goes on asking is no PostgreSQL client.
        let mut questions = 2;
        loop {
            let (startup, length) = match parse_startup(&self.agent.head) {
                Ok(Progress::Done(found)) => found,
                Ok(Progress::NeedMore) => {
                    match self.agent.read_more().await {
                        Ok(true) => continue,
                        // libpq closes after N when it must have encryption.
                        Ok(false) | Err(_) => {
                            return Err(Failure::new(
                                Cause::AgentProtocol,
                                "the agent closed before it sent its start-up packet; \
                                 if it insists on TLS of its own, a route with tls = \"passthrough\" allows that",
                            ));
                        }
                    }
                }
                Err(error) => return Err(Failure::new(Cause::AgentProtocol, error.to_string())),
            };
            match &startup {
                Startup::SslRequest if self.plan.native || self.plan.tls == TlsMode::Terminate => {
                    return Ok(Wants::Tls);
                }
                Startup::SslRequest | Startup::GssEncRequest if questions > 0 => {
                    questions -= 1;
                    self.agent.consume(length);
                    self.tell(UNWILLING).await?;
                    continue;
                }
                Startup::SslRequest | Startup::GssEncRequest => {
                    return Err(Failure::new(
                        Cause::AgentProtocol,
                        "the agent keeps asking for encryption",
                    ));
                }
                Startup::Parameters { user, database, .. } => {
                    self.session.record.db_user.clone_from(user);
                    self.session.record.db_namespace = database.clone().or_else(|| user.clone());
                }
                Startup::Cancel => {}
            }
            return Ok(Wants::Startup(startup));
        }
    }

    pub(super) async fn tell(&mut self, words: &[u8]) -> Result<(), Failure> {
        self.agent
            .say(words)
            .await
            .map_err(|error| Failure::new(Cause::AgentClosed, format!("the agent closed: {error}")))
    }
}

/// The agent's TLS is not the server's, so authentication must not be bound to it.
fn without_binding(way: Way) -> Way {
    match way.upstream {
        Upstream::Verified(_) => Way {
            from_server: Filter::Rewrite(Box::new(AuthenticationFilter::default())),
            ..way
        },
        _ => way,
    }
}

pub(super) fn no_answer() -> Failure {
    Failure::new(
        Cause::UpgradeTimeout,
        "the server did not answer the request for TLS in time",
    )
}

/// Asks the server for TLS, which it must have.
pub(super) async fn must_be_willing(dialled: &mut Dialled) -> Result<(), Failure> {
    match ask(dialled).await? {
        SslAnswer::Willing => Ok(()),
        SslAnswer::Unwilling | SslAnswer::Error(_) => Err(Failure::new(
            Cause::UpgradeDeclined,
            "the server had TLS on one connection and has none on the next",
        )),
    }
}

/// Asks the server for TLS.
pub(super) async fn ask(dialled: &mut Dialled) -> Result<SslAnswer, Failure> {
    let closed = |error: std::io::Error| {
        Failure::new(
            Cause::TlsNotOffered,
            format!("the server closed after SSLRequest: {error}"),
        )
    };
    dialled
        .say(&Preamble::constant(SSL_REQUEST))
        .await
        .map_err(closed)?;
    // Room for more than the one byte, so that injected ones are seen; and for the text of an
    // error.
    let mut answer = [0; 1024];
    let length = dialled.hear(&mut answer).await.map_err(closed)?;
    match parse_ssl_answer(answer.get(..length).unwrap_or_default()) {
        Ok(Progress::Done(answer)) => Ok(answer),
        Ok(Progress::NeedMore) => Err(Failure::new(
            Cause::TlsNotOffered,
            "the server closed the connection instead of answering SSLRequest",
        )),
        Err(error @ mantled_wire::postgres::SslAnswerError::InjectedBytes) => {
            Err(Failure::new(Cause::UpgradeInjected, error.to_string()))
        }
        Err(error) => Err(Failure::new(Cause::UpgradeProtocol, error.to_string())),
    }
}
