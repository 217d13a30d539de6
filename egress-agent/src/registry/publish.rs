//! What a source tells: snapshots, and how well it knows what they say.
//!
//! Invariant: a snapshot is published only when it says something new; what the registry is short
//! of changes its [`Health`], not what was last known.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use crate::policy::{Problem, Snapshot};

/// Changes whose age is remembered until the reader has seen them.
const REMEMBERED: usize = 256;

/// How well the registry is known, beside what it says.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// When everything that was asked for was last known to be as the source has it, with the
    /// same in seconds since the epoch; `None` before the first time.
    pub in_step: Option<(Instant, f64)>,
    /// Whether it is known to be so now.
    pub connected: bool,
    /// What the first snapshot waits for, in words.
    pub waiting: Option<String>,
    /// Revisions with the time at which the first of their changes was noticed.
    changes: VecDeque<(u64, Instant)>,
}

impl Health {
    /// When the changes of the revisions after `from`, up to and with `to`, were noticed.
    pub fn noticed(&self, from: u64, to: u64) -> impl Iterator<Item = Instant> {
        let within = self.changes.iter().filter(move |(at, _)| *at > from && *at <= to);
        within.map(|(_, noticed)| *noticed)
    }
}

/// The readers' end of a registry.
#[derive(Clone, Debug)]
pub struct Published {
    /// The last snapshot; of revision 0 before the first.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// How well it is known.
    pub health: watch::Receiver<Health>,
}

/// The source's end.
#[derive(Debug)]
pub struct Publisher {
    snapshots: watch::Sender<Arc<Snapshot>>,
    health: watch::Sender<Health>,
}

/// Both ends of a registry.
pub fn channel() -> (Publisher, Published) {
    let (snapshots, snapshot) = watch::channel(Arc::new(Snapshot::default()));
    let (health, known) = watch::channel(Health::default());
    (Publisher { snapshots, health }, Published { snapshots: snapshot, health: known })
}

impl Publisher {
    /// Publishes the snapshot if it says anything new; `noticed` is when the first of its changes
    /// came.
    pub(super) fn update(&self, mut snapshot: Snapshot, noticed: Instant) {
        let before = Arc::clone(&self.snapshots.borrow());
        snapshot.revision = before.revision;
        if before.revision != 0 && *before == snapshot {
            return;
        }
        report_changes(&before.problems, &snapshot.problems);
        snapshot.revision += 1;
        let told = before.revision == 0 || before.complete != snapshot.complete;
        let (complete, pods) = (snapshot.complete, snapshot.pods.len());
        let (policies, problems) = (snapshot.policies.len(), snapshot.problems.len());
        // Pods come and go all day.
        if told {
            tracing::info!(complete, pods, policies, problems, "snapshot published");
        } else {
            let revision = snapshot.revision;
            tracing::debug!(revision, pods, policies, problems, "snapshot published");
        }
        let revision = snapshot.revision;
        self.health.send_modify(|health| {
            health.changes.push_back((revision, noticed));
            if health.changes.len() > REMEMBERED {
                health.changes.pop_front();
            }
            health.waiting = None;
            // The lists it was made of were complete, even if nothing follows them yet.
            health.in_step.get_or_insert_with(now);
        });
        self.snapshots.send_replace(Arc::new(snapshot));
    }

    /// Whether everything that was asked for is known to be as the source has it, at this moment.
    pub(super) fn set_in_step(&self, known: bool) {
        if !known {
            self.health.send_if_modified(|health| std::mem::take(&mut health.connected));
            return;
        }
        self.health.send_modify(|health| {
            health.in_step = Some(now());
            health.connected = true;
        });
    }

    /// Says what the first snapshot waits for, once for each change of it.
    pub(super) fn waits_for(&self, what: &[Problem]) {
        if what.is_empty() {
            return;
        }
        let text: Vec<String> =
            what.iter().map(|problem| format!("{}: {}", problem.origin, problem.message)).collect();
        let text = text.join("; ");
        self.health.send_if_modified(|health| {
            let news = health.waiting.as_deref() != Some(&*text);
            if news {
                tracing::warn!(detail = text, "waiting for the registry");
                health.waiting = Some(text);
            }
            news
        });
    }

    /// Whether anything was published yet.
    pub(super) fn has_published(&self) -> bool {
        self.snapshots.borrow().revision != 0
    }
}

/// This moment by both clocks.
fn now() -> (Instant, f64) {
    (Instant::now(), jiff::Timestamp::now().as_duration().as_secs_f64())
}

/// Logs every problem once when it appears and once when it clears.
pub fn report_changes(before: &[Problem], now: &[Problem]) {
    for problem in now.iter().filter(|problem| !before.contains(problem)) {
        let Problem { code, origin, message } = problem;
        tracing::warn!(
            code = code.name(),
            kind = origin.kind,
            name = origin.name,
            file = origin.file,
            detail = message,
            "problem appeared"
        );
    }
    for problem in before.iter().filter(|problem| !now.contains(problem)) {
        let Problem { code, origin, message } = problem;
        tracing::info!(
            code = code.name(),
            kind = origin.kind,
            name = origin.name,
            file = origin.file,
            detail = message,
            "problem cleared"
        );
    }
}
