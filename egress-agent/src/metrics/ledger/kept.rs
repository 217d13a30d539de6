//! The ledger's file: what the next agent goes on from.
//!
//! It stands in the run directory, which lives as long as the pinned maps do: until the next boot.
//! It is replaced whole by a rename, never written in place. One of another boot is a ledger of
//! counters that are gone, and is left alone; one that cannot be read is put aside, counted as a
//! loss, and said.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use egress_common::key::{GatewayId, PodId};
use egress_common::state::{Counter, CounterKey, loss};
use serde::{Deserialize, Serialize};

use super::{Earlier, Known, Ledger, Readings, Words, Workload};
use crate::config::Granularity;
use crate::metrics::admission::{Admission, Key, Level, Overflow};

/// File name in the run directory.
const FILE: &str = "totals.json";
/// Layout of the file.
const VERSION: u32 = 1;

/// Why totals were not kept.
#[derive(Debug, thiserror::Error)]
#[error(
    "totals of workloads cannot be kept in {path}: {source}; they would start again with the agent. \
     Make the run directory writable, or name another --run-dir", path = path.display()
)]
pub(in crate::metrics) struct KeptError {
    path: PathBuf,
    source: io::Error,
}

/// Where the ledger is kept.
#[derive(Clone, Debug)]
pub(in crate::metrics) struct Store {
    path: PathBuf,
    boot: String,
}

/// Removes the file: the counters that it goes with are gone.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn forget(run_dir: &Path) -> io::Result<()> {
    match fs::remove_file(run_dir.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What was found there.
pub(in crate::metrics) enum Found {
    /// Nothing, or the ledger of another boot.
    Nothing,
    /// An earlier agent's.
    Ledger(Box<Ledger>),
    /// Something unreadable, why, and where it was put.
    Unreadable(String),
}

impl Store {
    /// The file of this run directory, in this boot.
    ///
    /// # Errors
    /// When the kernel does not tell which boot this is.
    pub(in crate::metrics) fn new(run_dir: &Path) -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self { path: run_dir.join(FILE), boot: boot.trim().to_owned() })
    }

    /// What an earlier agent has written down.
    ///
    /// # Errors
    /// When the file is there and cannot be opened, or not be put aside.
    pub(in crate::metrics) fn read(
        &self,
        by: Granularity,
        most_series: usize,
    ) -> Result<Found, KeptError> {
        let text = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            read => read.map_err(|source| self.failed(source))?,
        };
        let kept = serde_json::from_slice::<Kept>(&text).map_err(|error| error.to_string());
        let kept = kept.and_then(|kept| match kept.version {
            VERSION => Ok(kept),
            version => Err(format!("its layout is {version}, this agent's is {VERSION}")),
        });
        match kept {
            Ok(kept) if kept.boot != self.boot => Ok(Found::Nothing),
            Ok(kept) => Ok(Found::Ledger(Box::new(kept.ledger(by, most_series)))),
            Err(error) => {
                let aside = self.path.with_extension("unreadable");
                fs::rename(&self.path, &aside).map_err(|source| self.failed(source))?;
                Ok(Found::Unreadable(format!("{error}; it is now {}", aside.display())))
            }
        }
    }

    /// Writes it down, where something has changed since the last time.
    ///
    /// # Errors
    /// When it cannot be written; what was there before stays.
    pub(in crate::metrics) fn write(&self, ledger: &mut Ledger) -> Result<(), KeptError> {
        if !ledger.changed {
            return Ok(());
        }
        let kept = Kept::of(ledger, &self.boot);
        let fresh = self.path.with_extension("new");
        let written = serde_json::to_vec(&kept).map_err(io::Error::from).and_then(|text| {
            // It names pods.
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(&fresh)?.write_all(&text)?;
            fs::rename(&fresh, &self.path)
        });
        written.map_err(|source| self.failed(source))?;
        ledger.changed = false;
        Ok(())
    }

    fn failed(&self, source: io::Error) -> KeptError {
        KeptError { path: self.path.clone(), source }
    }
}

/// The file. Numbers of the kernel's tables stand as they are there.
#[derive(Deserialize, Serialize)]
struct Kept {
    version: u32,
    boot: String,
    pods: Vec<KeptPod>,
    gateways: BTreeMap<u32, String>,
    alive: Vec<(String, String, u64)>,
    sums: Vec<KeptSum>,
    settling: Vec<KeptCounter>,
    earlier: Vec<KeptEarlier>,
    most_series: usize,
    overflowing: Vec<KeptCounter>,
    overflowing_workloads: Vec<KeptSum>,
    overflowed: Vec<(bool, KeptWords, Amount)>,
}

#[derive(Deserialize, Serialize)]
struct KeptPod {
    id: u64,
    namespace: String,
    workload: String,
    gone: Option<u64>,
}

#[derive(Deserialize, Serialize)]
struct KeptSum {
    namespace: String,
    workload: String,
    gateway: u32,
    words: KeptWords,
    amount: Amount,
}

#[derive(Deserialize, Serialize)]
struct KeptCounter {
    pod: u64,
    gateway: u32,
    words: KeptWords,
    amount: Amount,
}

#[derive(Deserialize, Serialize)]
struct KeptEarlier {
    table: u32,
    last: bool,
    pods: Vec<KeptCounter>,
    node: Vec<(KeptWords, Amount)>,
    losses: Vec<(String, u64)>,
}

/// Numbers of verdict, reason and direction.
type KeptWords = (u8, u8, u8);
/// Connections, packets and bytes.
type Amount = (u64, u64, u64);

const fn amount(counter: &Counter) -> Amount {
    (counter.connections, counter.packets, counter.bytes)
}

const fn counter((connections, packets, bytes): Amount) -> Counter {
    Counter { connections, packets, bytes }
}

const fn numbers(words: Words) -> KeptWords {
    (words.verdict.number(), words.reason.number(), words.direction.number())
}

fn words((verdict, reason, direction): KeptWords) -> Option<Words> {
    let key = CounterKey { verdict, reason, direction, ..EMPTY };
    Words::of(&key)
}

const EMPTY: CounterKey = CounterKey {
    pod: PodId::UNKNOWN,
    gateway: GatewayId::NONE,
    verdict: 0,
    reason: 0,
    direction: 0,
    pad: 0,
};

impl KeptCounter {
    fn of(key: &CounterKey, counter: &Counter) -> Self {
        let words = (key.verdict, key.reason, key.direction);
        Self { pod: key.pod.0, gateway: key.gateway.0, words, amount: amount(counter) }
    }

    fn read(&self) -> (CounterKey, Counter) {
        let (verdict, reason, direction) = self.words;
        let (pod, gateway) = (PodId(self.pod), GatewayId(self.gateway));
        (CounterKey { pod, gateway, verdict, reason, direction, ..EMPTY }, counter(self.amount))
    }
}

impl KeptSum {
    fn of((workload, gateway, words): &super::SumKey, counter: &Counter) -> Self {
        let Workload { namespace, name } = &**workload;
        Self {
            namespace: namespace.clone(),
            workload: name.clone(),
            gateway: *gateway,
            words: numbers(*words),
            amount: amount(counter),
        }
    }

    /// `None` for words this version does not know.
    fn read(self, by: Granularity) -> Option<(super::SumKey, Counter)> {
        let workload = Workload { namespace: self.namespace, name: self.workload }.by(by);
        Some(((Arc::new(workload), self.gateway, words(self.words)?), counter(self.amount)))
    }
}

impl Kept {
    fn of(ledger: &Ledger, boot: &str) -> Self {
        let counters = |counters: &BTreeMap<CounterKey, Counter>| {
            counters.iter().map(|(key, counter)| KeptCounter::of(key, counter)).collect()
        };
        let zero = Counter::default();
        let overflow = ledger.admission.overflow();
        let (mut pods_over, mut workloads_over) = (Vec::new(), Vec::new());
        for key in &overflow.over {
            match key {
                Key::Pod(key) => pods_over.push(KeptCounter::of(key, &zero)),
                Key::Workload(key) => workloads_over.push(KeptSum::of(key, &zero)),
            }
        }
        let ended = overflow.ended.iter().map(|((level, words), counter)| {
            (*level == Level::Pod, numbers(*words), amount(counter))
        });
        Self {
            version: VERSION,
            boot: boot.to_owned(),
            pods: ledger.pods.iter().map(KeptPod::of).collect(),
            gateways: ledger.gateways.clone(),
            alive: ledger
                .alive
                .iter()
                .map(|(workload, at)| (workload.namespace.clone(), workload.name.clone(), *at))
                .collect(),
            sums: ledger.sums.iter().map(|(key, sum)| KeptSum::of(key, sum)).collect(),
            settling: counters(&ledger.settling),
            earlier: ledger.earlier.iter().map(KeptEarlier::of).collect(),
            most_series: overflow.most,
            overflowing: pods_over,
            overflowing_workloads: workloads_over,
            overflowed: ended.collect(),
        }
    }

    fn ledger(self, by: Granularity, most_series: usize) -> Ledger {
        let mut ledger = Ledger { by, gateways: self.gateways, ..Ledger::default() };
        for KeptPod { id, namespace, workload, gone } in self.pods {
            let workload = Arc::new(Workload { namespace, name: workload }.by(by));
            ledger.pods.insert(PodId(id), Known { workload, gone });
        }
        for (namespace, name, at) in self.alive {
            let workload = Arc::new(Workload { namespace, name }.by(by));
            let last = ledger.alive.entry(workload).or_default();
            *last = at.max(*last);
        }
        for (key, sum) in self.sums.into_iter().filter_map(|sum| sum.read(by)) {
            super::add(ledger.sums.entry(key).or_default(), &sum);
        }
        ledger.settling = self.settling.iter().map(KeptCounter::read).collect();
        ledger.earlier = self.earlier.iter().map(KeptEarlier::read).collect();
        let pods_over = self.overflowing.iter().map(|kept| Key::Pod(kept.read().0));
        let workloads_over = self.overflowing_workloads.into_iter();
        let workloads_over =
            workloads_over.filter_map(|kept| Some(Key::Workload(kept.read(by)?.0)));
        let ended = self.overflowed.into_iter().filter_map(|(pods, kept, sum)| {
            let level = if pods { Level::Pod } else { Level::Workload };
            Some(((level, words(kept)?), counter(sum)))
        });
        ledger.admission = Admission::resume(
            most_series,
            Overflow {
                most: self.most_series,
                over: pods_over.chain(workloads_over).collect(),
                ended: ended.collect(),
            },
        );
        ledger
    }
}

impl KeptPod {
    fn of((id, known): (&PodId, &Known)) -> Self {
        let Workload { namespace, name } = &*known.workload;
        Self { id: id.0, namespace: namespace.clone(), workload: name.clone(), gone: known.gone }
    }
}

impl KeptEarlier {
    fn of((table, Earlier { readings, last }): (&u32, &Earlier)) -> Self {
        let node = readings.node.iter().filter(|(_, total)| **total != Counter::default());
        Self {
            table: *table,
            last: *last,
            pods: readings.pods.iter().map(|(key, sum)| KeptCounter::of(key, sum)).collect(),
            node: node
                .map(|((verdict, reason), total)| {
                    ((verdict.number(), reason.number(), 0), amount(total))
                })
                .collect(),
            losses: readings
                .losses
                .iter()
                .map(|(name, lost)| ((*name).to_owned(), *lost))
                .collect(),
        }
    }

    fn read(&self) -> (u32, Earlier) {
        let node = self.node.iter().filter_map(|(kept, total)| {
            let words = words(*kept)?;
            Some(((words.verdict, words.reason), counter(*total)))
        });
        let losses = self.losses.iter().filter_map(|(name, lost)| {
            Some((*loss::NAMES.iter().find(|known| *known == name)?, *lost))
        });
        let pods = self.pods.iter().map(KeptCounter::read).collect();
        let readings = Readings { pods, node: node.collect(), losses: losses.collect() };
        (self.table, Earlier { readings, last: self.last })
    }
}
