//! What the agent leaves on the node: pins, and the lock that says whose they are.

use std::path::Path;

use nix::libc;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::{Finding, Node};
use crate::clock::boot_clock;
use crate::datapath::probe::{self, Pinned};
use crate::identity::cgroup::Kubepods;
use crate::lock;

/// A sign of life is stamped once a second; this long without one is long.
const SILENCE: f64 = 5.0;

pub(super) fn bpffs(node: &Node<'_>) -> Finding {
    let path = &node.options.bpffs;
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
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => {}
        Ok(_) => return Finding::fail(format!("{} is not in a bpffs", path.display()), remedy()),
        Err(error) => return Finding::fail(format!("{}: {error}", existing.display()), remedy()),
    }
    let error = match probe::pin(path) {
        Ok(()) => return Finding::ok(format!("{}; a map was pinned and removed", path.display())),
        Err(error) => error,
    };
    if error.errno() != libc::EROFS {
        return Finding::fail(
            format!("nothing can be pinned: {error}"),
            "let the agent write to it: as root, and not by a readOnly volumeMount",
        );
    }
    let remedy = "mount -o remount,rw the bpffs, and give it to the agent's container without \
         readOnly";
    // Where only this mount of it is, as a container's readOnly volume, pins can still be opened.
    let held = probe::pinned(node.options).is_ok_and(|pinned| pinned.maps && pinned.links > 0);
    if held {
        let detail = format!(
            "{} is mounted read-only here: what is pinned stays in force and follows the policy, and \
             new interfaces get no boundary",
            existing.display()
        );
        return Finding::warn(detail, remedy);
    }
    Finding::fail(
        format!(
            "{} is mounted read-only: what is pinned stays in force, as its lease says, and no agent \
             can take it over",
            existing.display()
        ),
        remedy,
    )
}

pub(super) fn shape(node: &Node<'_>) -> Finding {
    let pinned = match probe::pinned(node.options) {
        Ok(pinned) => pinned,
        Err(_) if is_read_only(&node.options.bpffs) => {
            return Finding::fail("cannot be opened: the bpffs is mounted read-only", "see bpffs");
        }
        Err(error) => {
            let remedy = "start the agent of the version and --table-size that pinned it, or run \
                 `egress-agent uninstall`, which lets traffic flow until the next start";
            return Finding::fail(error.to_string(), remedy);
        }
    };
    let mut detail = match (pinned.maps, pinned.links) {
        (false, 0) => "nothing is pinned yet".to_owned(),
        (true, links) => format!("maps in this version's shape, {links} links at the cgroup"),
        (false, links) => format!("no maps of this version, {links} links at the cgroup"),
    };
    if !pinned.others.is_empty() {
        let others: Vec<_> = pinned.others.iter().map(u32::to_string).collect();
        detail = format!(
            "{detail}; of other versions schema {} (this one has {}), which the next start replaces",
            others.join(", "),
            egress_common::SCHEMA
        );
    }
    Finding::ok(detail)
}

fn is_read_only(path: &Path) -> bool {
    statvfs(path).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY))
}

pub(super) fn agent(node: &Node<'_>) -> Finding {
    let pinned = probe::pinned(node.options).unwrap_or_default();
    let silence = pinned.beat.map(|beat| boot_clock().saturating_sub(beat) as f64 / 1e9);
    let holder = lock::holder(node.run_dir);
    judged(&pinned, holder.as_deref(), lock::is_held(&node.options.bpffs), silence)
}

/// `holder` has the lock of the run directory, `pins` tells whether anybody has that of the pins.
fn judged(pinned: &Pinned, holder: Option<&str>, pins: bool, silence: Option<f64>) -> Finding {
    match (holder, silence) {
        (Some(pid), Some(age)) if age <= SILENCE => {
            Finding::ok(format!("pid {pid} runs; its last sign of life is {age:.1} s old"))
        }
        (Some(pid), None) => Finding::ok(format!("pid {pid} runs and has applied nothing yet")),
        (Some(pid), Some(age)) => Finding::warn(
            format!("pid {pid} holds the lock and gave no sign of life for {age:.0} s"),
            "look at its log; if it hangs, end it: what it has put in force stays",
        ),
        (None, age) if pins => Finding::warn(
            format!(
                "an agent with another run directory holds the pins{}",
                age.map_or_else(String::new, |age| format!(" (last sign of life {age:.0} s ago)"))
            ),
            "ask it with its own --run-dir, or end it: this one would end with exit code 3",
        ),
        (None, Some(age)) if pinned.links > 0 => Finding::warn(
            format!("none runs; what an earlier one left is in force, its lease {age:.0} s old"),
            "start it; spec.onAgentLoss says what happens once the lease is over",
        ),
        (None, _) => Finding::ok("none runs, and none has left anything in force"),
    }
}

pub(super) fn capacity(node: &Node<'_>) -> Finding {
    let there = Kubepods::find(node.cgroup_root).and_then(|kubepods| kubepods.pods());
    let there = match there {
        Ok(pods) => pods.len(),
        Err(error) => return Finding::fail(error.to_string(), error.remedy()),
    };
    let pinned = probe::pinned(node.options).ok().and_then(|pinned| pinned.pods);
    room(there, pinned.map_or(probe::POD_ROOM, |(_, room)| room))
}

/// Pods on the node against room in the table.
fn room(pods: usize, room: usize) -> Finding {
    let detail = format!("{pods} pods on this node, room for {room}");
    // Pods that come and go stand side by side for a while.
    if pods * 10 <= room * 8 {
        Finding::ok(detail)
    } else {
        let remedy = "keep the number of pods (kubelet --max-pods) below four fifths of the room";
        if pods > room { Finding::fail(detail, remedy) } else { Finding::warn(detail, remedy) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::CheckStatus;

    #[test]
    fn who_runs_is_told_from_lock_and_heartbeat() {
        let left = Pinned { links: 8, ..Pinned::default() };
        let status =
            |pinned: &Pinned, holder, pins, silence| judged(pinned, holder, pins, silence).status;
        assert_eq!(status(&left, Some("7"), true, Some(0.4)), CheckStatus::Ok);
        assert_eq!(status(&Pinned::default(), Some("7"), false, None), CheckStatus::Ok);
        assert_eq!(status(&left, Some("7"), true, Some(60.0)), CheckStatus::Warn);
        assert_eq!(status(&left, None, true, Some(0.4)), CheckStatus::Warn);
        assert_eq!(status(&left, None, false, Some(60.0)), CheckStatus::Warn);
        assert_eq!(status(&Pinned::default(), None, false, None), CheckStatus::Ok);
    }

    #[test]
    fn a_table_needs_room_for_pods_that_come_before_others_are_gone() {
        assert_eq!(room(110, 2048).status, CheckStatus::Ok);
        assert_eq!(room(1700, 2048).status, CheckStatus::Warn);
        assert_eq!(room(2049, 2048).status, CheckStatus::Fail);
    }
}
