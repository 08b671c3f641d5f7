//! FTP: `AUTH TLS` in clear, `PBSZ 0` and `PROT P` inside TLS, and its data connections.
//!
//! The agent gets the greeting when all of that is done, so it never waits for a server that will
//! be refused. Control and data connections of one session share TLS sessions with nobody else:
//! servers take a data connection for the agent's own only if it resumes the session of the
//! control connection. TLS 1.2 comes first, since its sessions can be resumed any number of times;
//! a ticket of TLS 1.3 is gone when it is used, and the server may not have given another one.

mod control;

use mantled_wire::{
    Progress,
    ftp::{AuthTls, PROTECT, Reply, Role, filters},
    starttls::Dialogue as _,
};
use socket2::SockRef;
use tokio::time::timeout;

use self::control::Control;
use super::{Upgrade, Way, proven_name, starttls::converse};
use crate::{
    config::TlsMode,
    error::{Cause, Failure},
    proxy::{
        data_channels::{PATIENCE, Service},
        detect::Dialling,
        filter::Filter,
        upstream::{Dialled, Verified},
    },
    tls::{Alpn, Connector, Offer},
};

/// Longest reply that is read before the filters take over, in bytes.
const MAX_REPLY: usize = 16 * 1024;

impl Upgrade<'_> {
    /// The control connection.
    pub(super) async fn ftp(&mut self, dialling: Dialling) -> Result<Way, Failure> {
        let connector = self.context.connectors.of_route(self.plan.route);
        let (any, tls12) = (connector.apart(), connector.apart_with_tls12());
        let mut dialled = self.dialled(dialling).await?;
        if let Some(tls12) = tls12 {
            match self.ftp_over(dialled, tls12).await {
                // It may be one that wants TLS 1.3.
                Err(failure) if failure.cause == Cause::TlsFailed => {}
                result => return result,
            }
            self.dial.address = self.plan.address();
            dialled = self.dialled(Dialling::start(self.dial.connect())).await?;
        }
        self.ftp_over(dialled, any).await
    }

    async fn ftp_over(
        &mut self,
        mut dialled: Dialled,
        connector: Connector,
    ) -> Result<Way, Failure> {
        let limit = self.context.config.limits().starttls;
        let mut dialogue = AuthTls::default();
        let implicit = self.plan.tls == TlsMode::Implicit;
        if !implicit {
            timeout(limit, converse(&mut dialled, &mut dialogue))
                .await
                .unwrap_or_else(|_| {
                    Err(Failure::new(
                        Cause::UpgradeTimeout,
                        "the server did not go ahead with TLS in time",
                    ))
                })?;
        }
        let name = proven_name(self.plan)?;
        self.note_port(&dialled);
        let local = dialled.local_address();
        let patience = self.patience();
        let mut verified = dialled
            .verify(&connector, name, Offer::One(Alpn::None), patience)
            .await?;
        let greeting = timeout(limit, protect(&mut verified, implicit))
            .await
            .unwrap_or_else(|_| {
                Err(Failure::new(
                    Cause::UpgradeTimeout,
                    "the server did not protect its data connections in time",
                ))
            })?;
        let control = self.control(local, Some(connector));
        let upstream = self.goes_to(verified)?;
        // Telnet's urgent data (RFC 959 §4.1.3) stays in the stream, where the filter sees it.
        if let Some(socket) = self.agent.stream.socket() {
            let _ = SockRef::from(socket).set_out_of_band_inline(true);
        }
        let greeting = greeting.unwrap_or_else(|| dialogue.welcome().to_agent);
        self.agent.say(&greeting).await.map_err(|error| {
            Failure::new(Cause::AgentClosed, format!("the agent closed: {error}"))
        })?;
        let (commands, replies) = filters(control, Role::Secured);
        Ok(Way {
            upstream,
            from_agent: Filter::Rewrite(Box::new(commands)),
            from_server: Filter::Rewrite(Box::new(replies)),
        })
    }

    /// A control connection in clear: its data connections must be known as well, since none of
    /// them can be dialled twice to find out.
    pub(super) fn ftp_in_clear(&mut self, dialled: Dialled) -> Result<Way, Failure> {
        let control = self.control(dialled.local_address(), None);
        let upstream = self.expose(dialled)?;
        let (commands, replies) = filters(control, Role::Watched);
        Ok(Way {
            upstream,
            from_agent: Filter::Rewrite(Box::new(commands)),
            from_server: Filter::Rewrite(Box::new(replies)),
        })
    }

    /// A data connection that the agent has made.
    ///
    /// It is upgraded at once, and waits in the middle of that: the server begins its handshake
    /// when the agent, which is connected by now, asks for the transfer.
    pub(super) async fn ftp_data(
        &mut self,
        dialling: Dialling,
        service: &Service,
    ) -> Result<Way, Failure> {
        let dialled = self.dialled(dialling).await?;
        let Some(connector) = &service.connector else {
            return self.expose(dialled).map(Way::plain);
        };
        match dialled
            .verify_data(connector, &service.name, PATIENCE)
            .await
        {
            Ok(verified) => self.goes_to(verified).map(Way::plain),
            Err(failure) => {
                if self.plan.may_fall_back() && super::is_about_the_server(failure.cause) {
                    // This transfer is lost. The next control connection goes in clear.
                    self.context
                        .without_tls
                        .remember(&self.dial.place, service.control, &failure);
                }
                Err(failure)
            }
        }
    }

    /// What the filters of a control connection share.
    fn control(
        &self,
        local: std::io::Result<std::net::IpAddr>,
        connector: Option<Connector>,
    ) -> Control {
        let service = Service {
            control: self.plan.destination,
            route: self.plan.route,
            name: self.plan.name.clone(),
            connector,
        };
        Control::new(
            self.context,
            (&self.dial.place, *self.peer),
            self.session.record.process.clone(),
            local.ok(),
            service,
            self.plan.clear_text,
            self.revocation.clone(),
        )
    }
}

/// Has the data connections protected, before anybody can ask for one. Where TLS came first, the
/// greeting is heard here.
async fn protect(verified: &mut Verified, greets: bool) -> Result<Option<Vec<u8>>, Failure> {
    let mut heard = Vec::new();
    let mut greeting = None;
    if greets {
        let (code, reply) = loop {
            match reply(verified, &mut heard).await? {
                (120, _) => {}
                found => break found,
            }
        };
        expect(220, code, &reply)?;
        greeting = Some(reply);
    }
    for (command, wanted) in PROTECT {
        verified.say(command).await.map_err(closed)?;
        let (code, reply) = reply(verified, &mut heard).await?;
        expect(wanted, code, &reply)?;
    }
    if heard.is_empty() {
        return Ok(greeting);
    }
    Err(Failure::new(
        Cause::UpgradeProtocol,
        "the server sends replies that nobody has asked for",
    ))
}

/// Hears one whole reply, and its code.
async fn reply(verified: &mut Verified, heard: &mut Vec<u8>) -> Result<(u16, Vec<u8>), Failure> {
    loop {
        match Reply::parse(heard) {
            Ok(Progress::Done(Reply { code, length })) => {
                let rest = heard.split_off(length.min(heard.len()));
                return Ok((code, std::mem::replace(heard, rest)));
            }
            Ok(Progress::NeedMore) if heard.len() < MAX_REPLY => {}
            Ok(Progress::NeedMore) | Err(_) => {
                return Err(Failure::new(
                    Cause::UpgradeProtocol,
                    "the server sends no FTP replies inside TLS",
                ));
            }
        }
        let mut more = [0; 1024];
        match verified.hear(&mut more).await.map_err(closed)? {
            0 => return Err(closed(std::io::ErrorKind::UnexpectedEof.into())),
            length => heard.extend_from_slice(more.get(..length).unwrap_or_default()),
        }
    }
}

fn expect(wanted: u16, code: u16, reply: &[u8]) -> Result<(), Failure> {
    if code == wanted {
        return Ok(());
    }
    let shown: String = String::from_utf8_lossy(reply)
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|letter| !letter.is_control())
        .take(200)
        .collect();
    Err(Failure::new(
        Cause::UpgradeDeclined,
        format!("the server does not protect its data connections: {shown}"),
    ))
}

fn closed(error: std::io::Error) -> Failure {
    Failure::new(
        Cause::UpgradeDeclined,
        format!("the server closed instead of protecting its data connections: {error}"),
    )
}
