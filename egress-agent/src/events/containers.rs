//! Which container a cgroup belongs to, looked up when an event names one that is new.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::identity::cgroup::{Container, Kubepods};

/// Between two walks over the cgroups: an event may name one that is gone, again and again.
const PAUSE: Duration = Duration::from_secs(1);

/// The containers of this node.
#[derive(Debug, Default)]
pub(super) struct Containers {
    kubepods: Option<Kubepods>,
    known: BTreeMap<u64, Container>,
    walked: Option<Instant>,
}

impl Containers {
    pub(super) fn new(kubepods: Kubepods) -> Self {
        Self { kubepods: Some(kubepods), ..Self::default() }
    }

    /// The container; `None` for a cgroup of no pod, and for one that is gone. A container that has
    /// ended is known until the next walk.
    pub(super) fn find(&mut self, cgroup: u64) -> Option<&Container> {
        let lately = self.walked.is_some_and(|walked| walked.elapsed() < PAUSE);
        if cgroup != 0
            && !self.known.contains_key(&cgroup)
            && !lately
            && let Some(kubepods) = &self.kubepods
        {
            self.walked = Some(Instant::now());
            match kubepods.containers() {
                Ok(containers) => self.known = containers,
                Err(error) => tracing::debug!(error = error.to_string(), "containers not read"),
            }
        }
        self.known.get(&cgroup)
    }
}

#[cfg(test)]
impl Containers {
    /// Knows this one.
    pub(super) fn of(cgroup: u64, pod: &str, id: &str) -> Self {
        let container = Container { pod: pod.to_owned(), id: id.to_owned() };
        Self { known: BTreeMap::from([(cgroup, container)]), ..Self::default() }
    }
}
