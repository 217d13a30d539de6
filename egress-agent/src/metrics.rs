//! Metrics and probes over HTTP.
//!
//! Counters live in the kernel's pinned maps and are read at scrape time: there is no second
//! bookkeeping that could drift, and a restart of the agent is no counter reset; only what dead
//! pods leave behind is kept here (see `ledger`). Labels are closed words or names of the cluster,
//! never an address, a port or a host.

mod catalogue;
mod collect;
mod family;
mod ledger;
mod standing;
#[cfg(test)]
mod tests;
mod traffic;

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};

use crate::agent::AgentState;
use crate::clock::boot_clock;
use crate::datapath::{CounterReader, DatapathError};
use crate::events::EventCounts;
use crate::registry::Health;
use crate::supervise::{self, Shutdown};
pub use catalogue::{Kind, Label, Metric, Values, reference};
use collect::{Counted, ScrapeError};
use ledger::Ledger;

/// Where metrics are served unless configured otherwise: never on every interface by itself.
const DEFAULT_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9464);
/// A second scrape within this time gets the first one's answer.
const FRESH: Duration = Duration::from_secs(1);
/// Between two looks for counters of pods that are gone.
const SETTLE: Duration = Duration::from_secs(60);
/// A heartbeat older than this means that the loop hangs.
const ALIVE_NS: u64 = 10_000_000_000;

/// What the listener knows; empty until the first snapshot is applied.
#[derive(Clone)]
pub struct Readiness {
    registry: watch::Receiver<Health>,
    sources: Arc<std::sync::OnceLock<Sources>>,
    cached: Arc<Mutex<Option<(Instant, String)>>>,
}

struct Sources {
    states: watch::Receiver<Arc<AgentState>>,
    reader: CounterReader,
    events: EventCounts,
    ledger: std::sync::Mutex<Ledger>,
}

impl Sources {
    /// The names as they are now, and nobody else changing them.
    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        // A ledger somebody panicked over is at worst short of a name.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scrape(&self) -> Result<String, ScrapeError> {
        let state = Arc::clone(&self.states.borrow());
        // Held while the kernel is read: nothing is settled in between and counted twice.
        let mut ledger = self.ledger();
        // A pod this state is the first to name counts under its name at once.
        ledger.learn(&state, boot_clock());
        let counted = Counted::read(&self.reader)?;
        collect::collect(&state, &counted, &ledger, &self.events)
    }

    fn settle(&self) -> Result<(), DatapathError> {
        let mut ledger = self.ledger();
        let settled = ledger.settle(&self.reader.counters()?, boot_clock());
        self.reader.forget(&settled)
    }
}

impl Readiness {
    /// Not ready yet; until then `registry` says what is waited for.
    pub fn new(registry: watch::Receiver<Health>) -> Self {
        Self { registry, sources: Arc::default(), cached: Arc::default() }
    }

    /// The agent is attached and its first snapshot applied.
    pub fn ready(
        &self,
        states: watch::Receiver<Arc<AgentState>>,
        reader: CounterReader,
        events: EventCounts,
    ) {
        // The agent says so once; a second time would change nothing.
        let ledger = std::sync::Mutex::default();
        let _ = self.sources.set(Sources { states, reader, events, ledger });
    }
}

/// Opens the listener.
///
/// # Errors
/// When the address cannot be had; the message names it.
pub async fn bind(address: Option<SocketAddr>) -> anyhow::Result<TcpListener> {
    let address = address.unwrap_or(DEFAULT_ADDRESS);
    if address.ip().is_unspecified() {
        tracing::warn!(%address, "metrics are served on every interface: they name pods");
    }
    TcpListener::bind(address).await.map_err(|error| {
        anyhow::anyhow!("cannot serve metrics on {address}: {error}; choose --metrics-address")
    })
}

/// Serves until shutdown.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    mut shutdown: Shutdown,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(scrape))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(readiness);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { shutdown.requested().await })
        .await
}

async fn scrape(State(readiness): State<Readiness>) -> Response {
    // One collection at a time: whoever waits here gets the result of the one before.
    let mut cached = readiness.cached.lock().await;
    if let Some((taken, text)) = cached.as_ref()
        && taken.elapsed() < FRESH
    {
        return exposition(text.clone());
    }
    let sources = Arc::clone(&readiness.sources);
    let scrape = move || sources.get().map_or_else(collect::before_ready, Sources::scrape);
    match supervise::blocking(scrape).await {
        Ok(Ok(text)) => {
            *cached = Some((Instant::now(), text.clone()));
            exposition(text)
        }
        Ok(Err(error)) => failed(&error.to_string()),
        Err(error) => failed(&error.to_string()),
    }
}

/// Learns who is there as it changes, and settles the counters of those who are gone. Between
/// two scrapes a pod may come and go: this does not wait for one.
///
/// # Errors
/// When the agent's state is published no more.
pub async fn keep(readiness: Readiness, mut shutdown: Shutdown) -> anyhow::Result<()> {
    let Some(sources) = readiness.sources.get() else {
        anyhow::bail!("no state to read names from");
    };
    let mut states = sources.states.clone();
    let mut settle = tokio::time::interval(SETTLE);
    let mut known = None;
    loop {
        let state = Arc::clone(&states.borrow_and_update());
        // The state changes with every heartbeat; who is there does not.
        if known.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &state.tables)) {
            sources.ledger().learn(&state, boot_clock());
            known = Some(Arc::clone(&state.tables));
        }
        tokio::select! {
            () = shutdown.requested() => return Ok(()),
            changed = states.changed() => changed?,
            _ = settle.tick() => {
                let sources = Arc::clone(&readiness.sources);
                let settled = move || sources.get().map_or(Ok(()), Sources::settle);
                if let Err(error) = supervise::blocking(settled).await? {
                    tracing::warn!(error = error.to_string(), "counters not settled");
                }
            }
        }
    }
}

fn exposition(text: String) -> Response {
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()
}

fn failed(error: &str) -> Response {
    tracing::warn!(error, "scrape failed");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}

/// The loop beats. Before the first snapshot there is no loop, and waiting is no fault.
async fn livez(State(readiness): State<Readiness>) -> Response {
    let beat = readiness.sources.get().map(|sources| sources.states.borrow().beat);
    match beat {
        Some(beat) if boot_clock().saturating_sub(beat) > ALIVE_NS => {
            (StatusCode::SERVICE_UNAVAILABLE, "the agent's loop does not beat\n").into_response()
        }
        _ => "ok\n".into_response(),
    }
}

/// Attached, and the first snapshot applied. It stays so when the registry is lost: what is in
/// force stays in force, and an agent that was restarted for it would know less.
async fn readyz(State(readiness): State<Readiness>) -> Response {
    let wait = |why: String| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    let Some(sources) = readiness.sources.get() else {
        let what = readiness.registry.borrow().waiting.clone();
        let what = what.map_or_else(String::new, |what| format!(": {what}"));
        return wait(format!("waiting for the first snapshot of the registry{what}\n"));
    };
    let state = Arc::clone(&sources.states.borrow());
    match state.hooks.iter().find(|hook| hook.needed && !hook.attached) {
        Some(hook) => wait(format!("{} on {}: {}\n", hook.hook, hook.target, hook.detail)),
        None => "ok\n".into_response(),
    }
}
