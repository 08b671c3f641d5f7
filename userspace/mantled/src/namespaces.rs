//! Serving agents in other network namespaces: containers.
//!
//! A connection is redirected to loopback, and every network namespace has one of its own; so the
//! daemon listens in each that an enrolled group uses ([`Watch`]), and dials from there
//! ([`Place`]). The groups' threads are looked at all the time, and at once when the kernel tells
//! that a socket was made, or refused, where nobody listens. When the last of them has left, the
//! listeners close, and soon after that the sessions, since each keeps the namespace.

use std::{collections::HashMap, time::Duration};

use mantled_redirect::{Change, Parts, Watch, cgroup::Cgroup};
use tokio::{
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep},
};

use crate::{
    enrollment::Before,
    proxy::{Phase, Server, place::Place},
};

/// How often the groups' threads are looked at.
const LOOK: Duration = Duration::from_millis(200);

/// A look at very many threads is followed by a pause this many times as long, so that looking
/// takes 2 % of a CPU.
const REST: u32 = 50;

/// The longest pause: a look can have waited for the helper, and a namespace must not be kept for
/// long.
const LONGEST: Duration = Duration::from_secs(2);

/// The shortest pause: a group that makes sockets in a namespace that cannot be entered must not
/// keep the daemon busy.
const SHORTEST: Duration = Duration::from_millis(10);

/// Serves until the daemon does not and the last session has ended.
pub async fn run(server: Server, watch: Watch) {
    let mut phases = server.phases();
    // What is dropped or sent ends the place with this cookie.
    let mut places: HashMap<u64, watch::Sender<bool>> = HashMap::new();
    let mut serving = JoinSet::new();
    loop {
        let phase = *phases.borrow_and_update();
        let begun = Instant::now();
        let looking = {
            let watch = watch.clone();
            // While a successor begins, and after it has, what is new is the successor's.
            spawn_blocking(move || watch.look(phase != Phase::Serving))
        };
        for change in looking.await.unwrap_or_default() {
            match change {
                Change::Opened { cookie, listeners } => {
                    tracing::info!(namespace = cookie, "listening in another network namespace");
                    let (end, ended) = watch::channel(false);
                    places.insert(cookie, end);
                    let place = Place::elsewhere(cookie, watch.namespaces(), ended);
                    serving.spawn(serve(server.at(place), cookie, listeners.into_parts()));
                }
                Change::Ended { cookie } => {
                    tracing::info!(namespace = cookie, "no process of a group uses it any more");
                    if let Some(end) = places.remove(&cookie) {
                        end.send_replace(true);
                    }
                }
                Change::Failed(error) => tracing::error!(%error, "AGENTS ARE NOT SERVED"),
                Change::Entered {
                    cookie,
                    cgroup,
                    settings,
                    known,
                } => {
                    let context = server.context();
                    // Lists all sockets of the namespace.
                    let ended = spawn_blocking(move || {
                        let before = Before {
                            config: &context.config,
                            resolvers: &context.resolvers,
                            helper: &context.helper,
                            settings,
                            known,
                            // What was there when it was enrolled was looked at then.
                            reset: false,
                        };
                        // One that has gone has no sockets.
                        if let Ok(cgroup) = Cgroup::open(&cgroup) {
                            before.end(&cgroup, Some(cookie));
                        }
                    });
                    let _ = ended.await;
                }
            }
        }
        while serving.try_join_next().is_some() {}
        let over = matches!(phase, Phase::Succeeded | Phase::Stopping);
        if over && serving.is_empty() {
            return;
        }
        let took = begun.elapsed();
        tokio::select! {
            () = sleep((took * REST).clamp(LOOK, LONGEST)) => {}
            () = async {
                sleep(SHORTEST.max(took)).await;
                watch.woken().await;
            }, if !over => {}
            Ok(()) = phases.changed() => {}
            // The last one is the end of a daemon that stops.
            Some(_) = serving.join_next(), if over => {}
        }
    }
}

async fn serve(server: Server, cookie: u64, sockets: Parts) {
    if let Err(error) = server.serve(sockets).await {
        tracing::error!(%error, namespace = cookie, "AGENTS ARE NOT SERVED");
    }
}
