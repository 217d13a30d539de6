//! What became of every event that was read: kept with the kernel, told in metrics.
//!
//! Invariant, once nothing is under way: `read = told + lost`, over all agents of one
//! [`Tally::stream`]. What an agent had read when it was killed is what its successor finds
//! missing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use egress_common::state::{Tally, tally};

use super::mechanism::Mechanism;

/// Workloads whose attempts are kept apart; all further ones share a series.
const MOST_WORKLOADS: usize = 2000;
/// Namespace and name of that series.
pub(super) const OVERFLOW: &str = "_overflow";

/// Counts of the events task, shared with the metrics.
#[derive(Clone, Debug, Default)]
pub struct EventCounts(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    tally: Tally,
    attempts: BTreeMap<(String, String), [u64; Mechanism::ALL.len()]>,
}

impl EventCounts {
    /// Goes on where the tally of an earlier agent ends. What that one read and did not tell is lost
    /// with it.
    pub(super) fn resume(&self, mut tally: Tally, now: u64) {
        if tally.stream == 0 {
            tally.stream = now;
        }
        let settled = tally.told + tally.lost.iter().sum::<u64>();
        tally.lost[tally::RESTART] += tally.read.saturating_sub(settled);
        self.lock().tally = tally;
    }

    /// The tally as it stands.
    pub(super) fn tally(&self) -> Tally {
        self.lock().tally
    }

    /// Changes the tally.
    pub(super) fn add(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut self.lock().tally);
    }

    /// Counts attempts to get around the gateways.
    pub(super) fn attempts(&self, workload: (&str, &str), mechanism: Mechanism, count: u64) {
        let mut counts = self.lock();
        let mut key = (workload.0.to_owned(), workload.1.to_owned());
        if counts.attempts.len() >= MOST_WORKLOADS && !counts.attempts.contains_key(&key) {
            key = (OVERFLOW.to_owned(), OVERFLOW.to_owned());
        }
        counts.attempts.entry(key).or_default()[mechanism as usize] += count;
    }

    /// Records written, and the decisions that they stand for.
    pub fn written(&self) -> (u64, u64) {
        let counts = self.lock();
        (counts.tally.written, counts.tally.told)
    }

    /// Decisions that were read and not told, by stage.
    pub fn lost(&self) -> [(&'static str, u64); tally::NAMES.len()] {
        let lost = self.lock().tally.lost;
        let mut stages = tally::NAMES.map(|name| (name, 0));
        stages.iter_mut().zip(lost).for_each(|(stage, count)| stage.1 = count);
        stages
    }

    /// Attempts by namespace, workload and mechanism; of a workload that has one, every mechanism.
    pub fn bypass_attempts(&self) -> Vec<(String, String, Mechanism, u64)> {
        let counts = self.lock();
        let each = counts.attempts.iter().flat_map(|((namespace, workload), attempts)| {
            Mechanism::ALL
                .iter()
                .zip(attempts)
                .map(|(mechanism, count)| (namespace.clone(), workload.clone(), *mechanism, *count))
        });
        each.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Nothing panics while it holds the lock; numbers are whole in any case.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_agent_had_read_is_counted_by_its_successor() {
        let counts = EventCounts::default();
        let mut left = Tally { stream: 5, sequence: 9, read: 100, told: 60, ..Tally::default() };
        left.lost[tally::OUTPUT] = 10;
        counts.resume(left, 77);
        let tally = counts.tally();
        assert_eq!((tally.stream, tally.sequence, tally.lost[tally::RESTART]), (5, 9, 30));
        counts.resume(tally, 78);
        assert_eq!(counts.tally().lost[tally::RESTART], 30, "and only once");
    }

    #[test]
    fn a_fresh_tally_begins_a_stream() {
        let counts = EventCounts::default();
        counts.resume(Tally::default(), 77);
        assert_eq!(counts.tally(), Tally { stream: 77, ..Tally::default() });
    }

    #[test]
    fn workloads_beyond_the_most_share_a_series() {
        let counts = EventCounts::default();
        for number in 0..MOST_WORKLOADS + 2 {
            counts.attempts(("shop", &number.to_string()), Mechanism::NoSidecar, 1);
        }
        let attempts = counts.bypass_attempts();
        let shared: u64 =
            attempts.iter().filter(|one| one.0 == OVERFLOW).map(|(.., count)| count).sum();
        assert_eq!((attempts.len(), shared), ((MOST_WORKLOADS + 1) * Mechanism::ALL.len(), 2));
    }
}
