//! The metrics, for Prometheus: `[admin] metrics` names where they are found, in the OpenMetrics
//! text format. docs/metrics.md says what each of them means.
//!
//! Nothing is counted here: each scrape asks the daemon as `mantled status` does. Labels are bounded:
//! groups are those that are enrolled, and everything else is a word of a fixed list. No address and
//! no name of a server is ever a label.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request as HttpRequest, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot},
    time::{sleep, timeout},
};

use crate::admin::{Call, Reply, Request, Status};

/// Scrapes at once.
const SCRAPES: usize = 8;

/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// After the port could not be had: a predecessor may have it for a moment more.
const AGAIN: Duration = Duration::from_millis(200);

/// Answers for ever.
pub async fn serve(address: Option<SocketAddr>, calls: mpsc::Sender<Call>) {
    let Some(address) = address else { return };
    let listener = bind(address).await;
    let permits = Arc::new(Semaphore::new(SCRAPES));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the metrics' listener");
                sleep(AGAIN).await;
                continue;
            }
        };
        let calls = calls.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, calls.clone()));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(16 << 10)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // One who does not ask or read in time is left alone.
            let _ = timeout(PATIENCE, connection).await;
            drop(permit);
        });
    }
}

async fn bind(address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if !told => {
                told = true;
                tracing::error!(%error, %address, "the metrics cannot be served; [admin] metrics names the address");
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    }
}

type Answer = Result<Response<Full<Bytes>>, Infallible>;

async fn answer(request: HttpRequest<Incoming>, calls: mpsc::Sender<Call>) -> Answer {
    if request.method() != Method::GET || request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "the metrics are at /metrics\n");
    }
    match status(&calls).await.map(|status| text(&status)) {
        Some(Ok(text)) => {
            let mut response = Response::new(Full::new(text.into()));
            let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            if let Ok(format) = format.parse() {
                response.headers_mut().insert(CONTENT_TYPE, format);
            }
            Ok(response)
        }
        _ => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "the daemon does not answer\n",
        ),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Answer {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    Ok(response)
}

async fn status(calls: &mpsc::Sender<Call>) -> Option<Status> {
    let (reply, answered) = oneshot::channel();
    let call = Call {
        request: Request::Status,
        caller: std::process::id(),
        reply,
    };
    calls.send(call).await.ok()?;
    match answered.await.ok()?.ok()?.reply {
        Reply::Status(status) => Some(*status),
        _ => None,
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupLabel {
    group: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupModeLabels {
    group: String,
    mode: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    group: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    protocol: String,
    verdict: String,
    path: String,
    error_type: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabel {
    event: String,
}

/// A family of counters, registered.
fn counters<L>(registry: &mut Registry, name: &str, help: &str) -> Family<L, Counter>
where
    L: EncodeLabelSet + Clone + std::hash::Hash + Eq + std::fmt::Debug + Send + Sync + 'static,
{
    let family = Family::<L, Counter>::default();
    registry.register(name, help, family.clone());
    family
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(value.try_into().unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

/// What is scraped.
fn text(status: &Status) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("mantled");
    let into = &mut registry;
    into.register(
        "build",
        "The daemon that answers",
        Info::new([("version", status.version.clone())]),
    );
    gauge(
        into,
        "sessions_open",
        "Sessions that are open",
        status.sessions_open as u64,
    );
    counter(
        into,
        "sessions_opened",
        "Sessions since the daemon started",
        status.sessions,
    );
    counter(
        into,
        "commands_judged",
        "Commands that policies were asked about, of sessions that have ended",
        status.commands,
    );
    counter(
        into,
        "commands_refused",
        "Those of them that were refused, or would have been in enforce mode",
        status.commands_refused,
    );
    counter(
        into,
        "records_written",
        "Records written",
        status.records_written,
    );
    counter(
        into,
        "records_dropped",
        "Records lost because they could not be written",
        status.records_dropped,
    );
    gauge(
        into,
        "records_failing",
        "Whether records cannot be written now",
        status.records_failing.into(),
    );
    gauge(
        into,
        "records_missing",
        "Connections that the kernel has sent to the proxy and that are neither open nor recorded",
        status.records_missing,
    );
    let memory = Gauge::<i64>::default();
    memory.set(status.resident_bytes.try_into().unwrap_or(i64::MAX));
    into.register_with_unit(
        "resident_memory",
        "Memory of the daemon",
        Unit::Bytes,
        memory,
    );

    let attached = Family::<GroupModeLabels, Gauge>::default();
    into.register(
        "group_attached",
        "Whether the kernel runs every program for the group; 0 also while it has no cgroup",
        attached.clone(),
    );
    let outcomes = counters::<OutcomeLabels>(
        into,
        "group_sessions",
        "Sessions of the group that have ended, by outcome",
    );
    let bypasses = counters::<GroupLabel>(
        into,
        "group_bypass_attempts",
        "Packets and datagrams past the proxy, which the kernel refused",
    );
    for group in &status.groups {
        let name = || group.target.clone();
        let whole = group.cgroup.is_some() && group.detached.is_empty();
        attached
            .get_or_create(&GroupModeLabels {
                group: name(),
                mode: group.mode.name(),
            })
            .set(whole.into());
        let tally = &group.tally;
        let told = [
            ("upgraded", tally.upgraded),
            ("exposed", tally.exposed),
            ("native", tally.native),
            ("refused", tally.refused),
            ("failed", tally.failed),
        ];
        let rest = told.iter().fold(tally.sessions, |rest, (_, count)| {
            rest.saturating_sub(*count)
        });
        for (outcome, count) in told.into_iter().chain([("other", rest)]) {
            let labels = OutcomeLabels {
                group: name(),
                outcome,
            };
            outcomes.get_or_create(&labels).inc_by(count);
        }
        bypasses
            .get_or_create(&GroupLabel { group: name() })
            .inc_by(tally.bypass_attempts);
    }

    let ends = counters::<EndLabels>(
        into,
        "sessions",
        "Sessions that have ended, by protocol, verdict, path and error",
    );
    for end in &status.ends {
        ends.get_or_create(&EndLabels {
            protocol: end.protocol.clone(),
            verdict: end.verdict.clone(),
            path: end.path.clone(),
            error_type: end.error.clone(),
        })
        .inc_by(end.count);
    }
    let events = counters::<EventLabel>(
        into,
        "kernel_events",
        "What the kernel programs have counted since they were first attached",
    );
    for (event, count) in &status.kernel {
        let event = event.clone();
        events.get_or_create(&EventLabel { event }).inc_by(*count);
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}
