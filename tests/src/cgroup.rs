//! A private `kubepods` in the machine's real cgroup v2 hierarchy.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The mount point of cgroup v2: `/sys/fs/cgroup` on a node, `.../unified` on hybrid machines.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, target, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(target))
        })
        .next()
        .context(
            "no cgroup v2 hierarchy is mounted: mount one with \
             `mount -t cgroup2 none /sys/fs/cgroup/unified`",
        )
}

/// A directory that stands for the node's cgroup root; dropping it removes the whole subtree.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
}

impl Root {
    /// Makes `name` with an empty `kubepods` of the layout of the cgroupfs driver.
    pub fn create(name: &str) -> Result<Self> {
        let root = Self { path: mount_point()?.join(name) };
        for class in ["kubepods", "kubepods/burstable", "kubepods/besteffort"] {
            make(&root.path.join(class))?;
        }
        Ok(root)
    }

    /// What the agent gets as `--cgroup-root`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the pod with this UID.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.path.join("kubepods/burstable").join(format!("pod{uid}"))
    }

    /// Makes a pod's directory and one container's in it; gives the container's.
    pub fn container(&self, uid: &str, container: &str) -> Result<PathBuf> {
        let path = self.pod(uid).join(container);
        make(&path)?;
        Ok(path)
    }
}

/// Runs `work` with this whole process moved into `cgroup`: sockets that it makes belong there for
/// ever, wherever the process goes.
pub fn inside<T>(cgroup: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let membership = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let own = membership.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = mount_point()?.join(own.context("this process has no cgroup v2")?);
    let enter = |path: &Path| {
        fs::write(path.join("cgroup.procs"), "0")
            .with_context(|| format!("move into cgroup {}", path.display()))
    };
    enter(cgroup)?;
    let done = work();
    enter(&own)?;
    done
}

impl Drop for Root {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make cgroup {}", path.display()))
}

/// Removes a cgroup with everything below it. A cgroup stays busy for a moment after its last
/// process has died; one that outlives the patience is left for the next sweep.
pub fn remove(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while !remove_tree(path) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether nothing is left.
fn remove_tree(path: &Path) -> bool {
    if let Ok(entries) = fs::read_dir(path) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path());
            }
        }
    }
    fs::remove_dir(path).is_ok() || !path.exists()
}
