//! What a real resolver tells real clients: names in events, rebinding, drift, and gateways that go
//! only where it sent them.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use egress_tests::address::{self, ELSEWHERE, NODE, STRIPE, pod};
use egress_tests::agent;
use egress_tests::lab::{GATEWAY, Identity, Lab, Pod};
use egress_tests::manifests;
use egress_tests::process::{Process, wait_until};
use egress_tests::resolver::Resolver;
use egress_tests::scenario::{Scenario, to};
use serde_json::Value;

const DNS: Identity = Identity {
    short: "dns",
    name: "kube-system/coredns",
    uid: "5f0c1a52-0c4b-4c1e-9d53-000000000053",
    host: 53,
};

const STRIPE_HOST: &str = "api.stripe.com";

/// A cluster whose resolver is a pod with a real server, and an agent that learns nothing for long.
struct Named {
    scenario: Scenario,
    resolver: Resolver,
    _dns: Pod,
}

impl Named {
    fn new(mode: &str) -> Result<Self> {
        let lab = Lab::new()?;
        let dns = lab.add_pod(DNS)?;
        dns.netns.await_ipv6("eth0")?;
        let resolver = Resolver::start(&lab, &dns)?;
        resolver.hosts(&lab, &[(STRIPE_HOST, &STRIPE.both())])?;
        let registry = lab.file("registry");
        manifests::write(&registry, mode)?;
        manifests::replace(&registry.join("dns.yaml"), &manifests::pod(DNS, pod(DNS.host), ""))?;
        let policy = fs::read_to_string(registry.join("policy.yaml"))?;
        let resolvers = pod(DNS.host).both().map(|ip| format!("\"{ip}\"")).join(", ");
        let start = policy.find("resolvers:").context("the policy names resolvers")?;
        let end = policy[start..].find('\n').context("and more")? + start;
        let policy = format!("{}resolvers: [{resolvers}]{}", &policy[..start], &policy[end..]);
        manifests::replace(&registry.join("policy.yaml"), &policy)?;
        manifests::config(&lab.file("agent.yaml"), "names: {learning: \"0\", grace: 2s}\n")?;
        let agent = agent::Agent::start(&lab, &[])?;
        agent::wait_for_mode(&lab, mode)?;
        Ok(Self { scenario: Scenario { agent, lab }, resolver, _dns: dns })
    }

    fn lab(&self) -> &Lab {
        &self.scenario.lab
    }

    fn events(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.lab().file("events"))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Waits for an event with all the parts.
    fn told(&self, parts: &[&str]) -> Result<String> {
        let mut found = None;
        wait_until(&format!("an event with {parts:?}"), Duration::from_secs(5), || {
            let has = |line: &String| parts.iter().all(|part| line.contains(part));
            found = self.events()?.into_iter().find(has);
            Ok(found.is_some())
        })
        .with_context(|| format!("{:#?}", self.events()))?;
        found.context("found")
    }

    fn sum(&self, parts: &[&str]) -> Result<f64> {
        // A second scrape within a second gets the first one's answer.
        std::thread::sleep(Duration::from_millis(1100));
        Ok(agent::sum(&self.scenario.samples()?, parts))
    }
}

/// Resolves with the C library's own resolver, over each transport and family of it.
fn resolve(named: &Named, pod: &Pod, host: &str, over: &str) -> Result<Vec<IpAddr>> {
    let (server, options) = match over {
        "udp4" => (address::pod(DNS.host).v4.to_string(), ""),
        "udp6" => (address::pod(DNS.host).v6.to_string(), ""),
        "tcp4" => (address::pod(DNS.host).v4.to_string(), "use-vc"),
        "tcp6" => (address::pod(DNS.host).v6.to_string(), "use-vc"),
        other => anyhow::bail!("no transport {other}"),
    };
    named.resolver.resolve(named.lab(), &pod.place(), &server, options, host)
}

#[test]
fn an_event_carries_the_name_that_the_pod_itself_resolved() -> Result<()> {
    let named = Named::new("audit")?;
    let lab = named.lab();
    let hosts = ["udp4", "udp6", "tcp4", "tcp6"].map(|over| (over, format!("{over}.example")));
    let ips: Vec<IpAddr> = (0..4).map(|at| IpAddr::from([198, 51, 100, 1 + at])).collect();
    let records: Vec<(&str, &[IpAddr])> = hosts
        .iter()
        .zip(&ips)
        .map(|((_, host), ip)| (host.as_str(), std::slice::from_ref(ip)))
        .collect();
    named.resolver.hosts(lab, &records)?;
    for ((over, host), ip) in hosts.iter().zip(&ips) {
        assert_eq!(resolve(&named, &lab.cart, host, over)?, [*ip], "{over}");
        lab.attempt(&lab.cart.place(), &["udp", &to(*ip, 9999)])?;
        let line = named.told(&[&ip.to_string(), host])?;
        let event: Value = serde_json::from_str(&line)?;
        assert_eq!(event["dst_endpoint"]["hostname"], *host, "{line}");
    }
    assert!(named.sum(&["egress_dns_answers_total", "learned"])? >= 4.0);
    assert_eq!(named.sum(&["egress_dns_answers_total", "malformed"])?, 0.0);
    assert_eq!(named.sum(&["egress_dns_answers_total", "out_of_order"])?, 0.0);
    assert_eq!(named.sum(&["egress_dns_lost_total"])?, 0.0);
    // Another pod never asked: nobody tells it, or of it, what the first one did.
    lab.attempt(&lab.checkout.place(), &["udp", &to(ips[0], 9998)])?;
    let line = named.told(&["checkout", &ips[0].to_string()])?;
    assert!(!line.contains(&hosts[0].1), "{line}");
    Ok(())
}

#[test]
fn a_rebinding_and_a_drift_are_told_and_counted() -> Result<()> {
    let named = Named::new("audit")?;
    let lab = named.lab();
    let node = IpAddr::V4(NODE.v4);
    let metadata = IpAddr::from([169, 254, 169, 254]);
    let inside = IpAddr::V6(pod(GATEWAY.host).v6);
    named.resolver.hosts(
        lab,
        &[
            ("evil.example", &[metadata]),
            ("node.example", &[node]),
            ("six.example", &[inside]),
            ("web.shop.svc.cluster.local", &[inside]),
            (STRIPE_HOST, &STRIPE.both()),
        ],
    )?;
    for host in ["evil.example", "node.example", "six.example"] {
        resolve(&named, &lab.cart, host, "udp4")?;
    }
    resolve(&named, &lab.cart, "web.shop.svc.cluster.local", "udp4")?;
    named.told(&["REBINDING", "shop/cart", "evil.example is 169.254.169.254", "metadata"])?;
    named.told(&["REBINDING", "node.example", "leads inside: node"])?;
    named.told(&["REBINDING", "six.example", "leads inside: cluster"])?;
    assert_eq!(named.sum(&["egress_dns_rebinding_total{", "cart"])?, 3.0);

    // The registered host is learned at its first answer; then it moves.
    resolve(&named, &lab.cart, STRIPE_HOST, "udp4")?;
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(named.sum(&["egress_dns_drift_total{", "cart"])?, 0.0);
    let moved = IpAddr::from([192, 0, 2, 99]);
    named.resolver.hosts(lab, &[(STRIPE_HOST, &[moved])])?;
    resolve(&named, &lab.cart, STRIPE_HOST, "tcp6")?;
    named.told(&["DRIFT", "shop/cart", "api.stripe.com is 192.0.2.99", "new_network"])?;
    assert_eq!(named.sum(&["egress_dns_drift_total{", "cart"])?, 1.0);
    assert_eq!(named.sum(&["egress_dns_rebinding_total{", "cart"])?, 3.0);
    let events = named.events()?;
    assert!(!events.iter().any(|line| line.contains("cluster.local")), "{events:#?}");
    Ok(())
}

#[test]
fn a_pod_cannot_answer_in_the_resolvers_name() -> Result<()> {
    let named = Named::new("enforce")?;
    let lab = named.lab();
    // A packet socket of the ledger, with the resolver's address: an answer to the cart.
    let before = named.scenario.samples()?;
    let mut arguments =
        lab.by_hand("packet", &lab.ledger, to(lab.cart.address().v4, 40000).parse()?);
    for argument in &mut arguments {
        if argument.starts_with("--source=") {
            *argument = format!("--source={}", pod(DNS.host).v4);
        }
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    lab.attempt(&lab.ledger.place(), &arguments)?;
    lab.settle();
    std::thread::sleep(Duration::from_millis(1100));
    let guarded = ["egress_node_drops_total", "spoofed_source"];
    assert!(named.scenario.rise(&before, &guarded)? >= 1.0);
    assert_eq!(named.scenario.rise(&before, &["egress_dns_answers_total"])?, 0.0);
    Ok(())
}

#[test]
fn a_limited_gateway_goes_only_where_dns_sent_it() -> Result<()> {
    let named = Named::new("enforce")?;
    let lab = named.lab();
    let gateway = &lab.gateway;
    let out =
        |ip: IpAddr| lab.attempt(&gateway.place(), &["tcp", &to(ip, 9000), "--patience=2500"]);
    let shut = |ip: IpAddr| -> Result<bool> {
        Ok(!lab.attempt(&gateway.place(), &["tcp", &to(ip, 9000), "--patience=300"])?.ok)
    };
    // Unlimited, it goes anywhere.
    assert!(out(ELSEWHERE.v4.into())?.ok);
    register(&named, 9000)?;
    named.scenario.edit("policy.yaml", "  mode:", "  gatewayEgress: {mode: enforce}\n  mode:")?;
    named.scenario.until("the gateway is limited", |status| {
        let pods = status["pods"].as_array();
        pods.into_iter().flatten().any(|pod| pod["state"] == "gateway" && pod["mode"] == "enforce")
    })?;
    for ip in ELSEWHERE.both().into_iter().chain(STRIPE.both()) {
        let (outcome, escaped) =
            named.scenario.judged(&gateway.place(), &["tcp", &to(ip, 9000), "--patience=300"])?;
        assert!(!outcome.ok && escaped == 0, "{ip}: {outcome:?}");
    }
    named.told(&["DROP", "istio-egressgateway", "unresolved"])?;
    // A registered host opens its addresses, in both families, and nobody else's.
    let resolved = resolve(&named, gateway, STRIPE_HOST, "udp4")?;
    assert_eq!(resolved.len(), 2, "{resolved:?}");
    for ip in STRIPE.both() {
        let outcome = out(ip)?;
        assert!(outcome.ok, "{ip}: {outcome:?}");
    }
    assert!(shut(ELSEWHERE.v4.into())?);
    // What leads inside is never opened, nor what no ServiceEntry names.
    named.resolver.hosts(
        lab,
        &[
            (STRIPE_HOST, &[IpAddr::V4(NODE.v4), IpAddr::V4(STRIPE.v4)]),
            ("other.example", &[IpAddr::V4(ELSEWHERE.v4)]),
        ],
    )?;
    resolve(&named, gateway, STRIPE_HOST, "tcp4")?;
    resolve(&named, gateway, "other.example", "udp6")?;
    named.told(&["REBINDING", "istio-egressgateway", "api.stripe.com is 172.31.0.2"])?;
    assert!(shut(NODE.v4.into())? && shut(ELSEWHERE.v4.into())?);
    // What is open outlives the answer; nothing new is opened after TTL and grace.
    let mut command = lab.probe(&gateway.place())?;
    command.args(["hold", &to(STRIPE.v4, 9000), "--milliseconds", "12000"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    let mut held = Process::start(command, "probe hold")?;
    wait_until("the address has expired", Duration::from_secs(11), || shut(STRIPE.v4.into()))?;
    let (status, text) = held.output(Duration::from_secs(20))?;
    ensure!(status.success() && text.contains("\"ok\":true"), "what was open was cut off: {text}");
    // In mode audit the same is only told.
    named
        .scenario
        .change_policy("gatewayEgress: {mode: enforce}", "gatewayEgress: {mode: audit}")?;
    assert!(out(ELSEWHERE.v4.into())?.ok);
    named.told(&["AUDIT", "istio-egressgateway", &ELSEWHERE.v4.to_string(), "unresolved"])?;
    Ok(())
}

/// Declares that the host is reached on the lab's echo port.
fn register(named: &Named, port: u16) -> Result<()> {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: echo, namespace: shop}}\n\
         spec: {{hosts: [{STRIPE_HOST}], ports: [{{number: {port}, name: tcp, protocol: TCP}}], \
         location: MESH_EXTERNAL, resolution: DNS}}\n"
    );
    manifests::replace(&named.lab().file("registry").join("echo.yaml"), &text)
}
