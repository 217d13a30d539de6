//! Services that end elsewhere than they seem: judged on the uplink, by where they really go.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use egress_tests::address::{Dual, NODE, STRIPE, pod};
use egress_tests::cgroup;
use egress_tests::lab::LEDGER;
use egress_tests::manifests;
use egress_tests::netns::sysctl;
use egress_tests::process::{Place, nft};
use egress_tests::scenario::{Scenario, to};

/// A Service whose slices the registry does not show; a pod of another node; one of this node.
const OUTSIDE: Dual = Dual::new([10, 96, 7, 1], [0xfd00, 0x96, 0, 0, 0, 0, 7, 1]);
const REMOTE: Dual = Dual::new([10, 96, 7, 2], [0xfd00, 0x96, 0, 0, 0, 0, 7, 2]);
const LOCAL: Dual = Dual::new([10, 96, 7, 3], [0xfd00, 0x96, 0, 0, 0, 0, 7, 3]);
/// Where the remote pod is, behind the uplink.
const OTHER_NODE_POD: Dual = Dual::new([10, 244, 9, 9], [0xfd00, 0x244, 9, 0, 0, 0, 0, 9]);
const NODE_PORT: u16 = 30443;

/// Where kube-proxy's table leads these, by family and with the words for their ports.
fn rules(services: &[(Dual, Dual)], more: [&str; 2]) -> String {
    let table = |family: &str, pick: usize, more: &str| {
        let lead = |(service, end): &(Dual, Dual)| {
            let (service, end) = (service.both()[pick], to(end.both()[pick], 9000));
            format!(
                "{family} daddr {service} meta l4proto {{tcp, udp}} th dport 443 dnat to {end}\n"
            )
        };
        let rules: String = services.iter().map(lead).collect();
        format!(
            "table {family} services {{\n\
             chain prerouting {{\n\
             type nat hook prerouting priority dstnat;\n\
             {rules}{more}\
             }}\n\
             }}\n"
        )
    };
    table("ip", 0, more[0]) + &table("ip6", 1, more[1])
}

/// The cluster with kube-proxy's translation in the node's namespace.
fn translated(mode: &str) -> Result<Scenario> {
    let scenario = Scenario::new(mode)?;
    let lab = &scenario.lab;
    lab.internet.batch(&format!(
        "addr add {}/32 dev lo\naddr add {}/128 dev lo\n",
        OTHER_NODE_POD.v4, OTHER_NODE_POD.v6
    ))?;
    lab.node.batch(&format!(
        "route add 10.244.9.0/24 via {}\nroute add fd00:244:9::/64 via {}\n",
        egress_tests::address::ROUTER.v4,
        egress_tests::address::ROUTER.v6
    ))?;
    let [v4, v6] = [0, 1].map(|pick| {
        let end = to(STRIPE.both()[pick], 9000);
        let family = ["ip", "ip6"][pick];
        format!("{family} daddr {} tcp dport {NODE_PORT} dnat to {end}\n", NODE.both()[pick])
    });
    let services = [(OUTSIDE, STRIPE), (REMOTE, OTHER_NODE_POD), (LOCAL, pod(LEDGER.host))];
    let rules = rules(&services, [&v4, &v6]);
    nft(&Place { netns: Some(&lab.node), ..Place::default() }, &rules)?;
    let other_node = "apiVersion: v1\nkind: Node\nmetadata: {name: node-b}\n\
                      spec: {podCIDRs: [10.244.9.0/24, \"fd00:244:9::/64\"]}\n";
    manifests::replace(&lab.file("registry/node-b.yaml"), other_node)?;
    // The hairpin needs a node port that the policy lists, as an operator in a hurry would.
    let nodes = NODE.both().map(|ip| format!("{{ip: \"{ip}\", port: {NODE_PORT}}}")).join(", ");
    scenario.change_policy("  mode:", &format!("  nodes: [{nodes}]\n  mode:"))?;
    Ok(scenario)
}

fn ways(ip: IpAddr, node: IpAddr) -> Vec<Vec<String>> {
    let patience = ["--patience".to_owned(), "400".to_owned()];
    let tcp = |to: String| [vec!["tcp".to_owned(), to], patience.to_vec()].concat();
    vec![
        tcp(to(ip, 443)),
        vec!["udp".to_owned(), to(ip, 443), "--wait".to_owned()],
        tcp(to(node, NODE_PORT)),
    ]
}

#[test]
fn a_service_that_ends_outside_is_seen_in_audit_and_stopped_in_enforce() -> Result<()> {
    for mode in ["audit", "enforce"] {
        let scenario = translated(mode)?;
        for (ip, node) in OUTSIDE.both().into_iter().zip(NODE.both()) {
            for way in ways(ip, node) {
                let before = scenario.samples()?;
                let arguments: Vec<&str> = way.iter().map(String::as_str).collect();
                let (outcome, escaped) = scenario.judged(&scenario.lab.cart.place(), &arguments)?;
                let total = if mode == "audit" {
                    "egress_node_audit_total"
                } else {
                    "egress_node_drops_total"
                };
                let told = scenario.rise(&before, &[total, "reason=\"hidden_external\""])?;
                assert!(told >= 1.0, "{mode} {way:?}: {outcome:?}, not told");
                if mode == "audit" {
                    assert!(escaped > 0, "{way:?} does not get out without enforcement");
                } else {
                    assert!(escaped == 0 && !outcome.ok, "{way:?}: {outcome:?}, {escaped} frames");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn services_that_end_in_the_cluster_are_reached() -> Result<()> {
    let scenario = translated("enforce")?;
    let lab = &scenario.lab;
    let _ledger = scenario.server(&lab.ledger.place(), "tcp", 9000)?;
    for ip in [LOCAL, REMOTE].iter().flat_map(|dual| dual.both()) {
        let (reached, _) =
            scenario.judged(&lab.cart.place(), &["tcp", &to(ip, 443), "--http", "x"])?;
        assert!(reached.ok, "{ip}: {reached:?}");
    }
    for ip in REMOTE.both() {
        let (answered, _) = scenario.judged(&lab.cart.place(), &["udp", &to(ip, 443), "--wait"])?;
        assert!(answered.ok || answered.error == "ECONNREFUSED", "{ip}: {answered:?}");
    }
    Ok(())
}

/// A Service answers with its own address. That is no remote that opened a flow, or the pod could go
/// on as if answering when the Service leads elsewhere, by a way that nobody judges twice.
#[test]
fn what_a_service_answered_is_judged_again_when_it_leads_outside() -> Result<()> {
    let scenario = translated("enforce")?;
    let lab = &scenario.lab;
    let ips = LOCAL.both().map(|ip| format!("\"{ip}\"")).join(", ");
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: ledger, namespace: bank}}\n\
         spec: {{clusterIP: {}, clusterIPs: [{ips}], ports: [{{port: 443, protocol: UDP}}]}}\n",
        LOCAL.v4
    );
    manifests::replace(&lab.file("registry/service.yaml"), &service)?;
    lab.node.run(|| {
        sysctl("net/netfilter/nf_conntrack_udp_timeout", "1")?;
        sysctl("net/netfilter/nf_conntrack_udp_timeout_stream", "1")
    })?;
    std::thread::sleep(Duration::from_secs(1));
    let _ledger = scenario.server(&lab.ledger.place(), "udp", 9000)?;
    let mut asking = Vec::new();
    for (ip, own) in LOCAL.both().into_iter().zip(lab.cart.address().both()) {
        let socket = lab.cart.netns.run(|| {
            cgroup::inside(&lab.cart.cgroup, || {
                let socket = UdpSocket::bind((own, 5555))?;
                socket.set_read_timeout(Some(Duration::from_secs(2)))?;
                socket.send_to(b"one", (ip, 443))?;
                socket.recv_from(&mut [0; 16]).with_context(|| format!("{ip} answers"))?;
                Ok(socket)
            })
        })?;
        asking.push((ip, socket));
    }
    let elsewhere = rules(&[(LOCAL, STRIPE)], ["", ""]);
    let node = Place { netns: Some(&lab.node), ..Place::default() };
    nft(&node, &format!("flush ruleset\n{elsewhere}"))?;
    // Until the node's translation has forgotten the flow.
    std::thread::sleep(Duration::from_secs(3));
    for (ip, socket) in asking {
        let mark = lab.sniffer.mark();
        let before = scenario.samples()?;
        let _ = socket.send_to(b"two", (ip, 443));
        lab.settle();
        assert_eq!(lab.sniffer.escapes(mark)?, [], "{ip}");
        let told = ["egress_node_drops_total", "reason=\"hidden_external\""];
        assert!(scenario.rise(&before, &told)? >= 1.0, "{ip}: not told");
    }
    Ok(())
}
