//! What a pod is told of a dropped packet.
//!
//! The pod is one whose calls no socket hook judges (the mesh captures it), so that it is the
//! packet which is denied: as with a port that is excluded from capture by annotation.

use anyhow::Result;
use egress_tests::address::STRIPE;
use egress_tests::scenario::{Scenario, to};

/// A client that is told fails well within this, one that is not waits for much longer.
const AT_ONCE_MICROS: u64 = 200_000;

/// Waits until the wall leaves to the boundary what that can answer.
fn settled(mode: &str) -> Result<Scenario> {
    let scenario = Scenario::new(mode)?;
    std::thread::sleep(std::time::Duration::from_millis(2200));
    Ok(scenario)
}

#[test]
fn a_denied_client_fails_at_once() -> Result<()> {
    let scenario = settled("enforce")?;
    let place = scenario.lab.checkout.place();
    for (ip, prohibited) in STRIPE.both().into_iter().zip(["EHOSTUNREACH", "EACCES"]) {
        let before = scenario.samples()?;
        let (tcp, escaped) = scenario.judged(&place, &["tcp", &to(ip, 9000)])?;
        assert_eq!((tcp.error.as_str(), escaped), ("ECONNREFUSED", 0), "{ip}: {tcp:?}");
        assert!(tcp.micros < AT_ONCE_MICROS, "{ip}: {tcp:?}");
        let arguments = ["udp", &to(ip, 9000), "--wait", "--connected"];
        let (udp, escaped) = scenario.judged(&place, &arguments)?;
        assert_eq!((udp.error.as_str(), escaped), (prohibited, 0), "{ip}: {udp:?}");
        assert!(udp.micros < AT_ONCE_MICROS, "{ip}: {udp:?}");
        let denied = ["egress_pod_connections_total{", "source_pod=\"checkout\"", "not_gateway"];
        assert_eq!(scenario.rise(&before, &denied)?, 2.0, "each is counted once");
    }
    Ok(())
}

#[test]
fn with_drop_it_hears_nothing() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    scenario.change_policy("  mode:", "  denyResponse: Drop\n  mode:")?;
    let place = scenario.lab.checkout.place();
    for ip in STRIPE.both() {
        let (tcp, escaped) =
            scenario.judged(&place, &["tcp", &to(ip, 9000), "--patience", "600"])?;
        assert!(!tcp.ok && tcp.error != "ECONNREFUSED" && escaped == 0, "{ip}: {tcp:?}");
        assert!(tcp.micros > AT_ONCE_MICROS, "{ip}: {tcp:?}");
    }
    Ok(())
}

#[test]
fn another_way_out_of_the_pod_stays_behind_the_wall() -> Result<()> {
    let scenario = settled("enforce")?;
    let lab = &scenario.lab;
    // A second interface, as a secondary network gives: no boundary stands behind it.
    lab.node.batch(&format!(
        "link add second type veth peer name eth1 netns {}\nlink set second up\n",
        lab.checkout.netns.name()
    ))?;
    lab.checkout.netns.batch(&format!(
        "link set eth1 up\nroute add {}/32 dev eth1\n\
         neigh add {} dev eth1 lladdr 0a:58:00:00:00:01\n",
        STRIPE.v4, STRIPE.v4
    ))?;
    let before = scenario.samples()?;
    let arguments = ["tcp", &to(STRIPE.v4, 9000), "--patience", "600"];
    let (tcp, escaped) = scenario.judged(&lab.checkout.place(), &arguments)?;
    assert!(!tcp.ok && escaped == 0, "{tcp:?}");
    let denied = ["egress_pod_connections_total{", "source_pod=\"checkout\"", "not_gateway"];
    assert!(scenario.rise(&before, &denied)? >= 1.0, "the wall drops and counts it");
    Ok(())
}
