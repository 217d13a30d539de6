//! Metrics and probes over HTTP.
//!
//! Counters live in the kernel's pinned maps and are read at scrape time: there is no second
//! bookkeeping that could drift, and a restart of the agent is no counter reset; only what dead
//! pods and older table layouts leave behind is kept beside them (see `ledger`). Labels are closed words or names of the cluster,
//! never an address, a port or a host.

mod admission;
mod catalogue;
mod collect;
mod family;
pub mod health;
mod ledger;
pub mod serve;
mod sources;
mod standing;
#[cfg(test)]
mod tests;
mod traffic;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Mutex, watch};

use crate::agent::AgentState;
use crate::events::EventCounts;
use crate::supervise::{self, Shutdown};
pub use catalogue::{Kind, Label, Metric, Values, reference};
pub use ledger::forget;
use serve::Taken;
pub use sources::Counting;
use sources::Sources;

/// Between two looks for counters of pods that are gone.
const SETTLE: Duration = Duration::from_secs(60);
/// What the listeners know; empty until the first snapshot is applied.
#[derive(Clone, Default)]
pub struct Readiness {
    sources: Arc<OnceLock<Sources>>,
    cached: Arc<Mutex<Option<Taken>>>,
}

impl Readiness {
    /// The agent is attached and its first snapshot applied.
    pub fn ready(
        &self,
        states: watch::Receiver<Arc<AgentState>>,
        counting: Counting,
        events: EventCounts,
    ) {
        // The agent says so once; a second time would change nothing.
        let _ = self.sources.set(Sources { states, counting, events });
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
            let sources = Arc::clone(&readiness.sources);
            supervise::blocking(move || sources.get().map(Sources::learn)).await?;
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
