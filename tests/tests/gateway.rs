//! Who may use a gateway, and what is no part of one: in the kernel, over real namespaces.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use egress_tests::address::{NODE, STRIPE, pod};
use egress_tests::agent;
use egress_tests::attempt::Outcome;
use egress_tests::lab::{GATEWAY, Pod};
use egress_tests::manifests;
use egress_tests::process::Process;
use egress_tests::scenario::{Scenario, to};

const REJECTED: &str = "egress_gateway_rejected_endpoints_total{";

/// Both namespaces under one policy that narrows, in force.
fn narrowing() -> Result<Scenario> {
    let scenario = Scenario::new("enforce")?;
    scenario.edit("policy.yaml", "namespaces: [shop]", "namespaces: [shop, bank]")?;
    scenario.edit("policy.yaml", "  mode:", "  narrow: true\n  mode:")?;
    scenario.until("both pods are governed", |status| {
        let governed = |name: &str| {
            let pods = status["pods"].as_array();
            pods.into_iter().flatten().any(|pod| {
                pod["pod"]["name"] == name && pod["policy"] == "shop" && pod["state"] == "covered"
            })
        };
        governed("cart") && governed("ledger")
    })?;
    Ok(scenario)
}

/// What a pod's dialling of the gateway at an address and port becomes.
fn dial(scenario: &Scenario, pod: &Pod, port: u16) -> Result<[Outcome; 2]> {
    let [v4, v6] = egress_tests::address::pod(GATEWAY.host).both();
    let place = pod.place();
    Ok([
        scenario.lab.attempt(&place, &["tcp", &to(v4, port)])?,
        scenario.lab.attempt(&place, &["tcp", &to(v6, port)])?,
    ])
}

/// Waits until a pod reaches the gateway, or is refused.
fn until(scenario: &Scenario, what: &str, pod: &Pod, reached: bool) -> Result<()> {
    egress_tests::process::wait_until(what, Duration::from_secs(5), || {
        Ok(dial(scenario, pod, 8443)?.iter().all(|one| one.ok == reached))
    })?;
    Ok(())
}

fn write(scenario: &Scenario, file: &str, text: &str) -> Result<()> {
    manifests::replace(&scenario.lab.file("registry").join(file), text)
}

const ALLOW_SHOP: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: istio-system}
spec:
  selector: {matchLabels: {istio: egressgateway}}
  action: ALLOW
  rules:
  - from:
    - source: {namespaces: [shop]}
";

const BANK_ALONE: &str = "apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: own, namespace: bank}
spec:
  egress:
  - hosts: [./*]
";

#[test]
fn a_namespace_the_authorization_policy_does_not_let_in_is_refused_by_the_kernel() -> Result<()> {
    let scenario = narrowing()?;
    let lab = &scenario.lab;
    let _open = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    until(&scenario, "the ledger reaches the gateway", &lab.ledger, true)?;

    write(&scenario, "authorization.yaml", ALLOW_SHOP)?;
    until(&scenario, "the ledger is refused", &lab.ledger, false)?;
    let before = scenario.samples()?;
    for outcome in dial(&scenario, &lab.ledger, 8443)? {
        assert!(outcome.refused(), "{outcome:?}");
    }
    // The wall and the boundary say the same as the sockets do.
    for ip in pod(GATEWAY.host).both() {
        let address = std::net::SocketAddr::new(ip, 8443);
        for kind in ["raw", "packet"] {
            let arguments = lab.by_hand(kind, &lab.ledger, address);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            lab.attempt(&lab.ledger.place(), &arguments)?;
        }
    }
    lab.settle();
    let forbidden = ["egress_node_drops_total", "reason=\"gateway_forbidden\""];
    let rise = scenario.rise(&before, &forbidden)?;
    assert!(rise >= 6.0, "two calls and four packets: {rise}");
    for outcome in dial(&scenario, &lab.cart, 8443)? {
        assert!(outcome.ok, "{outcome:?}");
    }
    let endpoint = to(pod(GATEWAY.host).v4, 8443);
    let (_, text) = agent::command(lab, &["explain", "bank/ledger", &endpoint])?;
    for part in [
        "DROP",
        "gateway_forbidden",
        "AuthorizationPolicy istio-system/callers (authorization.yaml:1)",
        "does not let namespace bank use gateway istio-system/istio-egressgateway",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }

    // Without the switch the same objects mean nothing here.
    scenario.edit("policy.yaml", "  narrow: true\n", "")?;
    until(&scenario, "the ledger reaches the gateway again", &lab.ledger, true)?;
    Ok(())
}

#[test]
fn a_namespace_whose_sidecar_does_not_import_the_gateway_is_refused() -> Result<()> {
    let scenario = narrowing()?;
    let lab = &scenario.lab;
    let _open = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    until(&scenario, "the ledger reaches the gateway", &lab.ledger, true)?;
    write(&scenario, "sidecar.yaml", BANK_ALONE)?;
    until(&scenario, "the ledger is refused", &lab.ledger, false)?;
    let told = dial(&scenario, &lab.cart, 8443)?;
    assert!(told.iter().all(|one| one.ok), "{told:?}");
    // What is finer than a namespace leaves it open, and is told.
    let finer =
        BANK_ALONE.replace("spec:\n", "spec:\n  workloadSelector: {labels: {app: ledger}}\n");
    write(&scenario, "sidecar.yaml", &finer)?;
    until(&scenario, "the ledger reaches the gateway again", &lab.ledger, true)?;
    scenario.until("what cannot be said is told", |status| {
        let problems = status["problems"].as_array();
        problems
            .into_iter()
            .flatten()
            .any(|one| one["code"] == "narrowing_incomplete" && one["origin"]["name"] == "bank/own")
    })?;
    Ok(())
}

#[test]
fn a_quarantined_gateway_pod_is_cut_off_with_what_is_open() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let _open = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    until(&scenario, "the cart reaches the gateway", &lab.cart, true)?;
    let before = scenario.samples()?;
    let mut command = lab.probe(&lab.cart.place())?;
    command.args(["hold", &to(pod(GATEWAY.host).v4, 8443), "--milliseconds", "8000"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut held = Process::start(command, "probe hold")?;
    std::thread::sleep(Duration::from_millis(500));

    let (labels, quarantined) = (
        "labels: {app: istio-egressgateway, istio: egressgateway}\nspec:\n  nodeName",
        "labels: {app: istio-egressgateway, istio: egressgateway, egress-enforcer.io/quarantine: cve}\nspec:\n  nodeName",
    );
    scenario.edit("cluster.yaml", labels, quarantined)?;
    until(&scenario, "the cart is refused", &lab.cart, false)?;
    let (_, text) = held.output(Duration::from_secs(20))?;
    let outcome: Outcome = serde_json::from_str(&text).with_context(|| format!("{text:?}"))?;
    assert!(!outcome.ok && outcome.attempts > 0, "an open connection goes on: {outcome:?}");
    assert!(outcome.micros < 6_000_000, "{outcome:?}");
    let told = dial(&scenario, &lab.cart, 8443)?;
    assert!(told.iter().all(Outcome::refused), "{told:?}");
    assert_eq!(scenario.rise(&before, &[REJECTED, "reason=\"quarantined\""])?, 1.0);

    scenario.edit("cluster.yaml", quarantined, labels)?;
    until(&scenario, "the cart reaches the gateway again", &lab.cart, true)?;
    Ok(())
}

#[test]
fn what_hostile_objects_offer_opens_nothing_and_is_counted_once() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let _open = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    until(&scenario, "the cart reaches the gateway", &lab.cart, true)?;
    let before = scenario.samples()?;
    let poison = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: poison, namespace: istio-system, labels: {{kubernetes.io/service-name: istio-egressgateway}}}}
addressType: IPv4
ports: [{{name: https, port: 8443}}, {{name: ssh, port: 22}}]
endpoints:
- {{addresses: [169.254.169.254]}}
- {{addresses: [{STRIPE}]}}
- {{addresses: [{NODE}]}}
- {{addresses: [10.244.1.10], targetRef: {{kind: Pod, uid: 00000000-0000-0000-0000-000000000000}}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: mine, namespace: shop}}
spec: {{hosts: [mine.example], addresses: [10.244.1.10], ports: [{{number: 8444, name: tcp}}], resolution: STATIC}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: bare, namespace: shop}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: unheard, namespace: shop}}
spec: {{hosts: [x.example], addresses: [203.0.113.77/8], location: MESH_ORBIT, resolution: PSYCHIC}}
",
        STRIPE = STRIPE.v4,
        NODE = NODE.v4,
    );
    write(&scenario, "poison.yaml", &poison)?;
    scenario.until("each is told", |status| {
        let problems: Vec<&serde_json::Value> =
            status["problems"].as_array().into_iter().flatten().collect();
        let told = |code: &str| problems.iter().filter(|one| one["code"] == code).count();
        told("endpoint_rejected") == 4 && told("gateway_address_claimed") == 1
    })?;
    let place = lab.cart.place();
    for address in [to(STRIPE.v4, 8443), to(NODE.v4, 8443), to([169, 254, 169, 254], 8443)] {
        let (refused, escaped) = scenario.judged(&place, &["tcp", &address])?;
        assert!(refused.refused() && escaped == 0, "{address}: {refused:?}");
    }
    for port in [22, 8444] {
        let told = dial(&scenario, &lab.cart, port)?;
        assert!(told.iter().all(Outcome::refused), "{port}: {told:?}");
    }
    let told = dial(&scenario, &lab.cart, 8443)?;
    assert!(told.iter().all(|one| one.ok), "{told:?}");
    for (reason, count) in [
        ("reserved_address", 1.0),
        ("no_pod", 2.0),
        ("pod_gone", 1.0),
        ("unexpected_port", 1.0),
        ("quarantined", 0.0),
    ] {
        let sample = format!("reason=\"{reason}\"");
        assert_eq!(scenario.rise(&before, &[REJECTED, &sample])?, count, "{reason}");
    }
    Ok(())
}
