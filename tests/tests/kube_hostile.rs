//! Objects made to break the agent, or to widen what it lets through.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use egress_tests::address::{ELSEWHERE, STRIPE, pod};
use egress_tests::agent;
use egress_tests::control_plane::{self, documents};
use egress_tests::kube_lab::KubeLab;
use egress_tests::lab::GATEWAY;
use egress_tests::process::wait_until;
use egress_tests::scenario::to;
use serde_json::{Value, json};

/// ServiceEntries that are legal and many.
const MANY: usize = 5000;
/// Objects that are read with what can be read of them. Definitions that are lenient stand for
/// those of a version of Istio that knows more than we do.
const STRANGE: &str = r#"
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: no-spec, namespace: bank}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: unknown-values, namespace: shop}
spec:
  hosts: [strange.example.com]
  addresses: [203.0.113.66]
  ports: [{number: 443, name: x, protocol: QUANTUM}]
  resolution: ENTANGLED
  location: MARS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: unknown-mode, namespace: shop}
spec: {host: strange.example.com, trafficPolicy: {tls: {mode: TRUST_ME}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: unknown-action, namespace: istio-system}
spec: {action: MAYBE, rules: [{}]}
"#;
/// Objects that must be told of: each by its name, once.
const REPORTED: &str = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hosts-are-text, namespace: shop}
spec: {hosts: api.stripe.com}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: claims-the-gateway, namespace: shop}
spec:
  hosts: [mine.example.com]
  addresses: [10.244.1.10]
  ports: [{number: 8443, name: tls, protocol: TLS}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: poison-metadata
  namespace: istio-system
  labels: {kubernetes.io/service-name: istio-egressgateway}
addressType: IPv6
ports: [{name: https, port: 8443, protocol: TCP}]
endpoints: [{addresses: ["fd00:ec2::254"], conditions: {ready: true}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: poison-outside
  namespace: istio-system
  labels: {kubernetes.io/service-name: istio-egressgateway}
addressType: IPv4
ports: [{name: https, port: 8443, protocol: TCP}]
endpoints: [{addresses: [203.0.113.10], conditions: {ready: true}}]
"#;
/// Policies that are refused: by the API server, whose schema is ours, or by the agent, by name.
const WIDE: &str = r#"
apiVersion: egress-enforcer.io/v1alpha1
kind: EgressPolicy
metadata: {name: whole-world}
spec: {selector: {namespaces: [shop]}, mode: enforce, priority: 100, clusterRanges: [0.0.0.0/0]}
---
apiVersion: egress-enforcer.io/v1alpha1
kind: EgressPolicy
metadata: {name: not-canonical}
spec: {selector: {namespaces: [shop]}, mode: enforce, priority: 100, clusterRanges: [203.0.113.10/8]}
---
apiVersion: egress-enforcer.io/v1alpha1
kind: EgressException
metadata: {name: not-canonical}
spec:
  scope: {namespaces: [shop]}
  destination: {cidr: 203.0.113.10/24, ports: [{port: 9000, protocol: TCP}]}
  expiresAt: "2099-12-01T00:00:00Z"
  reason: a test
  requester: tests@example.com
"#;

/// A legal ServiceEntry of some size.
fn entry(name: &str, hosts: usize) -> Value {
    let hosts: Vec<String> = (0..hosts).map(|host| format!("h{host}.{name}.example.com")).collect();
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": "bank"},
        "spec": {
            "hosts": hosts, "ports": [{"number": 443, "name": "https", "protocol": "HTTPS"}],
            "resolution": "DNS",
        },
    })
}

/// Problems by the names of their objects.
fn problems(status: &Value) -> Vec<String> {
    let problems = status["problems"].as_array().into_iter().flatten();
    problems.map(Value::to_string).collect()
}

#[test]
fn hostile_objects_stop_nothing_widen_nothing_and_are_each_told_of_once() -> Result<()> {
    let plane = control_plane::shared()?;
    plane.cluster.install_lenient()?;
    let scenario = KubeLab::new(&plane, "enforce")?;
    let lab = &scenario.lab;
    let _open = lab.serve(&lab.gateway.place(), "tcp", 8443)?;
    let table = scenario.exact()?;
    let before = table.serving_gateways()?;

    plane.cluster.apply_yaml(STRANGE)?;
    let mut told = BTreeSet::new();
    for object in documents(REPORTED)? {
        plane.cluster.apply(&object)?;
        told.insert(object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
    }
    for object in documents(WIDE)? {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        match plane.cluster.apply(&object) {
            Ok(_) => drop(told.insert(name)),
            Err(error) => println!("refused by the API server: {name}: {}", error.root_cause()),
        }
    }
    // The link-local metadata address is refused by every API server; one it takes is above.
    let link_local = REPORTED.replace("fd00:ec2::254", "fe80::a9fe:a9fe");
    ensure!(plane.cluster.apply_yaml(&link_local).is_err());
    // 10 MB are more than an API server takes. What it takes is read.
    ensure!(plane.cluster.apply(&entry("ten-megabytes", 350_000)).is_err());
    plane.cluster.create_absent(&[entry("one-megabyte", 35_000)])?;
    let start = Instant::now();
    let many: Vec<Value> = (0..MANY).map(|number| entry(&format!("many-{number}"), 1)).collect();
    plane.cluster.create_absent(&many)?;
    println!("{MANY} ServiceEntries written in {:.1} s", start.elapsed().as_secs_f64());

    let mut missing = told.clone();
    let reported = wait_until("each is told of", Duration::from_secs(30), || {
        let known = problems(&agent::status(lab)?);
        missing.retain(|name| !known.iter().any(|problem| problem.contains(name.as_str())));
        Ok(missing.is_empty())
    });
    reported.with_context(|| format!("never told of: {missing:?}"))?;
    // The lists go on: what is written after all of it arrives.
    plane.cluster.apply(&json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": "last", "namespace": "shop"},
        "spec": {"hosts": 7},
    }))?;
    scenario.until("the last object is read", |status| {
        problems(status).iter().any(|problem| problem.contains("shop/last"))
    })?;

    // Nothing is open that was not, and what was still is.
    let after = table.serving_gateways()?;
    ensure!(after.is_subset(&before), "{after:?} were not all open: {before:?}");
    let own = pod(GATEWAY.host).both().map(|ip| (ip, 8443));
    ensure!(own.iter().all(|endpoint| after.contains(endpoint)), "{after:?}");
    let place = lab.cart.place();
    for (ip, port) in
        [(STRIPE.v4, 9000), (STRIPE.v4, 8443), (ELSEWHERE.v4, 9000), (ELSEWHERE.v4, 443)]
    {
        let mark = lab.sniffer.mark();
        let outcome = lab.attempt(&place, &["tcp", &to(ip, port)])?;
        lab.settle();
        let escaped = lab.sniffer.escapes(mark)?;
        ensure!(outcome.refused() && escaped.is_empty(), "{ip}:{port}: {outcome:?} {escaped:?}");
    }
    ensure!(lab.attempt(&place, &["tcp", &to(pod(GATEWAY.host).v4, 8443)])?.ok);

    let log = scenario.log()?;
    for name in &told {
        let lines = log.lines().filter(|line| {
            let tells = ["problem appeared", "gateway endpoint refused"];
            tells.iter().any(|message| line.contains(message)) && line.contains(name.as_str())
        });
        let lines: Vec<&str> = lines.collect();
        ensure!(lines.len() == 1, "{name} was told of {} times: {lines:#?}", lines.len());
        println!("told of once: {name}");
    }
    ensure!(!log.contains("panicked"), "a panic in the log");
    Ok(())
}
