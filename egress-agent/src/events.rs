//! Decisions worth telling: read from the kernel, named, aggregated, written.
//!
//! One record per pod, destination, verdict and reason in a window: the first at once, the rest
//! as a count when the window ends. Every place that can lose one counts it, and every record has
//! a sequence number, so that a gap is proof of loss. Nothing here reads a map.

mod aggregate;
mod attribute;
mod compact;
mod dns;
mod ocsf;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use egress_common::event::{BadSample, Event};
use tokio::sync::{mpsc, watch};

use crate::agent::AgentState;
use crate::config::EventFormat;
use crate::names::Finding;
use crate::supervise::Shutdown;
use aggregate::{Aggregates, Report};
use attribute::attribute;

/// Between two looks at the ring. A reader woken for every event would cost the sender more than
/// the event does.
const LOOK: Duration = Duration::from_millis(100);

/// Events that user space lost, by stage.
#[derive(Clone, Debug, Default)]
pub struct LostEvents {
    stages: Arc<[AtomicU64; 3]>,
}

/// Where user space can lose an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A record that is no event of this version.
    Decode,
    /// More different decisions in a window than are kept apart.
    Aggregate,
    /// The output could not be written.
    Write,
}

impl LostEvents {
    /// The stages.
    pub const NAMES: [&'static str; 3] = ["decode", "aggregate", "write"];

    fn count(&self, stage: Stage) {
        if let Some(counter) = self.stages.get(stage as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Each stage with its count.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self::NAMES.into_iter().zip(self.stages.iter().map(count).collect::<Vec<_>>())
    }
}

/// Where records go.
#[derive(Debug)]
pub struct Outlet {
    format: EventFormat,
    target: Target,
    sequence: u64,
    lost: LostEvents,
}

#[derive(Debug)]
enum Target {
    Stdout,
    File { path: PathBuf, file: File },
}

impl Outlet {
    /// Opens the output: standard output, or a file that is appended to.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(format: EventFormat, path: Option<&Path>) -> io::Result<Self> {
        let target = match path {
            Some(path) if path != Path::new("stdout") => {
                Target::File { path: path.to_owned(), file: append(path)? }
            }
            _ => Target::Stdout,
        };
        Ok(Self { format, target, sequence: 0, lost: LostEvents::default() })
    }

    /// The counters of what is lost.
    pub fn lost(&self) -> LostEvents {
        self.lost.clone()
    }

    /// Writes one record; a failure is counted, and the next one tries again.
    fn write(&mut self, report: &Report, state: &AgentState) {
        self.sequence += 1;
        let named = attribute(report, state, self.sequence);
        self.put(match self.format {
            EventFormat::Compact => compact::line(&named),
            EventFormat::Ocsf => ocsf::object(&named).to_string(),
        });
    }

    /// Writes what is wrong with a DNS answer, in the same sequence.
    fn tell(&mut self, finding: &Finding, state: &AgentState) {
        self.sequence += 1;
        let node = state.node.as_deref().unwrap_or_default();
        self.put(match self.format {
            EventFormat::Compact => dns::line(finding),
            EventFormat::Ocsf => dns::object(finding, node, self.sequence).to_string(),
        });
    }

    fn put(&mut self, line: String) {
        let written = match &mut self.target {
            Target::Stdout => writeln!(io::stdout(), "{line}"),
            Target::File { path, file } => {
                reopened(path, file).and_then(|()| writeln!(file, "{line}"))
            }
        };
        if let Err(error) = written {
            self.lost.count(Stage::Write);
            tracing::debug!(error = error.to_string(), "event not written");
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// A file that was moved away by rotation is opened anew under its name.
fn reopened(path: &Path, file: &mut File) -> io::Result<()> {
    let same = match (std::fs::metadata(path), file.metadata()) {
        (Ok(named), Ok(held)) => (named.dev(), named.ino()) == (held.dev(), held.ino()),
        _ => false,
    };
    if !same {
        *file = append(path)?;
    }
    Ok(())
}

/// What events are made of, beside the kernel's ring.
pub struct Sources {
    /// The names of everything.
    pub states: watch::Receiver<Arc<AgentState>>,
    /// What is wrong with DNS answers.
    pub findings: mpsc::Receiver<Finding>,
}

/// Reads, aggregates and writes until shutdown; then writes what it has.
pub async fn run(
    mut ring: impl Iterator<Item = Result<Event, BadSample>> + Send,
    mut outlet: Outlet,
    sources: Sources,
    mut shutdown: Shutdown,
) {
    let Sources { states, mut findings } = sources;
    let mut aggregates = Aggregates::default();
    loop {
        let last = tokio::select! {
            () = shutdown.requested() => true,
            () = tokio::time::sleep(LOOK) => false,
        };
        for sample in ring.by_ref() {
            match sample {
                Ok(event) if aggregates.add(&event) => {}
                Ok(_) => outlet.lost.count(Stage::Aggregate),
                Err(error) => {
                    outlet.lost.count(Stage::Decode);
                    tracing::debug!(len = error.len, "ring sample is no event");
                }
            }
        }
        let reports =
            if last { aggregates.flush() } else { aggregates.due(crate::clock::boot_clock()) };
        if !reports.is_empty() {
            let state = Arc::clone(&states.borrow());
            reports.iter().for_each(|report| outlet.write(report, &state));
        }
        while let Ok(finding) = findings.try_recv() {
            outlet.tell(&finding, &Arc::clone(&states.borrow()));
        }
        if last {
            return;
        }
    }
}
