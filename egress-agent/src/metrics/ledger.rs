//! What a counter needs beyond the kernel: the workload of a pod that is gone, and the sums of
//! counters the kernel no longer holds.
//!
//! A workload's counter must not fall when one of its pods dies, and the kernel's table must not
//! fill with dead pods. So names outlive their pods, and after [`GRACE`] a dead pod's counters
//! move into its workload's sum here and leave the kernel. The ledger is kept in a file (see
//! `kept`): a total that was told once is what the next agent goes on from.
//!
//! Invariant: what is told is the kernel's counters, plus what earlier tables held, less what is
//! on its way out of the kernel, plus the sums. A move is written down before the kernel forgets,
//! so that an agent killed anywhere in between counts nothing twice and loses nothing.

mod kept;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use egress_common::key::PodId;
use egress_common::state::{Counter, CounterKey, Direction};
use egress_common::{Reason, Verdict};

use super::admission::{Admission, Key};
use crate::agent::AgentState;
use crate::config::Granularity;
use crate::datapath::Readings;
use crate::policy::Coverage;
pub use kept::forget;
pub(super) use kept::{Found, Store};

/// Namespace, workload and gateway of what has no name any more.
pub(super) const UNKNOWN: &str = "unknown";
/// How long a dead pod's counters stay in the kernel, nanoseconds: late packets, and a registry
/// that lost sight of a pod for a moment, change nothing.
const GRACE: u64 = 300_000_000_000;
/// How long a workload without pods keeps its sums, nanoseconds. Jobs come and go with names of
/// their own: without an end their series would only ever grow.
const QUIET: u64 = 3_600_000_000_000;

/// Namespace and name of a workload; without a name it is all of the namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Workload {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Workload {
    /// The workload of a pod.
    pub(super) fn of(pod: &Coverage, by: Granularity) -> Self {
        let workload = Self { namespace: pod.pod.namespace.clone(), name: pod.workload.1.clone() };
        workload.by(by)
    }

    /// As it is told apart.
    fn by(self, by: Granularity) -> Self {
        match by {
            Granularity::Pod | Granularity::Workload => self,
            Granularity::Namespace if self.namespace == UNKNOWN => self,
            Granularity::Namespace => Self { name: String::new(), ..self },
        }
    }

    fn unknown() -> Self {
        Self { namespace: UNKNOWN.to_owned(), name: UNKNOWN.to_owned() }
    }
}

/// The closed words of a counter's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Words {
    pub(super) verdict: Verdict,
    pub(super) reason: Reason,
    pub(super) direction: Direction,
}

impl Words {
    /// `None` for numbers a newer version has written.
    pub(super) fn of(key: &CounterKey) -> Option<Self> {
        Some(Self {
            verdict: Verdict::from_number(key.verdict)?,
            reason: Reason::from_number(key.reason)?,
            direction: Direction::from_number(key.direction)?,
        })
    }
}

/// A workload's counters toward one gateway (its number) with these words.
pub(super) type SumKey = (Arc<Workload>, u32, Words);
/// Counters of workloads by gateway.
pub(super) type Sums = BTreeMap<SumKey, Counter>;
/// The kernel's counters of pods.
type Counters = BTreeMap<CounterKey, Counter>;

#[derive(Clone, Debug, PartialEq)]
struct Known {
    workload: Arc<Workload>,
    /// Boot clock since when nobody knows the pod.
    gone: Option<u64>,
}

/// What a table of an earlier layout held.
#[derive(Clone, Debug, PartialEq)]
struct Earlier {
    readings: Readings,
    /// Nothing counts in it any more.
    last: bool,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    by: Granularity,
    pods: BTreeMap<PodId, Known>,
    gateways: BTreeMap<u32, String>,
    sums: Sums,
    /// Boot clock at which a workload last had a pod.
    alive: BTreeMap<Arc<Workload>, u64>,
    /// Counters that are in the sums and may still be in the kernel.
    settling: Counters,
    /// What tables of earlier layouts held, by the kernel's number of them.
    earlier: BTreeMap<u32, Earlier>,
    /// Which series there are room for.
    pub(super) admission: Admission,
    /// Something differs from what was last written down.
    changed: bool,
}

impl Ledger {
    /// An empty one.
    pub(super) fn new(by: Granularity, most_series: usize) -> Self {
        Self { by, admission: Admission::new(most_series), ..Self::default() }
    }

    /// How pods are told apart.
    pub(super) const fn by(&self) -> Granularity {
        self.by
    }

    /// Takes in the names of a state; `now` is the boot clock.
    pub(super) fn learn(&mut self, state: &AgentState, now: u64) {
        let mut live = BTreeSet::new();
        for pod in &state.desired.coverage {
            let id = PodId::of(&pod.uid);
            live.insert(id);
            let workload = Workload::of(pod, self.by);
            let known = self.pods.get(&id);
            if known.is_none_or(|known| *known.workload != workload || known.gone.is_some()) {
                self.pods.insert(id, Known { workload: Arc::new(workload), gone: None });
                self.changed = true;
            }
        }
        // What the kernel still judges still counts, whether or not the registry names it.
        live.extend(state.tables.pods.values().map(|pod| pod.id));
        live.extend(state.tables.interfaces.values().map(|pod| pod.id));
        for (id, known) in &mut self.pods {
            let gone = if live.contains(id) { None } else { known.gone.or(Some(now)) };
            self.changed |= known.gone != gone;
            known.gone = gone;
        }
        for gateway in &state.desired.gateways {
            self.gateways.entry(gateway.id).or_insert_with(|| {
                self.changed = true;
                gateway.name.to_string()
            });
        }
    }

    /// The counters of pods as they are told.
    pub(super) fn told(&self, kernel: &Counters) -> Counters {
        let mut told = kernel.clone();
        for (key, settled) in &self.settling {
            if let Some(counter) = told.get_mut(key) {
                counter.connections = counter.connections.saturating_sub(settled.connections);
                counter.packets = counter.packets.saturating_sub(settled.packets);
                counter.bytes = counter.bytes.saturating_sub(settled.bytes);
                if *counter == Counter::default() {
                    told.remove(key);
                }
            }
        }
        for (key, counter) in self.earlier.values().flat_map(|earlier| &earlier.readings.pods) {
            add(told.entry(*key).or_default(), counter);
        }
        told
    }

    /// Totals of the node and losses that tables of earlier layouts held are added to the kernel's.
    pub(super) fn continued(&self, mut readings: Readings) -> Readings {
        readings.pods = self.told(&readings.pods);
        for Earlier { readings: earlier, .. } in self.earlier.values() {
            for (words, counter) in &earlier.node {
                add(readings.node.entry(*words).or_default(), counter);
            }
            for (stage, count) in &mut readings.losses {
                let before = earlier.losses.iter().find(|(name, _)| name == stage);
                *count += before.map_or(0, |(_, count)| *count);
            }
        }
        readings
    }

    /// Takes over what a table of an earlier layout holds. The same table again replaces what was
    /// taken over from it, until that was its last.
    pub(super) fn carry(&mut self, table: u32, mut readings: Readings, last: bool) {
        if self.earlier.get(&table).is_some_and(|earlier| earlier.last) {
            return;
        }
        readings.pods.retain(|_, counter| *counter != Counter::default());
        self.earlier.insert(table, Earlier { readings, last });
        self.changed = true;
    }

    /// After a start: what the kernel forgot already, or counts anew, is not on its way out.
    pub(super) fn reconcile(&mut self, kernel: &Counters) {
        let before = self.settling.len();
        self.settling.retain(|key, settled| {
            kernel.get(key).is_some_and(|counter| {
                counter.packets >= settled.packets && counter.connections >= settled.connections
            })
        });
        self.changed |= self.settling.len() != before;
    }

    /// Moves the counters of pods that are long gone into their workloads' sums and returns the
    /// keys the kernel is to forget once this is written down; [`forgotten`](Self::forgotten)
    /// follows.
    pub(super) fn settle(&mut self, kernel: &Counters, now: u64) -> Vec<CounterKey> {
        for (key, counter) in self.told(kernel) {
            if key.pod == PodId::UNKNOWN {
                continue;
            }
            // A pod that died before this agent came, and that no earlier one has written down,
            // has no name; it gets its grace all the same.
            let known = self.pods.entry(key.pod).or_insert_with(|| {
                self.changed = true;
                Known { workload: Arc::new(Workload::unknown()), gone: Some(now) }
            });
            if !ended(known, now) || counter == Counter::default() {
                continue;
            }
            if let Some(words) = Words::of(&key) {
                let workload = Arc::clone(&known.workload);
                add(self.sums.entry((workload, key.gateway.0, words)).or_default(), &counter);
                self.admission.settle(&Key::Pod(key), words, &counter);
            }
            if let Some(counter) = kernel.get(&key) {
                self.settling.insert(key, *counter);
            }
            for earlier in self.earlier.values_mut() {
                earlier.readings.pods.remove(&key);
            }
            self.changed = true;
        }
        for known in self.pods.values() {
            self.alive.insert(Arc::clone(&known.workload), now);
        }
        let known = self.pods.len();
        self.pods.retain(|_, known| !ended(known, now));
        self.changed |= self.pods.len() != known;
        self.retire(now);
        self.settling.keys().copied().collect()
    }

    /// Ends the sums of workloads that have had no pod for long.
    fn retire(&mut self, now: u64) {
        self.alive.retain(|_, last| now.saturating_sub(*last) < QUIET);
        let (alive, admission) = (&self.alive, &mut self.admission);
        let before = self.sums.len();
        self.sums.retain(|key, counter| {
            let stays = key.0.namespace == UNKNOWN || alive.contains_key(&key.0);
            if !stays {
                admission.settle(&Key::Workload(key.clone()), key.2, counter);
            }
            stays
        });
        self.changed |= self.sums.len() != before;
    }

    /// Gives series to what there is, as far as there is room.
    pub(super) fn admit(&mut self, present: BTreeSet<Key>) {
        self.changed |= self.admission.admit(present);
    }

    /// The kernel has forgotten what was settled.
    pub(super) fn forgotten(&mut self) {
        self.changed |= !self.settling.is_empty();
        self.settling.clear();
    }

    /// Everything by workload: counters as they are told, and the settled sums.
    pub(super) fn workloads(&self, told: &Counters) -> Sums {
        let mut sums = self.sums.clone();
        let unknown = Arc::new(Workload::unknown());
        for (key, counter) in told {
            let Some(words) = Words::of(key) else { continue };
            let workload = self.pods.get(&key.pod).map_or(&unknown, |known| &known.workload);
            add(sums.entry((Arc::clone(workload), key.gateway.0, words)).or_default(), counter);
        }
        sums
    }

    /// A gateway's name; empty where a counter is about none.
    pub(super) fn gateway(&self, id: u32) -> &str {
        match id {
            0 => "",
            id => self.gateways.get(&id).map_or(UNKNOWN, |name| name),
        }
    }
}

fn ended(known: &Known, now: u64) -> bool {
    known.gone.is_some_and(|since| now.saturating_sub(since) >= GRACE)
}

/// Adds to a sum.
pub(super) const fn add(sum: &mut Counter, counter: &Counter) {
    sum.connections += counter.connections;
    sum.packets += counter.packets;
    sum.bytes += counter.bytes;
}
