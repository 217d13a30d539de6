//! The node around the programs: cgroups, network, clocks and limits.

use std::path::Path;

use inotify::{Inotify, WatchMask};
use nix::ifaddrs::getifaddrs;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{Finding, Node, read, rights};
use crate::datapath::probe;
use crate::identity::cgroup::Kubepods;
use crate::identity::link;

pub(super) fn cgroup(node: &Node<'_>) -> Finding {
    let kubepods = match Kubepods::find(node.cgroup_root) {
        Ok(kubepods) => kubepods,
        Err(error) => return Finding::fail(error.to_string(), error.remedy()),
    };
    let path = kubepods.path.display();
    if !statfs(&kubepods.path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC) {
        return Finding::fail(
            format!("{path} is not in a cgroup v2 hierarchy"),
            "boot with the unified cgroup hierarchy, or name its directory with --cgroup-root",
        );
    }
    let systemd = kubepods.path.extension().is_some_and(|extension| extension == "slice");
    let driver = if systemd { "systemd" } else { "cgroupfs" };
    let beside = Path::new("/sys/fs/cgroup/unified").join("cgroup.controllers").is_file();
    let detail = format!("{path} at level {}, driver {driver}", kubepods.level);
    if beside && node.cgroup_root.is_none() {
        return Finding::warn(
            format!("{detail}, beside cgroup v1: pods are in both, and the programs see v2 only"),
            "boot with systemd.unified_cgroup_hierarchy=1; a kubelet that uses v1 puts pods where \
             no program can be attached",
        );
    }
    Finding::ok(detail)
}

pub(super) fn cgroup_links(node: &Node<'_>) -> Finding {
    let kubepods = match Kubepods::find(node.cgroup_root) {
        Ok(kubepods) => kubepods,
        Err(error) => return Finding::fail(error.to_string(), error.remedy()),
    };
    match probe::cgroup_links(&kubepods.path) {
        Ok(()) => Finding::ok("links that allow everything were made at every hook and let go"),
        Err(error) => rights::refused(&error),
    }
}

pub(super) fn network(node: &Node<'_>) -> Finding {
    let links = match link::links() {
        Ok(links) => links.len(),
        Err(error) => return Finding::fail(error.to_string(), error.remedy()),
    };
    let pods = Kubepods::find(node.cgroup_root).and_then(|kubepods| kubepods.pods());
    let pods = pods.map_or(0, |pods| pods.len());
    if links == 0 && pods > 0 {
        return Finding::warn(
            format!("{pods} pods, and no interface here leads to any: the boundary has no place"),
            "run the agent with hostNetwork: true; pods without a host-side interface (SR-IOV, \
             macvlan, ipvlan) stand behind the wall only",
        );
    }
    Finding::ok(format!("{links} interfaces lead into other network namespaces"))
}

pub(super) fn inotify(_: &Node<'_>) -> Finding {
    let limit = |name: &str| {
        read(&format!("/proc/sys/fs/inotify/{name}")).unwrap_or_else(|| "unknown".to_owned())
    };
    let tried = Inotify::init().and_then(|inotify| {
        // What is watched is `kubepods` and its two classes of service.
        for directory in ["/proc", "/sys", "/dev"] {
            inotify.watches().add(directory, WatchMask::CREATE)?;
        }
        Ok(())
    });
    let (instances, watches) = (limit("max_user_instances"), limit("max_user_watches"));
    match tried {
        Ok(()) => Finding::ok(format!(
            "an instance with three watches was made and let go (limits {instances} and {watches})"
        )),
        Err(error) => Finding::fail(
            format!("new pods would not be noticed: {error} (limits {instances} and {watches})"),
            "sysctl -w fs.inotify.max_user_instances=512 fs.inotify.max_user_watches=524288",
        ),
    }
}

pub(super) fn clock(_: &Node<'_>) -> Finding {
    let offsets = read("/proc/self/timens_offsets").unwrap_or_default();
    if is_shifted(&offsets) {
        return Finding::fail(
            "this process is in a time namespace whose boot clock is not the kernel's: leases and \
             exceptions would end at other times than they say",
            "run the agent in the node's own time namespace",
        );
    }
    let now = jiff::Timestamp::now();
    if now.as_second() < BUILT {
        return Finding::warn(
            format!("the wall clock says {now}: exceptions end at wrong times"),
            "set the clock and run an NTP client",
        );
    }
    // What NTP clients leave; systemd's own, and chrony's and ntpd's through adjtimex.
    let kept = ["/run/systemd/timesync/synchronized", "/run/chrony", "/run/ntpd.sock"];
    let keeper = kept.into_iter().find(|path| Path::new(path).exists());
    Finding::ok(match keeper {
        Some(path) => format!("the wall clock says {now}, and {path} shows that somebody keeps it"),
        None => format!("the wall clock says {now}; from here nobody is seen to keep it"),
    })
}

/// No node is set up before this program was written: 2026-01-01.
const BUILT: i64 = 1_767_225_600;

/// Whether a time namespace has another boot clock than the kernel.
fn is_shifted(offsets: &str) -> bool {
    let boot = offsets.lines().find_map(|line| line.strip_prefix("boottime"));
    boot.is_some_and(|offsets| offsets.split_whitespace().any(|offset| offset != "0"))
}

pub(super) fn ipvs(_: &Node<'_>) -> Finding {
    let interface = getifaddrs()
        .is_ok_and(|mut interfaces| interfaces.any(|one| one.interface_name == "kube-ipvs0"));
    let services = read("/proc/net/ip_vs").unwrap_or_default();
    match (interface, is_balanced(&services)) {
        (false, false) => Finding::ok("not in use"),
        (true, _) => Finding::warn(
            "kube-proxy runs in mode ipvs (kube-ipvs0 is here): Services are translated behind the \
             socket, so that one which ends outside is followed for pods with an interface of \
             their own, and for pods on the node's network by the registry's knowledge alone",
            "run kube-proxy in mode nftables or iptables, or keep hostNetwork pods from Services \
             that end outside",
        ),
        (false, true) => Finding::warn(
            "somebody else than kube-proxy balances by IPVS on this node",
            "see that its real servers are in the cluster: the registry does not name them",
        ),
    }
}

/// Whether the table of virtual services has one.
fn is_balanced(table: &str) -> bool {
    let mut fields = table.lines().filter_map(|line| line.split_whitespace().next());
    fields.any(|first| ["TCP", "UDP", "SCTP", "FWM"].contains(&first))
}

pub(super) fn conntrack(_: &Node<'_>) -> Finding {
    let number = |name: &str| {
        read(&format!("/proc/sys/net/netfilter/{name}")).and_then(|text| text.parse::<u64>().ok())
    };
    match (number("nf_conntrack_count"), number("nf_conntrack_max")) {
        (Some(count), Some(max)) if max > 0 && count * 10 >= max * 9 => Finding::warn(
            format!("{count} of {max} entries are taken: new connections of all pods fail soon"),
            "sysctl -w net.netfilter.nf_conntrack_max=... (twice as much), and find who floods",
        ),
        (Some(count), Some(max)) => Finding::ok(format!("{count} of {max} entries taken")),
        _ => Finding::ok("not loaded: Services are translated by something else, or not here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_boot_clock_of_its_own_matters() {
        assert!(!is_shifted("monotonic           0         0\nboottime            0         0"));
        assert!(!is_shifted("monotonic          10         0\nboottime            0         0"));
        assert!(is_shifted("monotonic           0         0\nboottime         3600         0"));
        assert!(!is_shifted(""));
    }

    #[test]
    fn a_table_of_virtual_services_is_more_than_its_head() {
        let head = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler";
        assert!(!is_balanced(head));
        assert!(is_balanced(&format!("{head}\nTCP  0A600001:01BB rr")));
    }
}
