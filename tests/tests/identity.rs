//! A pod cannot shed its identity by changing what its own interface says.

use std::net::SocketAddr;

use anyhow::Result;
use egress_tests::address::{STRIPE, pod};
use egress_tests::agent::{self, Agent};
use egress_tests::lab::LEDGER;
use egress_tests::scenario::Scenario;
use serde_json::Value;

/// Makes the agent read the node's interfaces again, and waits until it has applied what it saw.
fn look_again(scenario: &Scenario, from: &str, to: &str) -> Result<()> {
    let before = agent::status(&scenario.lab)?["generation"].as_u64();
    scenario.edit("cluster.yaml", from, to)?;
    scenario.until("the change is applied", |status| status["generation"].as_u64() > before)?;
    Ok(())
}

/// Whether `status` shows the pod with an interface.
fn has_interface(status: &Value, pod: &str) -> bool {
    let pods = status["pods"].as_array();
    pods.into_iter().flatten().any(|entry| {
        let name = (entry["pod"]["namespace"].as_str(), entry["pod"]["name"].as_str());
        name.0.zip(name.1) == pod.split_once('/') && entry["ifindex"].is_u64()
    })
}

/// Nothing that `cart` builds by hand passes its boundary, from its own address or the taken one.
fn is_held(scenario: &Scenario, when: &str) -> Result<()> {
    let lab = &scenario.lab;
    for stranger in [&lab.cart, &lab.ledger] {
        let mut frame = lab.by_hand("packet", &lab.cart, SocketAddr::from((STRIPE.v4, 9000)));
        let source = format!("--source={}", stranger.address().v4);
        frame.retain(|argument| !argument.starts_with("--source="));
        frame.push(source);
        let frame: Vec<&str> = frame.iter().map(String::as_str).collect();
        let (_, escaped) = scenario.judged(&lab.cart.place(), &frame)?;
        assert_eq!(escaped, 0, "{when}: {frame:?}");
    }
    let status = agent::status(lab)?;
    for pod in ["shop/cart", "bank/ledger"] {
        assert!(has_interface(&status, pod), "{when}: {pod}: {status}");
    }
    Ok(())
}

#[test]
fn a_pod_that_takes_anothers_address_keeps_its_own_boundary() -> Result<()> {
    let mut scenario = Scenario::new("enforce")?;
    let (present, absent) = ("addresses: [10.244.1.10]", "addresses: []");
    scenario.lab.cart.netns.batch(&format!(
        "addr flush dev eth0 scope global\naddr add {}/32 dev eth0\n",
        pod(LEDGER.host).v4
    ))?;
    look_again(&scenario, present, absent)?;
    is_held(&scenario, "by the agent that saw it before")?;

    scenario.agent.process.kill();
    scenario.agent = Agent::start(&scenario.lab, &[])?;
    look_again(&scenario, absent, present)?;
    is_held(&scenario, "by an agent that never saw it otherwise")
}
