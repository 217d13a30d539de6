//! One link: adopted where an earlier agent left it, created where it is missing, its program
//! replaced in place. Never detach-then-attach.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::libc;

use super::chain::Chain;
use crate::datapath::load::{Hook, Program, pinned_program};
use crate::datapath::{DatapathError, Options, SysError, sys, uninstall};

/// Suffix of the pin that is about to be renamed over another; bpffs refuses names with a dot.
pub(in crate::datapath) const FRESH: &str = "-new";

/// This agent's programs and the links that run them.
pub(in crate::datapath) struct Links {
    pub(in crate::datapath) options: Options,
    pub(in crate::datapath) programs: Vec<Program>,
    /// How this kernel takes programs at interfaces.
    pub(in crate::datapath) chain: Chain,
    /// Second copies of programs, loaded when a place was to be taken before it was given up.
    pub(super) spares: Vec<Program>,
    /// Every link this agent holds, by its pin: a pin that somebody deletes lets go of nothing.
    pub(super) descriptors: BTreeMap<PathBuf, OwnedFd>,
    /// Filters of clsact this agent has put, by hook and interface.
    pub(super) filters: BTreeSet<(&'static str, u32)>,
    /// How often a link this agent had made or adopted was found otherwise and mended, by hook.
    pub(in crate::datapath) repairs: BTreeMap<&'static str, u64>,
}

impl Links {
    pub(super) fn new(options: Options, programs: Vec<Program>, chain: Chain) -> Self {
        let (spares, descriptors, repairs) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { options, programs, chain, spares, descriptors, filters: BTreeSet::new(), repairs }
    }

    pub(in crate::datapath) fn program(&self, hook: Hook) -> Option<&Program> {
        self.programs.iter().find(|program| program.hook.name == hook.name)
    }

    /// Whether a program is one that this agent loaded for the hook.
    pub(in crate::datapath) fn is_ours(&self, hook: Hook, program: u32) -> bool {
        let mut loaded = self.programs.iter().chain(&self.spares);
        loaded.any(|ours| ours.hook.name == hook.name && ours.id == program)
    }

    /// A live link at `pin` that runs this agent's program. With `replace`, one that runs another
    /// program gets this agent's. Whatever this agent had there and has to mend is counted.
    pub(super) fn ensure(
        &mut self,
        hook: Hook,
        target: sys::Target<'_>,
        pin: &Path,
        replace: bool,
    ) -> Result<(), SysError> {
        let Some(program) = self.program(hook) else {
            return Ok(());
        };
        let what = pin.display().to_string();
        let pinned = match sys::open_pin(pin) {
            Ok(link) => Some(link),
            Err(error) if error.errno() == libc::ENOENT => None,
            Err(error) => return Err(error),
        };
        let is_pinned = pinned.is_some();
        let known = self.descriptors.contains_key(pin);
        let mut mended = known && !is_pinned;
        // Where the pin is gone, the descriptor still holds.
        let link = pinned.or_else(|| self.descriptors.get(pin)?.try_clone().ok());
        let mut adopted = None;
        if let Some(link) = link {
            match self.adopt(program, hook, &link, target, &what, replace)? {
                Adopted::Other => {}
                Adopted::As { replaced } => {
                    mended |= replaced;
                    if !is_pinned {
                        sys::pin(link.as_fd(), pin)?;
                    }
                    adopted = Some(link);
                }
            }
        }
        let link = match adopted {
            Some(link) => link,
            // What is pinned is on something that is gone, or on another cgroup than the one pods
            // are in now. It goes when its successor stands.
            None => {
                mended = true;
                let link = sys::create_link(program.fd.as_fd(), target, hook.attach, &what)?;
                pin_over(&link, pin)?;
                link
            }
        };
        self.descriptors.insert(pin.to_owned(), link);
        if known && mended {
            *self.repairs.entry(hook.name).or_default() += 1;
        }
        Ok(())
    }

    /// Gives a pinned link this agent's program, if it is on its target.
    fn adopt(
        &self,
        program: &Program,
        hook: Hook,
        link: &OwnedFd,
        target: sys::Target<'_>,
        what: &str,
        replace: bool,
    ) -> Result<Adopted, SysError> {
        let info = sys::link_info(link.as_fd(), what)?;
        if info.target != target.id() {
            return Ok(Adopted::Other);
        }
        if self.is_ours(hook, info.program) || !replace {
            return Ok(Adopted::As { replaced: false });
        }
        let new = program.fd.as_fd();
        let old = pinned_program(&self.options, program.hook.name, info.program);
        match sys::update_link(link.as_fd(), new, old.as_ref().map(AsFd::as_fd), what) {
            Ok(()) => Ok(Adopted::As { replaced: true }),
            Err(error) if error.errno() == libc::ENOLINK => Ok(Adopted::Other),
            // An earlier agent died between its links and its pins, or somebody updated the link.
            // It is ours all the same, because the directory it is pinned in is.
            Err(error) if error.errno() == libc::EPERM => {
                tracing::warn!(hook = program.hook.name, "link ran an unexpected program");
                sys::update_link(link.as_fd(), new, None, what)?;
                Ok(Adopted::As { replaced: true })
            }
            Err(error) => Err(error),
        }
    }

    /// Lets go of hooks at `kubepods` that another version had and this one has not: they would
    /// judge by maps that nobody fills any more.
    pub(super) fn retire(&self) -> Result<Vec<String>, DatapathError> {
        let mut retired = Vec::new();
        for pin in uninstall::foreign_hooks(&self.options)? {
            let what = pin.display().to_string();
            sys::detach_link(sys::open_pin(&pin)?.as_fd(), &what)?;
            unlink(&pin)?;
            retired.push(format!("a hook of another version was let go of: {what}"));
        }
        Ok(retired)
    }

    /// Pins the programs under their names, each replaced by a rename, for the next agent's
    /// compare-and-swap. In a read-only volume the old pins stay, and the next agent finds links
    /// that run an unexpected program.
    pub(super) fn keep_programs(&self) -> Result<(), SysError> {
        match self.pin_programs() {
            Err(error) if error.errno() == libc::EROFS => {
                tracing::warn!(
                    error = error.to_string(),
                    "bpffs is read-only: programs not pinned"
                );
                Ok(())
            }
            pinned => pinned,
        }
    }

    fn pin_programs(&self) -> Result<(), SysError> {
        for program in &self.programs {
            let path = self.options.program_pin(program.hook.name);
            pin_over(&program.fd, &path)?;
        }
        Ok(())
    }
}

/// What became of a link that was there already.
enum Adopted {
    /// It is on its target and runs this agent's program.
    As {
        /// Only since now.
        replaced: bool,
    },
    /// It is on something else, or on nothing any more.
    Other,
}

/// Pins a program or a link in the place of what is pinned there, if anything is.
pub(super) fn pin_over(object: &OwnedFd, pin: &Path) -> Result<(), SysError> {
    let mut fresh = pin.as_os_str().to_owned();
    fresh.push(FRESH);
    let fresh = PathBuf::from(fresh);
    unlink(&fresh)?;
    sys::pin(object.as_fd(), &fresh)?;
    fs::rename(&fresh, pin).map_err(|source| SysError {
        call: "rename",
        object: pin.display().to_string(),
        source,
    })
}

/// Removes a pin; one that is not there is removed already.
pub(in crate::datapath) fn unlink(pin: &Path) -> Result<(), SysError> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(SysError { call: "unlink", object: pin.display().to_string(), source })
        }
        _ => Ok(()),
    }
}
