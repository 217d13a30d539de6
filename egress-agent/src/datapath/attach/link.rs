//! One link: adopted where an earlier agent left it, created where it is missing, its program
//! replaced in place. Never detach-then-attach.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::libc;

use super::chain::Chain;
use crate::datapath::load::{Hook, Program, pinned_program};
use crate::datapath::{Options, SysError, sys};

/// This agent's programs and the pins of the links that run them.
pub(in crate::datapath) struct Links {
    pub(in crate::datapath) options: Options,
    pub(in crate::datapath) programs: Vec<Program>,
    /// How this kernel takes programs at interfaces.
    pub(super) chain: Chain,
}

impl Links {
    pub(in crate::datapath) fn program(&self, hook: Hook) -> Option<&Program> {
        self.programs.iter().find(|program| program.hook.name == hook.name)
    }

    /// A live link at `pin` that runs this agent's program.
    pub(super) fn ensure(
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

/// Removes a pin; one that is not there is removed already.
pub(in crate::datapath) fn unlink(pin: &Path) -> Result<(), SysError> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(SysError { call: "unlink", object: pin.display().to_string(), source })
        }
        _ => Ok(()),
    }
}
