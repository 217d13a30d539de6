//! A bound on the series of one node, however many pods and workloads come and go.
//!
//! A series that finds no room when it first appears is counted in the overflow's for as long as it
//! lasts, so that no total is ever seen to move from one series to another: that would be an
//! increase that never happened.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::state::{Counter, CounterKey, Direction};
use egress_common::{Reason, Verdict};

use super::ledger::{SumKey, Words, add};

/// Every name in the labels of an overflow series.
pub(super) const OVERFLOW: &str = "_overflow";

/// What has series of its own, or would have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// One of a pod's counters.
    Pod(CounterKey),
    /// One of a workload's.
    Workload(SumKey),
}

impl Key {
    /// How many series it is.
    fn cost(&self) -> usize {
        let words = match self {
            Self::Pod(key) => Words::of(key),
            Self::Workload((_, _, words)) => Some(*words),
        };
        words.map_or(0, cost)
    }

    const fn level(&self) -> Level {
        match self {
            Self::Pod(_) => Level::Pod,
            Self::Workload(_) => Level::Workload,
        }
    }
}

/// Connections, packets and bytes, where there is such a series.
const fn cost(words: Words) -> usize {
    match (words.reason, words.direction, words.verdict) {
        (Reason::Redirected, _, _) => 1,
        (_, Direction::Tx, Verdict::Allow | Verdict::Audit) => 3,
        (_, Direction::Tx, Verdict::Drop) | (_, Direction::Rx, _) => 2,
    }
}

/// Which of the two groups of families a series is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// `egress_pod_*`.
    Pod,
    /// `egress_workload_*`.
    Workload,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Admission {
    most: usize,
    /// What has series of its own; after a restart it is what is there at the first scrape.
    own: Option<BTreeSet<Key>>,
    over: BTreeSet<Key>,
    /// What counted in the overflow and is gone.
    ended: BTreeMap<(Level, Words), Counter>,
    truncated: u64,
}

/// What outlives the agent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Overflow {
    pub(super) most: usize,
    pub(super) over: BTreeSet<Key>,
    pub(super) ended: BTreeMap<(Level, Words), Counter>,
}

impl Admission {
    /// Room for so many series.
    pub(super) const fn new(most: usize) -> Self {
        let own = Some(BTreeSet::new());
        Self { most, own, over: BTreeSet::new(), ended: BTreeMap::new(), truncated: 0 }
    }

    /// As an earlier agent left it: with no less room than it had, what has series keeps them.
    pub(super) fn resume(most: usize, earlier: Overflow) -> Self {
        let Overflow { most: before, over, ended } = earlier;
        let own = if before <= most { None } else { Some(BTreeSet::new()) };
        Self { most, own, over, ended, truncated: 0 }
    }

    /// What the next agent needs to know.
    pub(super) fn overflow(&self) -> Overflow {
        Overflow { most: self.most, over: self.over.clone(), ended: self.ended.clone() }
    }

    /// Takes in what is there now. What was there before this agent came keeps what it had.
    /// Returns whether anything more overflows.
    pub(super) fn admit(&mut self, present: BTreeSet<Key>) -> bool {
        self.over.retain(|key| present.contains(key));
        let Some(own) = &mut self.own else {
            self.own = Some(present.difference(&self.over).cloned().collect());
            return false;
        };
        own.retain(|key| present.contains(key));
        let mut used: usize = own.iter().map(Key::cost).sum();
        let before = self.truncated;
        for key in present {
            if own.contains(&key) || self.over.contains(&key) {
                continue;
            }
            if used + key.cost() <= self.most {
                used += key.cost();
                own.insert(key);
            } else {
                self.over.insert(key);
                self.truncated += 1;
            }
        }
        self.truncated != before
    }

    /// Whether it counts in the overflow.
    pub(super) fn is_over(&self, key: &Key) -> bool {
        self.over.contains(key)
    }

    /// What ends and counted in the overflow goes on counting there.
    pub(super) fn settle(&mut self, key: &Key, words: Words, counter: &Counter) {
        if self.over.remove(key) {
            add(self.ended.entry((key.level(), words)).or_default(), counter);
        }
    }

    /// Sums of what is gone, of one level.
    pub(super) fn ended(&self, level: Level) -> impl Iterator<Item = (Words, &Counter)> {
        let here = self.ended.iter().filter(move |((at, _), _)| *at == level);
        here.map(|((_, words), counter)| (*words, counter))
    }

    /// Label sets that found no room since the agent's start.
    pub(super) const fn truncated(&self) -> u64 {
        self.truncated
    }
}
