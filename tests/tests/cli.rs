//! What an operator asks, and what they get for asking wrongly.

use anyhow::Result;
use egress_tests::address::{ELSEWHERE, NODE, RESOLVER, STRIPE, pod};
use egress_tests::agent::{self, binary};
use egress_tests::lab::{GATEWAY, LEDGER};
use egress_tests::scenario::{Scenario, to};

#[test]
fn explain_says_what_really_happens() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let _gateway = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    let _peer = scenario.server(&lab.ledger.place(), "tcp", 9000)?;
    let mut cases = Vec::new();
    for family in [0, 1] {
        let of = |dual: egress_tests::address::Dual| dual.both()[family];
        cases.push((to(of(pod(GATEWAY.host)), 8443), "gateway"));
        cases.push((to(of(pod(GATEWAY.host)), 8444), "gateway_port"));
        cases.push((to(of(pod(LEDGER.host)), 9000), "cluster"));
        cases.push((to(of(NODE), 10250), "node"));
        cases.push((to(of(STRIPE), 443), "not_gateway"));
        cases.push((to(of(RESOLVER), 53), "resolver"));
        cases.push((to(of(ELSEWHERE), 53), "foreign_resolver"));
    }
    cases.push((to([169, 254, 169, 254], 80), "metadata"));
    cases.push((to([240, 240, 0, 1], 443), "mesh_vip"));
    for (destination, reason) in cases {
        let (code, text) =
            agent::command(lab, &["explain", "shop/cart", &destination, "-o", "json"])?;
        assert_eq!(code, 0, "{text}");
        let answer: serde_json::Value = serde_json::from_str(&text)?;
        assert_eq!(answer["reason"], reason, "{destination}");
        let (outcome, escaped) = scenario.judged(&lab.cart.place(), &["tcp", &destination])?;
        let dropped = answer["verdict"] == "drop";
        assert_eq!(outcome.refused(), dropped, "{destination}: {outcome:?}");
        let resolver = reason == "resolver";
        assert!(resolver || escaped == 0, "{destination}");
    }
    Ok(())
}

#[test]
fn explain_names_entry_and_origin() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let endpoint = to(pod(GATEWAY.host).v4, 8443);
    let (_, text) = agent::command(&scenario.lab, &["explain", "shop/cart", &endpoint])?;
    for part in [
        "ALLOW",
        "line 9",
        "EXACT[policy shop",
        "istio-system/istio-egressgateway",
        "EndpointSlice istio-system/istio-egressgateway-v4 (cluster.yaml:",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    Ok(())
}

#[test]
fn status_shows_hooks_pods_and_gateways() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let (code, text) = agent::command(&scenario.lab, &["status"])?;
    assert_eq!(code, 0, "{text}");
    for part in [
        "mode enforce",
        "wall",
        "connect6",
        "pod_egress",
        "shop/cart",
        "covered",
        "sidecar",
        "bank/ledger",
        "no_policy",
        "istio-system/istio-egressgateway",
        "10.244.1.10:8443",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("problem"), "{text}");
    Ok(())
}

#[test]
fn wrong_questions_get_helpful_answers() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let (code, text) = agent::command(lab, &["explain", "shop/crat", "203.0.113.10:443"])?;
    assert!(code == 1 && text.contains("shop/cart"), "{text}");
    let (code, text) = agent::command(lab, &["explain", "shop/cart", "stripe"])?;
    assert!(code == 1 && text.contains("ADDRESS:PORT"), "{text}");
    Ok(())
}

#[test]
fn a_wrong_configuration_is_named_with_its_place() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("agent.yaml");
    std::fs::write(&config, "nodeName: a\nclustre: {}\n")?;
    let output = std::process::Command::new(binary()?)
        .args(["run", "--registry=dir:/nonexistent", "--config"])
        .arg(&config)
        .output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{complaint}");
    assert!(complaint.contains("agent.yaml:2:1") && complaint.contains("clustre"), "{complaint}");
    let output = std::process::Command::new(binary()?).arg("run").output()?;
    assert_eq!(output.status.code(), Some(64));
    Ok(())
}

#[test]
fn an_api_server_that_cannot_be_asked_is_told_apart_from_one_that_is_away() -> Result<()> {
    for (arguments, expected) in [
        (&["run", "--registry=kube"][..], "EGRESS_NODE_NAME from spec.nodeName"),
        (&["run", "--registry=kube", "--node-name=a"], "no credentials for the API server"),
        (&["run", "--registry=kube:/nowhere", "--node-name=a"], "kubeconfig /nowhere"),
    ] {
        let mut command = std::process::Command::new(binary()?);
        for name in ["KUBECONFIG", "KUBERNETES_SERVICE_HOST", "EGRESS_NODE_NAME"] {
            command.env_remove(name);
        }
        let output = command.args(arguments).output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{complaint}");
        assert!(complaint.contains(expected), "{complaint}");
    }
    Ok(())
}
