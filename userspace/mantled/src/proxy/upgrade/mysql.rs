//! MySQL and MariaDB: the agent answers the server's greeting before the certificate is verified,
//! and its answer waits here until it is (see [`mantled_wire::mysql`]).
//!
//! Where the agent's own TLS may pass, it is offered what the server offers, and what it asks for
//! is relayed; else it sees a server without TLS.
//!
//! In observe mode an attempt can fail after the agent has answered. Its answer is bound to the
//! nonce of a connection that is spent, so it is asked for another one, bound to the connection
//! that goes on in clear.

mod key;

use mantled_policy::Family;
use mantled_record::Path;
use mantled_wire::{
    Progress,
    mysql::{
        self, Answer, Authentication, AuthenticationError, FirstWords, Greeting, HandshakeResponse,
        Malformed, Packet, Reply, ServerError, ToAgent,
    },
    starttls::Preamble,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use super::{Upgrade, Way, is_about_the_server};
use crate::{
    error::{Cause, Failure},
    policy::Case,
    proxy::{
        agent::Agent,
        checks::Before,
        detect::Dialling,
        filter::Filter,
        upstream::{Dialled, Upstream},
    },
    tls::Alpn,
};

/// The number of a packet that the agent takes for the answer to its own to the greeting.
const AFTER_RESPONSE: u8 = 2;

/// The packets of an authentication, as they are counted for the record.
#[derive(Default)]
struct Counted {
    sent: u64,
    received: u64,
}

impl Upgrade<'_> {
    pub(super) async fn mysql(&mut self, dialling: Dialling) -> Result<Way, Failure> {
        let patience = self.context.config.limits().starttls;
        let mut dialled = self.dialled(dialling).await?;
        let words = timeout(patience, first_words(&mut dialled))
            .await
            .unwrap_or_else(|_| {
                Err(Failure::new(
                    Cause::UpgradeTimeout,
                    "the server did not finish its greeting in time",
                ))
            })?;
        match words {
            FirstWords::Error(error) => self.not_admitted(dialled, &error).await,
            FirstWords::Greeting(greeting) if !greeting.offers_tls() => {
                self.mysql_without_tls(dialled, &greeting).await
            }
            FirstWords::Greeting(greeting) => {
                let greeting = if self.judges_commands() {
                    greeting.legible()
                } else {
                    greeting
                };
                let mut sequence = AFTER_RESPONSE;
                let result = self.introduced(dialled, &greeting, &mut sequence).await;
                if let Err(failure) = &result {
                    // Packets are numbered, and another greeting would be none.
                    self.agent.parting = Some(mysql::refusal(sequence, &failure.text));
                }
                result
            }
        }
    }

    /// Must the agent's commands be read?
    fn judges_commands(&self) -> bool {
        let case = Case::of(&self.session.record, self.plan.destination, &self.plan.name);
        let families = self.context.rules.families(&case);
        families.contains(&Family::Sql)
    }

    /// The server has no place for this client, which it says in clear, in place of its greeting.
    async fn not_admitted(
        &mut self,
        dialled: Dialled,
        error: &ServerError,
    ) -> Result<Way, Failure> {
        let failure = Failure::new(
            Cause::UpgradeDeclined,
            format!(
                "the server does not greet, but says error {}: {}",
                error.number, error.text
            ),
        );
        let Some(permit) = self.plan.clear_text else {
            self.agent.parting = Some(error.for_agent());
            return Err(failure);
        };
        // It is no sign of a server without TLS, so it is not remembered as one.
        self.would_refuse(failure);
        self.goes(Path::Exposed)?;
        self.hand_over(&error.for_agent()).await?;
        Ok(Way::plain(Upstream::Exposed(dialled.expose(permit))))
    }

    /// Its greeting is still good, so there is no need to dial again where clear text may leave.
    async fn mysql_without_tls(
        &mut self,
        dialled: Dialled,
        greeting: &Greeting,
    ) -> Result<Way, Failure> {
        let declined = Failure::new(
            Cause::UpgradeDeclined,
            "the server does not offer TLS (no CLIENT_SSL among its capabilities)",
        );
        let Some(permit) = self.plan.clear_text else {
            return Err(declined);
        };
        self.would_refuse(declined);
        self.goes(Path::Exposed)?;
        self.hand_over(&greeting.packet()).await?;
        Ok(Way::plain(Upstream::Exposed(dialled.expose(permit))))
    }

    /// The agent hears the greeting; what it answers decides. `sequence` is the number that it
    /// expects next.
    async fn introduced(
        &mut self,
        mut dialled: Dialled,
        greeting: &Greeting,
        sequence: &mut u8,
    ) -> Result<Way, Failure> {
        let seen = if self.plan.native {
            greeting.packet()
        } else {
            greeting.without_tls()
        };
        self.hand_over(&seen).await?;
        let patience = self.context.config.limits().starttls;
        let answer = timeout(patience, answer(self.agent, &dialled))
            .await
            .unwrap_or_else(|_| {
                Err(Failure::new(
                    Cause::AgentProtocol,
                    "the agent did not answer the greeting in time",
                ))
            })?;
        self.agent.no_backslash_escapes = greeting.no_backslash_escapes();
        let response = match answer {
            Answer::SslRequest(request) if self.plan.native => {
                ask(&mut dialled, &request).await?;
                return self
                    .native(Dialling::Ready(dialled), Before::Greeting)
                    .await;
            }
            Answer::SslRequest(_) => {
                return Err(Failure::new(
                    Cause::AgentProtocol,
                    "the agent asks for TLS that it was not offered",
                ));
            }
            Answer::Response(response) => response,
        };
        if !response.is_legible() && self.judges_commands() {
            return Err(Failure::new(
                Cause::AgentProtocol,
                "the agent asks for compression or query attributes that it was not offered",
            ));
        }
        self.session.record.db_user = Some(response.user.clone());
        self.session
            .record
            .db_namespace
            .clone_from(&response.database);
        match self.encrypted(dialled, &response).await {
            Ok(upstream) => {
                let authentication = Authentication::inside_tls(greeting, response);
                self.authenticated(upstream, authentication, sequence).await
            }
            Err(failure) if self.plan.may_fall_back() && is_about_the_server(failure.cause) => {
                self.in_clear(failure, response, sequence).await
            }
            Err(failure) => Err(failure),
        }
    }

    /// SSLRequest, then TLS.
    async fn encrypted(
        &mut self,
        mut dialled: Dialled,
        response: &HandshakeResponse,
    ) -> Result<Upstream, Failure> {
        ask(&mut dialled, &response.ssl_request()).await?;
        self.verify(dialled, Alpn::None).await
    }

    /// Observe mode, after an attempt that has spoiled its connection: on another one.
    async fn in_clear(
        &mut self,
        failure: Failure,
        response: HandshakeResponse,
        sequence: &mut u8,
    ) -> Result<Way, Failure> {
        self.context
            .without_tls
            .remember(&self.dial.place, self.plan.destination, &failure);
        let patience = self.context.config.limits().starttls;
        self.dial.address = self.plan.address();
        let mut dialled = self.dialled(Dialling::start(self.dial.connect())).await?;
        let words = timeout(patience, first_words(&mut dialled)).await;
        let Ok(Ok(FirstWords::Greeting(greeting))) = words else {
            return Err(failure);
        };
        let Some((authentication, request)) = Authentication::in_clear(&greeting, response) else {
            return Err(failure);
        };
        self.would_refuse(failure);
        let upstream = self.expose(dialled)?;
        self.hand_over(&request).await?;
        self.authenticated(upstream, authentication, sequence).await
    }

    /// Leads the authentication; what follows it is relayed as it is.
    async fn authenticated(
        &mut self,
        mut upstream: Upstream,
        mut authentication: Authentication,
        sequence: &mut u8,
    ) -> Result<Way, Failure> {
        let mut counted = Counted::default();
        let result = match &mut upstream {
            Upstream::Verified(verified) => {
                authenticate(
                    self.agent,
                    verified.stream(),
                    &mut authentication,
                    &mut counted,
                )
                .await
            }
            Upstream::Exposed(exposed) => {
                authenticate(
                    self.agent,
                    exposed.stream(),
                    &mut authentication,
                    &mut counted,
                )
                .await
            }
            Upstream::Native(_) | Upstream::Syslog(_) => Ok(()),
        };
        self.session.record.sent += counted.sent;
        self.session.record.received += counted.received;
        *sequence = authentication.sequence();
        result.map(|()| Way {
            from_agent: Filter::Goodbye(authentication.goodbye()),
            from_server: authentication
                .last_words()
                .map_or(Filter::None, |words| Filter::Rewrite(Box::new(words))),
            upstream,
        })
    }

    /// Gives the agent what the server has said.
    async fn hand_over(&mut self, words: &[u8]) -> Result<(), Failure> {
        self.agent.say(words).await.map_err(agent_closed)?;
        self.session.record.received += words.len() as u64;
        Ok(())
    }
}

/// Reads the greeting, or what stands in its place.
async fn first_words(dialled: &mut Dialled) -> Result<FirstWords, Failure> {
    let mut heard = Vec::new();
    loop {
        let parsed = FirstWords::parse(&heard)
            .map_err(|error| Failure::new(Cause::UpgradeProtocol, error.to_string()))?;
        match parsed {
            Progress::Done((words, length)) if length == heard.len() => return Ok(words),
            Progress::Done(_) => return Err(injected()),
            Progress::NeedMore => {
                let mut more = [0; 1024];
                let length = dialled.hear(&mut more).await.map_err(server_closed)?;
                if length == 0 {
                    return Err(server_closed(std::io::ErrorKind::UnexpectedEof.into()));
                }
                heard.extend_from_slice(more.get(..length).unwrap_or_default());
            }
        }
    }
}

/// Takes the agent's answer to the greeting. The server has nothing to say meanwhile.
async fn answer(agent: &mut Agent, dialled: &Dialled) -> Result<Answer, Failure> {
    loop {
        let parsed = Packet::parse(&agent.head).map_err(agent_protocol)?;
        if let Progress::Done(packet) = parsed {
            let answer = Answer::parse(packet.payload).map_err(agent_protocol)?;
            let length = packet.length();
            agent.consume(length);
            return Ok(answer);
        }
        tokio::select! {
            biased;
            spoken = dialled.spoken() => {
                return Err(match spoken {
                    Ok(0) => server_closed(std::io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) => injected(),
                    Err(error) => server_closed(error),
                });
            }
            more = agent.read_more() => {
                if !more.map_err(agent_closed)? {
                    return Err(Failure::new(
                        Cause::AgentClosed,
                        "the agent closed before it answered the greeting; if it insists on TLS \
                         of its own, a route with tls = \"passthrough\" allows that",
                    ));
                }
            }
        }
    }
}

/// Asks for TLS without an agent, in the words of a client of today.
///
/// # Errors
/// There is no TLS.
pub(super) async fn rehearse(dialled: &mut Dialled) -> Result<(), Failure> {
    /// SSLRequest: its length and number; CLIENT_LONG_PASSWORD, PROTOCOL_41, SSL, TRANSACTIONS,
    /// SECURE_CONNECTION and PLUGIN_AUTH; packets of 16 MiB; utf8mb4; 23 zeros.
    const SSL_REQUEST: &[u8; 36] = b"\x20\0\0\x01\x01\xaa\x08\0\0\0\0\x01\x2d\
        \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

    match first_words(dialled).await? {
        FirstWords::Greeting(greeting) if greeting.offers_tls() => {}
        FirstWords::Greeting(_) => {
            return Err(Failure::new(
                Cause::UpgradeDeclined,
                "the server does not offer TLS (no CLIENT_SSL among its capabilities)",
            ));
        }
        FirstWords::Error(_) => {
            return Err(Failure::new(
                Cause::UpgradeDeclined,
                "the server has an error in place of its greeting",
            ));
        }
    }
    ask(dialled, &Preamble::constant(SSL_REQUEST)).await
}

async fn ask(dialled: &mut Dialled, request: &Preamble) -> Result<(), Failure> {
    dialled.say(request).await.map_err(server_closed)
}

/// Leads the authentication to its end, or to the end of either side, which the relay finds
/// again.
async fn authenticate<S>(
    agent: &mut Agent,
    server: &mut S,
    authentication: &mut Authentication,
    counted: &mut Counted,
) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut heard = Vec::new();
    if let Some(reply) = authentication.open().map_err(unbrokered)? {
        act(reply, agent, server, authentication, counted).await?;
    }
    loop {
        while let Progress::Done(packet) = Packet::parse(&heard).map_err(server_protocol)? {
            let ToAgent { words, last } = authentication.hear_server(packet);
            let length = packet.length();
            agent.say(&words).await.map_err(agent_closed)?;
            counted.received += words.len() as u64;
            heard.drain(..length);
            if last {
                agent.say(&heard).await.map_err(agent_closed)?;
                counted.received += heard.len() as u64;
                return Ok(());
            }
        }
        while let Progress::Done(packet) = Packet::parse(&agent.head).map_err(agent_protocol)? {
            let reply = authentication.hear_agent(packet).map_err(unbrokered)?;
            let length = packet.length();
            agent.consume(length);
            act(reply, agent, server, authentication, counted).await?;
        }
        let open = tokio::select! {
            more = agent.read_more() => more.map_err(agent_closed)?,
            more = server.read_buf(&mut heard) => more.map_err(cut_off)? > 0,
        };
        if !open {
            return Ok(());
        }
    }
}

/// Does what a packet of the agent asks for.
async fn act<S>(
    reply: Reply,
    agent: &mut Agent,
    server: &mut S,
    authentication: &mut Authentication,
    counted: &mut Counted,
) -> Result<(), Failure>
where
    S: AsyncWrite + Unpin,
{
    let packet = match reply {
        Reply::ToServer(packet) => packet,
        Reply::OfferKey => {
            let key = key::own().await?;
            let words = authentication.key(key.pem());
            counted.received += words.len() as u64;
            return agent.say(&words).await.map_err(agent_closed);
        }
        Reply::Decrypt(ciphertext) => {
            let password = key::own().await?.decrypt(&ciphertext);
            let password = password.ok_or_else(|| unbrokered(AuthenticationError::NoPassword))?;
            authentication.password(password).map_err(unbrokered)?
        }
    };
    server.write_all(&packet).await.map_err(cut_off)?;
    server.flush().await.map_err(cut_off)?;
    counted.sent += packet.len() as u64;
    Ok(())
}

fn injected() -> Failure {
    Failure::new(
        Cause::UpgradeInjected,
        "bytes came between the greeting and the TLS handshake: somebody on the path injects \
         them, or the server is broken",
    )
}

fn server_closed(error: std::io::Error) -> Failure {
    Failure::new(
        Cause::TlsNotOffered,
        format!("the server closed before the TLS handshake: {error}"),
    )
}

fn cut_off(error: std::io::Error) -> Failure {
    Failure::new(Cause::UpstreamClosed, format!("server: {error}"))
}

fn agent_closed(error: std::io::Error) -> Failure {
    Failure::new(Cause::AgentClosed, format!("the agent closed: {error}"))
}

fn agent_protocol(error: Malformed) -> Failure {
    Failure::new(Cause::AgentProtocol, format!("agent: {error}"))
}

fn server_protocol(error: Malformed) -> Failure {
    Failure::new(Cause::Protocol, format!("server: {error}"))
}

fn unbrokered(error: AuthenticationError) -> Failure {
    Failure::new(Cause::Protocol, error.to_string())
}
