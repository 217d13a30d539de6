//! What is attached where, as the kernel tells it.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::attach::{Attached, interface_pin, pinned_interfaces};
use super::load::{CGROUP_HOOKS, Hook, INTERFACE_HOOKS, PEER_HOOKS, UPLINK_HOOK};
use super::sys;

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
            let target = self.kubepods.display().to_string();
            self.status(hook, &self.options.link_pin(hook.name), id, target)
        });
        let pinned = |pins: &Path| pinned_interfaces(&self.options, pins).unwrap_or_default();
        let uplinks = pinned(&self.options.uplink_pins()).into_iter().map(|ifindex| {
            let pin = self.options.uplink_pins().join(ifindex.to_string());
            self.status(UPLINK_HOOK, &pin, u64::from(ifindex), format!("ifindex {ifindex}"))
        });
        let interfaces = pinned(&self.options.interface_pins());
        let interfaces = interfaces.into_iter().flat_map(|ifindex| {
            INTERFACE_HOOKS.into_iter().map(move |hook| {
                let pin = interface_pin(&self.options, hook, ifindex);
                self.status(hook, &pin, u64::from(ifindex), format!("ifindex {ifindex}"))
            })
        });
        cgroup.chain(interfaces).chain(uplinks).collect()
    }

    /// Interfaces on which both programs of the boundary are attached, as this agent loaded them.
    pub fn verified(&self) -> BTreeSet<u32> {
        let interfaces =
            pinned_interfaces(&self.options, &self.options.interface_pins()).unwrap_or_default();
        let holds = |ifindex: &u32| {
            INTERFACE_HOOKS.into_iter().all(|hook| {
                let pin = interface_pin(&self.options, hook, *ifindex);
                self.status(hook, &pin, u64::from(*ifindex), String::new()).attached
            })
        };
        interfaces.into_iter().filter(holds).collect()
    }

    fn status(&self, hook: Hook, pin: &Path, on: u64, target: String) -> HookStatus {
        let detail = match sys::open_pin(pin).and_then(|fd| sys::link_info(fd.as_fd(), hook.name)) {
            Err(error) => error.to_string(),
            Ok(info) if info.target == 0 => "what it was attached to is gone".to_owned(),
            Ok(info) if info.target != on => format!("attached to {} instead", info.target),
            Ok(info) if Some(info.program) != self.program(hook).map(|program| program.id) => {
                format!("runs program {}, which this agent did not load", info.program)
            }
            Ok(_) => String::new(),
        };
        let needed = PEER_HOOKS.iter().all(|other| other.name != hook.name);
        HookStatus { hook: hook.name, target, attached: detail.is_empty(), needed, detail }
    }
}
