//! The topology: a node that routes for its pods, and an internet behind its uplink.
//!
//! ```text
//! shop/cart ─────────┐
//! shop/checkout ─────┤ one veth each, routed or on a bridge      uplink
//! istio-egressgateway┼──────────────── node ───────────────────────────── internet
//! further pods ──────┘                (the agent runs here)      sniffer ┘ api.stripe.com, ...
//! ```
//!
//! How the pods are joined to the node is a [`Wiring`].
//!
//! Nothing is translated on the way: the sniffer at the far end of the uplink sees the source
//! address that the pod put on the wire.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};

use crate::address::{self, Dual, ELSEWHERE, NODE, RESOLVER, ROUTER, STRIPE};
use crate::cgroup;
use crate::netns::{Netns, sysctl};
use crate::process::{self, Place, Process};
use crate::sniffer::Sniffer;
use crate::sweep;
use crate::wiring::Wiring;

/// Uid and gid of the mesh proxy.
pub const PROXY: (u32, u32) = (1337, 1337);

/// Who a pod is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Short name: of its namespace handle and its interface.
    pub short: &'static str,
    /// `namespace/name` of the API object.
    pub name: &'static str,
    /// UID of the API object and of the cgroup.
    pub uid: &'static str,
    /// Last part of its addresses.
    pub host: u8,
}

/// `shop/cart`: a plain pod.
pub const CART: Identity = Identity {
    short: "cart",
    name: "shop/cart",
    uid: "5f0c1a52-0c4b-4c1e-9d53-000000000002",
    host: 2,
};

/// `shop/checkout`: a pod with a sidecar.
pub const CHECKOUT: Identity = Identity {
    short: "checkout",
    name: "shop/checkout",
    uid: "5f0c1a52-0c4b-4c1e-9d53-000000000003",
    host: 3,
};

/// The egress gateway's pod.
pub const GATEWAY: Identity = Identity {
    short: "gateway",
    name: "istio-system/istio-egressgateway-7d9c6b5f4-x2x9q",
    uid: "5f0c1a52-0c4b-4c1e-9d53-000000000010",
    host: 10,
};

/// A pod of another namespace, governed by nothing.
pub const LEDGER: Identity = Identity {
    short: "ledger",
    name: "bank/ledger",
    uid: "5f0c1a52-0c4b-4c1e-9d53-000000000020",
    host: 20,
};

/// A pod: a namespace, an interface pair and a cgroup.
#[derive(Debug)]
pub struct Pod {
    /// Who it is.
    pub identity: Identity,
    /// Its namespace.
    pub netns: Netns,
    /// Its application container's cgroup.
    pub cgroup: PathBuf,
}

impl Pod {
    /// Its addresses.
    pub fn address(&self) -> Dual {
        address::pod(self.identity.host)
    }

    /// Where its application runs.
    pub fn place(&self) -> Place<'_> {
        Place { netns: Some(&self.netns), cgroup: Some(&self.cgroup), user: None }
    }

    /// Takes the UID that an API server gave to its object, and a cgroup of that name.
    ///
    /// # Errors
    /// When the cgroup cannot be made.
    pub fn adopt(&mut self, uid: String, cgroups: &cgroup::Root) -> Result<()> {
        let old = cgroups.pod(self.identity.uid);
        // Once for each pod of a test, and as long as the pod.
        self.identity.uid = uid.leak();
        self.cgroup = cgroups.container(self.identity.uid, "app")?;
        cgroup::remove(&old);
        Ok(())
    }

    /// Name of the node's end of its interface pair.
    pub fn interface(&self) -> String {
        format!("v-{}", self.identity.short)
    }
}

/// The whole thing. Fields are dropped in order: processes, then namespaces, then cgroups.
#[derive(Debug)]
pub struct Lab {
    /// The servers of the internet.
    servers: Vec<Process>,
    /// The judge.
    pub sniffer: Sniffer,
    /// `shop/cart`.
    pub cart: Pod,
    /// `shop/checkout`.
    pub checkout: Pod,
    /// The egress gateway's pod.
    pub gateway: Pod,
    /// `bank/ledger`.
    pub ledger: Pod,
    /// The node.
    pub node: Netns,
    /// Everything outside.
    pub internet: Netns,
    /// The node's cgroup root.
    pub cgroups: cgroup::Root,
    /// Directory of manifests, sockets and logs.
    pub directory: Directory,
    /// How the pods are joined to the node.
    pub wiring: Wiring,
}

/// Directory with a bpffs of its own below it; dropping it unmounts and removes both.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    fn create(name: &str) -> Result<Self> {
        let path = sweep::directory(name);
        let bpffs = path.join("bpffs");
        fs::create_dir_all(&bpffs).with_context(|| format!("make {}", bpffs.display()))?;
        let directory = Self(path);
        for part in ["registry", "run", "log"] {
            let part = directory.path().join(part);
            fs::create_dir(&part).with_context(|| format!("make {}", part.display()))?;
        }
        let (kind, flags) = (Some("bpf"), MsFlags::empty());
        mount(Some("none"), &bpffs, kind, flags, None::<&str>)
            .with_context(|| format!("mount a bpffs on {}", bpffs.display()))?;
        Ok(directory)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        sweep::remove_directory(&self.0);
    }
}

impl Lab {
    /// Builds everything, with routed pods; takes about half a second.
    pub fn new() -> Result<Self> {
        Self::wired(Wiring::Routed)
    }

    /// The same with another wiring.
    pub fn wired(wiring: Wiring) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the lab makes network namespaces and cgroups and loads BPF programs: run it as root"
        );
        sweep::sweep();
        let name = sweep::fresh_name();
        let directory = Directory::create(&name)?;
        let cgroups = cgroup::Root::create(&name)?;
        let node = Netns::create(&format!("{name}-node"))?;
        let internet = Netns::create(&format!("{name}-internet"))?;
        node.run(|| {
            sysctl("net/ipv4/ip_forward", "1")?;
            sysctl("net/ipv6/conf/all/forwarding", "1")?;
            // Answers on the node tell a pod's mistake from silence: one may not wait a second.
            sysctl("net/ipv4/icmp_ratelimit", "0")
        })?;
        wire_uplink(&node, &internet)?;
        wiring.prepare(&node)?;
        let pod = |identity| build_pod(&name, identity, &node, &cgroups, wiring);
        let [cart, checkout] = [pod(CART)?, pod(CHECKOUT)?];
        let [gateway, ledger] = [pod(GATEWAY)?, pod(LEDGER)?];
        let sniffer = Sniffer::start(&internet, "uplink")?;
        let mut lab = Self {
            servers: Vec::new(),
            sniffer,
            cart,
            checkout,
            gateway,
            ledger,
            node,
            internet,
            cgroups,
            directory,
            wiring,
        };
        lab.servers = lab.internet_servers()?;
        lab.internet.await_ipv6("uplink")?;
        lab.node.await_ipv6("uplink")?;
        for pod in [&lab.cart, &lab.checkout, &lab.gateway, &lab.ledger] {
            pod.netns.await_ipv6("eth0")?;
        }
        Ok(lab)
    }

    /// A pod of its own, beside those every lab has; the caller drops it before the lab.
    pub fn add_pod(&self, identity: Identity) -> Result<Pod> {
        let name = self.node.name().trim_end_matches("-node");
        build_pod(name, identity, &self.node, &self.cgroups, self.wiring)
    }

    /// Removes a pod's interface and cgroup as a container runtime does.
    pub fn remove_pod(&self, pod: Pod) -> Result<()> {
        self.node.batch(&format!("link delete {}\n", pod.interface()))?;
        let directory = self.cgroups.pod(pod.identity.uid);
        drop(pod);
        cgroup::remove(&directory);
        Ok(())
    }

    /// A file of the lab.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A log file for a process's output.
    pub fn log(&self, name: &str) -> Result<fs::File> {
        let path = self.file("log").join(name);
        fs::File::create(&path).with_context(|| format!("create {}", path.display()))
    }

    /// The probe's command line at `place`.
    pub fn probe(&self, place: &Place<'_>) -> Result<Command> {
        place.command(process::built("probe", "EGRESS_PROBE")?)
    }

    /// Starts an echo server for `protocol` (`tcp` or `udp`) and waits until it listens.
    pub fn serve(&self, place: &Place<'_>, protocol: &str, port: u16) -> Result<Process> {
        let mut command = self.probe(place)?;
        let address = SocketAddr::from(([0u16; 8], port)).to_string();
        command.args(["serve", protocol, &address]).stdout(Stdio::piped());
        let mut server = Process::start(command, &format!("{protocol} server on port {port}"))?;
        let mut ready = [0u8; 6];
        let stdout = server.child().stdout.as_mut().context("server has no output")?;
        std::io::Read::read_exact(stdout, &mut ready)
            .with_context(|| format!("wait for the {protocol} server on port {port}"))?;
        Ok(server)
    }

    /// Echo servers: whatever leaves the cluster meets an answer.
    fn internet_servers(&self) -> Result<Vec<Process>> {
        let place = Place { netns: Some(&self.internet), ..Place::default() };
        let servers =
            [("tcp", 9000), ("udp", 443), ("udp", 53), ("udp", 9000), ("tcp", 53), ("tcp", 853)];
        servers.into_iter().map(|(protocol, port)| self.serve(&place, protocol, port)).collect()
    }

    /// Waits until frames under way have arrived at the sniffer.
    pub fn settle(&self) {
        std::thread::sleep(Duration::from_millis(60));
    }
}

/// Joins node and internet.
fn wire_uplink(node: &Netns, internet: &Netns) -> Result<()> {
    node.batch(&format!(
        "link add uplink type veth peer name uplink netns {}\n\
         addr add {}/24 dev uplink\n\
         addr add {}/64 dev uplink nodad\n\
         link set uplink up\n",
        internet.name(),
        NODE.v4,
        NODE.v6
    ))?;
    let hosts: String = [STRIPE, ELSEWHERE, RESOLVER]
        .iter()
        .map(|host| format!("addr add {}/32 dev lo\naddr add {}/128 dev lo\n", host.v4, host.v6))
        .collect();
    internet.batch(&format!(
        "addr add {}/24 dev uplink\n\
         addr add {}/64 dev uplink nodad\n\
         link set uplink up\n\
         {hosts}\
         route add 10.244.0.0/16 via {}\n\
         route add fd00:244::/32 via {}\n",
        ROUTER.v4, ROUTER.v6, NODE.v4, NODE.v6
    ))?;
    node.batch(&format!(
        "route add default via {}\nroute add default via {}\n",
        ROUTER.v4, ROUTER.v6
    ))
}

/// Makes a pod's namespace and cgroup and joins it to the node.
fn build_pod(
    lab: &str,
    identity: Identity,
    node: &Netns,
    cgroups: &cgroup::Root,
    wiring: Wiring,
) -> Result<Pod> {
    let cgroup = cgroups.container(identity.uid, "app")?;
    let netns = Netns::create(&format!("{lab}-{}", identity.short))?;
    let pod = Pod { identity, netns, cgroup };
    wiring.join(node, &pod)?;
    Ok(pod)
}
