//! What is attached where, as the kernel tells it.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use super::attach::{Attached, Place, places};
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
    /// Nothing is enforced without it; the others only serve redirection.
    pub needed: bool,
    /// What is wrong, where something is.
    pub detail: String,
}

impl Attached {
    /// What is attached where, as the kernel says, compared with what this agent loaded.
    pub fn hooks(&self) -> Vec<HookStatus> {
        // Zero is no cgroup's id: a directory that is gone matches no link.
        let id = fs::metadata(&self.kubepods).map_or(0, |directory| directory.ino());
        let cgroup = CGROUP_HOOKS.into_iter().chain(PEER_HOOKS).map(move |hook| {
            let pin = self.links.options.link_pin(hook.name);
            let found = sys::open_pin(&pin).and_then(|fd| sys::link_info(fd.as_fd(), hook.name));
            self.status(hook, found, id, self.kubepods.display().to_string())
        });
        let held = |hook| self.links.held(hook).unwrap_or_default().into_iter();
        let uplinks = held(UPLINK_HOOK).map(|ifindex| Place { hook: UPLINK_HOOK, ifindex });
        let [boundary, _] = INTERFACE_HOOKS;
        let placed = held(boundary).flat_map(places).chain(uplinks).map(|place| self.look(place));
        cgroup.chain(placed).collect()
    }

    /// Interfaces on which both programs of the boundary are attached, as this agent loaded them.
    pub fn verified(&self) -> BTreeSet<u32> {
        let [boundary, _] = INTERFACE_HOOKS;
        let held = self.links.held(boundary).unwrap_or_default().into_iter();
        held.filter(|ifindex| places(*ifindex).all(|place| self.look(place).attached)).collect()
    }

    fn look(&self, place: Place) -> HookStatus {
        let Place { hook, ifindex } = place;
        let found = self.links.holder(place);
        self.status(hook, found, u64::from(ifindex), format!("ifindex {ifindex}"))
    }

    fn status(
        &self,
        hook: Hook,
        found: Result<LinkInfo, SysError>,
        on: u64,
        target: String,
    ) -> HookStatus {
        let detail = match found {
            Err(error) => error.to_string(),
            Ok(info) if info.target == 0 => "what it was attached to is gone".to_owned(),
            Ok(info) if info.target != on => format!("attached to {} instead", info.target),
            Ok(info) if Some(info.program) != self.links.program(hook).map(|ours| ours.id) => {
                format!("runs program {}, which this agent did not load", info.program)
            }
            Ok(_) => String::new(),
        };
        let needed = PEER_HOOKS.iter().all(|other| other.name != hook.name);
        HookStatus { hook: hook.name, target, attached: detail.is_empty(), needed, detail }
    }
}
