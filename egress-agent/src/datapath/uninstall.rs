//! Letting go of everything: links first, so that traffic flows before anything else is gone.
//!
//! Invariant: only pins that carry one of this agent's names go, and only from a bpffs. A wrong
//! `--bpffs` must cost neither files nor another tool's programs.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::attach::{clear_filters, unlink};
use super::load::{CGROUP_HOOKS, INTERFACE_HOOKS, PEER_HOOKS, PINNED, UPLINK_HOOK};
use super::{DatapathError, Options, sys};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Removed {
    /// Links: each was a hook that held traffic.
    pub links: usize,
    /// Programs and maps.
    pub objects: usize,
    /// What else was found in the agent's directory, and left alone.
    pub left: Vec<PathBuf>,
}

/// Removes every pin of the agent's, of any schema, and the directories that are then empty.
/// Idempotent.
///
/// # Errors
/// When the directory is not in a bpffs, or a pin or a directory cannot be removed.
pub fn uninstall(options: &Options) -> Result<Removed, DatapathError> {
    let root = &options.bpffs;
    let mut removed = Removed::default();
    if !root.exists() {
        // Filters are held by their interfaces: they outlive a directory that somebody removed.
        removed.links += clear_filters(options)?;
        return Ok(removed);
    }
    let found = statfs(root).map_err(io::Error::from);
    if found.map_err(|source| pins(root, root, source))?.filesystem_type() != BPF_FS_MAGIC {
        return Err(pins(root, root, io::Error::other("not a bpffs; nothing was removed")));
    }

    removed.links += clear_filters(options)?;
    let links = root.join("links");
    removed.links += detach(&links, root, &is_hook)?;
    removed.links += detach(&options.interface_pins(), root, &is_interface_link)?;
    removed.links += detach(&options.uplink_pins(), root, &|name| name.parse::<u32>().is_ok())?;
    for schema in list(root, root)?.into_iter().filter(|path| is_schema(name(path))) {
        let program = |name: &str| is_hook(name.strip_suffix("-new").unwrap_or(name));
        removed.objects += clear(&schema.join("progs"), root, &program)?;
        removed.objects += clear(&schema.join("maps"), root, &|name| PINNED.contains(&name))?;
        for directory in [schema.join("progs"), schema.join("maps"), schema] {
            leave(&directory, root, &mut removed)?;
        }
    }
    let marks = options.qdisc_marks();
    for mark in list(&marks, root)? {
        leave(&mark, root, &mut removed)?;
    }
    for directory in [options.interface_pins(), options.uplink_pins(), marks, links, root.clone()] {
        leave(&directory, root, &mut removed)?;
    }
    Ok(removed)
}

fn is_hook(name: &str) -> bool {
    let hooks = CGROUP_HOOKS.iter().chain(&PEER_HOOKS).chain(&INTERFACE_HOOKS);
    hooks.chain([&UPLINK_HOOK]).any(|hook| hook.name == name)
}

fn is_interface_link(name: &str) -> bool {
    name.split_once('-').is_some_and(|(ifindex, way)| {
        ifindex.parse::<u32>().is_ok() && matches!(way, "egress" | "ingress")
    })
}

fn is_schema(name: &str) -> bool {
    name.strip_prefix('s').is_some_and(|number| number.parse::<u32>().is_ok())
}

/// [`clear`] for links, each told to let go first: traffic flows when this returns.
fn detach(
    directory: &Path,
    root: &Path,
    ours: &dyn Fn(&str) -> bool,
) -> Result<usize, DatapathError> {
    for path in list(directory, root)?.into_iter().filter(|path| ours(name(path))) {
        let link = sys::open_pin(&path)?;
        sys::detach_link(link.as_fd(), &path.display().to_string())?;
    }
    clear(directory, root, ours)
}

/// Removes the pins of a directory whose names are ours; returns how many there were.
fn clear(
    directory: &Path,
    root: &Path,
    ours: &dyn Fn(&str) -> bool,
) -> Result<usize, DatapathError> {
    let mut count = 0;
    for path in list(directory, root)?.into_iter().filter(|path| ours(name(path))) {
        unlink(&path)?;
        count += 1;
    }
    Ok(count)
}

/// Removes a directory if nothing foreign is in it; otherwise says what is.
fn leave(directory: &Path, root: &Path, removed: &mut Removed) -> Result<(), DatapathError> {
    let foreign: Vec<PathBuf> =
        list(directory, root)?.into_iter().filter(|path| !path.is_dir()).collect();
    removed.left.extend(foreign);
    match fs::remove_dir(directory) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(pins(directory, root, error))
        }
        _ => Ok(()),
    }
}

/// What is in a directory, in order; nothing where there is none.
fn list(directory: &Path, root: &Path) -> Result<Vec<PathBuf>, DatapathError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| pins(directory, root, source))?,
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| pins(directory, root, source))?;
    paths.sort();
    Ok(paths)
}

/// The last component; one that is not UTF-8 is not ours.
fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn pins(path: &Path, root: &Path, source: io::Error) -> DatapathError {
    DatapathError::Pins { path: path.to_owned(), root: root.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::super::Way;
    use super::*;

    #[test]
    fn a_directory_that_is_no_bpffs_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("links").join("wall");
        fs::create_dir_all(root.path().join("links")).unwrap();
        fs::write(&file, "precious").unwrap();
        let bpffs = root.path().to_owned();
        let error = uninstall(&Options {
            bpffs,
            kernel_log: false,
            capacity: None,
            attach: Way::default(),
        })
        .unwrap_err();
        assert!(error.to_string().contains("nothing was removed"), "{error}");
        assert!(file.exists());
    }

    #[test]
    fn only_our_names_are_ours() {
        assert!(is_hook("wall") && is_hook("getpeername6") && !is_hook("wall2") && !is_hook(""));
        assert!(is_interface_link("12-egress") && is_interface_link("12-ingress"));
        assert!(!is_interface_link("eth0-egress") && !is_interface_link("12-other"));
        assert!(is_schema("s1") && !is_schema("sys") && !is_schema("1"));
    }
}
