//! Whether this process may do what the agent does, and if not, who stands in the way.
//!
//! `EPERM` has many fathers: a missing capability, one that does not count because it is of a user
//! namespace, a seccomp filter, the memory limit of old kernels, a security module.

use caps::{CapSet, Capability};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};

use super::kernel::parsed;
use super::{Finding, Node, read};
use crate::datapath::SysError;
use crate::datapath::probe::{self, Tcx};

const NEEDED: [Capability; 3] =
    [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];

/// Before this, maps are paid for from `RLIMIT_MEMLOCK`.
const WITHOUT_MEMLOCK: (u32, u32) = (5, 11);
/// What the maps of one agent take, bytes, rounded up.
const MAPS: u64 = 128 << 20;

fn missing() -> Vec<Capability> {
    let lacks = |cap: &Capability| !caps::has_cap(None, CapSet::Effective, *cap).unwrap_or(false);
    NEEDED.into_iter().filter(lacks).collect()
}

pub(super) fn capabilities(_: &Node<'_>) -> Finding {
    let missing: Vec<String> = missing().iter().map(ToString::to_string).collect();
    if missing.is_empty() {
        return Finding::ok("CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are effective");
    }
    let list = missing.join(", ");
    Finding::fail(
        format!("missing {list}"),
        format!("run as root, or add {list} to securityContext.capabilities.add"),
    )
}

pub(super) fn user_namespace(_: &Node<'_>) -> Finding {
    let map = read("/proc/self/uid_map").unwrap_or_default();
    if is_whole(&map) {
        return Finding::ok("the node's own");
    }
    Finding::fail(
        "this process is in a user namespace: its capabilities do not count toward bpf(2)",
        "run the agent with hostUsers: true, outside of rootless containers",
    )
}

/// Whether a uid map is the one of the first user namespace.
fn is_whole(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

pub(super) fn seccomp(_: &Node<'_>) -> Finding {
    let filtered = read("/proc/self/status").is_some_and(|status| {
        status.lines().any(|line| line.starts_with("Seccomp:") && line.ends_with('2'))
    });
    match probe::reach() {
        Ok(()) if filtered => Finding::ok("a filter is in force, and lets bpf(2) pass"),
        Ok(()) => Finding::ok("no filter"),
        // Kernels that refuse unprivileged use say so before they look at anything else.
        Err(error) if !filtered => Finding::ok(format!(
            "no filter; what bpf(2) says ({error}) is the kernel's own answer to these capabilities"
        )),
        Err(error) => Finding::fail(
            format!("the seccomp filter answers bpf(2) itself: {error}"),
            "use seccompProfile type RuntimeDefault, which lets bpf(2) pass with CAP_BPF, or add \
             bpf to the allowed calls of the profile",
        ),
    }
}

pub(super) fn memlock(_: &Node<'_>) -> Finding {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    memory(&release, limit, caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE))
}

fn memory(release: &str, limit: u64, may_raise: Result<bool, caps::errors::CapsError>) -> Finding {
    if parsed(release) >= WITHOUT_MEMLOCK {
        return Finding::ok("not asked by this kernel: maps are paid for by the memory cgroup");
    }
    if limit >= MAPS || may_raise.unwrap_or(false) {
        return Finding::ok(format!("enough, or can be raised (soft limit {limit} bytes)"));
    }
    Finding::fail(
        format!("kernel {release} pays maps from RLIMIT_MEMLOCK, which is {limit} bytes"),
        "add CAP_SYS_RESOURCE to securityContext.capabilities.add, or set LimitMEMLOCK=infinity",
    )
}

pub(super) fn objects(_: &Node<'_>) -> Finding {
    match probe::objects() {
        Ok(()) => Finding::ok("a map and a program were made and let go"),
        Err(error) => refused(&error),
    }
}

/// What it means that the kernel refuses a map, program or link.
pub(super) fn refused(error: &SysError) -> Finding {
    let detail = error.to_string();
    if ![libc::EPERM, libc::EACCES].contains(&error.errno()) {
        let remedy = "this kernel was built without what the programs need: CONFIG_BPF_SYSCALL, \
             CONFIG_CGROUP_BPF, CONFIG_NET_CLS_ACT, CONFIG_NET_SCH_INGRESS";
        return Finding::fail(detail, remedy);
    }
    let remedy = if !missing().is_empty() {
        "see capabilities"
    } else if !is_whole(&read("/proc/self/uid_map").unwrap_or_default()) {
        "see user-namespace"
    } else if probe::reach().is_err() {
        "see seccomp"
    } else if error.errno() == libc::EPERM
        && parsed(&read("/proc/sys/kernel/osrelease").unwrap_or_default()) < WITHOUT_MEMLOCK
    {
        "see memlock"
    } else {
        "the kernel was reached and every capability is there: a security module refuses (see lsm; \
         the audit log names the rule: ausearch -m avc, or dmesg)"
    };
    Finding::fail(detail, remedy)
}

pub(super) fn programs(_: &Node<'_>) -> Finding {
    let answers = match probe::programs() {
        Ok(answers) => answers,
        Err(error) => {
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            return Finding::fail(
                first,
                "see bpf; if that is well, report this with the kernel's version",
            );
        }
    };
    let refused: Vec<_> = answers.iter().filter(|(_, why)| why.is_some()).collect();
    let list =
        refused.iter().map(|(name, why)| format!("{name}: {}", why.as_deref().unwrap_or("")));
    let list = list.collect::<Vec<_>>().join("; ");
    if refused.is_empty() {
        return Finding::ok(format!("all {} were loaded and let go", answers.len()));
    }
    if refused.iter().all(|(name, _)| name.starts_with("getpeername")) {
        return Finding::warn(
            format!("connections cannot be redirected on this node: {list}"),
            "use Linux 5.8 or newer; everything else is enforced",
        );
    }
    Finding::fail(
        list,
        "see capabilities and bpf; if those are well, report this with the kernel's version",
    )
}

pub(super) fn tcx(_: &Node<'_>) -> Finding {
    match probe::tcx() {
        Ok(Tcx::Tried) => {
            Finding::ok("a link was made in a network namespace of its own and let go")
        }
        Ok(Tcx::Known) => {
            Finding::ok("known to the kernel; no link was tried, which needs CAP_SYS_ADMIN")
        }
        Ok(Tcx::Missing) => Finding::warn(
            "this kernel has no tcx: interfaces are held by filters of clsact",
            "nothing is missing; Linux 6.6 or newer, or a vendor's kernel with tcx, keeps other tools' filters behind ours by itself (docs/kernels.md)",
        ),
        Err(error) => refused(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::CheckStatus;

    #[test]
    fn only_old_kernels_pay_maps_from_the_locked_memory() {
        let status = |release, limit, may| memory(release, limit, Ok(may)).status;
        assert_eq!(status("6.1.0", 0, false), CheckStatus::Ok);
        assert_eq!(status("5.10.223", 0, false), CheckStatus::Fail);
        assert_eq!(status("5.10.223", 65_536, false), CheckStatus::Fail);
        assert_eq!(status("5.10.223", 65_536, true), CheckStatus::Ok);
        assert_eq!(status("5.10.223", u64::MAX, false), CheckStatus::Ok);
    }

    #[test]
    fn only_the_first_user_namespace_has_every_uid() {
        assert!(is_whole("         0          0 4294967295"));
        assert!(!is_whole("         0       1000          1"));
        assert!(!is_whole(""));
    }
}
