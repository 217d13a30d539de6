//! Names of labs, and the removal of what a killed run left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{cgroup, netns};

/// Prefix of every name.
const FAMILY: &str = "egress-lab-";
/// Directories of labs.
const DIRECTORY: &str = "/run";

/// A fresh name: `egress-lab-<pid>-<number>`.
pub fn fresh_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{FAMILY}{}-{number}", std::process::id())
}

/// The directory of a lab: manifests, sockets, logs and its own bpffs.
pub fn directory(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Removes namespaces, cgroups, mounts and directories of labs whose process is gone. Their
/// processes went with them: each was told to die with its parent.
pub fn sweep() {
    for name in leftovers(netns::DIRECTORY) {
        let _ = netns::ip(&["netns", "delete", &name]);
    }
    if let Ok(mount_point) = cgroup::mount_point() {
        for name in leftovers(mount_point) {
            if let Ok(mount_point) = cgroup::mount_point() {
                cgroup::remove(&mount_point.join(name));
            }
        }
    }
    for name in leftovers(DIRECTORY) {
        remove_directory(&directory(&name));
    }
}

/// Unmounts the lab's bpffs, which frees whatever was pinned in it, and removes its directory.
pub fn remove_directory(path: &Path) {
    let _ = nix::mount::umount2(&path.join("bpffs"), nix::mount::MntFlags::MNT_DETACH);
    let _ = fs::remove_dir_all(path);
}

/// Entries of `directory` that carry the id of a process that is gone.
fn leftovers(directory: impl AsRef<Path>) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| owner(name).is_some_and(is_gone)).collect()
}

/// The process id in the name of something a lab made.
fn owner(name: &str) -> Option<u32> {
    let (pid, _) = name.strip_prefix(FAMILY)?.split_once('-')?;
    pid.parse().ok()
}

fn is_gone(pid: u32) -> bool {
    !Path::new("/proc").join(pid.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_labs_are_swept() {
        assert_eq!(owner("egress-lab-17-0"), Some(17));
        assert_eq!(owner("egress-lab-17-0-node"), Some(17));
        assert_eq!(owner("egress-lab-x-0"), None);
        assert_eq!(owner("someone-else"), None);
        assert!(!is_gone(std::process::id()));
        assert_ne!(fresh_name(), fresh_name());
    }
}
