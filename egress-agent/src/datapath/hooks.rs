//! What is attached where, as the kernel tells it; and the audit, which mends what is not as it was
//! loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use nix::libc;

use super::attach::{Attached, Place, ROUND, places};
use super::load::{CGROUP_HOOKS, Hook, INTERFACE_HOOKS, PEER_HOOKS, UPLINK_HOOK};
use super::sys::{self, LinkInfo, SysError};

/// One hook as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct HookStatus {
    /// Name of the program.
    pub hook: &'static str,
    /// The cgroup or the interface.
    pub target: String,
    /// The link exists, is on its target and runs the program this agent loaded.
    pub attached: bool,
    /// Programs of others that run before this one and may keep packets from it. Always zero for
    /// hooks of cgroups, where every program runs and one denial is enough.
    pub ahead: usize,
    /// Nothing is enforced without it; the others only serve redirection.
    pub needed: bool,
    /// What is wrong, where something is.
    pub detail: String,
}

impl HookStatus {
    /// Whether this place does what it should: attached, and nobody before it.
    pub const fn is_verified(&self) -> bool {
        self.attached && self.ahead == 0
    }
}

/// Families that a hook judges, as metric labels tell them.
pub fn families(hook: &str) -> &'static [&'static str] {
    match hook.chars().last() {
        Some('4') => &["ipv4"],
        Some('6') => &["ipv6"],
        _ => &["ipv4", "ipv6"],
    }
}

/// Where a hook belongs.
#[derive(Clone, Copy)]
enum Spot {
    Kubepods,
    Interface(Place),
}

impl Attached {
    /// What is attached where, as the kernel says, compared with what this agent loaded: every
    /// place that should carry a hook, and every place that does.
    pub fn hooks(&self) -> Vec<HookStatus> {
        self.survey().into_iter().map(|(_, status)| status).collect()
    }

    /// [`hooks`](Self::hooks), after mending what is not as it was loaded: links that are gone,
    /// detached, on another target or run another program are made again, and the head of a chain
    /// is taken back. Nothing is let go of before its successor stands. What could not be mended
    /// stays in the result, and the next audit tries again.
    pub fn audit(&mut self) -> Vec<HookStatus> {
        let found = self.survey();
        let wrong: Vec<_> = found.iter().filter(|(_, status)| !status.is_verified()).collect();
        let mut failed: Vec<(&'static str, String)> = Vec::new();
        let loaded = |status: &HookStatus| {
            self.links.programs.iter().any(|program| program.hook.name == status.hook)
        };
        let kubepods =
            wrong.iter().any(|(spot, status)| matches!(spot, Spot::Kubepods) && loaded(status));
        if wrong.is_empty() {
            return found.into_iter().map(|(_, status)| status).collect();
        }
        let places: Vec<_> = wrong
            .iter()
            .filter_map(|(spot, status)| match spot {
                Spot::Kubepods => None,
                Spot::Interface(place) => Some((*place, status.attached)),
            })
            .collect();
        if kubepods && let Err(error) = self.link_cgroup() {
            failed.push(("kubepods", error.to_string()));
        }
        let start = Instant::now();
        for (place, attached) in places {
            // Each takes the kernel's lock of interfaces; the next audit goes on.
            if start.elapsed() > ROUND {
                break;
            }
            if let Err(error) = self.mend(place, attached) {
                failed.push((place.hook.name, format!("ifindex {}: {error}", place.ifindex)));
            }
        }
        for (hook, error) in failed {
            tracing::debug!(hook, error, "not mended");
        }
        self.hooks()
    }

    fn mend(&mut self, place: Place, attached: bool) -> Result<(), super::DatapathError> {
        if attached {
            self.links.overtake(place)?;
        } else {
            match self.links.hold(place, true) {
                // The interface is gone: so will its entry be with the next policy.
                Err(error) if error.errno() == libc::ENODEV => return Ok(()),
                held => held?,
            }
        }
        Ok(())
    }

    /// How often something attached was found otherwise than it was loaded and mended, by hook,
    /// since this agent started.
    pub const fn repairs(&self) -> &BTreeMap<&'static str, u64> {
        &self.links.repairs
    }

    /// Interfaces on which both programs of the boundary are attached, as this agent loaded them.
    pub fn verified(&self) -> BTreeSet<u32> {
        let [boundary, _] = INTERFACE_HOOKS;
        let held = self.links.held(boundary).unwrap_or_default().into_iter();
        held.filter(|ifindex| places(*ifindex).all(|place| self.look(place).attached)).collect()
    }

    fn survey(&self) -> Vec<(Spot, HookStatus)> {
        // Zero is no cgroup's id: a directory that is gone matches no link.
        let id = fs::metadata(&self.kubepods).map_or(0, |directory| directory.ino());
        let cgroup = CGROUP_HOOKS.into_iter().chain(PEER_HOOKS).map(|hook| {
            let pin = self.links.options.link_pin(hook.name);
            let found = sys::open_pin(&pin).and_then(|fd| sys::link_info(fd.as_fd(), hook.name));
            let target = self.kubepods.display().to_string();
            (Spot::Kubepods, self.status(hook, found, id, target, 0))
        });
        let [boundary, _] = INTERFACE_HOOKS;
        let all = |hook, wanted: BTreeSet<u32>| {
            let held = self.links.held(hook).unwrap_or_default();
            held.union(&wanted).copied().collect::<Vec<_>>().into_iter()
        };
        let uplinks =
            all(UPLINK_HOOK, self.uplinks()).map(|ifindex| Place { hook: UPLINK_HOOK, ifindex });
        let pods = all(boundary, self.interfaces()).flat_map(places);
        let placed = pods.chain(uplinks).map(|place| (Spot::Interface(place), self.look(place)));
        cgroup.chain(placed).collect()
    }

    fn look(&self, place: Place) -> HookStatus {
        let Place { hook, ifindex } = place;
        let found = self.links.holder(place);
        // What cannot be asked is told by the link itself.
        let ahead = self.links.ahead(place).unwrap_or(0);
        // Where nothing could be attached yet, the pod is not covered and the wall holds: that is
        // told of the pod, and is no reason to take the agent for broken.
        let was_held = found.is_ok();
        let on = u64::from(ifindex);
        let status = self.status(hook, found, on, format!("ifindex {ifindex}"), ahead);
        HookStatus { needed: status.needed && was_held, ..status }
    }

    fn status(
        &self,
        hook: Hook,
        found: Result<LinkInfo, SysError>,
        on: u64,
        target: String,
        ahead: usize,
    ) -> HookStatus {
        let detail = match found {
            Err(error) => error.to_string(),
            Ok(info) if info.target == 0 => "what it was attached to is gone".to_owned(),
            Ok(info) if info.target != on => format!("attached to {} instead", info.target),
            Ok(info) if !self.links.is_ours(hook, info.program) => {
                format!("runs program {}, which this agent did not load", info.program)
            }
            Ok(_) => String::new(),
        };
        let attached = detail.is_empty();
        let (ahead, detail) = match ahead {
            0 => (0, detail),
            _ if !attached => (0, detail),
            count => (count, format!("{count} programs of others run before it")),
        };
        let needed = PEER_HOOKS.iter().all(|other| other.name != hook.name);
        HookStatus { hook: hook.name, target, attached, ahead, needed, detail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_judges_the_family_in_its_name_or_both() {
        assert_eq!(families("connect4"), ["ipv4"]);
        assert_eq!(families("getpeername6"), ["ipv6"]);
        assert_eq!(families("pod_egress"), ["ipv4", "ipv6"]);
    }
}
