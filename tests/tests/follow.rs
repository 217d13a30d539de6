//! The kernel follows the directory, and never wider than the directory says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use egress_tests::address::{STRIPE, pod};
use egress_tests::agent;
use egress_tests::lab::{GATEWAY, Identity};
use egress_tests::manifests;
use egress_tests::process::wait_until;
use egress_tests::scenario::{Scenario, to};

#[test]
fn an_open_connection_is_cut_by_the_change_to_enforce() -> Result<()> {
    let scenario = Scenario::new("audit")?;
    let lab = &scenario.lab;
    let mut open = lab.cart.netns.run(|| {
        let address = SocketAddr::from((STRIPE.v4, 9000));
        TcpStream::connect(address).context("connect in audit mode")
    })?;
    open.set_read_timeout(Some(Duration::from_millis(400)))?;
    let mut answer = [0u8; 4];
    open.write_all(b"ping")?;
    open.read_exact(&mut answer).context("the echo answers in audit mode")?;

    manifests::policy(&lab.file("registry"), "enforce")?;
    agent::wait_for_mode(lab, "enforce")?;
    let mark = lab.sniffer.mark();
    open.write_all(b"ping")?;
    assert!(open.read_exact(&mut answer).is_err(), "the connection still works");
    assert_eq!(lab.sniffer.escapes(mark)?, []);
    Ok(())
}

#[test]
fn a_removed_endpoint_closes_within_a_second_and_an_added_one_opens() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let _open = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    let endpoint = to(pod(GATEWAY.host).v4, 8443);
    let reach = || lab.attempt(&lab.cart.place(), &["tcp", &endpoint]);
    assert!(reach()?.ok);
    let (present, absent) = ("addresses: [10.244.1.10]", "addresses: []");
    scenario.edit("cluster.yaml", present, absent)?;
    wait_until("the endpoint is closed", Duration::from_secs(1), || Ok(reach()?.refused()))?;
    scenario.edit("cluster.yaml", absent, present)?;
    wait_until("the endpoint is open", Duration::from_secs(1), || Ok(reach()?.ok))?;
    Ok(())
}

#[test]
fn a_poisoned_slice_opens_nothing_and_is_reported() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let outside = STRIPE.v4.to_string();
    scenario.edit(
        "cluster.yaml",
        "addresses: [10.244.1.10]",
        &format!("addresses: [{outside}]"),
    )?;
    scenario.until("the endpoint is rejected", |status| {
        let problems = status["problems"].as_array();
        problems.into_iter().flatten().any(|problem| problem["code"] == "endpoint_rejected")
    })?;
    let place = scenario.lab.cart.place();
    let (refused, escaped) = scenario.judged(&place, &["tcp", &to(STRIPE.v4, 8443)])?;
    assert!(refused.refused() && escaped == 0, "{refused:?}");
    Ok(())
}

#[test]
fn a_half_written_policy_changes_nothing_and_is_named() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let path = scenario.lab.file("registry/policy.yaml");
    let whole = std::fs::read_to_string(&path)?;
    std::fs::write(&path, whole[..whole.len() / 2].replace("mode: enforce", "mode: [enforce"))?;
    scenario.until("the file is reported", |status| {
        let problems = status["problems"].as_array();
        problems.into_iter().flatten().any(|problem| {
            let file = problem["origin"]["file"].as_str().unwrap_or_default();
            file.starts_with("policy.yaml:")
        })
    })?;
    let place = scenario.lab.cart.place();
    let (refused, _) = scenario.judged(&place, &["tcp", &to(STRIPE.v4, 9000)])?;
    assert!(refused.refused(), "the last good policy is not in force: {refused:?}");
    std::fs::write(&path, whole)?;
    scenario.until("the problem clears", |status| {
        status["problems"].as_array().is_some_and(Vec::is_empty)
    })?;
    Ok(())
}

#[test]
fn a_policy_that_does_not_fit_is_refused_whole() -> Result<()> {
    let scenario = Scenario::with("enforce", &["--table-size=64"])?;
    let many: String = (0..100)
        .map(|host| format!("    - {{ip: 192.0.2.{host}, port: 443, protocol: TCP}}\n"))
        .collect();
    let grown = format!("  infrastructure:\n    addresses:\n{many}  resolvers:");
    let before = scenario.samples()?;
    scenario.edit("policy.yaml", "  resolvers:", &grown)?;
    scenario.until("the policy is refused", |status| status["refused"].is_string())?;
    let refused = ["egress_apply_total{", "result=\"refused\""];
    assert!(scenario.rise(&before, &refused)? >= 1.0);
    let place = scenario.lab.cart.place();
    // Neither the new entries nor the loss of old ones.
    let (new, _) = scenario.judged(&place, &["tcp", &to([192, 0, 2, 1], 443)])?;
    assert!(new.refused(), "{new:?}");
    let resolver = egress_tests::address::RESOLVER.v4;
    assert!(scenario.lab.attempt(&place, &["udp", &to(resolver, 53), "--wait"])?.ok);
    scenario.edit("policy.yaml", &grown, "  resolvers:")?;
    scenario.until("the policy fits again", |status| status["refused"].is_null())?;
    Ok(())
}

#[test]
fn a_missing_gateway_is_named_and_opens_nothing() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    scenario.edit("policy.yaml", "service: istio-egressgateway", "service: nobody")?;
    scenario.until("the gateway is missed", |status| {
        let problems = status["problems"].as_array();
        problems.into_iter().flatten().any(|problem| problem["code"] == "gateway_missing")
    })?;
    let samples = scenario.samples()?;
    let missing = ["egress_registry_problems{", "code=\"gateway_missing\""];
    assert_eq!(agent::sum(&samples, &missing), 1.0);
    let _open = scenario.server(&scenario.lab.gateway.place(), "tcp", 8443)?;
    let (in_cluster, _) =
        scenario.judged(&scenario.lab.cart.place(), &["tcp", &to(STRIPE.v4, 9000)])?;
    assert!(in_cluster.refused());
    Ok(())
}

/// `kubectl delete --force` with a long grace period: the object goes and the containers stay.
#[test]
fn a_pod_whose_object_is_deleted_stays_governed_until_it_is_gone() -> Result<()> {
    const LEFT: Identity = Identity {
        short: "left",
        name: "shop/left",
        uid: "5f0c1a52-0c4b-4c1e-9d53-000000000032",
        host: 32,
    };
    let scenario = Scenario::new("enforce")?;
    let left = scenario.lab.add_pod(LEFT)?;
    let path = scenario.lab.file("registry/left.yaml");
    manifests::replace(&path, &manifests::pod(LEFT, left.address(), ""))?;
    let state = |status: &serde_json::Value| {
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        let left = pods.iter().find(|pod| pod["pod"]["name"] == "left");
        left.map(|pod| pod["state"].clone())
    };
    scenario.until("the pod is covered", |status| state(status) == Some("covered".into()))?;

    std::fs::remove_file(&path)?;
    scenario.until("the pod is orphaned", |status| state(status) == Some("orphaned".into()))?;
    let outside = SocketAddr::from((STRIPE.v4, 9000));
    let plain = vec!["tcp".to_owned(), to(STRIPE.v4, 9000)];
    let packet = scenario.lab.by_hand("packet", &left, outside);
    for attempt in [plain, packet] {
        let words: Vec<&str> = attempt.iter().map(String::as_str).collect();
        let (outcome, escaped) = scenario.judged(&left.place(), &words)?;
        assert!(escaped == 0, "{attempt:?}: {outcome:?}");
    }
    let _open = scenario.lab.serve(&scenario.lab.gateway.place(), "tcp", 8443)?;
    let gateway = to(pod(GATEWAY.host).v4, 8443);
    let (through, _) = scenario.judged(&left.place(), &["tcp", &gateway])?;
    assert!(through.ok, "{through:?}");

    scenario.lab.remove_pod(left)?;
    scenario.until("the pod is forgotten", |status| state(status).is_none())?;
    Ok(())
}

#[test]
fn a_pod_is_governed_from_its_manifest_to_its_end() -> Result<()> {
    const LATE: Identity = Identity {
        short: "late",
        name: "shop/late",
        uid: "5f0c1a52-0c4b-4c1e-9d53-000000000031",
        host: 31,
    };
    let scenario = Scenario::new("enforce")?;
    let late = scenario.lab.add_pod(LATE)?;
    let path = scenario.lab.file("registry/late.yaml");
    manifests::replace(&path, &manifests::pod(LATE, late.address(), ""))?;
    let state = |status: &serde_json::Value| {
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        let late = pods.iter().find(|pod| pod["pod"]["name"] == "late");
        late.map(|pod| pod["state"].clone())
    };
    scenario.until("the pod is covered", |status| state(status) == Some("covered".into()))?;
    let (refused, escaped) = scenario.judged(&late.place(), &["tcp", &to(STRIPE.v4, 9000)])?;
    assert!(refused.refused() && escaped == 0, "{refused:?}");

    std::fs::remove_file(&path)?;
    scenario.lab.remove_pod(late)?;
    scenario.until("the pod is forgotten", |status| state(status).is_none())?;
    let pins = scenario.lab.file("bpffs/egress-enforcer/links/tcx");
    wait_until("only four pods' interfaces are pinned", Duration::from_secs(3), || {
        Ok(std::fs::read_dir(&pins)?.count() == 8)
    })?;
    Ok(())
}
