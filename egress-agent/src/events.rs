//! Decisions worth telling: read from the kernel, named, aggregated, written.
//!
//! One record per pod, destination, verdict and reason in a window: the first at once, the rest
//! as a count when the window ends. Every place that can lose one counts it, and every record has
//! a sequence number that goes on over restarts, so that a gap is proof of loss. The kernel never
//! wakes the reader: it looks by its own clock, and a slow output never keeps it from looking.
//! Nothing here reads a map.

mod account;
mod aggregate;
mod attribute;
mod compact;
mod containers;
mod mechanism;
mod ocsf;
mod outlet;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use egress_common::event::{BadSample, Event};
use egress_common::key::PodId;
use egress_common::state::{Tally, tally};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::agent::AgentState;
use crate::config::EventFormat;
use crate::identity::cgroup::Kubepods;
use crate::supervise::{self, Shutdown};
use aggregate::{Aggregates, Report};
use attribute::{Named, attribute};
use containers::Containers;
use outlet::WriteError;

pub use account::EventCounts;
pub use mechanism::Mechanism;
pub use outlet::{Outlet, Rotation};

/// Between two looks at the ring. A reader woken for every event would cost the sender more than
/// the event does.
const LOOK: Duration = Duration::from_millis(100);
/// Records that wait for a slow output; further ones are lost to it.
const WAITING: usize = 2048;
/// How long the end of the agent waits for the output.
const PATIENCE: Duration = Duration::from_secs(2);

/// The name by which a pod looked an address up, where one is known.
pub type NameOf = Arc<dyn Fn(PodId, IpAddr) -> Option<String> + Send + Sync>;

/// A record on its way out.
struct Record {
    line: String,
    own: u64,
}

/// An output that is being written to, with what it could not write.
type Writing = Pin<Box<dyn Future<Output = anyhow::Result<(Outlet, Vec<Written>)>> + Send>>;

struct Written {
    own: u64,
    result: Result<(), WriteError>,
}

/// Everything between the ring and the output.
pub struct Desk {
    format: EventFormat,
    counts: EventCounts,
    containers: Containers,
    name_of: NameOf,
    aggregates: Aggregates,
    waiting: Vec<Record>,
    /// `None` while it is written to.
    outlet: Option<Outlet>,
    writing: Option<Writing>,
}

impl Desk {
    /// Writes to this output, in this format.
    pub fn new(format: EventFormat, outlet: Outlet, kubepods: Kubepods) -> Self {
        Self::with(format, outlet, Containers::new(kubepods))
    }

    fn with(format: EventFormat, outlet: Outlet, containers: Containers) -> Self {
        Self {
            format,
            counts: EventCounts::default(),
            containers,
            name_of: Arc::new(|_, _| None),
            aggregates: Aggregates::default(),
            waiting: Vec::new(),
            outlet: Some(outlet),
            writing: None,
        }
    }

    /// Asks for names here.
    #[must_use]
    pub fn naming(self, name_of: NameOf) -> Self {
        Self { name_of, ..self }
    }

    /// What is told of it.
    pub fn counts(&self) -> EventCounts {
        self.counts.clone()
    }

    /// Takes in everything that is in the ring.
    fn read(&mut self, ring: &mut impl Iterator<Item = Result<Event, BadSample>>) {
        let mut changes = Tally::default();
        for sample in ring {
            match sample {
                Ok(event) => {
                    let own = u64::from(event.counted != 0);
                    changes.read += own;
                    if !self.aggregates.add(&event) {
                        changes.lost[tally::AGGREGATE_FULL] += own;
                    }
                }
                Err(error) => {
                    changes.read += 1;
                    changes.lost[tally::DECODE] += 1;
                    tracing::debug!(len = error.len, "ring sample is no event");
                }
            }
        }
        self.counts.add(|tally| {
            tally.read += changes.read;
            tally.lost.iter_mut().zip(changes.lost).for_each(|(sum, more)| *sum += more);
        });
    }

    /// Names reports and puts them in line. Their numbers are given out before they are written, so
    /// that no number is ever given twice.
    fn queue(&mut self, reports: &[Report], state: &AgentState) {
        for report in reports {
            let mut given = Tally::default();
            self.counts.add(|tally| {
                tally.sequence += 1;
                given = *tally;
            });
            let named = attribute(report, state, &given, &mut self.containers, &self.name_of);
            if let Some(mechanism) = named.mechanism {
                let workload = (named.namespace.as_str(), named.workload.1.as_str());
                self.counts.attempts(workload, mechanism, report.count);
            }
            if self.waiting.len() >= WAITING {
                self.counts.add(|tally| tally.lost[tally::OUTPUT] += report.own);
                continue;
            }
            self.waiting.push(Record { line: self.line(&named), own: report.own });
        }
    }

    fn line(&self, named: &Named) -> String {
        match self.format {
            EventFormat::Compact => compact::line(named),
            EventFormat::Ocsf => ocsf::object(named).to_string(),
        }
    }

    /// Starts writing what waits, unless the output is still busy.
    fn write(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        if let Some(mut outlet) = self.outlet.take() {
            let records = std::mem::take(&mut self.waiting);
            self.writing = Some(Box::pin(supervise::blocking(move || {
                if let Err(error) = outlet.reopen(false) {
                    tracing::debug!(error = error.to_string(), "event output not opened anew");
                }
                let write = |record: Record| Written {
                    own: record.own,
                    result: outlet.write(&record.line),
                };
                let written = records.into_iter().map(write).collect();
                (outlet, written)
            })));
        }
    }

    /// Waits until the output is free; for ever where it is.
    async fn written(&mut self) -> anyhow::Result<()> {
        let Some(writing) = &mut self.writing else {
            return std::future::pending().await;
        };
        let (outlet, written) = writing.await?;
        self.outlet = Some(outlet);
        self.writing = None;
        for Written { own, result } in written {
            match result {
                Ok(()) => self.counts.add(|tally| {
                    tally.written += 1;
                    tally.told += own;
                }),
                Err(error) => {
                    self.counts.add(|tally| tally.lost[error.stage()] += own);
                    tracing::debug!(error = error.to_string(), "event not written");
                }
            }
        }
        Ok(())
    }
}

/// Reads, aggregates and writes until shutdown; then writes what it has. `keep` keeps the tally for
/// the next agent, which goes on from `left`.
///
/// # Errors
/// When a signal cannot be asked for, or writing panicked.
pub async fn run(
    mut ring: impl Iterator<Item = Result<Event, BadSample>> + Send,
    mut desk: Desk,
    left: Tally,
    mut keep: impl FnMut(Tally) + Send,
    states: watch::Receiver<Arc<AgentState>>,
    mut shutdown: Shutdown,
) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let now = jiff::Timestamp::now().as_nanosecond();
    desk.counts.resume(left, u64::try_from(now).unwrap_or(1));
    let mut kept = Tally::default();
    loop {
        let last = tokio::select! {
            () = shutdown.requested() => true,
            written = desk.written() => {
                written?;
                false
            }
            _ = hangup.recv() => {
                if let Some(Err(error)) = desk.outlet.as_mut().map(|outlet| outlet.reopen(true)) {
                    tracing::warn!(error = error.to_string(), "event output not opened anew");
                }
                continue;
            }
            _ = looks.tick() => false,
        };
        desk.read(&mut ring);
        let reports = if last {
            desk.aggregates.flush()
        } else {
            desk.aggregates.due(crate::clock::boot_clock())
        };
        if !reports.is_empty() {
            let state = Arc::clone(&states.borrow());
            desk.queue(&reports, &state);
        }
        let tally = desk.counts.tally();
        if tally != kept {
            keep(tally);
            kept = tally;
        }
        desk.write();
        if last {
            break;
        }
    }
    // What is being written, and what came meanwhile.
    while desk.writing.is_some() {
        match tokio::time::timeout(PATIENCE, desk.written()).await {
            Ok(written) => written?,
            Err(_) => {
                tracing::warn!(records = desk.waiting.len(), "the event output is stuck");
                break;
            }
        }
        desk.write();
    }
    keep(desk.counts.tally());
    Ok(())
}
