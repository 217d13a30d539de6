//! A pod whose cgroup is there and whose object is not: judged by the node's `unknownPod` at its
//! sockets and at its interface, and reachable all the while.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use egress_tests::address::{RESOLVER, STRIPE};
use egress_tests::lab::{Identity, Lab, Pod};
use egress_tests::manifests;
use egress_tests::process::{Place, nft};
use egress_tests::scenario::{Scenario, to};
use egress_tests::wiring::Wiring;
use egress_tests::{agent, cgroup};

const LATE: Identity = Identity {
    short: "late",
    name: "shop/late",
    uid: "5f0c1a52-0c4b-4c1e-9d53-000000000051",
    host: 51,
};

/// Others reach the pod: the kubelet from the node, and a peer.
fn is_answered(lab: &Lab, late: &Pod, when: &str) -> Result<()> {
    let kubelet = Place { netns: Some(&lab.node), ..Place::default() };
    for place in [kubelet, lab.ledger.place()] {
        for ip in late.address().both() {
            for arguments in [
                &["tcp", &*to(ip, 9000), "--http", "x"][..],
                // As a sidecar takes over what comes in: the pod translates the port.
                &["tcp", &to(ip, 8080), "--http", "x"],
                &["udp", &to(ip, 9001), "--wait"],
                &["ping", &ip.to_string()],
            ] {
                let outcome = lab.attempt(&place, arguments)?;
                assert!(outcome.ok, "{when}: {arguments:?}: {outcome:?}");
            }
            let closed = lab.attempt(&place, &["tcp", &to(ip, 9999)])?;
            assert_eq!(closed.error, "ECONNREFUSED", "{when}: {ip}: {closed:?}");
        }
    }
    Ok(())
}

/// Accepts one connection from the node; the server's end is a socket of the pod.
fn opened_from_the_node(lab: &Lab, late: &Pod, ip: IpAddr) -> Result<(TcpStream, TcpStream)> {
    let listener = late.netns.run(|| {
        cgroup::inside(&late.cgroup, || Ok(TcpListener::bind(SocketAddr::new(ip, 9005))?))
    })?;
    let client = lab.node.run(|| Ok(TcpStream::connect(SocketAddr::new(ip, 9005))?))?;
    let (server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_read_timeout(Some(Duration::from_secs(2)))?;
    }
    Ok((client, server))
}

fn through_its_learning(word: &str) -> Result<()> {
    let lab = Lab::new()?;
    manifests::config(&lab.file("agent.yaml"), &format!("unknownPod: {word}\n"))?;
    let scenario = Scenario::on(lab, "enforce", &[])?;
    let lab = &scenario.lab;
    let late = lab.add_pod(LATE)?;
    late.netns.await_ipv6("eth0")?;
    let _servers = [
        scenario.server(&late.place(), "tcp", 9000)?,
        scenario.server(&late.place(), "udp", 9001)?,
    ];
    nft(
        &Place { netns: Some(&late.netns), ..Place::default() },
        "table inet capture { chain prerouting { type nat hook prerouting priority dstnat; \
         tcp dport 8080 redirect to :9000\n}\n}\n",
    )?;

    is_answered(lab, &late, "before")?;
    let (verdict, passes) = if word == "deny" { ("drop", false) } else { ("audit", true) };
    for ip in STRIPE.both() {
        let before = scenario.samples()?;
        let arguments = ["tcp", &to(ip, 9000), "--patience", "500"];
        let (dialled, escaped) = scenario.judged(&late.place(), &arguments)?;
        assert_eq!((dialled.ok, escaped > 0), (passes, passes), "{ip}: {dialled:?}");
        let counter = format!("egress_node_{}_total", if passes { "audit" } else { "drops" });
        let counted = [&*counter, "reason=\"unknown_pod\""];
        assert!(scenario.rise(&before, &counted)? >= 1.0, "{ip}: {verdict} is counted");
    }
    let before = scenario.samples()?;
    for ip in RESOLVER.both() {
        let asked = lab.attempt(&late.place(), &["udp", &to(ip, 53), "--wait"])?;
        assert!(asked.ok, "a named resolver: {asked:?}");
    }
    is_answered(lab, &late, "again")?;
    for counter in ["egress_node_drops_total", "egress_node_audit_total"] {
        let rise = scenario.rise(&before, &[counter, "reason=\"unknown_pod\""])?;
        assert_eq!(rise, 0.0, "answers are none of what {verdict} is counted for");
    }

    let [four, six] = late.address().both();
    let mut open =
        [opened_from_the_node(lab, &late, four)?, opened_from_the_node(lab, &late, six)?];
    let object = manifests::pod(LATE, late.address(), "");
    manifests::replace(&lab.file("registry/late.yaml"), &object)?;
    scenario.until("the pod is covered", |status| {
        let pods = status["pods"].as_array();
        pods.into_iter()
            .flatten()
            .any(|pod| pod["pod"]["name"] == "late" && pod["state"] == "covered")
    })?;
    for (client, server) in &mut open {
        // The pod speaks first: nothing came in since its interface is watched.
        server.write_all(b"at last")?;
        client.read_exact(&mut [0; 7]).context("an answer begun before")?;
        client.write_all(b"go on")?;
        server.read_exact(&mut [0; 5]).context("what follows it")?;
    }
    is_answered(lab, &late, "after")?;
    let (refused, escaped) = scenario.judged(&late.place(), &["tcp", &to(STRIPE.v4, 9000)])?;
    assert!(refused.refused() && escaped == 0, "{refused:?}");
    Ok(())
}

#[test]
fn audited_it_is_answered_before_and_after_it_is_learned() -> Result<()> {
    through_its_learning("audit")
}

#[test]
fn denied_it_is_answered_before_and_after_it_is_learned() -> Result<()> {
    through_its_learning("deny")
}

/// A lab with `late` in it, which nobody has learned, and an agent with this configuration.
fn unlearned(config: &str, wiring: Wiring) -> Result<(Scenario, Pod)> {
    let lab = Lab::wired(wiring)?;
    manifests::config(&lab.file("agent.yaml"), config)?;
    let scenario = Scenario::on(lab, "enforce", &[])?;
    let late = scenario.lab.add_pod(LATE)?;
    late.netns.await_ipv6("eth0")?;
    await_boundary(&scenario, &late)?;
    Ok((scenario, late))
}

/// The boundary is at a pod's interface, whoever it is.
fn await_boundary(scenario: &Scenario, pod: &Pod) -> Result<()> {
    let ifindex = ifindex(&scenario.lab, &pod.interface())?;
    scenario.until("the boundary is at its interface", |status| {
        let hooks = status["hooks"].as_array().into_iter().flatten();
        hooks
            .filter(|hook| {
                hook["target"] == format!("ifindex {ifindex}") && hook["attached"] == true
            })
            .count()
            == 2
    })?;
    // Its addresses are seen a little later than itself.
    std::thread::sleep(Duration::from_millis(700));
    Ok(())
}

fn ifindex(lab: &Lab, interface: &str) -> Result<u32> {
    lab.node.run(|| nix::net::if_::if_nametoindex(interface).context("find the interface"))
}

/// What the wall does not see: frames of a packet socket, a raw socket of a cgroup that the pod has
/// escaped to, and packets that are rewritten behind the wall or carry an address that the pod gave
/// itself. Each is made from the pod's cgroup and from outside of it.
fn behind_the_wall(scenario: &Scenario, late: &Pod, passes: bool) -> Result<()> {
    let lab = &scenario.lab;
    let escaped = || Place { cgroup: None, ..late.place() };
    for ip in STRIPE.both() {
        let target = SocketAddr::new(ip, 9000);
        for (what, place) in [
            ("packet", late.place()),
            ("packet", escaped()),
            ("raw", escaped()),
            ("raw", late.place()),
        ] {
            let arguments = lab.by_hand(what, late, target);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let (sent, escapes) = scenario.judged(&place, &arguments)?;
            assert_eq!(escapes > 0, passes, "{what} to {ip}: {sent:?}");
        }
        let (dialled, escapes) =
            scenario.judged(&escaped(), &["tcp", &to(ip, 9000), "--patience", "400"])?;
        assert_eq!((dialled.ok, escapes > 0), (passes, passes), "escaped, to {ip}: {dialled:?}");
    }
    Ok(())
}

#[test]
fn behind_the_wall_a_pod_that_is_not_learned_meets_the_boundary() -> Result<()> {
    for wiring in Wiring::ALL {
        let (scenario, late) = unlearned("unknownPod: deny\n", wiring)?;
        let before = scenario.samples()?;
        behind_the_wall(&scenario, &late, false)?;
        let drops =
            scenario.rise(&before, &["egress_node_drops_total", "reason=\"unknown_pod\""])?;
        assert!(drops >= 8.0, "{drops}");

        // Its address moved away, and another one in its place.
        let (v4, v6) = (late.address().v4, late.address().v6);
        late.netns.batch(&format!(
            "addr del {v4}/{} dev eth0\naddr del {v6}/{} dev eth0\naddr add 172.17.0.9/32 dev eth0\n",
            if wiring == Wiring::Routed { 32 } else { 24 },
            if wiring == Wiring::Routed { 128 } else { 64 },
        ))?;
        scenario.lab.node.batch(&format!("link set {} alias moved\n", late.interface()))?;
        std::thread::sleep(Duration::from_millis(800));
        for ip in STRIPE.both() {
            let frame = scenario.lab.by_hand("packet", &late, SocketAddr::new(ip, 9000));
            let frame: Vec<&str> = frame.iter().map(String::as_str).collect();
            let (sent, escapes) = scenario.judged(&late.place(), &frame)?;
            assert_eq!(escapes, 0, "moved, to {ip}: {sent:?}");
        }
    }
    Ok(())
}

#[test]
fn audited_what_passes_behind_the_wall_is_told_and_counted() -> Result<()> {
    let (scenario, late) = unlearned("unknownPod: audit\n", Wiring::Routed)?;
    let before = scenario.samples()?;
    behind_the_wall(&scenario, &late, true)?;
    let told = scenario.rise(&before, &["egress_node_audit_total", "reason=\"unknown_pod\""])?;
    assert!(told >= 8.0, "{told}");
    let dropped = scenario.rise(&before, &["egress_node_drops_total"])?;
    assert_eq!(dropped, 0.0, "audit drops nothing");
    Ok(())
}

/// A container of another runtime: a pair end like a pod's, no cgroup of the kubelet's.
#[test]
fn what_is_no_pods_is_left_alone() -> Result<()> {
    const OTHER: Identity = Identity {
        short: "docker",
        name: "none/docker",
        uid: "5f0c1a52-0c4b-4c1e-9d53-000000000061",
        host: 61,
    };
    const NAMED: Identity =
        Identity { short: "named", host: 62, uid: "5f0c1a52-0c4b-4c1e-9d53-000000000062", ..OTHER };
    let lab = Lab::new()?;
    manifests::config(&lab.file("agent.yaml"), "unknownPod: deny\nnotPods: [v-nam*]\n")?;
    let (other, named) = (lab.add_pod(OTHER)?, lab.add_pod(NAMED)?);
    other.netns.batch(
        "addr add 172.17.0.2/32 dev eth0\naddr del 10.244.1.61/32 dev eth0\n\
         addr del fd00:244:1::3d/128 dev eth0\n",
    )?;
    lab.node.batch("route add 172.17.0.2/32 dev v-docker\n")?;
    lab.internet
        .batch(&format!("route add 172.17.0.0/16 via {}\n", egress_tests::address::NODE.v4))?;
    let scenario = Scenario::on(lab, "enforce", &[])?;
    let lab = &scenario.lab;
    let late = lab.add_pod(LATE)?;
    await_boundary(&scenario, &late)?;
    for pod in [&other, &named] {
        let target = format!("ifindex {}", ifindex(lab, &pod.interface())?);
        let status = agent::status(lab)?;
        let mut hooks = status["hooks"].as_array().into_iter().flatten();
        assert!(hooks.all(|hook| hook["target"] != target), "{status}");
        let place = Place { cgroup: None, ..pod.place() };
        let dialled = lab.attempt(&place, &["tcp", &to(STRIPE.v4, 9000)])?;
        assert!(dialled.ok, "{}: {dialled:?}", pod.identity.short);
    }
    Ok(())
}
