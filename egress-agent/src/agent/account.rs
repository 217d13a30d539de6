//! Keeps account of who was not wholly covered, in a file beside the lock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use egress_common::key::PolicyId;
use egress_common::state::Pod as KernelPod;

use super::Enforcer;
use crate::clock::{boot_clock, boot_clock_at};
use crate::datapath::Attached;
use crate::exposure::{Exposures, Moment, Unenforced};
use crate::identity::cgroup::Kubepods;
use crate::policy::{Desired, Tables};

/// Name of the file in the run directory.
const FILE: &str = "exposure.json";

/// The accounts and where they are kept.
pub(super) struct Account {
    path: PathBuf,
    all: Exposures,
    written: Exposures,
    first: bool,
}

impl Account {
    /// Goes on where an earlier agent of this boot stopped.
    pub(super) fn open(run_dir: &Path) -> Self {
        let path = run_dir.join(FILE);
        let all = match std::fs::read_to_string(&path) {
            Ok(text) => Exposures::resume(&text, boot_clock()).unwrap_or_else(|| {
                tracing::warn!(path = %path.display(), "sums of unenforced time start again");
                Exposures::default()
            }),
            Err(_) => Exposures::default(),
        };
        Self { path, written: all.clone(), all, first: true }
    }

    /// Takes account up to now. What cannot be read is taken next time: nothing is lost, because the
    /// kernel counts on.
    pub(super) fn take(
        &mut self,
        attached: &Attached,
        kubepods: &Kubepods,
        desired: &Desired,
        tables: &Tables,
        refused: bool,
    ) -> anyhow::Result<Arc<Exposures>> {
        let now = boot_clock();
        let births = kubepods.births()?;
        let verified = attached.verified();
        let standing = desired
            .coverage
            .iter()
            .filter_map(|pod| Some((pod.cgroup?, Unenforced::of(pod, &verified, refused))));
        // The agent's own pod is there before its object is.
        let ungoverned = tables.pods.iter().filter(|(_, pod)| pod.policy == PolicyId::NONE);
        let mut known: BTreeMap<u64, Option<Unenforced>> =
            ungoverned.map(|(cgroup, _)| (*cgroup, None)).collect();
        known.extend(standing);
        let strange = |pod: &KernelPod| pod.flags & KernelPod::UNLEARNED != 0;
        let strangers = tables.interfaces.iter().filter(|(_, pod)| strange(pod));
        let moment = Moment {
            now,
            births: births.born.iter().map(|(id, wall)| (*id, boot_clock_at(*wall))).collect(),
            below: births.below,
            standing: known,
            passed: attached.exposed()?,
            strangers: strangers.map(|(ifindex, _)| *ifindex).collect(),
        };
        let gone = self.all.take(&moment, std::mem::take(&mut self.first));
        attached.forget_exposed(&gone)?;
        self.keep()?;
        Ok(Arc::new(self.all.clone()))
    }

    /// Writes the accounts down, whole or not at all.
    fn keep(&mut self) -> anyhow::Result<()> {
        if self.all != self.written {
            let fresh = self.path.with_extension("new");
            std::fs::write(&fresh, serde_json::to_vec(&self.all)?)?;
            std::fs::rename(&fresh, &self.path)?;
            self.written = self.all.clone();
        }
        Ok(())
    }
}

impl Enforcer {
    /// Brings the account of what was not covered up to now.
    pub(super) fn take_account(&mut self) {
        let (desired, tables, refused) = {
            let state = self.publish.borrow();
            (Arc::clone(&state.desired), Arc::clone(&state.tables), state.refused.is_some())
        };
        let kubepods = &self.inputs.kubepods;
        match self.account.take(&self.attached, kubepods, &desired, &tables, refused) {
            Ok(exposures) => self.publish.send_modify(|state| {
                Arc::make_mut(state).exposures = exposures;
            }),
            Err(error) => {
                if self.told.insert(format!("account {error:#}")) {
                    tracing::warn!(error = format!("{error:#}"), "no account of coverage taken");
                }
            }
        }
    }
}
