//! Serving agents in other network namespaces: containers.
//!
//! A connection is redirected to loopback, and every network namespace has one of its own; so the
//! daemon listens in each that an enrolled group uses ([`Watch`]), and dials from there
//! ([`Place`]). The groups' threads are looked at all the time, and at once when the kernel tells
//! that a socket was made, or refused, where nobody listens. When the last of them has left, the
//! listeners close, and soon after that the sessions, since each keeps the namespace.

use std::{collections::HashMap, sync::Arc, time::Duration};

use mantled_redirect::{Change, Watch, cgroup::Cgroup, namespaces::Kind};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    enrollment,
    proxy::{self, Context, place::Place},
};

/// How often the groups' threads are looked at.
const LOOK: Duration = Duration::from_millis(200);

/// A look at very many threads is followed by a pause this many times as long, so that looking
/// takes 2 % of a CPU at most.
const REST: u32 = 50;

/// The shortest pause: a group that makes sockets in a namespace that cannot be entered must not
/// keep the daemon busy.
const SHORTEST: Duration = Duration::from_millis(10);

/// Serves until `stop` turns true and the last session has ended.
pub async fn run(context: Arc<Context>, watch: Watch, mut stop: watch::Receiver<bool>) {
    // Places, by cookie; what is sent ends them.
    let mut places: HashMap<u64, watch::Sender<bool>> = HashMap::new();
    let mut serving = JoinSet::new();
    let mut stopping = false;
    loop {
        let begun = Instant::now();
        let looking = {
            let watch = watch.clone();
            tokio::task::spawn_blocking(move || watch.look(stopping))
        };
        for change in looking.await.unwrap_or_default() {
            match change {
                Change::Opened { cookie, listeners } => {
                    tracing::info!(namespace = cookie, "listening in another network namespace");
                    let (end, ended) = watch::channel(false);
                    places.insert(cookie, end);
                    let place = Place::elsewhere(cookie, watch.namespaces(), ended);
                    let sockets = listeners.into_parts();
                    serving.spawn(serve(Arc::clone(&context), place, sockets, stop.clone()));
                }
                Change::Ended { cookie } => {
                    tracing::info!(namespace = cookie, "no enrolled group uses it any more");
                    if let Some(end) = places.remove(&cookie) {
                        let _ = end.send(true);
                    }
                }
                Change::Failed(error) => tracing::error!(%error, "AGENTS ARE NOT SERVED"),
                entered @ Change::Entered { .. } => {
                    end_existing(&context, &watch, entered).await;
                }
            }
        }
        let took = begun.elapsed();
        let pause = LOOK.max(took * REST);
        tokio::select! {
            () = sleep(pause) => {}
            () = async {
                sleep(SHORTEST.max(took)).await;
                watch.woken().await;
            } => {}
            _ = stop.wait_for(|stop| *stop), if !stopping => stopping = true,
            // Those that have ended are forgotten; the last one is the end of a daemon that stops.
            over = serving.join_next(), if stopping => if over.is_none() { return },
        }
        while serving.try_join_next().is_some() {}
    }
}

async fn serve(
    context: Arc<Context>,
    place: Place,
    sockets: mantled_redirect::Parts,
    stop: watch::Receiver<bool>,
) {
    let cookie = place.cookie();
    if let Err(error) = proxy::serve(context, place, sockets, stop).await {
        tracing::error!(%error, namespace = cookie, "AGENTS ARE NOT SERVED");
    }
}

/// Ends the connections that a group has in a namespace from before.
async fn end_existing(context: &Arc<Context>, watch: &Watch, entered: Change) {
    let (context, namespaces) = (Arc::clone(context), watch.namespaces());
    // Lists all sockets of the namespace.
    let ended = tokio::task::spawn_blocking(move || {
        let Change::Entered {
            cookie,
            cgroup,
            settings,
            known,
        } = entered
        else {
            return;
        };
        let Ok(cgroup) = Cgroup::open(&cgroup) else {
            return; // It has gone, and its sockets with it.
        };
        match namespaces.socket(cookie, Kind::Diagnosis) {
            Ok(netlink) => enrollment::end_existing(
                &context.config,
                &context.resolvers,
                &cgroup,
                settings,
                known,
                Some(netlink),
            ),
            Err(error) => tracing::warn!(
                %error,
                namespace = cookie,
                "sockets from before enrolment could not be ended; packets of the group's own are dropped"
            ),
        }
    });
    let _ = ended.await;
}
