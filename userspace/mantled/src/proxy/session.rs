//! One connection, from accept to record.

use std::net::SocketAddr;

use mantled_record::{TlsFacts, Verdict};
use mantled_redirect::Peer;
use mantled_wire::tls::{ServerFirst, cipher_suite_name};
use tokio::net::TcpStream;

use super::{
    Context,
    agent::Agent,
    agent_stream::AgentStream,
    datagrams::Messages,
    detect::{self, Dialling, Heard, Patience},
    filter::Filter,
    inspect::inspected,
    ledger::Session,
    origin,
    permit::permit,
    place::Place,
    plan::Plan,
    refusal,
    relay::relay,
    revocation::Revocation,
    spoken::Spoken,
    unreachable,
    upgrade::{Upgrade, Way},
    upstream::{Dial, keep_alive},
};
use crate::{
    config::{Protocol, TlsMode},
    error::{Cause, Failure},
    identity,
    policy::Case,
};

/// Serves a connection that was accepted in this place. Whatever happens, it leaves one record.
pub async fn serve(context: &Context, place: &Place, stream: TcpStream, client: SocketAddr) {
    let peer = match origin::take(&context.flows, &stream, place, client) {
        Ok(peer) => peer,
        Err(failure) => {
            drop(Agent::new(stream)); // resets
            context.ledger.open_stranger(client).finish(Err(failure));
            return;
        }
    };
    let session = open(context, &peer, client).await;
    carry_out(context, place, &peer, session, Agent::new(stream)).await;
}

/// Serves the datagrams of a socket. Whatever happens, they leave one record.
pub async fn serve_datagrams(
    context: &Context,
    place: &Place,
    peer: &Peer,
    messages: Messages,
    client: SocketAddr,
) {
    let mut session = open(context, peer, client).await;
    session.record.transport = "udp";
    let agent = Agent::of_datagrams(messages);
    carry_out(context, place, peer, session, agent).await;
}

/// Opens the session before anybody is asked who its agent is: from here on there is a record.
async fn open(context: &Context, peer: &Peer, client: SocketAddr) -> Session {
    let process = identity::of_kernel(peer);
    let mut session = context.ledger.open(peer, process, client);
    session.record.process = Some(identity::agent(&context.helper, peer).await);
    session
}

/// Walks, and tells the agent and the record how it ended.
async fn carry_out(
    context: &Context,
    place: &Place,
    peer: &Peer,
    mut session: Session,
    mut agent: Agent,
) {
    let mut spoken = None;
    let ended = walk(context, place, peer, &mut session, &mut agent, &mut spoken);
    match ended.await {
        Ok(End::Whole) => {
            agent.finish();
            session.finish(Ok(()));
        }
        Ok(End::Cut) => {
            drop(agent); // resets
            session.finish(Ok(()));
        }
        Err(failure) => {
            if failure.cause.verdict() == Verdict::Refused {
                refusal::tell(agent, spoken, &failure).await;
            } else {
                drop(agent); // resets
            }
            session.finish(Err(failure));
        }
    }
}

/// How a session without failure ends for its agent.
enum End {
    /// The connection is closed.
    Whole,
    /// It is reset, see [`super::relay::Carried::cut`].
    Cut,
}

/// The walk of a connection: plan, dial, detect, upgrade, relay.
async fn walk(
    context: &Context,
    place: &Place,
    peer: &Peer,
    session: &mut Session,
    agent: &mut Agent,
    spoken: &mut Option<Spoken>,
) -> Result<End, Failure> {
    if context.ledger.sink().refuses() {
        return Err(Failure::new(
            Cause::RecordFailure,
            "records cannot be written, and [record] on_failure is refuse",
        ));
    }
    // A socket that cannot take these options is gone, which the first read tells.
    if let Some(socket) = agent.stream.socket() {
        let _ = socket.set_nodelay(true);
        let _ = keep_alive(socket);
    }
    let datagrams = matches!(agent.stream, AgentStream::Datagrams(_));
    if is_resolver(context, peer) {
        return resolve(context, place, peer, session, agent).await;
    }
    let mut names = context.names.of(peer.flow.group, peer.destination.ip());
    let announced = context
        .data_channels
        .take(place, peer.flow.group, peer.destination);
    let mut plan = Plan::new(&context.config, peer, &names).data_of(announced);
    if plan.name_source != "address" {
        session.knows(&names);
    }

    if datagrams && plan.tls == TlsMode::Exempt {
        return Err(Failure::new(
            Cause::NoUpgrade,
            "an exempt route lets no datagrams out in clear; a [[bypass]] does",
        ));
    }
    if plan.data_of.is_none() {
        let case = Case::of(&session.record, plan.destination, &plan.name);
        permit(context, peer, session, &case)?;
    }
    let limits = context.config.limits();
    let mut dial = Dial::of(&plan, peer, place, limits.dial);
    let mut dialling = Dialling::start(dial.connect());

    let heard = if plan.data_of.is_some() {
        // The file itself, in which nothing is to be recognised.
        Spoken::Known(Protocol::Ftp)
    } else if datagrams {
        Spoken::Known(Protocol::Syslog)
    } else {
        let heard = recognise(context, &plan, &dial, agent, &mut dialling).await?;
        // A word of ours on a data connection would be part of the file.
        *spoken = Some(heard);
        heard
    };
    session.record.protocol = heard.name();
    if heard == Spoken::Nothing {
        return Ok(End::Whole);
    }
    if !plan.ambiguous.is_empty()
        && heard == Spoken::Known(Protocol::Http)
        && let Some(host) = detect::host(agent, limits.detect).await
        && names.names.iter().any(|name| **name == *host)
    {
        names.names.retain(|name| **name == *host);
        session.knows(&names);
        plan = Plan::new(&context.config, peer, &names);
        plan.name_source = "http";
        if dial.address != plan.address() {
            dial.address = plan.address();
            dialling = Dialling::start(dial.connect());
        }
    }
    session.record.route = plan.route.map(|index| index + 1);
    session.record.name_source = Some(plan.name_source);

    let process = session.record.process.as_ref();
    let cgroup = process.and_then(|process| process.cgroup.as_deref());
    let revocation = Revocation::of(context, peer, &names, &plan, cgroup);
    let upgrade = Upgrade {
        context,
        peer,
        session,
        agent,
        plan: &plan,
        dial,
        revocation: &revocation,
    };
    let way = upgrade.run(heard, dialling).await?;
    let (way, notes) = inspected(context, peer, &plan, session, agent, heard, way);
    let received = session.record.received;
    let result = carry(session, agent, way, revocation).await;
    if let Some(notes) = notes {
        notes.tell(&mut session.record);
    }
    if session.record.received > received || heard != Spoken::Known(Protocol::Http) {
        // The server's words have reached the agent; a refusal of ours would be one of many.
        *spoken = None;
    }
    result
}

/// Is this DNS to one of the host's resolvers?
fn is_resolver(context: &Context, peer: &Peer) -> bool {
    peer.destination.port() == 53 && context.resolvers.contains(&peer.destination.ip())
}

/// The walk of DNS over TCP: it goes to the resolver as it is, and its names are learnt.
async fn resolve(
    context: &Context,
    place: &Place,
    peer: &Peer,
    session: &mut Session,
    agent: &mut Agent,
) -> Result<End, Failure> {
    let plan = Plan::of_resolver(peer);
    let dial = Dial::of(&plan, peer, place, context.config.limits().dial);
    let dialling = Dialling::start(dial.connect());
    session.record.protocol = Spoken::Dns.name();
    let upgrade = Upgrade {
        context,
        peer,
        session,
        agent,
        plan: &plan,
        dial,
        revocation: &Revocation::never(),
    };
    let way = upgrade.resolver(dialling, peer.flow.group).await?;
    carry(session, agent, way, Revocation::never()).await
}

/// Carries the bytes; what went by is recorded.
async fn carry(
    session: &mut Session,
    agent: &mut Agent,
    way: Way,
    revocation: Revocation,
) -> Result<End, Failure> {
    let (carried, result) = relay(
        agent,
        way.upstream,
        way.from_agent,
        way.from_server,
        revocation,
    )
    .await;
    session.record.sent += carried.sent;
    session.record.received += carried.received;
    if let Filter::Ssh(guard) = &carried.from_server {
        session.record.ssh_server = guard.banner().map(str::to_owned);
    }
    if let Filter::ServerRecords(records) = &carried.from_server
        && let Some(ServerFirst::Hello(hello)) = &records.first
    {
        let tls: &mut TlsFacts = &mut session.record.tls;
        tls.version = Some(hello.version.name());
        tls.cipher = cipher_suite_name(hello.cipher_suite).map(str::to_owned);
    }
    result.map(|()| if carried.cut { End::Cut } else { End::Whole })
}

/// Which protocol it is, from whichever side speaks first.
async fn recognise(
    context: &Context,
    plan: &Plan,
    dial: &Dial,
    agent: &mut Agent,
    dialling: &mut Dialling,
) -> Result<Spoken, Failure> {
    let limits = context.config.limits();
    let patience = match plan.tls {
        TlsMode::Implicit | TlsMode::Exempt => Patience::UntilConnected,
        _ => Patience::For(limits.detect),
    };
    let heard = match detect::listen(agent, dialling, patience, plan.has_other_port()).await {
        Ok(heard) => heard,
        Err(Heard::Agent(error)) => {
            return Err(Failure::new(Cause::AgentClosed, format!("agent: {error}")));
        }
        Err(Heard::Dial(error)) => {
            unreachable::remember(context, plan.destination, dial, &error);
            return Err(detect::dial_failure(&error));
        }
    };
    let heard = match heard {
        Spoken::ServerFirst => {
            detect::greeting(dialling, plan.destination.port(), limits.detect).await
        }
        heard => heard,
    };
    Ok(
        match heard.or_named(plan.protocol.or_else(|| plan.protocol_of_silence(heard))) {
            // Servers that speak first may take their time, mail servers on purpose; what is spoken
            // from the first byte is not guessed.
            Spoken::Silent if matches!(plan.tls, TlsMode::Auto | TlsMode::Starttls) => {
                detect::usual(plan.destination.port()).map_or(Spoken::Silent, Spoken::Known)
            }
            heard => heard,
        },
    )
}
