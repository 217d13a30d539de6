//! A pod whose cgroup is there and whose object is not: judged by the node's `unknownPod`, and
//! reachable all the while.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use egress_tests::address::{RESOLVER, STRIPE};
use egress_tests::cgroup;
use egress_tests::lab::{Identity, Lab, Pod};
use egress_tests::manifests;
use egress_tests::process::{Place, nft};
use egress_tests::scenario::{Scenario, to};

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
