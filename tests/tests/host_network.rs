//! Pods on the node's network: judged at their sockets alone, audited until a policy opts them in.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use egress_tests::address::{Dual, NODE, RESOLVER, ROUTER, STRIPE, mac_text, pod};
use egress_tests::agent::{self, Agent};
use egress_tests::cgroup;
use egress_tests::frame::{Packet, protocol};
use egress_tests::lab::{CART, GATEWAY, Identity, LEDGER, Lab};
use egress_tests::manifests;
use egress_tests::process::{Place, Process, nft};
use egress_tests::scenario::{Scenario, to};
use nix::libc;
use socket2::{Domain, Socket, Type};

/// A pod that shares the node's network, and another.
const EXPORTER: Identity = Identity {
    short: "exporter",
    name: "shop/exporter",
    uid: "5f0c1a52-0c4b-4c1e-9d53-000000000041",
    host: 41,
};
const OTHER: Identity =
    Identity { name: "shop/other", uid: "5f0c1a52-0c4b-4c1e-9d53-000000000042", ..EXPORTER };

const OPT_IN: &str = "  hostNetwork: true\n  mode:";

/// The pods' objects, and the cgroups of their containers.
fn on_host(lab: &Lab) -> Result<[PathBuf; 2]> {
    let objects = [EXPORTER, OTHER].map(|one| manifests::pod(one, NODE, "hostNetwork: true, "));
    manifests::replace(&lab.file("registry/on-host.yaml"), &objects.join("---\n"))?;
    Ok([lab.cgroups.container(EXPORTER.uid, "app")?, lab.cgroups.container(OTHER.uid, "app")?])
}

struct OnHost {
    exporter: PathBuf,
    other: PathBuf,
    scenario: Scenario,
}

impl OnHost {
    fn new(mode: &str) -> Result<Self> {
        let lab = Lab::new()?;
        let [exporter, other] = on_host(&lab)?;
        let scenario = Scenario::on(lab, mode, &[])?;
        Ok(Self { exporter, other, scenario })
    }

    fn place(&self) -> Place<'_> {
        at(&self.scenario.lab, &self.exporter)
    }

    /// Mode and state of the pod, as `status` says.
    fn governed(&self) -> Result<[String; 2]> {
        let status = agent::status(&self.scenario.lab)?;
        let pods = status["pods"].as_array().context("no pods")?;
        let pod =
            pods.iter().find(|pod| pod["pod"]["name"] == "exporter").context("no exporter")?;
        Ok(["mode", "state"].map(|field| pod[field].as_str().unwrap_or_default().to_owned()))
    }

    /// How many frames an attempt put on the uplink toward this address.
    fn outside(&self, arguments: &[&str], to: IpAddr) -> Result<(bool, usize)> {
        let lab = &self.scenario.lab;
        let mark = lab.sniffer.mark();
        let outcome = lab.attempt(&self.place(), arguments)?;
        lab.settle();
        Ok((outcome.ok, lab.sniffer.matching(mark, |frame| frame.dst == to)?.len()))
    }
}

fn at<'a>(lab: &'a Lab, cgroup: &'a Path) -> Place<'a> {
    Place { netns: Some(&lab.node), cgroup: Some(cgroup), user: None }
}

#[test]
fn they_are_audited_and_named_until_a_policy_opts_them_in() -> Result<()> {
    let host = OnHost::new("enforce")?;
    let scenario = &host.scenario;
    assert_eq!(host.governed()?, ["audit", "host_network"]);
    let audited = ["egress_pod_connections_total{", "source_pod=\"exporter\"", "\"audit\""];
    for ip in STRIPE.both() {
        let before = scenario.samples()?;
        let (reached, frames) = host.outside(&["tcp", &to(ip, 9000)], ip)?;
        assert!(reached && frames > 0, "{ip}: an audited pod is dropped");
        assert!(scenario.rise(&before, &audited)? >= 1.0, "{ip}");
    }
    let events = std::fs::read_to_string(scenario.lab.file("events"))?;
    assert!(events.contains("exporter"), "no event names the pod: {events}");

    scenario.change_policy("  mode:", OPT_IN)?;
    assert_eq!(host.governed()?, ["enforce", "host_network"]);
    for ip in STRIPE.both() {
        let source = if ip.is_ipv4() { IpAddr::V4(NODE.v4) } else { IpAddr::V6(NODE.v6) };
        let address = to(ip, 9000);
        let before = scenario.samples()?;
        for arguments in [
            &["tcp", &*address][..],
            &["udp", &address],
            &["udp", &address, "--connected"],
            &["raw", &address, &format!("--source={source}")],
        ] {
            assert_eq!(host.outside(arguments, ip)?, (false, 0), "{arguments:?}");
        }
        let dropped = ["egress_pod_connections_total{", "source_pod=\"exporter\"", "\"drop\""];
        assert!(scenario.rise(&before, &dropped)? >= 4.0, "{ip}: each is counted");
    }
    Ok(())
}

/// What the README says of CAP_NET_RAW: below IP no hook of the node's network stands in the way.
#[test]
fn a_packet_socket_on_the_nodes_network_is_not_contained() -> Result<()> {
    let host = OnHost::new("enforce")?;
    host.scenario.change_policy("  mode:", OPT_IN)?;
    let ip = IpAddr::V4(STRIPE.v4);
    let frame = [
        "packet",
        &to(ip, 9000),
        &format!("--source={}", NODE.v4),
        "--interface=uplink",
        "--from=02:00:00:00:00:01",
        "--to=02:00:00:00:00:02",
    ];
    assert_eq!(host.outside(&frame, ip)?, (true, 1));
    Ok(())
}

/// A frame in VXLAN for the node to unwrap and forward as a pod's. No capability is asked for.
#[test]
fn a_tunnel_to_their_own_node_is_denied() -> Result<()> {
    let host = OnHost::new("enforce")?;
    let scenario = &host.scenario;
    let lab = &scenario.lab;
    let device = [2, 0xf1, 0xf1, 0xf1, 0xf1, 0xf1];
    lab.node.batch(&format!(
        "link add overlay type vxlan id 1 dstport 8472 local {} dev uplink nolearning\n\
         link set overlay address {} up\n",
        NODE.v4,
        mac_text(device)
    ))?;
    let inner = Packet {
        src: IpAddr::V4(pod(LEDGER.host).v4),
        dst: IpAddr::V4(STRIPE.v4),
        protocol: protocol::UDP,
        src_port: 7000,
        dst_port: 9000,
        flags: 0,
        payload: b"inner",
    };
    let wrapped = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &inner.ethernet([2; 6], device)].concat();
    let send = |to: IpAddr| -> Result<(bool, usize)> {
        let mark = lab.sniffer.mark();
        let sent = lab.node.run(|| {
            cgroup::inside(&host.exporter, || {
                Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(&wrapped, (to, 8472)).is_ok())
            })
        })?;
        lab.settle();
        Ok((sent, lab.sniffer.escapes(mark)?.len()))
    };
    let own = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(NODE.v4)];
    for ip in own {
        let (sent, frames) = send(ip)?;
        assert!(sent && frames > 0, "{ip}: without enforcement the node unwraps nothing");
    }
    scenario.change_policy("  mode:", OPT_IN)?;
    for ip in own {
        assert_eq!(send(ip)?, (false, 0), "{ip}");
    }
    for ip in NODE.both() {
        for port in [4789, 6081, 8472] {
            for more in [&["--wait"][..], &["--connected"]] {
                let address = to(ip, port);
                let arguments = [&["udp", &*address], more].concat();
                let refused = lab.attempt(&host.place(), &arguments)?;
                assert!(refused.refused(), "{arguments:?}: {refused:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn opted_in_they_reach_what_the_policy_names_and_their_own_node() -> Result<()> {
    let host = OnHost::new("enforce")?;
    let scenario = &host.scenario;
    let lab = &scenario.lab;
    let _gateway = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    let _peer = scenario.server(&lab.ledger.place(), "tcp", 9000)?;
    let _own = scenario.server(&host.place(), "tcp", 9300)?;
    let local = Place { netns: Some(&lab.node), ..Place::default() };
    let _kubelet = scenario.server(&local, "udp", 9400)?;
    scenario.change_policy("  mode:", OPT_IN)?;
    let reached = |arguments: &[&str]| -> Result<()> {
        let outcome = lab.attempt(&host.place(), arguments)?;
        assert!(outcome.ok, "{arguments:?}: {outcome:?}");
        Ok(())
    };
    for (gateway, peer) in pod(GATEWAY.host).both().into_iter().zip(pod(LEDGER.host).both()) {
        reached(&["tcp", &to(gateway, 8443), "--http", "x"])?;
        reached(&["tcp", &to(peer, 9000), "--http", "x"])?;
    }
    let loopback = Dual::new([127, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 1]);
    for own in [loopback, NODE].into_iter().flat_map(Dual::both) {
        reached(&["tcp", &to(own, 9300), "--http", "x"])?;
        reached(&["udp", &to(own, 9400), "--wait"])?;
        reached(&["ping", &own.to_string()])?;
    }
    for (resolver, router) in RESOLVER.both().into_iter().zip(ROUTER.both()) {
        reached(&["udp", &to(resolver, 53), "--wait"])?;
        // Another machine's address is none of its own.
        let refused = lab.attempt(&host.place(), &["tcp", &to(router, 9000)])?;
        assert!(refused.refused(), "{refused:?}");
    }
    Ok(())
}

/// TCP, UDP and an echo request from a place toward the node.
fn asks(lab: &Lab, place: &Place<'_>, ip: IpAddr) -> Result<[bool; 3]> {
    Ok([
        lab.attempt(place, &["tcp", &to(ip, 9000), "--http", "x", "--patience", "600"])?.ok,
        lab.attempt(place, &["udp", &to(ip, 9001), "--wait"])?.ok,
        lab.attempt(place, &["ping", &ip.to_string()])?.ok,
    ])
}

#[test]
fn opted_in_they_answer_probes_scrapes_and_named_remotes_and_nobody_else() -> Result<()> {
    let host = OnHost::new("enforce")?;
    let scenario = &host.scenario;
    let lab = &scenario.lab;
    let _tcp = scenario.server(&host.place(), "tcp", 9000)?;
    let _udp = scenario.server(&host.place(), "udp", 9001)?;
    scenario.change_policy("  mode:", OPT_IN)?;
    let kubelet = Place { netns: Some(&lab.node), ..Place::default() };
    let outside = Place { netns: Some(&lab.internet), ..Place::default() };
    // A node port leads to a port of the pod's own; the wall sees the node port again.
    nft(
        &kubelet,
        "table inet services { chain prerouting { type nat hook prerouting priority dstnat; \
         tcp dport 30900 redirect to :9000\nudp dport 30901 redirect to :9001\n}\n}\n",
    )?;
    for ip in NODE.both() {
        assert_eq!(asks(lab, &kubelet, ip)?, [true; 3], "a probe of {ip}");
        for place in [lab.ledger.place(), lab.gateway.place()] {
            assert_eq!(asks(lab, &place, ip)?, [true; 3], "a scrape of {ip}");
        }
        let ported = lab.attempt(&lab.ledger.place(), &["tcp", &to(ip, 30900), "--http", "x"])?;
        assert!(ported.ok, "{ip}: {ported:?}");
        let ported = lab.attempt(&lab.ledger.place(), &["udp", &to(ip, 30901), "--wait"])?;
        assert!(ported.ok, "{ip}: {ported:?}");
        // An echo request is the node's own to answer.
        assert_eq!(asks(lab, &outside, ip)?, [false, false, true], "a stranger at {ip}");
    }
    // As the API server of a managed cluster comes to a webhook.
    let remotes =
        ROUTER.both().map(|ip| format!("\"{ip}/{}\"", if ip.is_ipv4() { 32 } else { 128 }));
    let named = format!("  inboundRanges: [{}]\n  mode:", remotes.join(", "));
    scenario.change_policy("  mode:", &named)?;
    for ip in NODE.both() {
        assert_eq!(asks(lab, &outside, ip)?, [true; 3], "a named remote at {ip}");
        // What may be answered may not be dialled.
        let from = if ip.is_ipv4() { ROUTER.both()[0] } else { ROUTER.both()[1] };
        let (reached, frames) = host.outside(&["tcp", &to(from, 9000)], from)?;
        assert_eq!((reached, frames), (false, 0), "{from}");
    }
    Ok(())
}

/// A bound socket that others may bind beside.
fn shared(port: u16) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into())?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(socket.into())
}

#[test]
fn one_pod_does_not_answer_on_anothers_flow() -> Result<()> {
    let host = OnHost::new("enforce")?;
    let scenario = &host.scenario;
    let lab = &scenario.lab;
    let inbound = format!("  inboundRanges: [{}/32]\n", ROUTER.v4);
    scenario.change_policy("  mode:", &format!("{inbound}{OPT_IN}"))?;
    let mine = lab.node.run(|| cgroup::inside(&host.exporter, || shared(9002)))?;
    let asker = lab.internet.run(|| {
        let socket = UdpSocket::bind((ROUTER.v4, 40123))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send_to(b"question", (NODE.v4, 9002))?;
        Ok(socket)
    })?;
    let (_, remote) = mine.recv_from(&mut [0; 64]).context("the question")?;
    let theirs = lab.node.run(|| cgroup::inside(&host.other, || shared(9002)))?;
    let refused = theirs.send_to(b"not mine to answer", remote);
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EPERM));
    mine.send_to(b"answer", remote)?;
    let mut answer = [0; 64];
    let length = asker.recv(&mut answer).context("the answer")?;
    assert_eq!(&answer[..length], b"answer");
    Ok(())
}

fn said(stream: &mut TcpStream) -> bool {
    stream.write_all(b"still there?").is_ok() && stream.read_exact(&mut [0; 12]).is_ok()
}

fn patient(stream: TcpStream) -> Result<TcpStream> {
    stream.set_read_timeout(Some(Duration::from_millis(800)))?;
    Ok(stream)
}

/// What the pod has open before anybody looks: what others opened goes on, what it opened itself is
/// cut. The same for a pod with an interface of its own.
#[test]
fn of_connections_older_than_the_attach_only_those_from_outside_go_on() -> Result<()> {
    let lab = Lab::new()?;
    let [exporter, _] = on_host(&lab)?;
    let serve = |place: &Place<'_>| -> Result<Process> { lab.serve(place, "tcp", 9000) };
    let _servers = [serve(&at(&lab, &exporter))?, serve(&lab.cart.place())?];
    let open = |ip: IpAddr| -> Result<TcpStream> {
        patient(TcpStream::connect(SocketAddr::new(ip, 9000))?)
    };
    let mut inbound = Vec::new();
    for (host, cart) in NODE.both().into_iter().zip(pod(CART.host).both()) {
        inbound.push(lab.ledger.netns.run(|| open(host))?);
        inbound.push(lab.node.run(|| open(cart))?);
    }
    let mut outbound = Vec::new();
    for ip in STRIPE.both() {
        outbound.push(lab.node.run(|| cgroup::inside(&exporter, || open(ip)))?);
        outbound.push(lab.cart.netns.run(|| cgroup::inside(&lab.cart.cgroup, || open(ip)))?);
    }
    assert!(inbound.iter_mut().chain(&mut outbound).all(said), "before the agent all are open");

    manifests::write(&lab.file("registry"), "enforce")?;
    let policy = lab.file("registry/policy.yaml");
    let text = std::fs::read_to_string(&policy)?.replacen("  mode:", OPT_IN, 1);
    manifests::replace(&policy, &text)?;
    let _agent = Agent::start(&lab, &[])?;
    agent::wait_for_mode(&lab, "enforce")?;
    for (number, stream) in inbound.iter_mut().enumerate() {
        assert!(said(stream), "inbound connection {number} is cut");
    }
    for (number, stream) in outbound.iter_mut().enumerate() {
        assert!(!said(stream), "outbound connection {number} goes on");
    }
    Ok(())
}

/// What comes back on a connection that the pod opened itself keeps none: nobody listens at its end.
/// Its remote is one that may be answered.
#[test]
fn what_a_pod_opened_itself_is_not_kept_by_what_comes_back() -> Result<()> {
    let lab = Lab::new()?;
    let mut open = Vec::new();
    for ip in NODE.both() {
        let listener = lab.node.run(|| Ok(TcpListener::bind(SocketAddr::new(ip, 9600))?))?;
        let dialled = lab
            .cart
            .netns
            .run(|| cgroup::inside(&lab.cart.cgroup, || Ok(TcpStream::connect((ip, 9600))?)))?;
        open.push((patient(dialled)?, patient(listener.accept()?.0)?));
    }
    let _scenario = Scenario::on(lab, "enforce", &[])?;
    for (dialled, remote) in &mut open {
        remote.write_all(b"unasked")?;
        let answered = dialled.read_exact(&mut [0; 7]).is_ok()
            && dialled.write_all(b"answered").is_ok()
            && remote.read_exact(&mut [0; 8]).is_ok();
        assert!(!answered, "it goes on");
    }
    Ok(())
}

/// Nor does a listener beside it, where the remote is nobody's to be answered.
#[test]
fn a_listener_beside_an_outbound_connection_does_not_keep_it() -> Result<()> {
    let lab = Lab::new()?;
    let (mut outbound, _listener) = lab.cart.netns.run(|| {
        cgroup::inside(&lab.cart.cgroup, || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from(([0, 0, 0, 0], 9500)).into())?;
            socket.connect(&SocketAddr::from((STRIPE.v4, 9000)).into())?;
            let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            listener.set_reuse_address(true)?;
            listener.bind(&SocketAddr::from(([0, 0, 0, 0], 9500)).into())?;
            listener.listen(1)?;
            Ok((patient(socket.into())?, TcpListener::from(listener)))
        })
    })?;
    assert!(said(&mut outbound));
    let scenario = Scenario::on(lab, "enforce", &[])?;
    assert!(!said(&mut outbound), "it goes on");
    drop(scenario);
    Ok(())
}
