//! Programs at interfaces, in whichever way this kernel takes them.
//!
//! The only file that knows the ways apart: the boundary and the uplinks hold, look at and let go
//! of a [`Place`] and ask no more.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;

use super::link::{Links, unlink};
use crate::datapath::load::{Hook, Program, UPLINK_HOOK};
use crate::datapath::sys::{self, LinkInfo};
use crate::datapath::{DatapathError, Options, SysError};

/// How this kernel takes programs at interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::datapath) enum Chain {
    /// Links at the head of the tcx chain: Linux 6.6, or a vendor's backport.
    Tcx,
    /// In no way this agent knows.
    Missing,
}

/// What the operator is told of [`Chain::Missing`].
const MISSING: &str = "this kernel has no tcx (Linux 6.6 or a vendor's backport): the boundary at \
     the pods' interfaces is missing, only the wall and the socket hooks hold";

impl Chain {
    /// Asks the kernel, with one of the programs that go to interfaces.
    pub(super) fn of(boundary: Option<&Program>) -> Self {
        match boundary {
            Some(program) if sys::has_tcx(program.fd.as_fd()) => Self::Tcx,
            _ => Self::Missing,
        }
    }

    /// Why nothing can be attached to an interface, where nothing can.
    pub(super) const fn missing(self) -> Option<&'static str> {
        match self {
            Self::Tcx => None,
            Self::Missing => Some(MISSING),
        }
    }
}

/// A program's place at an interface.
#[derive(Clone, Copy, Debug)]
pub(in crate::datapath) struct Place {
    /// The program.
    pub(in crate::datapath) hook: Hook,
    /// The interface.
    pub(in crate::datapath) ifindex: u32,
}

impl Place {
    /// Where its link is pinned.
    pub(in crate::datapath) fn pin(self, options: &Options) -> PathBuf {
        let Self { hook, ifindex } = self;
        match hook.name {
            name if name == UPLINK_HOOK.name => options.uplink_pins().join(ifindex.to_string()),
            "pod_egress" => options.interface_pins().join(format!("{ifindex}-egress")),
            _ => options.interface_pins().join(format!("{ifindex}-ingress")),
        }
    }
}

impl Links {
    /// Holds a place with this agent's program, ahead of every other. With `replace`, what an
    /// earlier agent left there gets this agent's program.
    pub(super) fn hold(&self, place: Place, replace: bool) -> Result<(), SysError> {
        match self.chain {
            Chain::Tcx => {
                let target = sys::Target::Interface(place.ifindex);
                self.ensure(place.hook, target, &place.pin(&self.options), replace)
            }
            Chain::Missing => Ok(()),
        }
    }

    /// Lets go of a place; one that is not held is let go of already.
    pub(super) fn let_go(&self, place: Place) -> Result<(), SysError> {
        match self.chain {
            Chain::Tcx => unlink(&place.pin(&self.options)),
            Chain::Missing => Ok(()),
        }
    }

    /// What holds a place, as the kernel says.
    pub(in crate::datapath) fn holder(&self, place: Place) -> Result<LinkInfo, SysError> {
        holder(&self.options, place)
    }

    /// Interfaces at which one of the agent's programs was left, by this agent or an earlier one:
    /// the kernel's truth, not this agent's memory.
    pub(in crate::datapath) fn held(&self, hook: Hook) -> Result<BTreeSet<u32>, DatapathError> {
        held(&self.options, hook)
    }
}

/// What a pinned link says of itself.
pub(super) fn holder(options: &Options, place: Place) -> Result<LinkInfo, SysError> {
    let link = sys::open_pin(&place.pin(options))?;
    sys::link_info(link.as_fd(), place.hook.name)
}

/// Interfaces with a pinned link of this hook, or of another hook of the same pods.
pub(super) fn held(options: &Options, hook: Hook) -> Result<BTreeSet<u32>, DatapathError> {
    let path = if hook.name == UPLINK_HOOK.name {
        options.uplink_pins()
    } else {
        options.interface_pins()
    };
    let pins =
        |source| DatapathError::Pins { path: path.clone(), root: options.bpffs.clone(), source };
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(&path).map_err(pins)? {
        let name = entry.map_err(pins)?.file_name();
        found.extend(name.to_str().and_then(|name| name.split('-').next()?.parse::<u32>().ok()));
    }
    Ok(found)
}
