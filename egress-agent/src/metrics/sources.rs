//! What a scrape reads: the kernel's counters, the ledger, and the agent's state.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::collect::{ScrapeError, collect};
use super::ledger::{Found, Ledger, Store};
use crate::agent::AgentState;
use crate::clock::boot_clock;
use crate::config::Granularity;
use crate::datapath::{CounterReader, Options};
use crate::events::EventCounts;

/// The counters and the ledger beside them.
pub struct Counting {
    reader: CounterReader,
    /// Counters of other layouts, until nothing counts in them any more.
    earlier: Vec<CounterReader>,
    store: Store,
    ledger: Mutex<Ledger>,
    /// Ledgers that could not be read.
    unreadable: u64,
}

impl Counting {
    /// Opens the counters of the loaded maps and the ledger of the run directory, and writes down
    /// what agents of another layout have counted so far. Comes before anything is attached: after
    /// that, their maps may go.
    ///
    /// # Errors
    /// When the counters or the ledger's file cannot be used.
    pub fn open(
        options: &Options,
        run_dir: &Path,
        by: Granularity,
        most_series: usize,
    ) -> anyhow::Result<Self> {
        let reader = CounterReader::open(options)?;
        let store = Store::new(run_dir)?;
        let (mut ledger, unreadable) = match store.read(by, most_series)? {
            Found::Nothing => (Ledger::new(by, most_series), 0),
            Found::Ledger(ledger) => (*ledger, 0),
            Found::Unreadable(why) => {
                tracing::warn!(why, "totals of workloads start again: their file is unreadable");
                (Ledger::new(by, most_series), 1)
            }
        };
        ledger.reconcile(&reader.counters()?);
        let counting = Self {
            earlier: CounterReader::earlier(options),
            reader,
            store,
            ledger: Mutex::new(ledger),
            unreadable,
        };
        counting.carry(false)?;
        Ok(counting)
    }

    /// Takes over the last of the counters of other layouts, now that this agent's programs run.
    ///
    /// # Errors
    /// When they cannot be read, or not be written down.
    pub fn attached(mut self) -> anyhow::Result<Self> {
        self.carry(true)?;
        self.earlier.clear();
        Ok(self)
    }

    fn carry(&self, last: bool) -> anyhow::Result<()> {
        let mut ledger = self.ledger();
        for earlier in &self.earlier {
            ledger.carry(earlier.table(), earlier.read()?, last);
        }
        Ok(self.store.write(&mut ledger)?)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A ledger somebody panicked over is at worst short of a name.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything a scrape reads.
pub(super) struct Sources {
    pub(super) states: watch::Receiver<Arc<AgentState>>,
    pub(super) counting: Counting,
    pub(super) events: EventCounts,
}

impl Sources {
    /// The exposition.
    pub(super) fn scrape(&self) -> Result<String, ScrapeError> {
        let Counting { reader, unreadable, .. } = &self.counting;
        let state = Arc::clone(&self.states.borrow());
        // Held while the kernel is read: nothing is settled in between and counted twice.
        let mut ledger = self.counting.ledger();
        // A pod this state is the first to name counts under its name at once.
        ledger.learn(&state, boot_clock());
        let readings = reader.read()?;
        let usage = (readings.pods.len(), reader.room());
        let readings = ledger.continued(readings);
        let text = collect(&state, &readings, usage, &mut ledger, &self.events, *unreadable)?;
        // Before anybody is told: the next agent must go on from what was told. Where it cannot be
        // written down that is logged with every minute's settling, and a scrape still says all.
        let _ = self.counting.store.write(&mut ledger);
        Ok(text)
    }

    /// Takes in who is there, and writes it down.
    pub(super) fn learn(&self) {
        let state = Arc::clone(&self.states.borrow());
        let mut ledger = self.counting.ledger();
        ledger.learn(&state, boot_clock());
        let _ = self.counting.store.write(&mut ledger);
    }

    /// Moves the counters of pods that are long gone out of the kernel.
    pub(super) fn settle(&self) -> anyhow::Result<()> {
        let Counting { reader, store, .. } = &self.counting;
        let mut ledger = self.counting.ledger();
        let mut next = ledger.clone();
        let settled = next.settle(&reader.counters()?, boot_clock());
        // The kernel forgets what is written down, and nothing else.
        store.write(&mut next)?;
        *ledger = next;
        reader.forget(&settled)?;
        ledger.forgotten();
        Ok(store.write(&mut ledger)?)
    }
}
