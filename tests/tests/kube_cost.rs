//! What one agent costs a large cluster: watches, bytes and memory.
//!
//! A small cluster is measured with every run of the tests. `EGRESS_COST_NODES=100` makes it 5,000
//! pods on 100 nodes, observed for a minute; that takes some minutes:
//! `EGRESS_COST_NODES=100 cargo test -p egress-tests --test kube_cost -- --nocapture`.

use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use egress_tests::agent::{self, Agent};
use egress_tests::control_plane::{Cluster, ControlPlane, MARK, Pod};
use egress_tests::kube_lab::{KubeLab, NODE, registry};
use egress_tests::process::wait_until;
use serde_json::{Value, json};

/// A cluster of this size, and how long its pods are watched changing.
struct Size {
    nodes: usize,
    pods_per_node: usize,
    observed: Duration,
}

impl Size {
    /// What `EGRESS_COST_NODES` asks for; a small cluster without it.
    fn asked() -> Result<Self> {
        const NAME: &str = "EGRESS_COST_NODES";
        let Ok(nodes) = std::env::var(NAME) else {
            return Ok(Self { nodes: 5, pods_per_node: 40, observed: Duration::from_secs(3) });
        };
        let nodes = nodes.parse().with_context(|| format!("{NAME}={nodes}: a number of nodes"))?;
        // The second node's pods are those of others, and addresses end at 250 nodes.
        ensure!((2..=250).contains(&nodes), "{NAME}={nodes}: 2 to 250 nodes");
        Ok(Self { nodes, pods_per_node: 50, observed: Duration::from_secs(60) })
    }
}

/// Pods that are replaced per node and hour in a busy cluster: what the changes are scaled to.
const CHURN_PER_NODE_AND_HOUR: usize = 20;

/// The pods of one node; the lab's own is the first.
fn node_name(number: usize) -> String {
    if number == 0 { NODE.to_owned() } else { format!("node-{number}") }
}

fn node(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node_name(number), "labels": {MARK: "true"}},
        "spec": {"podCIDRs": [format!("10.{}.{}.0/24", 128 + number / 256, number % 256)]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("172.31.1.{number}")}]},
    })
}

fn pod(node: usize, number: usize) -> Value {
    let (name, node_name) = (format!("app-{node}-{number}"), node_name(node));
    let octets = [10, 128 + (node / 256) as u8, (node % 256) as u8, number as u8 + 1];
    let addresses = [IpAddr::from(octets)];
    let labels = [("app", "app"), ("pod-template-hash", "5d4f8c7b9")];
    let (namespace, account) = (if number.is_multiple_of(2) { "shop" } else { "bank" }, "default");
    Pod {
        namespace,
        name: &name,
        node: &node_name,
        account,
        labels: &labels,
        addresses: &addresses,
    }
    .manifest()
}

/// Resident memory, bytes.
fn resident(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read /proc")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes: u64 = kilobytes.context("no VmRSS")?.trim().parse()?;
    Ok(kilobytes * 1024)
}

/// Watches that the API server has open for everybody.
fn watches(cluster: &Cluster) -> Result<f64> {
    let metrics = cluster.get_text("/metrics")?;
    let running = metrics.lines().filter(|line| {
        line.starts_with("apiserver_longrunning_requests{") && line.contains("verb=\"WATCH\"")
    });
    Ok(running.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// Written for people at the end.
#[derive(Debug)]
struct Cost {
    watches: f64,
    start_bytes: u64,
    start: Duration,
    quiet_per_hour: f64,
    per_foreign_change: f64,
    per_own_change: f64,
    resident: u64,
}

fn measure(size: &Size) -> Result<Cost> {
    let plane = ControlPlane::start()?;
    plane.cluster.install_lenient()?;
    let (lab, _gateway) = KubeLab::prepare(&plane, "enforce")?;
    let nodes: Vec<Value> = (1..size.nodes).map(node).collect();
    plane.cluster.apply_all(&nodes)?;
    let pods = (0..size.nodes)
        .flat_map(|node| (0..size.pods_per_node).map(move |number| pod(node, number)));
    let pods: Vec<Value> = pods.collect();
    plane.cluster.apply_all(&pods)?;

    let before = watches(&plane.cluster)?;
    let (relay, kubeconfig) = plane.relay(&lab, None)?;
    let begun = Instant::now();
    let agent = Agent::start_on(&lab, &registry(&kubeconfig), &[])?;
    agent::wait_for_mode(&lab, "enforce")?;
    let start = begun.elapsed();
    wait_until("the agent knows the pods of its node", Duration::from_secs(20), || {
        let known = agent::status(&lab)?["pods"].as_array().map_or(0, Vec::len);
        Ok(known >= size.pods_per_node)
    })?;
    std::thread::sleep(Duration::from_secs(2));
    let start_bytes = relay.traffic().received;
    let watches = watches(&plane.cluster)? - before;

    // Nothing changes: probes and what keeps watches alive.
    let quiet_from = relay.traffic().received;
    std::thread::sleep(size.observed);
    let quiet = relay.traffic().received - quiet_from;

    // As many changes elsewhere as here, told apart.
    let touch = |node: usize| -> Result<u64> {
        let from = relay.traffic().received;
        let changed: Vec<Value> = (0..size.pods_per_node)
            .map(|number| {
                let mut pod = pod(node, number);
                pod["metadata"]["labels"]["touched"] = "yes".into();
                pod
            })
            .collect();
        plane.cluster.apply_all(&changed)?;
        std::thread::sleep(Duration::from_secs(1));
        Ok(relay.traffic().received - from)
    };
    let (foreign, own) = (touch(1)?, touch(0)?);
    let changes = size.pods_per_node as f64;
    Ok(Cost {
        watches,
        start_bytes,
        start,
        quiet_per_hour: quiet as f64 * 3600.0 / size.observed.as_secs_f64(),
        per_foreign_change: foreign as f64 / changes,
        per_own_change: own as f64 / changes,
        resident: resident(agent.process.pid())?,
    })
}

fn told(size: &Size, cost: &Cost) -> String {
    let hour = cost.quiet_per_hour + cost.per_own_change * CHURN_PER_NODE_AND_HOUR as f64;
    format!(
        "{} pods on {} nodes: {} watches, {} kB at start (in force after {:.1} s), {:.0} kB an hour with nothing \
         changing, {:.0} B a change of an own pod and {:.0} B one elsewhere, so {:.0} kB an hour with \
         {CHURN_PER_NODE_AND_HOUR} changes of own pods; {:.1} MB resident",
        size.nodes * size.pods_per_node,
        size.nodes,
        cost.watches,
        cost.start_bytes / 1000,
        cost.start.as_secs_f64(),
        cost.quiet_per_hour / 1e3,
        cost.per_own_change,
        cost.per_foreign_change,
        hour / 1e3,
        cost.resident as f64 / 1e6,
    )
}

#[test]
fn an_agent_pays_for_its_own_pods_and_not_for_those_of_other_nodes() -> Result<()> {
    let size = Size::asked()?;
    let cost = measure(&size)?;
    println!("{}", told(&size, &cost));
    // Bytes a change costs where nobody looks: a probe may fall into it.
    ensure!(cost.per_foreign_change < 100.0, "pods of other nodes are watched: {cost:?}");
    ensure!(cost.per_own_change > 300.0, "own pods are not watched: {cost:?}");
    ensure!(cost.watches < 40.0, "{cost:?}");
    ensure!(cost.resident < 100_000_000, "{cost:?}");
    Ok(())
}
