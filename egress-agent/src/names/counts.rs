//! What was read, found and lost since the agent started.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use egress_common::dns;

use super::finding::Class;
use super::message::Outcome;

/// Where user space can lose something: label of `egress_dns_lost_total`, beside the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// A record that is none of this version.
    Decode,
    /// A finding, because events did not keep up.
    Event,
    /// An address for a limited gateway, because the tables did not keep up or are full.
    Admission,
}

impl Lost {
    /// Metric label of each stage.
    pub const NAMES: [&'static str; 3] = ["decode", "event", "admission"];
}

/// Namespace and workload.
pub(crate) type Workload = (String, String);

/// Answers with a finding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Both {
    rebinding: u64,
    drift: u64,
}

impl Both {
    const fn of(&mut self, class: Class) -> &mut u64 {
        match class {
            Class::Rebinding => &mut self.rebinding,
            Class::Drift => &mut self.drift,
        }
    }
}

type ByWorkload = BTreeMap<Workload, Both>;

/// The counters.
#[derive(Debug, Default)]
pub struct Counts {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    lost: [AtomicU64; Lost::NAMES.len()],
    /// What the kernel lost, as last read.
    kernel: [AtomicU64; dns::loss::NAMES.len()],
    /// Answers with a finding, by workload.
    findings: Mutex<ByWorkload>,
}

impl Counts {
    pub(super) fn outcome(&self, outcome: Outcome) {
        if let Some(counter) = self.outcomes.get(outcome as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts something that was lost.
    pub fn lost(&self, stage: Lost) {
        if let Some(counter) = self.lost.get(stage as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn finding(&self, workload: Workload, class: Class) {
        let mut findings = self.by_workload();
        let both = findings.entry(workload).or_default();
        *both.of(class) += 1;
    }

    /// Workloads that are there now: counted from zero, so that the first finding is a rise. Those
    /// that are gone stay only where there is something to say of them.
    pub(crate) fn know(&self, workloads: impl Iterator<Item = Workload>) {
        let mut findings = self.by_workload();
        findings.retain(|_, counts| *counts != Both::default());
        for workload in workloads {
            findings.entry(workload).or_default();
        }
    }

    /// Messages by what they were.
    pub fn outcomes(&self) -> impl Iterator<Item = (Outcome, u64)> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Outcome::ALL.iter().copied().zip(self.outcomes.iter().map(count).collect::<Vec<_>>())
    }

    /// What was lost, by stage: in the kernel, then in user space.
    pub fn losses(&self) -> Vec<(&'static str, u64)> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let kernel = dns::loss::NAMES.into_iter().zip(self.kernel.iter().map(count));
        kernel.chain(Lost::NAMES.into_iter().zip(self.lost.iter().map(count))).collect()
    }

    pub(super) fn lost_in_kernel(&self, sums: &[u64]) {
        for (counter, sum) in self.kernel.iter().zip(sums) {
            counter.store(*sum, Ordering::Relaxed);
        }
    }

    /// Answers with a finding of a kind, by workload.
    pub fn findings(&self, class: Class) -> Vec<(Workload, u64)> {
        let mut findings = self.by_workload();
        findings.iter_mut().map(|(workload, both)| (workload.clone(), *both.of(class))).collect()
    }

    fn by_workload(&self) -> std::sync::MutexGuard<'_, ByWorkload> {
        // Counters somebody panicked over are at worst one short.
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
