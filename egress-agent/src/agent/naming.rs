//! Where DNS answers meet the rest: who reads them, and what they open.

use std::sync::Arc;

use egress_common::state::Target;
use tokio::sync::mpsc;

use super::{Enforcer, States};
use crate::clock::boot_clock;
use crate::names;
use crate::supervise::{Shutdown, Tasks};

impl Enforcer {
    /// Starts what reads DNS answers, and gives what it finds.
    pub(super) fn read_names(
        &mut self,
        tasks: &mut Tasks,
        states: &States,
        inputs: names::Inputs,
        shutdown: &Shutdown,
    ) -> anyhow::Result<mpsc::Receiver<names::Finding>> {
        let (told, findings) = mpsc::channel(1024);
        let ring = self.attached.take_answers();
        let ring = ring.ok_or_else(|| anyhow::anyhow!("the answer ring has a reader already"))?;
        let names = states.borrow().names.clone();
        let (seen, until) = (states.clone(), shutdown.clone());
        let outlets = names::Outlets { findings: told, admissions: self.admit.clone() };
        tasks.start("names", names::run(ring, inputs, names, outlets, seen, until));
        Ok(findings)
    }

    /// Lets a limited gateway's pods reach what DNS gave them, at once: they are about to.
    pub(super) fn admit(&mut self, admission: &names::Admission) {
        let names::Admission { policy, ip, pattern, ports, answered, expires } = admission;
        let tables = Arc::clone(&self.publish.borrow().tables);
        // It may have gone since the answer was read.
        if !tables.policies.contains_key(policy) {
            return;
        }
        let mut entries = self
            .resolved
            .admit(*policy, *ip, pattern, ports, *expires)
            .inspect_err(|_| self.publish.borrow().names.counts().lost(names::Lost::Admission))
            .unwrap_or_default();
        // What the tables say of it already stays.
        let own = |number| {
            matches!(Target::from_number(number), Some(Target::Resolved | Target::Earlier))
        };
        entries.retain(|(key, _)| tables.exact.get(key).is_none_or(|entry| own(entry.target)));
        if entries.is_empty() {
            return;
        }
        if let Err(error) = self.attached.put_exact(&entries) {
            self.publish.borrow().names.counts().lost(names::Lost::Admission);
            tracing::warn!(error = error.to_string(), "address of a limited gateway not admitted");
            return;
        }
        let micros = boot_clock().saturating_sub(*answered) / 1000;
        tracing::debug!(dst = %ip, host = pattern, micros, "address admitted");
        drop(tables);
        self.publish.send_modify(|state| {
            let tables = Arc::make_mut(&mut Arc::make_mut(state).tables);
            tables.exact.extend(entries);
        });
    }
}
