//! The hooks at `kubepods`, which every pod's cgroup inherits.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Attached;
use crate::datapath::load::{CGROUP_HOOKS, PEER_HOOKS};
use crate::datapath::{DatapathError, SysError, sys};

impl Attached {
    /// Links every hook at `kubepods`. Without the peer hooks nothing is redirected, and the rest
    /// holds.
    ///
    /// # Errors
    /// When `kubepods` cannot be opened or one of the other hooks cannot be linked.
    pub(super) fn link_cgroup(&mut self) -> Result<(), DatapathError> {
        let failed =
            |source| SysError { call: "open", object: self.kubepods.display().to_string(), source };
        let directory = fs::File::open(&self.kubepods).map_err(failed)?;
        let id = directory.metadata().map_err(failed)?.ino();
        for hook in CGROUP_HOOKS {
            let target = sys::Target::Cgroup { directory: directory.as_fd(), id };
            self.links.ensure(hook, target, &self.links.options.link_pin(hook.name), true)?;
        }
        for hook in PEER_HOOKS {
            let target = sys::Target::Cgroup { directory: directory.as_fd(), id };
            let ensured =
                self.links.ensure(hook, target, &self.links.options.link_pin(hook.name), true);
            if let Err(error) = ensured
                && self.no_redirect.is_none()
            {
                self.no_redirect = Some(error.to_string());
            }
        }
        Ok(())
    }
}

/// Ids of the cgroups that sockets are remembered by: those one and two levels below `kubepods`.
/// What vanishes meanwhile is gone.
pub(super) fn cgroups(kubepods: &Path) -> std::io::Result<BTreeSet<u64>> {
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
