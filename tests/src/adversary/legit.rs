//! What must go on working beside the attacks: a boundary that breaks it would be taken off.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::scene::Family;
use crate::address::{Dual, RESOLVER, pod};
use crate::attempt::Outcome;
use crate::dial::Way;
use crate::lab::{CART, GATEWAY, LEDGER, Lab};
use crate::netns::{Netns, sysctl};
use crate::process::{Place, Process, nft};
use crate::wiring::{BRIDGE, Wiring};

/// A pod of another node, behind a link with a smaller MTU.
pub const FAR: Dual = Dual::new([10, 244, 9, 9], [0xfd00, 0x244, 9, 0, 0, 0, 0, 9]);
/// The cluster's DNS Service.
pub const DNS: Dual = Dual::new([10, 96, 0, 10], [0xfd00, 0x96, 0, 0, 0, 0, 0, 0xa]);
/// UID of the node's mesh proxy of ambient mode.
pub const ZTUNNEL: &str = "5f0c1a52-0c4b-4c1e-9d53-000000000040";
/// Where mesh proxies take each other's connections.
const HBONE: u16 = 15008;
const BULK: usize = 4 << 20;
const SMALL_MTU: u16 = 1300;

/// One vector: what it is, and what became of it.
pub type Told = (String, std::result::Result<String, String>);

/// The servers, addresses and routes that the vectors need, in a lab without an agent.
#[derive(Debug)]
pub struct World {
    servers: Vec<Process>,
    /// Where the far pod is.
    pub far: Netns,
    ztunnel: PathBuf,
}

impl World {
    /// Makes them.
    ///
    /// # Errors
    /// When something cannot be made.
    pub fn new(lab: &Lab) -> Result<Self> {
        let far = Netns::create(&lab.node.name().replace("-node", "-far"))?;
        lab.internet.batch(&format!(
            "link add far type veth peer name eth0 netns {}\nlink set far mtu {SMALL_MTU} up\n\
             addr add 192.0.2.1/30 dev far\naddr add fd00:99::1/64 dev far nodad\n\
             route add {}/32 via 192.0.2.2\nroute add {}/128 via fd00:99::2\n",
            far.name(),
            FAR.v4,
            FAR.v6
        ))?;
        far.batch(&format!(
            "link set eth0 up\naddr add 192.0.2.2/30 dev eth0\naddr add fd00:99::2/64 dev eth0 nodad\n\
             addr add {}/32 dev lo\naddr add {}/128 dev lo\n\
             route add default via 192.0.2.1\nroute add default via fd00:99::1\n",
            FAR.v4, FAR.v6
        ))?;
        lab.internet.run(|| {
            sysctl("net/ipv4/ip_forward", "1")?;
            sysctl("net/ipv6/conf/all/forwarding", "1")?;
            // What is too big is said each time: nobody here may wait a second.
            sysctl("net/ipv4/icmp_ratelimit", "0")?;
            sysctl("net/ipv6/icmp/ratelimit", "0")
        })?;
        let mut rules = String::new();
        for (name, family) in [("ip", Family::V4), ("ip6", Family::V6)] {
            rules.push_str(&format!(
                "table {name} dns {{\nchain prerouting {{\ntype nat hook prerouting priority dstnat;\n\
                 {name} daddr {} meta l4proto {{tcp, udp}} th dport 53 dnat to {}\n}}\n}}\n",
                family.of(DNS),
                family.of(pod(LEDGER.host)),
            ));
        }
        let node = Place { netns: Some(&lab.node), ..Place::default() };
        nft(&node, &rules)?;
        // Segments longer than the length field: IPv6's BIG TCP.
        for pod in [&lab.cart, &lab.gateway] {
            let big = "gso_max_size 180000 gro_max_size 180000";
            pod.netns.batch(&format!("link set eth0 {big}\n"))?;
            lab.node.batch(&format!("link set {} {big}\n", pod.interface()))?;
            pod.netns.run(|| {
                sysctl("net/ipv4/tcp_rmem", "4096 6291456 6291456")?;
                sysctl("net/ipv4/tcp_wmem", "4096 4194304 6291456")
            })?;
        }
        if lab.wiring == Wiring::Bridge {
            lab.node
                .batch(&format!("link set {BRIDGE} gso_max_size 180000 gro_max_size 180000\n"))?;
        }
        let far_place = Place { netns: Some(&far), ..Place::default() };
        let (cart, ledger) = (lab.cart.place(), lab.ledger.place());
        let servers = vec![
            lab.serve(&lab.gateway.place(), "tcp", 8443)?,
            lab.serve(&ledger, "tcp", 9000)?,
            lab.serve(&ledger, "tcp", HBONE)?,
            lab.serve(&ledger, "udp", 53)?,
            lab.serve(&ledger, "tcp", 53)?,
            lab.serve(&cart, "tcp", 9000)?,
            lab.serve(&cart, "udp", 9001)?,
            lab.serve(&far_place, "tcp", 9000)?,
        ];
        let ztunnel = lab.cgroups.container(ZTUNNEL, "ztunnel")?;
        Ok(Self { servers, far, ztunnel })
    }

    /// Ends the server at the gateway, whose place the real one takes.
    pub fn clear_gateway(&mut self) {
        self.servers.remove(0);
    }

    /// Every vector over one family, under enforcement.
    ///
    /// # Errors
    /// When a probe cannot be started; a vector that fails is told.
    pub fn vectors(&self, lab: &Lab, family: Family) -> Result<Vec<Told>> {
        let cart = lab.cart.place();
        let gateway = SocketAddr::new(family.of(pod(GATEWAY.host)), 8443);
        let at = |dual, port| SocketAddr::new(family.of(dual), port);
        let (own, peer) = (pod(CART.host), pod(LEDGER.host));
        let mut told = Vec::new();
        let mut talk = |what: &str, place: &Place<'_>, way: Way, to: SocketAddr, bytes: usize| {
            let (to, bytes) = (to.to_string(), format!("--bytes={bytes}"));
            let outcome = lab.attempt(place, &["talk", way.name(), &to, &bytes])?;
            told.push((what.to_owned(), result(&outcome)));
            anyhow::Ok(())
        };
        talk("gateway", &cart, Way::NonBlocking, gateway, 25)?;
        talk("gateway by MPTCP", &cart, Way::Mptcp, gateway, 25)?;
        talk("gateway by Fast Open", &cart, Way::FastOpen, gateway, 25)?;
        talk("gateway by Fast Open, with a cookie", &cart, Way::FastOpen, gateway, 25)?;
        talk("gateway by Fast Open's connect", &cart, Way::FastOpenConnect, gateway, 25)?;
        talk("gateway by io_uring", &cart, Way::IoUring, gateway, 25)?;
        if let IpAddr::V4(v4) = gateway.ip() {
            let mapped = SocketAddr::new(v4.to_ipv6_mapped().into(), gateway.port());
            talk("gateway by mapped address", &cart, Way::NonBlocking, mapped, 25)?;
        }
        talk("gateway, bulk", &cart, Way::NonBlocking, gateway, BULK)?;
        talk(
            "pod of another node, behind a smaller MTU",
            &cart,
            Way::NonBlocking,
            at(FAR, 9000),
            BULK,
        )?;
        talk("peer", &cart, Way::NonBlocking, at(peer, 9000), 25)?;
        let app = Place { user: Some((1000, 1000)), ..lab.checkout.place() };
        talk("gateway from the sidecar pod", &app, Way::NonBlocking, gateway, 25)?;
        let loopback = match family {
            Family::V4 => IpAddr::from([127, 0, 0, 1]),
            Family::V6 => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        };
        talk("loopback", &cart, Way::NonBlocking, SocketAddr::new(loopback, 9000), 25)?;
        talk("own address", &cart, Way::NonBlocking, at(own, 9000), 25)?;
        let node = Place { netns: Some(&lab.node), ..Place::default() };
        let ledger = lab.ledger.place();
        for (who, place) in [("peer", &ledger), ("node", &node)] {
            talk(&format!("inbound from {who}"), place, Way::NonBlocking, at(own, 9000), 25)?;
            talk(
                &format!("inbound from {who}, bulk"),
                place,
                Way::NonBlocking,
                at(own, 9000),
                BULK,
            )?;
        }
        for (what, place, arguments) in [
            ("DNS", &cart, vec!["udp".to_owned(), at(RESOLVER, 53).to_string()]),
            (
                "DNS by the Service's address, connected",
                &cart,
                vec!["udp".to_owned(), at(DNS, 53).to_string(), "--connected".to_owned()],
            ),
            (
                "DNS by the Service's address",
                &cart,
                vec!["udp".to_owned(), at(DNS, 53).to_string()],
            ),
            ("datagram from peer", &ledger, vec!["udp".to_owned(), at(own, 9001).to_string()]),
            ("datagram from node", &node, vec!["udp".to_owned(), at(own, 9001).to_string()]),
        ] {
            let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            arguments.push("--wait");
            told.push((what.to_owned(), result(&lab.attempt(place, &arguments)?)));
        }
        for (what, to) in
            [("DNS over TCP", RESOLVER), ("DNS over TCP by the Service's address", DNS)]
        {
            let to = at(to, 53).to_string();
            let outcome = lab.attempt(&cart, &["talk", "non-blocking", &to, "--bytes=25"])?;
            told.push((what.to_owned(), result(&outcome)));
        }
        for (who, place) in [("peer", &ledger), ("node", &node)] {
            let ping = lab.attempt(place, &["ping", &family.of(own).to_string()])?;
            told.push((format!("ping from {who}"), result(&ping)));
            let closed = lab.attempt(place, &["tcp", &at(own, 9999).to_string()])?;
            let refused = match closed.error.as_str() {
                "ECONNREFUSED" => Ok("refused".to_owned()),
                _ => Err(format!("{closed:?}")),
            };
            told.push((format!("closed port, from {who}"), refused));
        }
        Ok(told)
    }

    /// The mesh proxy of ambient mode, whose sockets are in a pod's network and not in its cgroup.
    ///
    /// # Errors
    /// When the probe cannot be started.
    pub fn ambient(&self, lab: &Lab, family: Family) -> Result<Told> {
        let place =
            Place { netns: Some(&lab.checkout.netns), cgroup: Some(&self.ztunnel), user: None };
        let to = SocketAddr::new(family.of(pod(LEDGER.host)), HBONE).to_string();
        let outcome = lab.attempt(&place, &["talk", Way::Blocking.name(), &to, "--bytes=25"])?;
        Ok(("ambient proxy in the pod's network".to_owned(), result(&outcome)))
    }
}

fn result(outcome: &Outcome) -> std::result::Result<String, String> {
    if outcome.ok { Ok(outcome.answer.clone()) } else { Err(outcome.error.clone()) }
}

/// Connections that a peer and the node opened toward the pod before enforcement began.
#[derive(Debug)]
pub struct Older(Vec<(&'static str, TcpStream)>);

impl Older {
    /// Opens them.
    ///
    /// # Errors
    /// When the pod does not take them.
    pub fn open(lab: &Lab) -> Result<Self> {
        let mut open = Vec::new();
        for (who, netns) in [("peer", &lab.ledger.netns), ("node", &lab.node)] {
            for ip in pod(CART.host).both() {
                let stream = netns.run(move || {
                    let patience = Duration::from_secs(2);
                    let stream = TcpStream::connect_timeout(&SocketAddr::new(ip, 9000), patience)?;
                    stream.set_read_timeout(Some(patience))?;
                    Ok(stream)
                })?;
                open.push((who, stream));
            }
        }
        let mut older = Self(open);
        ensure!(older.go_on().iter().all(|(_, told)| told.is_ok()), "they do not even begin");
        Ok(older)
    }

    /// Says something on each and hears it back.
    pub fn go_on(&mut self) -> Vec<Told> {
        let ask = |stream: &mut TcpStream| -> Result<()> {
            stream.write_all(b"still there?")?;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).context("no answer")?;
            ensure!(&answer == b"still there?", "another answer");
            Ok(())
        };
        let told = self.0.iter_mut().map(|(who, stream)| {
            let outcome = ask(stream).map(|()| "answered".to_owned());
            (format!("older connection from {who}"), outcome.map_err(|error| format!("{error:#}")))
        });
        told.collect()
    }
}

/// How often the internet said that a packet is too big, of either family.
///
/// # Errors
/// When the counters cannot be read.
pub fn too_big(lab: &Lab) -> Result<[u64; 2]> {
    lab.internet.run(|| {
        let read =
            |path: &str| std::fs::read_to_string(path).with_context(|| format!("read {path}"));
        let v4 = read("/proc/thread-self/net/snmp")?;
        let mut icmp = v4.lines().filter(|line| line.starts_with("Icmp:"));
        let (names, values) = (icmp.next().context("no names")?, icmp.next().context("no values")?);
        let sent =
            names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "OutDestUnreachs");
        let v6 = read("/proc/thread-self/net/snmp6")?;
        let line = v6.lines().find(|line| line.starts_with("Icmp6OutPktTooBigs"));
        let sent6 = line.and_then(|line| line.split_whitespace().nth(1));
        Ok([
            sent.context("no such counter")?.1.parse()?,
            sent6.context("no such counter of IPv6")?.parse()?,
        ])
    })
}
