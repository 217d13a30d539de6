//! The second question at the node's uplinks, where Service addresses are translated already.

use std::collections::BTreeSet;

use super::Attached;
use super::chain::Place;
use crate::datapath::DatapathError;
use crate::datapath::load::UPLINK_HOOK;

impl Attached {
    /// Attaches the node's uplinks and lets go of those that are none any more. Links that exist
    /// get this agent's program. Returns what could not be done, for the operator.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub fn link_uplinks(&self, uplinks: &BTreeSet<u32>) -> Result<Vec<String>, DatapathError> {
        let mut warnings = Vec::new();
        let mut failed = BTreeSet::new();
        let place = |ifindex: &u32| Place { hook: UPLINK_HOOK, ifindex: *ifindex };
        for ifindex in uplinks {
            if let Err(error) = self.links.hold(place(ifindex), true) {
                warnings.push(format!("uplink with ifindex {ifindex}: {error}"));
                failed.insert(*ifindex);
            }
        }
        let held = self.links.held(UPLINK_HOOK)?;
        for ifindex in held.difference(uplinks) {
            if let Err(error) = self.links.let_go(place(ifindex)) {
                warnings.push(format!("uplink with ifindex {ifindex}, which is none: {error}"));
            }
        }
        self.links.let_go_other(UPLINK_HOOK, &failed)?;
        Ok(warnings)
    }
}
