//! The same boundary behind either wiring: what a network plugin chooses changes nothing.

use anyhow::Result;
use egress_tests::address::{STRIPE, pod};
use egress_tests::lab::{CART, GATEWAY, LEDGER};
use egress_tests::process::Place;
use egress_tests::scenario::{Scenario, to};
use egress_tests::wiring::Wiring;

#[test]
fn pods_of_either_wiring_reach_gateway_and_peers_and_are_reached() -> Result<()> {
    for wiring in Wiring::ALL {
        let scenario = Scenario::wired(wiring, "enforce")?;
        let lab = &scenario.lab;
        let _servers = [
            scenario.server(&lab.gateway.place(), "tcp", 8443)?,
            scenario.server(&lab.ledger.place(), "tcp", 9000)?,
            scenario.server(&lab.cart.place(), "tcp", 9000)?,
        ];
        let node = Place { netns: Some(&lab.node), ..Place::default() };
        let ways = [
            (lab.cart.place(), GATEWAY, 8443),
            (lab.cart.place(), LEDGER, 9000),
            (lab.ledger.place(), CART, 9000),
            (node, CART, 9000),
        ];
        for (from, to_pod, port) in &ways {
            for ip in pod(to_pod.host).both() {
                let reached = lab.attempt(from, &["tcp", &to(ip, *port), "--http", "x"])?;
                assert!(reached.ok, "{wiring:?}: {} at {ip}: {reached:?}", to_pod.name);
            }
        }
    }
    Ok(())
}

#[test]
fn on_a_bridge_nothing_leaves_whatever_hook_it_meets() -> Result<()> {
    let scenario = Scenario::wired(Wiring::Bridge, "enforce")?;
    let lab = &scenario.lab;
    for ip in STRIPE.both() {
        let (dialled, escaped) = scenario.judged(&lab.cart.place(), &["tcp", &to(ip, 9000)])?;
        assert!(dialled.refused() && escaped == 0, "{ip}: {dialled:?}, {escaped} frames");
        // Below every socket hook: the boundary is at the bridge's port.
        let frame = lab.by_hand("packet", &lab.cart, std::net::SocketAddr::new(ip, 9000));
        let frame: Vec<&str> = frame.iter().map(String::as_str).collect();
        let before = scenario.samples()?;
        let (_, escaped) = scenario.judged(&lab.cart.place(), &frame)?;
        assert_eq!(escaped, 0, "{ip}");
        let dropped = ["egress_pod_connections_total{", "source_pod=\"cart\"", "verdict=\"drop\""];
        assert_eq!(scenario.rise(&before, &dropped)?, 1.0, "{ip}");
    }
    Ok(())
}
