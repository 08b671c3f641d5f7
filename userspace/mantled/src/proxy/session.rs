//! One connection, from accept to record.

use std::net::SocketAddr;

use mantled_record::{TlsFacts, Verdict};
use mantled_redirect::Peer;
use mantled_wire::tls::{ServerFirst, cipher_suite_name};
use tokio::net::TcpStream;

use super::{
    Context,
    agent::Agent,
    detect::{self, Dialling, Heard, Patience},
    filter::Filter,
    ledger::Session,
    origin,
    plan::Plan,
    refusal,
    relay::relay,
    spoken::Spoken,
    unreachable,
    upgrade::Upgrade,
    upstream::{Dial, keep_alive},
};
use crate::{
    config::TlsMode,
    error::{Cause, Failure},
    identity,
};

/// Serves an accepted connection. Whatever happens, it leaves one record.
pub async fn serve(context: &Context, stream: TcpStream, client: SocketAddr) {
    let peer = match origin::take(&context.flows, &stream, context.netns, client) {
        Ok(peer) => peer,
        Err(failure) => {
            drop(Agent::new(stream)); // resets
            context.ledger.open_stranger(client).finish(Err(failure));
            return;
        }
    };
    let mut session = context.ledger.open(&peer, identity::agent(&peer), client);
    let mut agent = Agent::new(stream);
    let mut spoken = None;
    match walk(context, &peer, &mut session, &mut agent, &mut spoken).await {
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
    let plan = Plan::new(&context.config, peer);
    session.record.route = plan.route.map(|index| index + 1);

    let limits = context.config.limits();
    let dial = Dial {
        address: plan.address(),
        source: peer.source,
        device: peer.flow.device,
        mark: peer.flow.mark,
        patience: limits.dial,
    };
    let mut dialling = Dialling::start(dial.connect());

    let patience = match plan.tls {
        TlsMode::Implicit | TlsMode::Exempt => Patience::UntilConnected,
        _ => Patience::For(limits.detect),
    };
    let heard = match detect::listen(agent, &mut dialling, patience, plan.has_other_port()).await {
        Ok(heard) => heard,
        Err(Heard::Agent(error)) => {
            return Err(Failure::new(Cause::AgentClosed, format!("agent: {error}")));
        }
        Err(Heard::Dial(error)) => {
            unreachable::remember(context, plan.destination, &dial, &error);
            return Err(detect::dial_failure(&error));
        }
    };
    let heard = match heard {
        Spoken::ServerFirst => {
            detect::greeting(&mut dialling, plan.destination.port(), limits.detect).await
        }
        heard => heard,
    };
    let heard = heard.or_named(plan.protocol);
    *spoken = Some(heard);
    session.record.protocol = heard.name();
    if heard == Spoken::Nothing {
        return Ok(End::Whole);
    }

    let upgrade = Upgrade {
        context,
        session,
        agent,
        plan: &plan,
        dial,
    };
    let way = upgrade.run(heard, dialling).await?;
    // From here on the server's words reach the agent; a refusal of ours would be one of many.
    *spoken = None;
    let (carried, result) = relay(agent, way.upstream, way.from_agent, way.from_server).await;
    session.record.sent = carried.sent;
    session.record.received = carried.received;
    if let Filter::ServerRecords(records) = &carried.from_server
        && let Some(ServerFirst::Hello(hello)) = &records.first
    {
        let tls: &mut TlsFacts = &mut session.record.tls;
        tls.version = Some(hello.version.name());
        tls.cipher = cipher_suite_name(hello.cipher_suite).map(str::to_owned);
    }
    result.map(|()| if carried.cut { End::Cut } else { End::Whole })
}
