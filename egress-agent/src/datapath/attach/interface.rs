//! The boundary: both programs at the host side of every pod's interface.

use std::collections::BTreeSet;

use super::chain::{self, Place};
use super::{Applied, Attached};
use crate::datapath::DatapathError;
use crate::datapath::load::{INTERFACE_HOOKS, Loaded};

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
    /// Attaches every interface the kernel's table holds, entries an incomplete snapshot could
    /// not take away included, and lets go of pinned ones that are no longer in it. With
    /// `replace`, links that exist get this agent's programs.
    pub(super) fn link_interfaces(
        &self,
        replace: bool,
        applied: &mut Applied,
    ) -> Result<(), DatapathError> {
        let [hook, _] = INTERFACE_HOOKS;
        let present = self.links.held(hook)?;
        let wanted = self.maps.interfaces()?;
        let mut failed = BTreeSet::new();
        for ifindex in &wanted {
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
        if replace {
            for hook in INTERFACE_HOOKS {
                self.links.let_go_other(hook, &failed)?;
            }
        }
        Ok(())
    }
}
