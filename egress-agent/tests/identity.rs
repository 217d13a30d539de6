//! Pods found by real cgroups and real interfaces. Needs root.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod node;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use egress_agent::identity::cgroup::{self, Kubepods};
use egress_agent::identity::link;
use egress_agent::supervise;
use tokio::sync::Notify;
use tokio::time::timeout;

use node::{CgroupRoot, MAC, Pair};

const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";
const STATIC: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// Directories between the hierarchy's root and `path`.
fn depth(path: &Path) -> u32 {
    let root = std::fs::metadata(node::cgroup2()).unwrap();
    assert_eq!(root.ino(), 1, "the tests run in the initial cgroup namespace");
    let below = path.strip_prefix(node::cgroup2()).unwrap();
    below.components().count().try_into().unwrap()
}

#[test]
fn pods_of_the_systemd_driver_are_found_with_their_cgroup_ids() {
    let root = CgroupRoot::create();
    let underscored = UUID.replace('-', "_");
    let burstable = "kubepods.slice/kubepods-burstable.slice";
    let (_, pod) = root.make(&format!("{burstable}/kubepods-burstable-pod{underscored}.slice"));
    let (_, guaranteed) = root.make(&format!("kubepods.slice/kubepods-pod{STATIC}.slice"));

    let kubepods = Kubepods::find(Some(root.path())).unwrap();
    assert_eq!(kubepods.path, root.path().join("kubepods.slice"));
    assert_eq!(u32::from(kubepods.level), depth(&kubepods.path));
    let pods = kubepods.pods().unwrap();
    assert_eq!(pods, [(UUID.to_owned(), pod), (STATIC.to_owned(), guaranteed)].into());
}

#[test]
fn a_missing_kubepods_says_what_to_do() {
    let root = CgroupRoot::create();
    let error = Kubepods::find(Some(root.path())).unwrap_err();
    assert!(error.remedy().contains("--cgroup-root"), "{error}");
}

#[tokio::test]
async fn a_new_pod_wakes_even_in_a_class_that_came_later() {
    let root = CgroupRoot::create();
    root.make("kubepods");
    let kubepods = Kubepods::find(Some(root.path())).unwrap();
    let (trigger, shutdown) = supervise::pair();
    let wake = Arc::new(Notify::new());
    let watching = cgroup::watch(kubepods.clone(), Arc::clone(&wake), shutdown);
    let check = async {
        let woken = || timeout(Duration::from_secs(5), wake.notified());
        woken().await.expect("wakes once at the start");
        root.make("kubepods/besteffort");
        woken().await.expect("wakes for the class");
        root.make(&format!("kubepods/besteffort/pod{UUID}"));
        woken().await.expect("wakes for the pod");
        assert!(kubepods.pods().unwrap().contains_key(UUID));
        trigger.request();
    };
    let (watched, ()) = tokio::join!(watching, check);
    watched.unwrap();
}

#[test]
fn the_pods_side_of_a_pair_is_read_from_outside() {
    let pair = Pair::create();
    let links = link::links().unwrap();
    let found = links.iter().find(|link| link.ifindex == pair.ifindex()).expect("the pair");
    assert_eq!(found.name, pair.host);
    assert_eq!(found.mac, MAC);
    let wanted: [std::net::IpAddr; 2] = ["192.0.2.9", "2001:db8::9"].map(|ip| ip.parse().unwrap());
    assert_eq!(found.ips, wanted, "link-local addresses are nobody's");
}

#[test]
fn the_nodes_own_addresses_are_those_of_its_interfaces() {
    let pair = Pair::create();
    let own = |what| link::addresses().unwrap().contains::<std::net::IpAddr>(&what);
    let address = ["192.0.2.177", "2001:db8::177"].map(|ip| ip.parse().unwrap());
    assert_eq!(address.map(own), [false, false]);
    for ip in address {
        pair.carry(ip);
    }
    assert_eq!(address.map(own), [true, true]);
    // The pod's are its own, and so is whatever never leaves.
    let others = ["192.0.2.9", "127.0.0.1", "::1"].map(|ip| ip.parse().unwrap());
    assert_eq!(others.map(own), [false; 3]);
}

#[tokio::test]
async fn a_new_interface_wakes_and_wakes_again_for_its_addresses() {
    let (trigger, shutdown) = supervise::pair();
    let wake = Arc::new(Notify::new());
    let watching = link::watch(Arc::clone(&wake), shutdown);
    let check = async {
        wake.notified().await;
        let pair = Pair::create();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        loop {
            tokio::time::timeout_at(deadline, wake.notified()).await.expect("wakes");
            let links = link::links().unwrap();
            if links.iter().any(|link| link.name == pair.host && link.ips.len() == 2) {
                break;
            }
        }
        trigger.request();
    };
    let (watched, ()) = tokio::join!(watching, check);
    watched.unwrap();
}

/// A value of the kernel's, for as long as this is held.
struct Lowered {
    path: &'static str,
    was: String,
}

impl Lowered {
    fn to(path: &'static str, value: &str) -> Self {
        let was = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, value).unwrap();
        Self { path, was }
    }
}

impl Drop for Lowered {
    fn drop(&mut self) {
        let _ = std::fs::write(self.path, &self.was);
    }
}

#[tokio::test]
async fn an_overflow_of_events_loses_no_pod() {
    const MANY: usize = 200;
    let root = CgroupRoot::create();
    root.make("kubepods/burstable");
    let kubepods = Kubepods::find(Some(root.path())).unwrap();
    let (trigger, shutdown) = supervise::pair();
    let wake = Arc::new(Notify::new());
    let watching = cgroup::watch(kubepods.clone(), Arc::clone(&wake), shutdown);
    let check = async {
        // Read when the watch is made, which it is by now.
        wake.notified().await;
        // This one thread also watches: nothing is read until all of them are there, and events of
        // many more cgroups than the queue holds are gone.
        for number in 0..MANY {
            root.make(&format!("kubepods/burstable/pod0f8fad5b-d9cb-469f-a165-{number:012x}"));
        }
        timeout(Duration::from_secs(5), wake.notified()).await.expect("wakes");
        assert_eq!(kubepods.pods().unwrap().len(), MANY);
        // It goes on after that.
        while timeout(Duration::from_millis(300), wake.notified()).await.is_ok() {}
        root.make(&format!("kubepods/burstable/pod{UUID}"));
        timeout(Duration::from_secs(5), wake.notified()).await.expect("wakes for the next");
        trigger.request();
    };
    let queue = Lowered::to("/proc/sys/fs/inotify/max_queued_events", "16");
    let (watched, ()) = tokio::join!(watching, check);
    drop(queue);
    watched.unwrap();
}

#[tokio::test]
async fn lost_events_of_interfaces_are_made_up_for() {
    let (trigger, shutdown) = supervise::pair();
    let wake = Arc::new(Notify::new());
    let watching = link::watch(Arc::clone(&wake), shutdown);
    let check = async {
        wake.notified().await;
        // Nobody reads the socket meanwhile; its buffer takes a few hundred of these.
        let pair = Pair::create();
        let lines: String =
            (0..3000).map(|n| format!("link set {} alias number{n}\n", pair.host)).collect();
        node::ip_batch(&lines);
        let late = Pair::create();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        loop {
            tokio::time::timeout_at(deadline, wake.notified()).await.expect("wakes");
            if link::links().unwrap().iter().any(|link| link.name == late.host) {
                break;
            }
        }
        // It goes on after that.
        while timeout(Duration::from_millis(800), wake.notified()).await.is_ok() {}
        let next = Pair::create();
        timeout(Duration::from_secs(5), wake.notified()).await.expect("wakes for the next");
        drop(next);
        trigger.request();
    };
    let (watched, ()) = tokio::join!(watching, check);
    watched.unwrap();
}
