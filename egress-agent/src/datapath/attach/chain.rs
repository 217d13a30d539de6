//! Programs at interfaces, in whichever way this kernel takes them.
//!
//! The only file that knows the ways apart: the boundary and the uplinks hold, look at and let go
//! of a [`Place`] and ask no more.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;

use super::filter;
use super::link::{Links, pin_over, unlink};
use crate::datapath::load::{Hook, Program, UPLINK_HOOK, load_again};
use crate::datapath::sys::{self, LinkInfo};
use crate::datapath::{DatapathError, Options, SysError, Way};

/// How programs are put at interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::datapath) enum Chain {
    /// Links at the head of the tcx chain: Linux 6.6, or a vendor's backport.
    Tcx,
    /// Filters of a clsact qdisc, the first to run: any kernel.
    Clsact,
}

impl Chain {
    /// What the operator asked for, or else what this kernel has, which is asked with one of the
    /// programs that go to interfaces.
    pub(super) fn of(way: Way, boundary: Option<&Program>) -> Self {
        match (way, boundary) {
            (Way::Tcx, _) => Self::Tcx,
            (Way::Auto, Some(program)) if sys::has_tcx(program.fd.as_fd()) => Self::Tcx,
            (Way::Auto | Way::Clsact, _) => Self::Clsact,
        }
    }

    /// Its name, as the configuration has it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    /// The one that an earlier agent may have used.
    pub(super) const fn other(self) -> Self {
        match self {
            Self::Tcx => Self::Clsact,
            Self::Clsact => Self::Tcx,
        }
    }

    /// Lets go of a place; one that is not held is let go of already.
    pub(super) fn let_go(self, options: &Options, place: Place) -> Result<(), SysError> {
        match self {
            Self::Tcx => unlink(&place.pin(options)),
            Self::Clsact => filter::let_go(options, place).map(drop),
        }
    }

    /// What holds a place, as the kernel says.
    pub(super) fn holder(self, options: &Options, place: Place) -> Result<LinkInfo, SysError> {
        match self {
            Self::Tcx => {
                let link = sys::open_pin(&place.pin(options))?;
                sys::link_info(link.as_fd(), place.hook.name)
            }
            Self::Clsact => filter::holder(place),
        }
    }

    /// Interfaces at which a program of this hook, or of another hook of the same pods, was left.
    pub(super) fn held(
        self,
        options: &Options,
        hook: Hook,
    ) -> Result<BTreeSet<u32>, DatapathError> {
        match self {
            Self::Tcx => pinned(options, hook),
            Self::Clsact => Ok(filter::held(options, hook)?),
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
    pub(in crate::datapath) fn hold(
        &mut self,
        place: Place,
        replace: bool,
    ) -> Result<(), SysError> {
        match self.chain {
            Chain::Tcx => {
                let target = sys::Target::Interface(place.ifindex);
                let pin = place.pin(&self.options);
                self.ensure(place.hook, target, &pin, replace)
            }
            Chain::Clsact => {
                let Some(program) = self.program(place.hook) else { return Ok(()) };
                let stood = filter::rank(place, program.id)? == Some(0);
                filter::hold(&self.options, place, program, replace)?;
                let known = !self.filters.insert((place.hook.name, place.ifindex));
                if known && !stood {
                    *self.repairs.entry(place.hook.name).or_default() += 1;
                }
                Ok(())
            }
        }
    }

    /// Lets go of a place; one that is not held is let go of already.
    pub(super) fn let_go(&mut self, place: Place) -> Result<(), SysError> {
        self.descriptors.remove(&place.pin(&self.options));
        self.filters.remove(&(place.hook.name, place.ifindex));
        self.chain.let_go(&self.options, place)
    }

    /// Lets go of what an earlier agent put at interfaces in the other way, wherever this one holds
    /// the place by now or nothing shall hold it: never before.
    pub(super) fn let_go_other(
        &self,
        hook: Hook,
        keep: &BTreeSet<u32>,
    ) -> Result<(), DatapathError> {
        let other = self.chain.other();
        for ifindex in other.held(&self.options, hook)?.difference(keep) {
            other.let_go(&self.options, Place { hook, ifindex: *ifindex })?;
        }
        Ok(())
    }

    /// How many programs of others run before this agent's at a place.
    pub(in crate::datapath) fn ahead(&self, place: Place) -> Result<usize, SysError> {
        let Place { hook, ifindex } = place;
        match self.chain {
            Chain::Tcx => {
                let target = sys::Target::Interface(ifindex);
                let chain = sys::probe::query(target, hook.attach, hook.name)?.programs;
                let own = chain.iter().position(|program| self.is_ours(hook, *program));
                Ok(own.unwrap_or(chain.len()))
            }
            Chain::Clsact => {
                let ours = self.program(hook).map_or(0, |program| program.id);
                Ok(filter::rank(place, ours)?.unwrap_or_default())
            }
        }
    }

    /// Takes the head of the chain again. A second copy of the program goes there first, because a
    /// chain takes each program once; the one behind goes after it.
    ///
    /// # Errors
    /// When the second copy cannot be loaded or linked; the first one stays where it is.
    pub(in crate::datapath) fn overtake(&mut self, place: Place) -> Result<(), DatapathError> {
        let Place { hook, ifindex } = place;
        if self.chain == Chain::Clsact {
            // Holding a place puts the filter before others.
            return Ok(self.hold(place, false)?);
        }
        let pin = place.pin(&self.options);
        let runs = self.holder(place)?.program;
        let behind = sys::open_pin(&pin)?;
        let of_hook = |program: &&Program| program.hook.name == hook.name && program.id != runs;
        if !self.programs.iter().chain(&self.spares).any(|program| of_hook(&program)) {
            self.spares.push(load_again(&self.options, hook)?);
        }
        let other = self.programs.iter().chain(&self.spares).find(of_hook);
        let other = other.ok_or_else(|| DatapathError::Missing { what: hook.name.to_owned() })?;
        let target = sys::Target::Interface(ifindex);
        let link = sys::create_link(other.fd.as_fd(), target, hook.attach, hook.name)?;
        pin_over(&link, &pin)?;
        self.descriptors.insert(pin, link);
        *self.repairs.entry(hook.name).or_default() += 1;
        Ok(sys::detach_link(behind.as_fd(), hook.name)?)
    }

    /// What holds a place, as the kernel says.
    pub(in crate::datapath) fn holder(&self, place: Place) -> Result<LinkInfo, SysError> {
        self.chain.holder(&self.options, place)
    }

    /// Interfaces at which one of the agent's programs was left, by this agent or an earlier one:
    /// the kernel's truth, not this agent's memory.
    pub(in crate::datapath) fn held(&self, hook: Hook) -> Result<BTreeSet<u32>, DatapathError> {
        self.chain.held(&self.options, hook)
    }
}

/// Interfaces at which an earlier agent left every one of these hooks alive, in either way.
pub(super) fn alive(options: &Options, hooks: [Hook; 2]) -> BTreeSet<u32> {
    let [first, _] = hooks;
    let alive = |chain: Chain| {
        let held = chain.held(options, first).unwrap_or_default();
        held.into_iter().filter(move |ifindex| {
            hooks.into_iter().all(|hook| {
                let found = chain.holder(options, Place { hook, ifindex: *ifindex });
                found.is_ok_and(|info| info.target == u64::from(*ifindex))
            })
        })
    };
    alive(Chain::Tcx).chain(alive(Chain::Clsact)).collect()
}

/// Interfaces with a pinned link of this hook, or of another hook of the same pods.
fn pinned(options: &Options, hook: Hook) -> Result<BTreeSet<u32>, DatapathError> {
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
