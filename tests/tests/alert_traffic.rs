//! Each alert about what workloads do fires for its cause and for nothing else, and no panel of the
//! dashboards is empty while they do it.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use egress_agent::alerts;
use egress_tests::address::{ELSEWHERE, STRIPE, pod};
use egress_tests::alerting::{PACE, Watch};
use egress_tests::dashboards;
use egress_tests::lab::{GATEWAY, Lab};
use egress_tests::process::wait_until;
use egress_tests::prometheus::Prometheus;
use egress_tests::scenario::{Scenario, to};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A file system of 256 kB for the events, that can be filled; dropping it unmounts.
struct Small(PathBuf);

impl Small {
    /// Puts the lab's events on it.
    fn of(lab: &Lab) -> Result<Self> {
        let path = lab.file("small");
        fs::create_dir(&path).context("make a mount point")?;
        mount(Some("none"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=256k"))
            .context("mount a tmpfs")?;
        symlink(path.join("events"), lab.file("events")).context("link the events")?;
        Ok(Self(path))
    }

    fn fill(&self) -> Result<()> {
        match fs::write(self.0.join("filler"), vec![0; 512 * 1024]) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOSPC) => Ok(()),
            other => other.context("the file system is larger than it was made"),
        }
    }

    fn empty(&self) -> Result<()> {
        fs::remove_file(self.0.join("filler")).context("remove the filler")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// One refused connection of `shop/cart`.
fn attempt(scenario: &mut Scenario) -> Result<()> {
    let outcome =
        scenario.lab.attempt(&scenario.lab.cart.place(), &["tcp", &to(STRIPE.v4, 9000)])?;
    ensure!(outcome.refused(), "{outcome:?}");
    Ok(())
}

/// A raw and a packet socket of `shop/cart`, below every socket call.
fn evasion(scenario: &mut Scenario) -> Result<()> {
    let lab = &scenario.lab;
    let outside = SocketAddr::from((ELSEWHERE.v4, 9000));
    let mark = lab.sniffer.mark();
    for kind in ["raw", "packet"] {
        let arguments = lab.by_hand(kind, &lab.cart, outside);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        lab.attempt(&lab.cart.place(), &arguments)?;
    }
    lab.settle();
    ensure!(lab.sniffer.escapes(mark)?.is_empty(), "it left the node");
    Ok(())
}

fn nothing(_: &mut Scenario) -> Result<()> {
    Ok(())
}

#[test]
fn alerts_about_traffic_fire_for_their_cause_and_for_nothing_else() -> Result<()> {
    let lab = Lab::new()?;
    let small = Small::of(&lab)?;
    let mut watch = Watch::new(Scenario::on(lab, "enforce", &[])?)?;
    let endpoint = to(pod(GATEWAY.host).v4, 8443);
    let _open = watch.scenario.server(&watch.lab().gateway.place(), "tcp", 8443)?;

    // What is allowed raises nothing, however much of it there is.
    let legitimate = |scenario: &mut Scenario| {
        let lab = &scenario.lab;
        let through = lab.attempt(&lab.cart.place(), &["tcp", &endpoint])?;
        ensure!(through.ok, "{through:?}");
        Ok(())
    };
    for _ in 0..10 {
        legitimate(&mut watch.scenario)?;
    }

    let mut attempts = 0;
    let first = |scenario: &mut Scenario| {
        attempts += 1;
        if attempts == 1 { attempt(scenario) } else { Ok(()) }
    };
    watch.cause("one connection past the gateway", "EgressBypassAttempt", &[], first, nothing)?;

    let mut tried = false;
    let raw = |scenario: &mut Scenario| {
        if std::mem::replace(&mut tried, true) { Ok(()) } else { evasion(scenario) }
    };
    watch.cause("a raw and a packet socket", "EgressBypassAttempt", &[], raw, nothing)?;

    watch.cause(
        "a client that tries again and again",
        "EgressBypassSustained",
        &["EgressBypassAttempt"],
        attempt,
        nothing,
    )?;

    let wrong = to(pod(GATEWAY.host).v4, 22);
    watch.cause(
        "a flood toward a wrong port of the gateway",
        "EgressDeniedRising",
        &[],
        |s| {
            let flood = ["connects", &wrong, "--milliseconds", "500"];
            s.lab.attempt(&s.lab.cart.place(), &flood).map(drop)
        },
        nothing,
    )?;

    watch.cause(
        "a workload sends much more through the gateway",
        "EgressNamespaceBytesSurge",
        &[],
        |s| {
            let talk = ["talk", "blocking", &endpoint, "--bytes", "4000000"];
            let told = s.lab.attempt(&s.lab.cart.place(), &talk)?;
            ensure!(told.ok, "{told:?}");
            Ok(())
        },
        nothing,
    )?;

    small.fill()?;
    let mut port = 1000;
    watch.cause(
        "the disk of the events is full",
        "EgressEventsLost",
        &[],
        |s| {
            // Each port is an event of its own, and none is a bypass.
            port += 1;
            let wrong = to(pod(GATEWAY.host).v4, port);
            s.lab.attempt(&s.lab.cart.place(), &["tcp", &wrong]).map(drop)
        },
        |_| small.empty(),
    )?;

    println!("{}", watch.table());
    Ok(())
}

#[test]
fn no_panel_is_without_data_under_traffic() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let prometheus = Prometheus::start(lab, &alerts::plain(PACE))?;
    let endpoint = to(pod(GATEWAY.host).v4, 8443);
    let _open = scenario.server(&lab.gateway.place(), "tcp", 8443)?;
    let policy = fs::read_to_string(lab.file("registry/policy.yaml"))?;
    let (mut rate, mut missing) = (1000, Vec::new());
    let produced = wait_until("every panel has data", Duration::from_secs(60), || {
        lab.attempt(&lab.cart.place(), &["tcp", &to(STRIPE.v4, 9000)])?;
        lab.attempt(&lab.cart.place(), &["talk", "blocking", &endpoint, "--bytes", "100000"])?;
        // A change of the policy, so that there is a time to the kernel.
        rate += 1;
        let limit = format!("  rateLimit: {{connectionsPerSecond: {rate}}}\n");
        fs::write(lab.file("registry/policy.yaml"), format!("{policy}{limit}"))?;
        missing.clear();
        for (name, dashboard) in dashboards::all()? {
            for panel in dashboards::panels(&dashboard) {
                for expression in dashboards::expressions(panel) {
                    let found = prometheus.query(lab, &dashboards::filled(expression, "5s"))?;
                    if !found.iter().any(|(_, value)| value.is_finite()) {
                        missing.push(format!("{name}: {}: {expression}", panel["title"]));
                    }
                }
            }
        }
        Ok(missing.is_empty())
    });
    ensure!(produced.is_ok(), "panels without data:\n{}", missing.join("\n"));
    Ok(())
}
