//! Answers to what others open toward a governed pod, with enforcement on.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};
use egress_common::key::{PodId, ReplyKey};
use egress_common::state::Reply;
use egress_tests::address::{NODE, ROUTER, STRIPE, pod};
use egress_tests::cgroup;
use egress_tests::crowd::Crowd;
use egress_tests::lab::{CART, CHECKOUT, Identity, Lab};
use egress_tests::manifests;
use egress_tests::process::Place;
use egress_tests::scenario::{Scenario, to};

#[test]
fn peers_and_the_node_are_answered() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let _tcp = scenario.server(&lab.cart.place(), "tcp", 9000)?;
    let _udp = scenario.server(&lab.cart.place(), "udp", 9001)?;
    let node = Place { netns: Some(&lab.node), ..Place::default() };
    for place in [lab.ledger.place(), node] {
        for ip in pod(CART.host).both() {
            let tcp = lab.attempt(&place, &["tcp", &to(ip, 9000), "--http", "x"])?;
            assert!(tcp.ok, "{ip}: {tcp:?}");
            let udp = lab.attempt(&place, &["udp", &to(ip, 9001), "--wait"])?;
            assert!(udp.ok, "{ip}: {udp:?}");
            let ping = lab.attempt(&place, &["ping", &ip.to_string()])?;
            assert!(ping.ok, "{ip}: {ping:?}");
            // A closed port says so: the pod's kernel answers for it.
            let closed = lab.attempt(&place, &["tcp", &to(ip, 9999)])?;
            assert_eq!(closed.error, "ECONNREFUSED", "{ip}: {closed:?}");
        }
    }
    Ok(())
}

#[test]
fn a_pod_whose_boundary_could_not_be_attached_is_answered_too() -> Result<()> {
    let lab = Lab::new()?;
    let _crowd = Crowd::fill(&lab.node, &lab.cart.interface())?;
    let scenario = Scenario::on(lab, "enforce", &[])?;
    let lab = &scenario.lab;
    let _tcp = scenario.server(&lab.cart.place(), "tcp", 9000)?;
    let _udp = scenario.server(&lab.cart.place(), "udp", 9001)?;
    let node = Place { netns: Some(&lab.node), ..Place::default() };
    for ip in pod(CART.host).both() {
        let tcp = lab.attempt(&node, &["tcp", &to(ip, 9000), "--http", "x"])?;
        assert!(tcp.ok, "{ip}: {tcp:?}");
        let udp = lab.attempt(&node, &["udp", &to(ip, 9001), "--wait"])?;
        assert!(udp.ok, "{ip}: {udp:?}");
    }
    // The wall holds, and counts what nobody else does.
    let before = scenario.samples()?;
    let (refused, escaped) = scenario.judged(&lab.cart.place(), &["tcp", &to(STRIPE.v4, 9000)])?;
    assert!(refused.refused() && escaped == 0, "{refused:?}");
    let _peer = scenario.server(&lab.ledger.place(), "tcp", 9002)?;
    let peer = to(lab.ledger.address().v4, 9002);
    assert!(lab.attempt(&lab.cart.place(), &["tcp", &peer])?.ok);
    let connections = ["egress_pod_connections_total{", "source_pod=\"cart\"", "verdict=\"allow\""];
    assert_eq!(scenario.rise(&before, &connections)?, 1.0);
    Ok(())
}

#[test]
fn a_remote_outside_the_inbound_ranges_is_not_answered() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let _tcp = scenario.server(&lab.cart.place(), "tcp", 9000)?;
    let _udp = scenario.server(&lab.cart.place(), "udp", 9001)?;
    let outside = Place { netns: Some(&lab.internet), ..Place::default() };
    for ip in pod(CART.host).both() {
        let mark = lab.sniffer.mark();
        let tcp = lab.attempt(&outside, &["tcp", &to(ip, 9000), "--patience", "500"])?;
        let udp = lab.attempt(&outside, &["udp", &to(ip, 9001), "--wait"])?;
        let ping = lab.attempt(&outside, &["ping", &ip.to_string()])?;
        assert!(!tcp.ok && !udp.ok && !ping.ok, "{ip}: {tcp:?} {udp:?} {ping:?}");
        lab.settle();
        assert_eq!(lab.sniffer.escapes(mark)?, [], "{ip}");
    }
    Ok(())
}

/// A socket of `shop/cart`, bound to its own address of the same family.
fn bound(lab: &Lab, ip: IpAddr, port: u16) -> Result<UdpSocket> {
    lab.cart.netns.run(|| {
        cgroup::inside(&lab.cart.cgroup, || {
            let [v4, v6] = lab.cart.address().both();
            let socket = UdpSocket::bind((if ip.is_ipv4() { v4 } else { v6 }, port))?;
            socket.set_read_timeout(Some(Duration::from_millis(600)))?;
            Ok(socket)
        })
    })
}

/// Whether somebody answers.
fn answered(socket: &UdpSocket, to: IpAddr, port: u16) -> bool {
    socket.send_to(b"question", (to, port)).is_ok() && socket.recv_from(&mut [0; 16]).is_ok()
}

/// A datagram from outside, and whether the pod's own to where it came from leaves the node.
fn replied(lab: &Lab, socket: &UdpSocket, from: (IpAddr, u16), to: (IpAddr, u16)) -> Result<bool> {
    lab.internet.run(|| Ok(UdpSocket::bind(from)?.send_to(b"question", to).map(drop)?))?;
    socket.recv_from(&mut [0; 16]).context("the question")?;
    let mark = lab.sniffer.mark();
    let _ = socket.send_to(b"answer", from);
    lab.settle();
    Ok(!lab.sniffer.escapes_to(mark, from.0)?.is_empty())
}

#[test]
fn an_answer_to_another_node_is_no_tunnel() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let ips = ROUTER.both().map(|ip| format!("{{type: InternalIP, address: \"{ip}\"}}"));
    let node = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: node-b}}\nstatus: {{addresses: [{}]}}\n",
        ips.join(", ")
    );
    manifests::replace(&lab.file("registry/node-b.yaml"), &node)?;
    scenario.change_policy("  mode:", "  denyResponse: Drop\n  mode:")?;
    for (ip, own) in ROUTER.both().into_iter().zip(pod(CART.host).both()) {
        let socket = bound(lab, ip, 7777)?;
        assert!(replied(lab, &socket, (ip, 8473), (own, 7777))?, "{ip}: a node is answered");
        // As if the node's end of a tunnel had spoken, whoever forged that.
        assert!(!replied(lab, &socket, (ip, 8472), (own, 7777))?, "{ip}: a way into its tunnel");
    }
    Ok(())
}

#[test]
fn what_audit_let_be_answered_is_denied_once_enforced() -> Result<()> {
    let scenario = Scenario::new("audit")?;
    let lab = &scenario.lab;
    let node = Place { netns: Some(&lab.node), ..Place::default() };
    let _served = scenario.server(&node, "udp", 9400)?;
    let mut sockets = Vec::new();
    for ip in NODE.both() {
        let socket = bound(lab, ip, 6000)?;
        assert!(answered(&socket, ip, 9400) && answered(&socket, ip, 9400), "{ip}: in audit");
        sockets.push((ip, socket));
    }
    scenario.change_policy("mode: audit", "mode: enforce")?;
    for (ip, socket) in sockets {
        assert!(!answered(&socket, ip, 9400), "{ip}: it goes on");
    }
    Ok(())
}

#[test]
fn a_remote_that_is_withdrawn_is_answered_no_more() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let inbound =
        ROUTER.both().map(|ip| format!("\"{ip}/{}\"", if ip.is_ipv4() { 32 } else { 128 }));
    let inbound = format!("  inboundRanges: [{}]\n  mode:", inbound.join(", "));
    scenario.change_policy("  mode:", &inbound)?;
    let mut sockets = Vec::new();
    for (ip, own) in ROUTER.both().into_iter().zip(pod(CART.host).both()) {
        let socket = bound(lab, ip, 6100)?;
        assert!(replied(lab, &socket, (ip, 40001), (own, 6100))?, "{ip}: a remote is answered");
        sockets.push((ip, socket));
    }
    scenario.change_policy(&inbound, "  mode:")?;
    for (ip, socket) in &sockets {
        let mark = lab.sniffer.mark();
        let _ = socket.send_to(b"answer", (*ip, 40001));
        lab.settle();
        assert_eq!(lab.sniffer.escapes_to(mark, *ip)?, [], "{ip}: withdrawn");
    }
    Ok(())
}

/// More flows than a pod has places; the node's address is allowed to nobody but as a remote that
/// opened one.
const FLOOD: usize = 3000;

/// The flow that the node opened from this port toward a pod's server.
fn key(pod: &Identity, port: u16) -> ReplyKey {
    ReplyKey::new(PodId::of(pod.uid), IpAddr::V4(NODE.v4).into(), port, 9000, 6)
}

/// What the kernel's reply table holds.
fn remembered(lab: &Lab) -> Result<BTreeSet<ReplyKey>> {
    let maps = format!("bpffs/egress-enforcer/s{}/maps/REPLIES", egress_common::SCHEMA);
    let map = Map::HashMap(MapData::from_pin(lab.file(&maps))?);
    let map: HashMap<_, ReplyKey, Reply> = map.try_into()?;
    map.keys().collect::<Result<_, _>>().context("read the reply table")
}

#[test]
fn a_flooded_pod_forgets_its_own_idle_flows_and_no_others() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let _busy = scenario.server(&lab.cart.place(), "tcp", 9000)?;
    let _quiet = scenario.server(&lab.checkout.place(), "tcp", 9000)?;
    lab.node.run(|| {
        let open = |host| -> Result<TcpStream> {
            let address = SocketAddr::from((pod(host).v4, 9000));
            let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            Ok(stream)
        };
        let ask = |stream: &mut TcpStream| -> std::io::Result<()> {
            stream.write_all(b"still there?")?;
            stream.read_exact(&mut [0; 12])
        };
        let (mut quiet, mut used, mut idle) =
            (open(CHECKOUT.host)?, open(CART.host)?, open(CART.host)?);
        for round in 0..FLOOD {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            socket.send_to(b"flood", (pod(CART.host).v4, 4000 + (round % 1000) as u16))?;
            if round % 50 == 0 {
                ask(&mut used)?;
            }
        }
        ask(&mut used)?;
        let port = |stream: &TcpStream| -> Result<u16> { Ok(stream.local_addr()?.port()) };
        let kept = remembered(lab)?;
        assert!(kept.contains(&key(&CART, port(&used)?)), "a flow in use has lost its place");
        assert!(!kept.contains(&key(&CART, port(&idle)?)), "an idle flow has kept its place");
        assert!(kept.contains(&key(&CHECKOUT, port(&quiet)?)), "another pod's flow is gone");
        ask(&mut quiet)?;
        // The server listens still: what goes on from outside is remembered again.
        ask(&mut idle)?;
        assert!(remembered(lab)?.contains(&key(&CART, port(&idle)?)));
        Ok(())
    })
}
