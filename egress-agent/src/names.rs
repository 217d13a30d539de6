//! Names: what DNS told the pods of this node, and what is wrong with it.
//!
//! The kernel copies the answers of resolvers ([`egress_common::dns`]); here they are read. From
//! them comes the name by which a pod got an address ([`Names::host`]), and two findings: a name of
//! the outside that leads inside (**rebinding**), and a registered host that answers from where it
//! never was (**drift**). What the answers gave to pods of a limited gateway is passed on
//! ([`Admission`]), and never what leads inside.
//!
//! Invariant: everything here is bounded, whatever the network sends, and nothing of one pod is told
//! of another.

mod book;
mod counts;
mod finding;
mod history;
mod message;
mod name;
mod reading;
mod stream;
mod view;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use egress_common::key::{PodId, PolicyId};
use ipnet::IpNet;
use tokio::sync::{mpsc, watch};

use crate::agent::AgentState;
use crate::clock::boot_clock;
use crate::datapath::AnswerRing;
use crate::policy::ClusterConfig;
use crate::supervise::Shutdown;
use book::Book;
use history::History;
use reading::Reading;
use view::View;

pub use counts::{Counts, Lost};
pub use finding::{Class, Finding, Kind, Pod};
pub use history::Drift;
pub use message::{Address, Answer, Outcome, read};
pub use name::Name;

/// Between two looks at what changed and two keepings of the history.
const LOOK: Duration = Duration::from_secs(60);
/// Between two looks at what the kernel lost.
const LOST: Duration = Duration::from_secs(1);
/// Answers read before anybody else gets a turn.
const TURN: usize = 256;

/// What the operator says of names.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Whether answers are read at all.
    pub enabled: bool,
    /// How long a registered host is learned after its first answer, before it can drift.
    pub learning: Duration,
    /// How long an address counts beyond what its answer says.
    pub grace: Duration,
    /// Domains whose names may lead inside, lower case.
    pub internal_domains: Vec<String>,
    /// Ranges where no name of the outside may lead, beside those of cluster and nodes.
    pub internal_ranges: Vec<IpNet>,
}

/// An address that an answer gave to a pod of a limited gateway, for a registered host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The tables it is for.
    pub policy: PolicyId,
    /// The address.
    pub ip: IpAddr,
    /// The host or pattern as registered.
    pub pattern: String,
    /// TCP ports it is reached on.
    pub ports: BTreeSet<u16>,
    /// Boot clock nanoseconds when the answer passed.
    pub answered: u64,
    /// Until when connections may be opened to it.
    pub expires: u64,
}

/// What is known; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Names {
    book: Arc<Mutex<Book>>,
    counts: Arc<Counts>,
}

impl Names {
    /// The name by which a pod got an address last, while the answer and its grace last. Only for
    /// what is told about that very pod.
    pub fn host(&self, pod: PodId, ip: IpAddr) -> Option<String> {
        self.book().host(pod, ip, boot_clock()).map(ToString::to_string)
    }

    /// What was read, found and lost.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        // A book somebody panicked over is at worst short of a name.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where what is found goes.
pub struct Outlets {
    /// What is wrong, for events.
    pub findings: mpsc::Sender<Finding>,
    /// Addresses for limited gateways.
    pub admissions: mpsc::Sender<Admission>,
}

/// What does not change while answers are read.
pub struct Inputs {
    /// What the operator says.
    pub settings: Settings,
    /// Facts of the cluster.
    pub cluster: ClusterConfig,
    /// Where the history of registered hosts is kept.
    pub history: PathBuf,
}

/// Reads answers until shutdown, then keeps the history.
///
/// # Errors
/// When the ring cannot be waited for, or the agent's state is published no more.
pub async fn run(
    ring: AnswerRing,
    inputs: Inputs,
    names: Names,
    outlets: Outlets,
    mut states: watch::Receiver<Arc<AgentState>>,
    mut shutdown: Shutdown,
) -> anyhow::Result<()> {
    let Inputs { settings, cluster, history: path } = inputs;
    let history = History::load(&path).unwrap_or_else(|error| {
        let path = path.display().to_string();
        tracing::warn!(path, error = error.to_string(), "history of hosts not read; learned anew");
        History::default()
    });
    let mut ring = ring.wait()?;
    let mut view = View::of(&states.borrow_and_update(), &cluster, &settings);
    let mut reading = Reading::new(settings, history);
    names.counts.know(view.workloads());
    let mut look = tokio::time::interval(LOOK);
    let mut lost = tokio::time::interval(LOST);
    loop {
        tokio::select! {
            () = shutdown.requested() => break,
            changed = states.changed() => {
                changed?;
                let state = Arc::clone(&states.borrow_and_update());
                if view.is_of(&state) {
                    continue;
                }
                view = View::of(&state, &cluster, reading.settings());
                names.counts.know(view.workloads());
                names.book().retain(|pod| view.knows(pod));
                reading.retain(&view);
            }
            ready = ring.readable_mut() => {
                let mut ready = ready?;
                let mut turn = 0;
                while turn < TURN && ready.get_inner_mut().next(|sample| {
                    let found = reading.take(sample, &view, &mut names.book(), &names.counts);
                    outlets.pass(found, &names.counts);
                }) {
                    turn += 1;
                }
                if turn < TURN {
                    ready.clear_ready();
                }
            }
            _ = lost.tick() => names.counts.lost_in_kernel(&ring.get_ref().losses()?),
            _ = look.tick() => keep(&mut reading, &path),
        }
    }
    keep(&mut reading, &path);
    Ok(())
}

fn keep(reading: &mut Reading, path: &std::path::Path) {
    if let Err(error) = reading.keep(path) {
        let path = path.display().to_string();
        tracing::warn!(path, error = error.to_string(), "history of hosts not kept");
    }
}

impl Outlets {
    fn pass(&self, found: reading::Found, counts: &Counts) {
        for admission in found.admissions {
            if self.admissions.try_send(admission).is_err() {
                counts.lost(Lost::Admission);
            }
        }
        for finding in found.findings {
            if self.findings.try_send(finding).is_err() {
                counts.lost(Lost::Event);
            }
        }
    }
}
