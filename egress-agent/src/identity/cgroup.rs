//! Pod cgroups: found by the UID in their name under `kubepods`, seen at their mkdir.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::sync::Notify;

use super::IdentityError;
use crate::policy::OwnPod;
use crate::supervise::Shutdown;

/// The cgroup every pod of the node lives under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubepods {
    /// Its directory.
    pub path: PathBuf,
    /// Its absolute level: what `bpf_get_current_ancestor_cgroup_id` counts, root 0.
    pub level: u8,
}

/// Inode of the root of the cgroup v2 hierarchy, whose id is 1.
const ROOT_INODE: u64 = 1;

/// Names of the cgroup, by driver: systemd, cgroupfs, and a kubelet inside a container.
const NAMES: [&str; 4] =
    ["kubepods.slice", "kubepods", "kubelet.slice/kubelet-kubepods.slice", "kubelet/kubepods"];

impl Kubepods {
    /// Finds it below `root`, or below the mounted cgroup v2 hierarchy.
    ///
    /// # Errors
    /// When there is no such hierarchy or no such cgroup.
    pub fn find(root: Option<&Path>) -> Result<Self, IdentityError> {
        let root = match root {
            Some(root) => root.to_owned(),
            None => mounted().ok_or(IdentityError::NoCgroup2)?,
        };
        let path = NAMES.iter().map(|name| root.join(name)).find(|path| path.is_dir());
        let path = path.ok_or(IdentityError::NoKubepods { root })?;
        let level = level(&path)?;
        Ok(Self { path, level })
    }

    /// Cgroup id of every pod, by the UID in the directory's name (dashes restored).
    ///
    /// # Errors
    /// When `kubepods` itself cannot be read; a pod that vanishes meanwhile is skipped.
    pub fn pods(&self) -> Result<BTreeMap<String, u64>, IdentityError> {
        Ok(self.directories()?.into_iter().map(|(uid, cgroup, _)| (uid, cgroup)).collect())
    }

    /// Its cgroup id, which changes when the kubelet makes it anew.
    ///
    /// # Errors
    /// When it is gone.
    pub fn id(&self) -> Result<u64, IdentityError> {
        let failed = |source| IdentityError::Cgroup { path: self.path.clone(), source };
        Ok(fs::metadata(&self.path).map_err(failed)?.ino())
    }

    /// The pod this process runs in, if it does in one: no other lists this process's number,
    /// because the kernel gives each reader the numbers of its own namespace and zero for others.
    ///
    /// # Errors
    /// As [`pods`](Self::pods).
    pub fn own(&self) -> Result<Option<OwnPod>, IdentityError> {
        let process = std::process::id().to_string();
        let mut pods = self.directories()?.into_iter();
        let own = pods.find(|(_, _, path)| holds(path, &process));
        Ok(own.map(|(uid, cgroup, _)| OwnPod { uid, cgroup }))
    }

    /// UID, cgroup id and directory of every pod.
    fn directories(&self) -> Result<Vec<(String, u64, PathBuf)>, IdentityError> {
        let mut pods = Vec::new();
        for parent in self.parents() {
            let entries = match fs::read_dir(&parent) {
                Ok(entries) => entries,
                Err(_) if parent != self.path => continue,
                Err(source) => return Err(IdentityError::Cgroup { path: parent, source }),
            };
            for entry in entries.flatten() {
                let uid = entry.file_name().to_str().and_then(pod_uid);
                if let (Some(uid), Ok(metadata)) = (uid, entry.metadata()) {
                    pods.push((uid, metadata.ino(), entry.path()));
                }
            }
        }
        Ok(pods)
    }

    /// `kubepods` and its classes of service: pods are direct children of these.
    fn parents(&self) -> Vec<PathBuf> {
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let mut parents = vec![self.path.clone()];
        for class in ["burstable", "besteffort"] {
            let child = match name.strip_suffix(".slice") {
                Some(stem) => format!("{stem}-{class}.slice"),
                None => class.to_owned(),
            };
            parents.push(self.path.join(child));
        }
        parents
    }
}

/// A container's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// UID in the name of its pod's cgroup.
    pub pod: String,
    /// The id that the container runtime gave it.
    pub id: String,
}

/// Cgroups below a container's that are looked at: systemd in a container makes some.
const NESTED: u32 = 3;

impl Kubepods {
    /// The container of every cgroup below a pod's, by the cgroup's id. A pod that goes meanwhile is
    /// left out.
    ///
    /// # Errors
    /// When `kubepods` cannot be read.
    pub fn containers(&self) -> Result<BTreeMap<u64, Container>, IdentityError> {
        let mut found = BTreeMap::new();
        for (pod, _, path) in self.directories()? {
            for (name, path) in subdirectories(&path) {
                let container = Container { pod: pod.clone(), id: container_id(&name).to_owned() };
                enter(&path, &container, NESTED, &mut found);
            }
        }
        Ok(found)
    }
}

/// Takes in a cgroup of the container and those below it.
fn enter(path: &Path, container: &Container, deeper: u32, found: &mut BTreeMap<u64, Container>) {
    let Ok(metadata) = fs::metadata(path) else {
        return;
    };
    found.insert(metadata.ino(), container.clone());
    if deeper > 0 {
        for (_, below) in subdirectories(path) {
            enter(&below, container, deeper - 1, found);
        }
    }
}

fn subdirectories(path: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let entries = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    entries
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect()
}

/// The id in a container's directory: `cri-containerd-ID.scope` and the like (systemd), or `ID`.
fn container_id(name: &str) -> &str {
    let stem = name.strip_suffix(".scope").unwrap_or(name);
    match stem.rsplit_once('-') {
        Some((_, id)) if id.len() == 64 => id,
        _ => stem,
    }
}

/// Whether a process is in this cgroup or one below it.
fn holds(cgroup: &Path, process: &str) -> bool {
    let listed = fs::read_to_string(cgroup.join("cgroup.procs"));
    if listed.is_ok_and(|text| text.lines().any(|line| line == process)) {
        return true;
    }
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let mut below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below.any(|entry| holds(&entry.path(), process))
}

/// Where cgroup v2 is mounted: alone at `/sys/fs/cgroup`, or beside v1.
fn mounted() -> Option<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.join("cgroup.controllers").is_file())
}

/// Levels between the hierarchy's root and `path`.
///
/// The kernel counts from the real root. Inside a cgroup namespace the mounted root is not that
/// one, and the walk would go on into the file system around it, where other roots have inode 1.
fn level(path: &Path) -> Result<u8, IdentityError> {
    let failed = |source| IdentityError::Cgroup { path: path.to_owned(), source };
    let path = fs::canonicalize(path).map_err(failed)?;
    let mut upward = Vec::new();
    for ancestor in path.ancestors() {
        let metadata = fs::metadata(ancestor)
            .map_err(|source| IdentityError::Cgroup { path: ancestor.to_owned(), source })?;
        upward.push((metadata.dev(), metadata.ino()));
    }
    steps_to_root(&upward).ok_or(IdentityError::CgroupNamespace { path })
}

/// Steps from the first of these (device, inode) pairs up to the root of its own hierarchy.
fn steps_to_root(upward: &[(u64, u64)]) -> Option<u8> {
    let (device, _) = upward.first()?;
    let hierarchy = upward.iter().take_while(|(other, _)| other == device);
    (0..).zip(hierarchy).find_map(|(level, (_, inode))| (*inode == ROOT_INODE).then_some(level))
}

/// The pod UID in a cgroup directory's name: `…-pod<UID>.slice` with underscores (systemd), or
/// `pod<UID>` (cgroupfs). A UID is a UUID, or the 32 digits of a static pod's configuration.
fn pod_uid(name: &str) -> Option<String> {
    let text = match name.strip_suffix(".slice") {
        Some(stem) => stem.rsplit_once("-pod")?.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    let digits = text.chars().filter(char::is_ascii_hexdigit).count();
    let dashes = text.chars().filter(|c| *c == '-').count();
    let uid = digits == 32 && digits + dashes == text.len() && (dashes == 0 || dashes == 4);
    uid.then_some(text)
}

/// Wakes `wake` whenever a pod's cgroup comes or goes. A queue overflow wakes too: whoever is
/// woken scans again, and never counts events.
///
/// # Errors
/// When `kubepods` cannot be watched.
pub async fn watch(
    kubepods: Kubepods,
    wake: Arc<Notify>,
    mut shutdown: Shutdown,
) -> Result<(), IdentityError> {
    let failed = |source| IdentityError::Cgroup { path: kubepods.path.clone(), source };
    let inotify = Inotify::init().map_err(failed)?;
    let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR;
    let mut watches = inotify.watches();
    watches.add(&kubepods.path, mask).map_err(failed)?;
    let mut buffer = [0; 4096];
    let mut events = inotify.into_event_stream(&mut buffer).map_err(failed)?;
    loop {
        // A class of service may appear after us; adding a watch again changes nothing.
        for parent in kubepods.parents() {
            if parent != kubepods.path
                && let Err(error) = watches.add(&parent, mask)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                return Err(failed(error));
            }
        }
        wake.notify_one();
        tokio::select! {
            () = shutdown.requested() => return Ok(()),
            event = events.next() => match event {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(failed(error)),
                None => return Ok(()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    #[test]
    fn both_drivers_name_their_pods() {
        let underscored = UUID.replace('-', "_");
        for name in [
            format!("pod{UUID}"),
            format!("kubepods-pod{underscored}.slice"),
            format!("kubepods-burstable-pod{underscored}.slice"),
            format!("kubelet-kubepods-besteffort-pod{underscored}.slice"),
        ] {
            assert_eq!(pod_uid(&name).as_deref(), Some(UUID), "{name}");
        }
        let hash = "d41d8cd98f00b204e9800998ecf8427e";
        assert_eq!(pod_uid(&format!("kubepods-pod{hash}.slice")).as_deref(), Some(hash));
    }

    #[test]
    fn containers_are_named_by_both_drivers() {
        let id = "a".repeat(64);
        for name in [format!("cri-containerd-{id}.scope"), format!("crio-{id}.scope"), id.clone()] {
            assert_eq!(container_id(&name), id, "{name}");
        }
        assert_eq!(container_id("app"), "app");
    }

    #[test]
    fn other_directories_are_no_pods() {
        for name in
            ["burstable", "kubepods-burstable.slice", "pod", "podman", "pod-1", "init.scope"]
        {
            assert_eq!(pod_uid(name), None, "{name}");
        }
    }

    #[test]
    fn a_level_is_never_counted_past_the_hierarchy() {
        assert_eq!(steps_to_root(&[(7, 90), (7, 80), (7, 1), (3, 1)]), Some(2));
        // In a cgroup namespace the mounted root is no real one, but the root of `/sys` above
        // it has inode 1 as well.
        assert_eq!(steps_to_root(&[(7, 90), (7, 80), (3, 9), (3, 1)]), None);
    }

    #[test]
    fn pods_of_every_class_are_found() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("kubepods");
        fs::create_dir_all(path.join("burstable").join(format!("pod{UUID}"))).unwrap();
        let hash = "d41d8cd98f00b204e9800998ecf8427e";
        fs::create_dir_all(path.join(format!("pod{hash}"))).unwrap();
        let pods = Kubepods { path, level: 1 }.pods().unwrap();
        assert_eq!(pods.keys().collect::<Vec<_>>(), [UUID, hash]);
    }

    #[test]
    fn the_own_pod_is_the_one_that_lists_this_process() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("kubepods");
        let container = path.join("burstable").join(format!("pod{UUID}")).join("agent");
        let other = path.join("podd41d8cd98f00b204e9800998ecf8427e").join("app");
        fs::create_dir_all(&container).unwrap();
        fs::create_dir_all(&other).unwrap();
        let kubepods = Kubepods { path, level: 1 };
        let own = std::process::id();
        // As the kernel writes it: processes of other namespaces are zeroes.
        fs::write(other.join("cgroup.procs"), format!("0\n{own}0\n")).unwrap();
        assert_eq!(kubepods.own().unwrap(), None);
        fs::write(container.join("cgroup.procs"), format!("0\n{own}\n")).unwrap();
        let found = kubepods.own().unwrap().unwrap();
        assert_eq!((found.uid.as_str(), found.cgroup), (UUID, kubepods.pods().unwrap()[UUID]));
    }
}
