//! A node made of the kernel's own parts: a bpffs, a `kubepods` cgroup, an interface pair into a
//! namespace. Needs root and fails loudly without it; everything goes when it is dropped.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A name no other test of any process has.
fn unique(what: &str) -> String {
    format!("egr{what}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Where cgroup v2 is mounted, alone or beside v1.
pub(crate) fn cgroup2() -> PathBuf {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.join("cgroup.controllers").exists())
        .expect("cgroup v2 is mounted")
}

/// A bpffs of the test's own.
pub(crate) struct Bpffs(tempfile::TempDir);

impl Bpffs {
    pub(crate) fn mount() -> Self {
        let dir = tempfile::tempdir().unwrap();
        mount(Some("bpf"), dir.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .expect("mounting a bpffs needs root");
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // Every pin goes with the mount, and with the pin what it held.
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// A cgroup that stands where the node's root would, with what the test makes inside it.
pub(crate) struct CgroupRoot(PathBuf);

impl CgroupRoot {
    pub(crate) fn create() -> Self {
        let path = cgroup2().join(unique("cg"));
        fs::create_dir(&path).expect("making a cgroup needs root");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Makes a directory below; its path and cgroup id.
    pub(crate) fn make(&self, below: &str) -> (PathBuf, u64) {
        let path = self.0.join(below);
        fs::create_dir_all(&path).unwrap();
        let id = fs::metadata(&path).unwrap().ino();
        (path, id)
    }
}

impl Drop for CgroupRoot {
    fn drop(&mut self) {
        fn remove(path: &Path) {
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&entry.path());
                }
            }
            let _ = fs::remove_dir(path);
        }
        remove(&self.0);
    }
}

/// A network namespace joined to this one by a pair of interfaces.
pub(crate) struct Pair {
    namespace: String,
    pub(crate) host: String,
}

pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

impl Pair {
    pub(crate) fn create() -> Self {
        let namespace = unique("ns");
        let host = format!("eg{}", NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() * 64);
        let pair = Self { namespace, host };
        let (namespace, host) = (&pair.namespace, &pair.host);
        ip(&format!("netns add {namespace}"));
        ip(&format!(
            "link add {host} type veth peer name eth0 address 02:00:00:00:00:09 netns {namespace}"
        ));
        ip(&format!("-n {namespace} addr add 192.0.2.9/32 dev eth0"));
        ip(&format!("-n {namespace} addr add 2001:db8::9/128 dev eth0 nodad"));
        ip(&format!("-n {namespace} addr add fe80::9/64 dev eth0 nodad"));
        ip(&format!("-n {namespace} link set eth0 up"));
        ip(&format!("link set {host} up"));
        pair
    }

    /// Gives this end an address.
    pub(crate) fn carry(&self, address: std::net::IpAddr) {
        let (bits, nodad) = if address.is_ipv4() { (32, "") } else { (128, " nodad") };
        ip(&format!("addr add {address}/{bits} dev {}{nodad}", self.host));
    }

    pub(crate) fn ifindex(&self) -> u32 {
        let text = fs::read_to_string(format!("/sys/class/net/{}/ifindex", self.host)).unwrap();
        text.trim().parse().unwrap()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).output();
        let _ = Command::new("ip").args(["link", "del", &self.host]).output();
    }
}

pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

/// Runs lines of `ip` commands in one process.
pub(crate) fn ip_batch(lines: &str) {
    use std::io::Write;
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}
