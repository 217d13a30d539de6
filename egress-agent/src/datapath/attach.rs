//! Links: adopted where an earlier agent left them, created where they are missing, their
//! programs replaced in place. Never detach-then-attach.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use egress_common::state::Config;
use nix::libc;

use super::diff::{diff, tightened};
use super::load::{
    CGROUP_HOOKS, Hook, INTERFACE_HOOKS, Loaded, Logger, PEER_HOOKS, Program, UPLINK_HOOK,
    pinned_program,
};
use super::maps::Maps;
use super::{AnswerRing, CounterReader, DatapathError, EventRing, Options, SysError, sys};
use crate::policy::Tables;

/// What an apply did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Applied {
    /// Generation the kernel runs now.
    pub generation: u32,
    /// Entries added or changed.
    pub put: usize,
    /// Entries removed.
    pub removed: usize,
    /// Removals and relaxations withheld because the snapshot was incomplete.
    pub withheld: usize,
    /// Interfaces newly attached.
    pub attached: usize,
    /// Interfaces let go.
    pub detached: usize,
    /// What could not be done for single interfaces, and why.
    pub warnings: Vec<String>,
}

/// A datapath that holds traffic. Dropping it lets go of nothing: the pins do the holding.
pub struct Attached {
    pub(super) options: Options,
    pub(super) kubepods: PathBuf,
    maps: Maps,
    programs: Vec<Program>,
    events: Option<EventRing>,
    answers: Option<AnswerRing>,
    logger: Option<Logger>,
    has_tcx: bool,
    no_redirect: Option<String>,
}

impl Loaded {
    /// Interfaces that an earlier agent left with a live boundary, of whichever version.
    pub fn held(&self) -> BTreeSet<u32> {
        let pinned = pinned_interfaces(&self.options, &self.options.interface_pins());
        let lives = |ifindex: &u32| {
            INTERFACE_HOOKS.into_iter().all(|hook| {
                let pin = interface_pin(&self.options, hook, *ifindex);
                let info = sys::open_pin(&pin).and_then(|fd| sys::link_info(fd.as_fd(), hook.name));
                info.is_ok_and(|info| info.target == u64::from(*ifindex))
            })
        };
        pinned.unwrap_or_default().into_iter().filter(lives).collect()
    }

    /// Fills the maps, then adopts or creates every link.
    ///
    /// # Errors
    /// When the policy does not fit or a cgroup link cannot be made. Single interfaces that
    /// cannot be attached are warnings: their pods still stand behind the wall.
    pub fn attach(
        mut self,
        kubepods: &Path,
        tables: &Tables,
        may_remove: bool,
    ) -> Result<(Attached, Applied), DatapathError> {
        let mut applied = write(&mut self.maps, tables, may_remove)?;
        self.maps.beat(crate::clock::boot_clock())?;
        let boundary = self.programs.iter().find(|program| program.hook.name == "pod_egress");
        let has_tcx = boundary.is_some_and(|program| sys::has_tcx(program.fd.as_fd()));
        let mut attached = Attached {
            options: self.options,
            kubepods: kubepods.to_owned(),
            maps: self.maps,
            programs: self.programs,
            events: Some(self.events),
            answers: Some(self.answers),
            logger: self.logger,
            has_tcx,
            no_redirect: self.no_redirect,
        };
        attached.link_cgroup()?;
        attached.link_interfaces(true, &mut applied)?;
        attached.keep_programs()?;
        Ok((attached, applied))
    }
}

impl Attached {
    /// Brings the kernel to `tables`.
    ///
    /// # Errors
    /// [`DatapathError::Refused`] when it does not fit, and then nothing has changed; otherwise
    /// a write or link failed half-way, and the next apply finishes it from what is there.
    pub fn apply(&mut self, tables: &Tables, may_remove: bool) -> Result<Applied, DatapathError> {
        let mut applied = write(&mut self.maps, tables, may_remove)?;
        self.link_interfaces(false, &mut applied)?;
        self.maps.sweep_replies(|| cgroups(&self.kubepods))?;
        Ok(applied)
    }

    /// Reads the kernel's tables back.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn actual(&self) -> Result<Tables, DatapathError> {
        self.maps.actual()
    }

    /// A reader of the counters.
    ///
    /// # Errors
    /// When a pinned counter map is gone.
    pub fn reader(&self) -> Result<CounterReader, DatapathError> {
        CounterReader::open(&self.options)
    }

    /// Why connections cannot be redirected on this node, if they cannot.
    pub fn no_redirect(&self) -> Option<&str> {
        self.no_redirect.as_deref()
    }

    /// Entries held and room in each table the agent fills.
    pub fn usage(&self, held: &Tables) -> Vec<(&'static str, usize, usize)> {
        let room = self.maps.capacities();
        vec![
            ("POLICIES", held.policies.len(), room.policies),
            ("PODS", held.pods.len(), room.pods),
            ("INTERFACES", held.interfaces.len(), room.interfaces),
            ("EXACT", held.exact.len(), room.exact),
            ("ADDRESSES", held.addresses.len(), room.addresses),
            ("RANGES", held.ranges.len(), room.ranges),
            ("EXCEPTIONS", held.exceptions.len(), room.exceptions),
            ("REDIRECTS", held.redirects.len(), room.redirects),
        ]
    }

    /// The event ring; `None` the second time.
    pub const fn take_events(&mut self) -> Option<EventRing> {
        self.events.take()
    }

    /// The ring of DNS answers; `None` the second time.
    pub const fn take_answers(&mut self) -> Option<AnswerRing> {
        self.answers.take()
    }

    /// The reader of debug lines, where kernel logging is on; `None` the second time.
    pub const fn take_logger(&mut self) -> Option<Logger> {
        self.logger.take()
    }

    /// Stamps the heartbeat.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn beat(&mut self) -> Result<(), DatapathError> {
        self.maps.beat(crate::clock::boot_clock())
    }

    pub(super) fn program(&self, hook: Hook) -> Option<&Program> {
        self.programs.iter().find(|program| program.hook.name == hook.name)
    }

    fn link_cgroup(&mut self) -> Result<(), DatapathError> {
        let failed =
            |source| SysError { call: "open", object: self.kubepods.display().to_string(), source };
        let directory = fs::File::open(&self.kubepods).map_err(failed)?;
        let id = directory.metadata().map_err(failed)?.ino();
        for hook in CGROUP_HOOKS {
            let target = sys::Target::Cgroup { directory: directory.as_fd(), id };
            self.ensure(hook, target, &self.options.link_pin(hook.name), true)?;
        }
        for hook in PEER_HOOKS {
            let target = sys::Target::Cgroup { directory: directory.as_fd(), id };
            let ensured = self.ensure(hook, target, &self.options.link_pin(hook.name), true);
            if let Err(error) = ensured
                && self.no_redirect.is_none()
            {
                self.no_redirect = Some(error.to_string());
            }
        }
        Ok(())
    }

    /// Attaches every interface the kernel's table holds, entries an incomplete snapshot could
    /// not take away included, and lets go of pinned ones that are no longer in it. With
    /// `replace`, links that exist get this agent's programs.
    fn link_interfaces(&self, replace: bool, applied: &mut Applied) -> Result<(), DatapathError> {
        if !self.has_tcx {
            applied.warnings.push(
                "this kernel has no tcx (Linux 6.6 or a vendor's backport): the boundary at the \
                 pods' interfaces is missing, only the wall and the socket hooks hold"
                    .to_owned(),
            );
            return Ok(());
        }
        let present = pinned_interfaces(&self.options, &self.options.interface_pins())?;
        let wanted = self.maps.interfaces()?;
        for ifindex in &wanted {
            let mut held = true;
            for hook in INTERFACE_HOOKS {
                let pin = interface_pin(&self.options, hook, *ifindex);
                let target = sys::Target::Interface(*ifindex);
                if let Err(error) = self.ensure(hook, target, &pin, replace) {
                    held = false;
                    applied.warnings.push(format!("ifindex {ifindex}: {error}"));
                }
            }
            applied.attached += usize::from(held && !present.contains(ifindex));
        }
        for ifindex in present {
            if !wanted.contains(&ifindex) {
                for hook in INTERFACE_HOOKS {
                    unlink(&interface_pin(&self.options, hook, ifindex))?;
                }
                applied.detached += 1;
            }
        }
        Ok(())
    }

    /// Attaches the node's uplinks and lets go of those that are none any more. Links that exist
    /// get this agent's program. Returns what could not be done, for the operator.
    ///
    /// # Errors
    /// When the pins cannot be read or one that is left over cannot be removed.
    pub fn link_uplinks(&self, uplinks: &BTreeSet<u32>) -> Result<Vec<String>, DatapathError> {
        let pins = self.options.uplink_pins();
        let mut warnings = Vec::new();
        if !self.has_tcx {
            return Ok(warnings);
        }
        for ifindex in uplinks {
            let pin = pins.join(ifindex.to_string());
            let target = sys::Target::Interface(*ifindex);
            if let Err(error) = self.ensure(UPLINK_HOOK, target, &pin, true) {
                warnings.push(format!("uplink with ifindex {ifindex}: {error}"));
            }
        }
        for ifindex in pinned_interfaces(&self.options, &pins)?.difference(uplinks) {
            unlink(&pins.join(ifindex.to_string()))?;
        }
        Ok(warnings)
    }

    /// A live link at `pin` that runs this agent's program.
    fn ensure(
        &self,
        hook: Hook,
        target: sys::Target<'_>,
        pin: &Path,
        replace: bool,
    ) -> Result<(), SysError> {
        let Some(program) = self.program(hook) else {
            return Ok(());
        };
        let what = pin.display().to_string();
        match sys::open_pin(pin) {
            Ok(link) => {
                if self.adopt(program, &link, target, &what, replace)? {
                    return Ok(());
                }
                // The link is on something that is gone, or on another cgroup than the one pods
                // are in now: what it holds is nothing of ours any more.
                unlink(pin)?;
            }
            Err(error) if error.errno() == libc::ENOENT => {}
            Err(error) => return Err(error),
        }
        let link = sys::create_link(program.fd.as_fd(), target, hook.attach, &what)?;
        sys::pin(link.as_fd(), pin)
    }

    /// Gives a pinned link this agent's program; false when the link is not on its target.
    fn adopt(
        &self,
        program: &Program,
        link: &OwnedFd,
        target: sys::Target<'_>,
        what: &str,
        replace: bool,
    ) -> Result<bool, SysError> {
        let info = sys::link_info(link.as_fd(), what)?;
        if info.target != target.id() {
            return Ok(false);
        }
        if info.program == program.id || !replace {
            return Ok(true);
        }
        let new = program.fd.as_fd();
        let old = pinned_program(&self.options, program.hook.name);
        match sys::update_link(link.as_fd(), new, old.as_ref().map(AsFd::as_fd), what) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == libc::ENOLINK => Ok(false),
            // An earlier agent died between its links and its pins. The link is ours all the
            // same, because the directory it is pinned in is.
            Err(error) if error.errno() == libc::EPERM => {
                tracing::warn!(hook = program.hook.name, "link ran an unexpected program");
                sys::update_link(link.as_fd(), new, None, what).map(|()| true)
            }
            Err(error) => Err(error),
        }
    }

    /// Pins the programs under their names, each replaced by a rename, for the next agent's
    /// compare-and-swap.
    fn keep_programs(&self) -> Result<(), SysError> {
        for program in &self.programs {
            let path = self.options.program_pin(program.hook.name);
            // bpffs refuses names with a dot.
            let fresh = self.options.program_pin(&format!("{}-new", program.hook.name));
            unlink(&fresh)?;
            sys::pin(program.fd.as_fd(), &fresh)?;
            fs::rename(&fresh, &path).map_err(|source| SysError {
                call: "rename",
                object: path.display().to_string(),
                source,
            })?;
        }
        Ok(())
    }
}

fn write(maps: &mut Maps, tables: &Tables, may_remove: bool) -> Result<Applied, DatapathError> {
    let actual = maps.actual()?;
    let plan = diff(&actual, tables, may_remove, maps.capacities())?;
    maps.write(&plan)?;
    maps.forget_datagrams(&tightened(&actual, tables))?;
    let Config { generation, .. } = plan.config.unwrap_or(actual.config);
    Ok(Applied {
        generation,
        put: plan.puts(),
        removed: plan.removals(),
        withheld: plan.withheld,
        ..Applied::default()
    })
}

pub(super) fn interface_pin(options: &Options, hook: Hook, ifindex: u32) -> PathBuf {
    let way = if hook.name == "pod_egress" { "egress" } else { "ingress" };
    options.interface_pins().join(format!("{ifindex}-{way}"))
}

/// Interfaces with a pinned link: the kernel's truth, not this agent's memory.
pub(super) fn pinned_interfaces(
    options: &Options,
    path: &Path,
) -> Result<BTreeSet<u32>, DatapathError> {
    let pins =
        |source| DatapathError::Pins { path: path.to_owned(), root: options.bpffs.clone(), source };
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(path).map_err(pins)? {
        let name = entry.map_err(pins)?.file_name();
        found.extend(name.to_str().and_then(|name| name.split('-').next()?.parse::<u32>().ok()));
    }
    Ok(found)
}

/// Ids of the cgroups that sockets are remembered by: those one and two levels below `kubepods`.
/// What vanishes meanwhile is gone.
fn cgroups(kubepods: &Path) -> std::io::Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    let mut parents = vec![kubepods.to_owned()];
    for level in 1..=2 {
        let mut children = Vec::new();
        for parent in parents {
            let entries = match fs::read_dir(&parent) {
                Ok(entries) => entries,
                Err(_) if level > 1 => continue,
                Err(error) => return Err(error),
            };
            for entry in entries.flatten() {
                if let Ok(metadata) = entry.metadata()
                    && metadata.is_dir()
                {
                    found.insert(metadata.ino());
                    children.push(entry.path());
                }
            }
        }
        parents = children;
    }
    Ok(found)
}

/// Removes a pin; one that is not there is removed already.
pub(super) fn unlink(pin: &Path) -> Result<(), SysError> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(SysError { call: "unlink", object: pin.display().to_string(), source })
        }
        _ => Ok(()),
    }
}
