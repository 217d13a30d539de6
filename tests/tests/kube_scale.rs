//! The gateway grows and shrinks under a client, on a full node.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use egress_tests::address::{self, Dual};
use egress_tests::attempt::Outcome;
use egress_tests::control_plane::{self, ControlPlane, Pod};
use egress_tests::kube_lab::{ExactTable, KubeLab, NODE, percentile, policy};
use egress_tests::lab::{Identity, Pod as LabPod};
use egress_tests::process::Process;
use egress_tests::scenario::to;
use serde_json::{Value, json};

/// Pods of the node that only exist for the registry.
const CROWD: u8 = 250;
/// The port that gateways serve.
const PORT: u16 = 8443;
/// What a change may take from the API to the kernel.
const PATIENCE: Duration = Duration::from_secs(1);
/// When a client begins to use what was published: kube-proxy collects changes for a second by
/// default, this is a fast one.
const PROXY_DELAY: Duration = Duration::from_millis(250);
/// Times the gateway grows to ten and shrinks to three again.
const ROUNDS: usize = 3;
/// Replicas beside the lab's own gateway pod: those that stay, and those that do not.
const STAY: [u8; 2] = [41, 42];
const COME_AND_GO: std::ops::Range<u8> = 51..58;
/// Replicas that only the registry knows, one after the other.
const MEASURED: usize = 30;
const MEASURED_HOST: u8 = 60;

/// A client that keeps connecting to a list of addresses, in the pod of `shop/cart`.
struct Client {
    process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    fn start(scenario: &KubeLab) -> Result<Self> {
        let lab = &scenario.lab;
        let mut command = lab.probe(&lab.cart.place())?;
        command.arg("visit").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(lab.log("visit")?);
        let mut process = Process::start(command, "visit")?;
        let input = process.child().stdin.take().context("the client has no input")?;
        let output = process.child().stdout.take().context("the client has no output")?;
        Ok(Self { process, input, output: BufReader::new(output) })
    }

    /// Changes the list and waits until no connection to another address is under way.
    fn dial(&mut self, scenario: &KubeLab) -> Result<()> {
        let serving = scenario.gateway.members.iter().filter(|member| !member.is_terminating);
        let addresses = serving.flat_map(|member| member.address.both());
        let list: Vec<String> = addresses.map(|ip| SocketAddr::new(ip, PORT).to_string()).collect();
        writeln!(self.input, "{}", list.join(",")).context("tell the client")?;
        let mut line = String::new();
        self.output.read_line(&mut line).context("hear the client")?;
        ensure!(line == "ok\n", "the client ended: {line}");
        Ok(())
    }

    fn finish(self) -> Result<Outcome> {
        let Self { mut process, input, mut output } = self;
        drop(input);
        let mut line = String::new();
        output.read_line(&mut line).context("hear the client")?;
        process.wait(Duration::from_secs(5))?;
        serde_json::from_str(&line).with_context(|| format!("the client said {line:?}"))
    }
}

/// A gateway pod of the lab with its server.
struct Replica {
    server: Process,
    pod: LabPod,
}

fn name(host: u8) -> String {
    format!("istio-egressgateway-{host}")
}

/// Adds a replica as a deployment does; gives the time from publishing it to the kernel's table.
fn grow(
    scenario: &mut KubeLab,
    plane: &ControlPlane,
    table: &ExactTable,
    host: u8,
) -> Result<(Replica, Duration)> {
    let name = name(host);
    let uid = scenario.gateway.create(&plane.cluster, &name, NODE)?;
    let identity = Identity {
        short: format!("gw{host}").leak(),
        name: format!("istio-system/{name}").leak(),
        uid: uid.clone().leak(),
        host,
    };
    let pod = scenario.lab.add_pod(identity)?;
    pod.netns.await_ipv6("eth0")?;
    let server = scenario.lab.serve(&pod.place(), "tcp", PORT)?;
    scenario.gateway.run(&plane.cluster, &name, &uid, pod.address())?;
    let took = open(scenario, plane, table, pod.address())?;
    Ok((Replica { server, pod }, took))
}

/// Publishes a running replica and waits for the kernel.
fn open(
    scenario: &KubeLab,
    plane: &ControlPlane,
    table: &ExactTable,
    address: Dual,
) -> Result<Duration> {
    let start = Instant::now();
    scenario.gateway.publish(&plane.cluster)?;
    await_kernel("a new endpoint is open", || table.has(address, PORT))?;
    Ok(start.elapsed())
}

/// Deletes a pod and waits for the kernel, while the slices still name it.
fn close(
    scenario: &mut KubeLab,
    plane: &ControlPlane,
    table: &ExactTable,
    host: u8,
) -> Result<Duration> {
    let start = Instant::now();
    scenario.gateway.delete(&plane.cluster, &name(host))?;
    await_kernel("a removed endpoint is closed", || table.lacks(address::pod(host)))?;
    Ok(start.elapsed())
}

/// Polls the kernel without a pause: what is measured is short.
fn await_kernel(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done()? {
        ensure!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(())
}

fn crowd(host: u8) -> Value {
    let name = format!("crowd-{host}");
    let address: [IpAddr; 2] =
        Dual::new([10, 244, 2, host], [0xfd00, 0x244, 2, 0, 0, 0, 0, host.into()]).both();
    let labels = [("app", "crowd")];
    Pod {
        namespace: if host.is_multiple_of(2) { "shop" } else { "bank" },
        name: &name,
        node: NODE,
        account: "default",
        labels: &labels,
        addresses: &address,
    }
    .manifest()
}

#[test]
fn a_client_never_notices_that_the_gateway_grows_and_shrinks() -> Result<()> {
    let plane = control_plane::shared()?;
    plane.cluster.install_lenient()?;
    let mut scenario = KubeLab::new(&plane, "enforce")?;
    // Only Services are in the cluster: a pod's address is reached as a gateway's or not at all.
    let ranges = json!({"spec": {"clusterRanges": ["10.96.0.0/16", "fd00:96::/108"]}});
    plane.cluster.patch(&policy(), &ranges)?;
    let table = scenario.exact()?;
    let pods: Vec<Value> = (0..CROWD).map(crowd).collect();
    let start = Instant::now();
    plane.cluster.apply_all(&pods)?;
    println!("{CROWD} pods written in {:.1} s", start.elapsed().as_secs_f64());
    let expected = usize::from(CROWD) + 4;
    let known = |status: &Value| {
        let pods = status["pods"].as_array().map_or(0, Vec::len);
        pods >= expected
    };
    scenario.until("the agent knows every pod of its node", known)?;

    let _server = scenario.lab.serve(&scenario.lab.gateway.place(), "tcp", PORT)?;
    let (mut opened, mut closed) = (Vec::new(), Vec::new());
    let mut stay = Vec::new();
    for host in STAY {
        stay.push(grow(&mut scenario, &plane, &table, host)?.0);
    }
    let mut client = Client::start(&scenario)?;
    client.dial(&scenario)?;
    for round in 0..ROUNDS {
        let mut replicas = Vec::new();
        for host in COME_AND_GO {
            let (replica, took) = grow(&mut scenario, &plane, &table, host)?;
            replicas.push(replica);
            opened.push(took);
        }
        std::thread::sleep(PROXY_DELAY);
        client.dial(&scenario)?;
        std::thread::sleep(Duration::from_millis(300));

        // What is open on a replica that is told to go stays open until its pod is gone.
        let held = to(replicas[0].pod.address().v4, PORT);
        let mut hold = scenario.lab.probe(&scenario.lab.cart.place())?;
        hold.args(["hold", &held, "--milliseconds=800"]).stdout(Stdio::piped());
        let mut hold = Process::start(hold, "hold")?;
        std::thread::sleep(Duration::from_millis(200));
        for host in COME_AND_GO {
            scenario.gateway.drain(&plane.cluster, &name(host))?;
        }
        client.dial(&scenario)?;
        let (_, text) = hold.output(Duration::from_secs(10))?;
        let held: Outcome = serde_json::from_str(&text).context("read what was held")?;
        ensure!(held.ok, "round {round}: a connection to a draining replica broke: {held:?}");
        for host in COME_AND_GO {
            closed.push(close(&mut scenario, &plane, &table, host)?);
        }
        for Replica { server, pod } in replicas {
            let gone = to(pod.address().v6, PORT);
            let attempt = scenario.lab.attempt(&scenario.lab.cart.place(), &["tcp", &gone])?;
            ensure!(attempt.refused(), "round {round}: a removed address is reached: {attempt:?}");
            drop(server);
            scenario.lab.remove_pod(pod)?;
        }
        scenario.gateway.publish(&plane.cluster)?;
    }
    // More of the same without traffic, for the percentiles.
    for _ in 0..MEASURED {
        let name = name(MEASURED_HOST);
        let uid = scenario.gateway.create(&plane.cluster, &name, NODE)?;
        let address = address::pod(MEASURED_HOST);
        scenario.gateway.run(&plane.cluster, &name, &uid, address)?;
        opened.push(open(&scenario, &plane, &table, address)?);
        closed.push(close(&mut scenario, &plane, &table, MEASURED_HOST)?);
        scenario.gateway.publish(&plane.cluster)?;
    }
    let client = client.finish()?;
    ensure!(client.ok, "a legitimate connection failed after {}: {client:?}", client.attempts);
    ensure!(client.attempts > 500, "{client:?}");
    println!("{} connections of the client, none refused", client.attempts);
    for (what, times) in [("opened", opened), ("closed", closed)] {
        println!(
            "{what}: p50 {:.1} ms, p99 {:.1} ms, of {} API writes to the kernel's map",
            percentile(&times, 0.5)?.as_secs_f64() * 1e3,
            percentile(&times, 0.99)?.as_secs_f64() * 1e3,
            times.len()
        );
    }
    let (put, removed) = scenario.writes()?;
    println!("the agent put {put} entries and removed {removed}");
    drop(stay);
    Ok(())
}
