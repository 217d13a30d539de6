//! Counters of a real agent: totals that never fall, series that stay bounded, and who may look.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Map, MapData, PerCpuHashMap, PerCpuValues};
use egress_common::key::{GatewayId, PodId};
use egress_common::state::{Counter, CounterKey, Direction};
use egress_common::{Reason, Verdict};
use egress_tests::address::{Dual, STRIPE, pod};
use egress_tests::agent::{self, Agent, METRICS, Sample, binary};
use egress_tests::lab::{GATEWAY, Identity, Lab};
use egress_tests::manifests;
use egress_tests::process::{Place, wait_until};
use egress_tests::scenario::{Scenario, to};

const SHORT_LIVED: Identity = Identity {
    short: "job",
    name: "shop/job",
    uid: "5f0c1a52-0c4b-4c1e-9d53-000000000071",
    host: 71,
};
/// Packets refused by workload, and by the node.
const WORKLOADS: [&str; 2] = ["egress_workload_packets_total{", "verdict=\"drop\""];
const NODE: [&str; 1] = ["egress_node_drops_total{"];

/// What the agent counts by what it told since its start: no total of the kernel's.
const TOLD: &str = "egress_workload_bypass_attempts_total{";

/// Totals by workload, that none may fall.
fn totals(samples: &[Sample]) -> BTreeMap<&str, f64> {
    let totals = samples.iter().filter(|sample| sample.series.starts_with("egress_workload_"));
    let totals = totals.filter(|sample| !sample.series.starts_with(TOLD));
    totals.map(|sample| (&*sample.series, sample.value)).collect()
}

fn never_less(before: &[Sample], after: &[Sample]) -> Result<()> {
    let now = totals(after);
    for (series, value) in totals(before) {
        let later = now.get(series).copied().unwrap_or(0.0);
        ensure!(later >= value, "{series} fell from {value} to {later}");
    }
    let (workloads, node) = (agent::sum(after, &WORKLOADS), agent::sum(after, &NODE));
    ensure!(workloads == node, "{workloads} by workload, {node} of the node");
    Ok(())
}

fn refused(scenario: &Scenario, place: &Place<'_>) -> Result<()> {
    let outcome = scenario.lab.attempt(place, &["tcp", &to(STRIPE.v4, 9000)])?;
    ensure!(outcome.refused(), "{outcome:?}");
    Ok(())
}

#[test]
fn totals_never_fall_when_pods_die_and_agents_are_killed_or_replaced() -> Result<()> {
    let mut scenario = Scenario::new("enforce")?;
    let manifest = scenario.lab.file("registry").join("job.yaml");
    let job = scenario.lab.add_pod(SHORT_LIVED)?;
    manifests::replace(&manifest, &manifests::pod(SHORT_LIVED, job.address(), ""))?;
    scenario.until("the job is covered", |status| {
        let pods = status["pods"].as_array();
        pods.into_iter()
            .flatten()
            .any(|pod| pod["pod"]["name"] == "job" && pod["state"] == "covered")
    })?;
    for _ in 0..3 {
        refused(&scenario, &job.place())?;
    }
    refused(&scenario, &scenario.lab.cart.place())?;
    let job_total = |samples: &[Sample]| {
        agent::sum(samples, &["egress_workload_packets_total{", "source_workload=\"job\"", "drop"])
    };
    let before = scenario.samples()?;
    ensure!(job_total(&before) >= 3.0, "{}", job_total(&before));
    never_less(&before, &before)?;

    // The pod dies while no agent runs.
    scenario.agent.process.kill();
    scenario.lab.remove_pod(job)?;
    std::fs::remove_file(&manifest)?;
    scenario.agent = Agent::start(&scenario.lab, &[])?;
    let restarted = scenario.samples()?;
    never_less(&before, &restarted)?;
    ensure!(agent::sum(&restarted, &["source_pod=\"job\""]) == 0.0, "dead pods have no series");

    // The next agent has another table layout: its maps are new, the old ones are somewhere else.
    refused(&scenario, &scenario.lab.cart.place())?;
    let before = scenario.samples()?;
    scenario.agent.process.kill();
    let pins = scenario.lab.file("bpffs/egress-enforcer");
    let own = pins.join(format!("s{}", egress_common::SCHEMA));
    std::fs::rename(&own, pins.join("s1")).context("make the maps another layout's")?;
    scenario.agent = Agent::start(&scenario.lab, &[])?;
    let upgraded = scenario.samples()?;
    never_less(&before, &upgraded)?;
    refused(&scenario, &scenario.lab.cart.place())?;
    let counted = scenario.samples()?;
    never_less(&upgraded, &counted)?;
    ensure!(agent::sum(&counted, &NODE) > agent::sum(&before, &NODE), "it counts on");
    // And once more, on the maps that are now its own.
    scenario.agent.process.kill();
    scenario.agent = Agent::start(&scenario.lab, &[])?;
    never_less(&counted, &scenario.samples()?)
}

#[test]
fn what_goes_through_a_gateway_is_counted_both_ways() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let _echo = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    for (index, ip) in pod(GATEWAY.host).both().into_iter().enumerate() {
        let outcome = lab.attempt(&lab.cart.place(), &["tcp", &to(ip, 8443)])?;
        ensure!(outcome.ok, "{outcome:?}");
        let samples = scenario.samples()?;
        for way in ["tx", "rx"] {
            let way = format!("direction=\"{way}\"");
            for family in ["egress_pod_packets_total", "egress_pod_bytes_total"] {
                let parts = [family, "source_pod=\"cart\"", "istio-egressgateway\"", &way];
                let floor = if family.contains("bytes") { 66.0 } else { 1.0 };
                let counted = agent::sum(&samples, &parts);
                ensure!(counted >= (index + 1) as f64 * 2.0 * floor, "{family} {way}: {counted}");
            }
        }
    }
    // By pod and by workload it is the same.
    let samples = scenario.samples()?;
    for family in ["connections", "packets", "bytes"] {
        let sum = |level: &str| {
            let name = format!("egress_{level}_{family}_total{{");
            agent::sum(&samples, &[&name, "source_namespace=\"shop\""])
        };
        assert_eq!(sum("pod"), sum("workload"), "{family}");
    }
    Ok(())
}

#[test]
fn nobody_but_root_is_heard_on_the_control_socket() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let (run, socket) = (scenario.lab.file("run"), scenario.lab.file("run/admin.sock"));
    let mode =
        |path: &Path| -> Result<u32> { Ok(std::fs::metadata(path)?.permissions().mode() & 0o777) };
    assert_eq!((mode(&run)?, mode(&socket)?), (0o700, 0o600));
    assert_eq!(mode(&scenario.lab.file("run/totals.json"))?, 0o600);
    let ask = |user: &str| -> Result<String> {
        let output = Command::new("setpriv")
            .args([&format!("--reuid={user}"), "--clear-groups", "curl", "-sS", "-m", "3"])
            .args(["--unix-socket", &socket.display().to_string(), "http://agent/status"])
            .output()
            .context("run curl")?;
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    assert!(ask("0")?.contains("cart"));
    let text = ask("65534")?;
    assert!(text.contains("Permission denied") || text.contains("ouldn't connect"), "{text}");
    // Somebody opens it by mistake, and the way to it.
    for path in [&scenario.lab.file(""), &run, &socket] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
    }
    let text = ask("65534")?;
    assert!(!text.contains("cart") && text.contains("curl:"), "{text}");
    assert!(ask("0")?.contains("cart"));
    Ok(())
}

/// A certificate for `localhost` and its key, each in its file.
fn certify(lab: &Lab, chain: &Path, key: &Path) -> Result<()> {
    let fresh = [lab.file("fresh.crt"), lab.file("fresh.key")];
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost", "-out"])
        .arg(&fresh[0])
        .arg("-keyout")
        .arg(&fresh[1])
        .output()
        .context("run openssl")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(&fresh[0], chain)?;
    Ok(std::fs::rename(&fresh[1], key)?)
}

#[test]
fn over_tls_the_certificate_follows_its_files() -> Result<()> {
    let lab = Lab::new()?;
    let (chain, key) = (lab.file("tls.crt"), lab.file("tls.key"));
    certify(&lab, &chain, &key)?;
    let metrics =
        format!("metrics: {{tls: {{certificate: {}, key: {}}}}}\n", chain.display(), key.display());
    manifests::config(&lab.file("agent.yaml"), &metrics)?;
    let scenario = Scenario::on(lab, "enforce", &[])?;
    let lab = &scenario.lab;
    let trusted = lab.file("trusted.crt");
    let read = |trusted: &Path, more: &[&str]| -> Result<(bool, Vec<u8>)> {
        let place = Place { netns: Some(&lab.node), ..Place::default() };
        let mut command = place.command("curl")?;
        let connect = format!("localhost:{}:{METRICS}", METRICS.port());
        command.args(["-sS", "-m", "5", "--connect-to", &connect, "--cacert"]).arg(trusted);
        command.args(more).arg(format!("https://localhost:{}/metrics", METRICS.port()));
        let output = command.output().context("run curl")?;
        Ok((output.status.success(), output.stdout))
    };
    std::fs::copy(&chain, &trusted)?;
    let (ok, text) = read(&trusted, &[])?;
    assert!(ok && String::from_utf8_lossy(&text).contains("source_pod=\"cart\""));
    let (ok, packed) = read(&trusted, &["-H", "Accept-Encoding: gzip"])?;
    assert!(ok && packed.starts_with(&[0x1f, 0x8b]) && packed.len() < text.len() / 4);
    let (ok, unpacked) = read(&trusted, &["--compressed"])?;
    assert!(ok && String::from_utf8_lossy(&unpacked).contains("source_pod=\"cart\""));
    assert!(agent::get(lab, "/metrics").is_err(), "no answer in the clear");

    // Half of a new pair is unusable: the last good one stays.
    std::fs::write(&key, "no key")?;
    std::thread::sleep(Duration::from_millis(1100));
    assert!(read(&trusted, &[])?.0);
    certify(lab, &chain, &key)?;
    std::thread::sleep(Duration::from_millis(1100));
    assert!(!read(&trusted, &[])?.0, "the old certificate is gone");
    assert!(read(&chain, &[])?.0);
    Ok(())
}

#[test]
fn every_interface_is_refused_unless_it_is_meant() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let run = lab.file("other-run");
    let place = Place { netns: Some(&lab.node), ..Place::default() };
    let mut command = place.command(binary()?)?;
    command.args(["run", "--metrics-address=0.0.0.0:9470", "--health-address=127.0.0.1:9471"]);
    command.arg(format!("--registry=dir:{}", lab.file("registry").display()));
    command.arg(format!("--cgroup-root={}", lab.cgroups.path().display()));
    command.arg(format!("--bpffs={}", lab.file("bpffs/other").display()));
    command.arg(format!("--run-dir={}", run.display()));
    let output = command.output().context("run an agent")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{complaint}");
    assert!(complaint.contains("metrics.anyAddress: true"), "{complaint}");
    Ok(())
}

/// A number from the environment.
fn number(name: &str, default: u32) -> Result<u32> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name} is no number: {text}")),
        Err(_) => Ok(default),
    }
}

/// Pods that only the registry and the counters know.
struct Crowd {
    counters: PerCpuHashMap<MapData, CounterKey, Counter>,
    cpus: usize,
}

/// Reasons of the combinations of one pod.
const COMBINATIONS: [(Verdict, Reason, Direction); 8] = [
    (Verdict::Allow, Reason::Gateway, Direction::Tx),
    (Verdict::Allow, Reason::Gateway, Direction::Rx),
    (Verdict::Allow, Reason::Cluster, Direction::Tx),
    (Verdict::Allow, Reason::Resolver, Direction::Tx),
    (Verdict::Allow, Reason::Reply, Direction::Tx),
    (Verdict::Drop, Reason::NotGateway, Direction::Tx),
    (Verdict::Drop, Reason::Metadata, Direction::Tx),
    (Verdict::Drop, Reason::ForeignResolver, Direction::Tx),
];

impl Crowd {
    fn of(lab: &Lab) -> Result<Self> {
        let pins = format!("bpffs/egress-enforcer/s{}/maps/COUNTERS", egress_common::SCHEMA);
        let data = MapData::from_pin(lab.file(&pins)).context("open COUNTERS")?;
        let counters = PerCpuHashMap::try_from(Map::PerCpuHashMap(data)).context("COUNTERS")?;
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error).context("count CPUs")?;
        Ok(Self { counters, cpus })
    }

    /// Counts one packet of every combination of these pods.
    fn count(&mut self, pods: std::ops::Range<u32>) -> Result<()> {
        let one = Counter { connections: 1, packets: 1, bytes: 100 };
        for number in pods {
            for (verdict, reason, direction) in COMBINATIONS {
                let id = PodId::of(&uid(number));
                let key = CounterKey::new(id, GatewayId::NONE, verdict, reason, direction);
                let mut values = vec![Counter::default(); self.cpus];
                values[0] = one;
                self.counters.insert(key, PerCpuValues::try_from(values)?, 0)?;
            }
        }
        Ok(())
    }
}

fn uid(number: u32) -> String {
    format!("5f0c1a52-0c4b-4c1e-9d54-{number:012}")
}

/// Writes these pods' objects, each of a workload of its own.
fn publish(lab: &Lab, pods: std::ops::Range<u32>) -> Result<()> {
    let objects: Vec<String> = pods
        .map(|number| {
            let name: &'static str = format!("shop/crowd-{number}").leak();
            let identity = Identity { short: "crowd", name, uid: uid(number).leak(), host: 0 };
            let [high, low] = [number / 250, 1 + number % 250];
            let address = Dual {
                v4: std::net::Ipv4Addr::new(10, 244, 100 + high as u8, low as u8),
                v6: std::net::Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, high as u16 + 1, low as u16),
            };
            manifests::pod(identity, address, "")
        })
        .collect();
    manifests::replace(&lab.file("registry").join("crowd.yaml"), &objects.join("---\n"))
}

/// Resident memory of a process, kibibytes.
fn resident(pid: i32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).context("no VmRSS")
}

/// `EGRESS_SCRAPE_PODS=250` with a release agent gives the figures of docs/metrics.md; times are
/// printed, and never judged.
#[test]
fn a_scrape_of_a_full_node_is_whole_and_its_cost_is_told() -> Result<()> {
    let pods = number("EGRESS_SCRAPE_PODS", 20)?;
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    for _ in 0..3 {
        scenario.samples()?;
    }
    let idle = resident(scenario.agent.process.pid())?;
    publish(lab, 0..pods)?;
    scenario.until("the crowd is known", |status| {
        status["pods"].as_array().is_some_and(|all| all.len() > pods as usize)
    })?;
    Crowd::of(lab)?.count(0..pods)?;
    let mut times = [Vec::new(), Vec::new()];
    let mut sizes = [0; 2];
    let rounds = if pods < 100 { 6 } else { 40 };
    for round in 0..rounds {
        let packed = round % 2;
        let headers = if packed == 1 { "Accept-Encoding: gzip\r\n" } else { "" };
        // Past the agent's cache.
        std::thread::sleep(Duration::from_millis(1050));
        let (took, size) = lab.node.run(|| {
            let start = Instant::now();
            let mut stream = std::net::TcpStream::connect(METRICS)?;
            let request = format!("GET /metrics HTTP/1.0\r\nHost: agent\r\n{headers}\r\n");
            std::io::Write::write_all(&mut stream, request.as_bytes())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok((start.elapsed(), answer.len()))
        })?;
        times[packed].push(took);
        sizes[packed] = size;
    }
    let busy = resident(scenario.agent.process.pid())?;
    let samples = scenario.samples()?;
    let crowd = samples.iter().filter(|sample| sample.series.contains("source_pod=\"crowd-"));
    let per_pod = COMBINATIONS.iter().map(|(verdict, _, direction)| match (verdict, direction) {
        (Verdict::Drop, _) | (_, Direction::Rx) => 2,
        _ => 3,
    });
    // What starts at zero is another two: audited connections, packets and bytes of none.
    let expected = (per_pod.sum::<usize>() + 3) * pods as usize;
    assert_eq!(crowd.count(), expected);
    for (name, times) in ["plain", "gzip"].into_iter().zip(&mut times) {
        times.sort();
        println!(
            "{pods} pods x 8, {name}: median {:?}, worst {:?}",
            times[times.len() / 2],
            times[times.len() - 1]
        );
    }
    println!(
        "{} samples, {} bytes plain, {} gzip; {} KiB resident over {idle} idle",
        samples.len(),
        sizes[0],
        sizes[1],
        busy.saturating_sub(idle)
    );
    Ok(())
}

/// `EGRESS_CHURN_MINUTES=10` is ten minutes of a hundred new pods a minute.
#[test]
fn churn_leaves_a_bounded_number_of_series_and_loses_no_count() -> Result<()> {
    const MOST: usize = 3000;
    const EACH: u32 = 25;
    let minutes = number("EGRESS_CHURN_MINUTES", 0)?;
    let lab = Lab::new()?;
    manifests::config(&lab.file("agent.yaml"), &format!("metrics: {{maxSeries: {MOST}}}\n"))?;
    let scenario = Scenario::on(lab, "enforce", &[])?;
    let mut crowd = Crowd::of(&scenario.lab)?;
    let rounds = if minutes == 0 { 6 } else { minutes * 60 / 15 };
    let pause = if minutes == 0 { 1 } else { 15 };
    let (mut most, mut before) = (0, 0.0);
    for round in 0..rounds {
        let start = Instant::now();
        let pods = round * EACH..(round + 1) * EACH;
        publish(&scenario.lab, pods.clone())?;
        crowd.count(pods.clone())?;
        let newest = format!("crowd-{}", pods.end - 1);
        wait_until("the newest pods are known", Duration::from_secs(10), || {
            Ok(agent::status(&scenario.lab)?.to_string().contains(&newest))
        })?;
        let samples = scenario.samples()?;
        let traffic = samples.iter().filter(|sample| {
            ["egress_pod_", "egress_workload_"].iter().any(|name| sample.series.starts_with(name))
                && !sample.series.starts_with(TOLD)
        });
        most = most.max(traffic.count());
        let total = agent::sum(&samples, &["egress_workload_packets_total{"]);
        let counted = f64::from(pods.end) * COMBINATIONS.len() as f64;
        ensure!(total >= counted && total >= before, "{total} of {counted}, before {before}");
        before = total;
        std::thread::sleep(Duration::from_secs(pause).saturating_sub(start.elapsed()));
    }
    let truncated = agent::sum(&scenario.samples()?, &["egress_metrics_series_truncated_total"]);
    println!(
        "{} pods: at most {most} series of pods and workloads, {truncated} truncated",
        rounds * EACH
    );
    // The overflow has a series for each word and level.
    ensure!(most <= MOST + 2 * 3 * COMBINATIONS.len(), "{most}");
    Ok(())
}
