//! The boundary: both programs at the host side of every pod's interface.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::chain::{self, Place};
use super::{Applied, Attached};
use crate::datapath::DatapathError;
use crate::datapath::load::{INTERFACE_HOOKS, Loaded};

/// How long one apply may attach for. Each link is made under the kernel's lock of all network
/// configuration, which the network plugin needs too, and takes some ten milliseconds of it; and the agent
/// has a sign of life to give.
pub(in crate::datapath) const ROUND: Duration = Duration::from_millis(250);

/// The places of the boundary at one interface.
pub(in crate::datapath) fn places(ifindex: u32) -> impl Iterator<Item = Place> {
    INTERFACE_HOOKS.into_iter().map(move |hook| Place { hook, ifindex })
}

impl Loaded {
    /// Interfaces that an earlier agent left with a live boundary, of whichever version.
    pub fn held(&self) -> BTreeSet<u32> {
        chain::alive(&self.options, INTERFACE_HOOKS)
    }
}

impl Attached {
    /// Goes on with the interfaces that the last apply left; says how many it leaves in turn.
    ///
    /// # Errors
    /// When the kernel's table or the pins cannot be read.
    pub fn link_pending(&mut self) -> Result<usize, DatapathError> {
        let mut applied = Applied::default();
        self.link_interfaces(false, &mut applied)?;
        Ok(applied.pending)
    }

    /// Attaches every interface the kernel's table holds, entries an incomplete snapshot could
    /// not take away included, and lets go of pinned ones that are no longer in it. With
    /// `replace`, links that exist get this agent's programs.
    pub(super) fn link_interfaces(
        &mut self,
        replace: bool,
        applied: &mut Applied,
    ) -> Result<(), DatapathError> {
        let [hook, _] = INTERFACE_HOOKS;
        let present = self.links.held(hook)?;
        let wanted = self.maps.interfaces()?;
        let start = Instant::now();
        let mut failed = BTreeSet::new();
        for ifindex in &wanted {
            if !present.contains(ifindex) && start.elapsed() > ROUND {
                applied.pending += 1;
                failed.insert(*ifindex);
                continue;
            }
            let mut held = true;
            for place in places(*ifindex) {
                if let Err(error) = self.links.hold(place, replace) {
                    held = false;
                    applied.warnings.push(format!("ifindex {ifindex}: {error}"));
                }
            }
            if !held {
                failed.insert(*ifindex);
            }
            applied.attached += usize::from(held && !present.contains(ifindex));
        }
        for ifindex in present {
            if !wanted.contains(&ifindex) {
                // What cannot be let go is no reason to let go of everything else.
                match places(ifindex).try_for_each(|place| self.links.let_go(place)) {
                    Ok(()) => applied.detached += 1,
                    Err(error) => {
                        applied.warnings.push(format!("ifindex {ifindex}, let go: {error}"));
                    }
                }
            }
        }
        // Interfaces that were left for another round keep what an earlier agent put there.
        if replace || self.unsettled {
            for hook in INTERFACE_HOOKS {
                self.links.let_go_other(hook, &failed)?;
            }
            self.unsettled = applied.pending > 0;
        }
        Ok(())
    }
}
