//! Can this node enforce? Each check names its remedy.

use std::fs;
use std::path::Path;

use caps::{CapSet, Capability};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::Options;
use crate::identity::cgroup::Kubepods;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// Something is weaker than it could be.
    Warn,
    /// The node cannot enforce.
    Fail,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Check {
    /// Short name.
    pub name: &'static str,
    /// Outcome.
    pub status: CheckStatus,
    /// What was found.
    pub detail: String,
    /// What to do; empty where nothing is to be done.
    pub remedy: String,
}

impl Check {
    fn new(name: &'static str, outcome: Result<String, (String, String)>) -> Self {
        match outcome {
            Ok(detail) => Self { name, status: CheckStatus::Ok, detail, remedy: String::new() },
            Err((detail, remedy)) => Self { name, status: CheckStatus::Fail, detail, remedy },
        }
    }
}

/// Oldest kernel with everything the wall needs.
const OLDEST_KERNEL: (u32, u32) = (5, 10);

/// Runs every check that needs no loaded program.
pub fn preflight(options: &Options, cgroup_root: Option<&Path>) -> Vec<Check> {
    vec![
        Check::new("kernel", kernel()),
        Check::new("capabilities", capabilities()),
        Check::new("bpffs", bpffs(&options.bpffs)),
        Check::new("cgroup", cgroup(cgroup_root)),
    ]
}

type Outcome = Result<String, (String, String)>;

fn kernel() -> Outcome {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim().to_owned();
    let mut parts =
        release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version >= OLDEST_KERNEL {
        return Ok(release);
    }
    let (major, minor) = OLDEST_KERNEL;
    Err((format!("kernel {release} is too old"), format!("use Linux {major}.{minor} or newer")))
}

fn capabilities() -> Outcome {
    let needed = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];
    let missing: Vec<String> = needed
        .into_iter()
        .filter(|cap| !caps::has_cap(None, CapSet::Effective, *cap).unwrap_or(false))
        .map(|cap| cap.to_string())
        .collect();
    if missing.is_empty() {
        return Ok("CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are effective".to_owned());
    }
    let list = missing.join(", ");
    Err((
        format!("missing {list}"),
        format!("run as root, or add {list} to securityContext.capabilities.add"),
    ))
}

fn bpffs(path: &Path) -> Outcome {
    // The directory itself may not exist yet: its nearest ancestor tells the file system.
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    let remedy = || {
        format!(
            "mount one (mount -t bpf bpf /sys/fs/bpf) and, in a pod, give it as a hostPath volume \
             of type Directory; or name another place with --bpffs (now {})",
            path.display()
        )
    };
    match statfs(existing) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => Ok(path.display().to_string()),
        Ok(_) => Err((format!("{} is not in a bpffs", path.display()), remedy())),
        Err(error) => Err((format!("{}: {error}", existing.display()), remedy())),
    }
}

fn cgroup(root: Option<&Path>) -> Outcome {
    match Kubepods::find(root) {
        Ok(found) => Ok(format!("{} at level {}", found.path.display(), found.level)),
        Err(error) => Err((error.to_string(), error.remedy().to_owned())),
    }
}
