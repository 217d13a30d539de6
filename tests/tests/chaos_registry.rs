//! The registry comes and goes, half-written and broken, in the middle of a flood: nothing ever
//! widens.
//!
//! `EGRESS_CHAOS_FLAPS=100` breaks the API server's connections as often; a directory is always
//! disturbed a hundred times.

use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use egress_tests::agent;
use egress_tests::control_plane::ControlPlane;
use egress_tests::flood::Flood;
use egress_tests::kube_lab::KubeLab;
use egress_tests::manifests;
use egress_tests::process::wait_until;
use egress_tests::scenario::Scenario;

/// Disturbances of a directory.
const DISTURBED: usize = 100;
/// Breaks of the way to an API server.
const FLAPS: usize = 12;

/// A short while, never the same: the agent looks at the directory at moments of its own.
fn pause(round: usize) {
    std::thread::sleep(Duration::from_millis(5 + (round as u64 * 7) % 40));
}

#[test]
fn a_directory_that_is_disturbed_a_hundred_times_lets_nothing_through() -> Result<()> {
    let scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let registry = lab.file("registry");
    let flood = Flood::start(lab)?;
    for round in 0..DISTURBED {
        let name = ["policy.yaml", "cluster.yaml", "stripe.yaml"][round % 3];
        let path = registry.join(name);
        let whole = fs::read_to_string(&path)?;
        // Somewhere in the file; every place has its turn.
        let half = whole.floor_char_boundary(1 + whole.len() * (round * 37 % 100) / 100);
        match round % 5 {
            // By a writer that truncates, thinks, writes half, thinks and goes on.
            0 | 1 => {
                let mut file = File::create(&path)?;
                pause(round);
                file.write_all(&whole.as_bytes()[..half])?;
                pause(round);
                file.write_all(&whole.as_bytes()[half..])?;
            }
            // By one that dies in the middle. Half a list of pods is a list of pods, and closes the
            // gateway for good reason: the clients would not be answered.
            2 if name != "cluster.yaml" => {
                fs::write(&path, &whole[..half])?;
                pause(round);
                fs::write(&path, &whole)?;
            }
            // Bytes that are nothing.
            2 | 3 => {
                fs::write(&path, "kind: [\u{0}\n\t- : }")?;
                pause(round);
                manifests::replace(&path, &whole)?;
            }
            // Moved away and back; what is declared is removed for good and comes again.
            _ if name == "stripe.yaml" => {
                fs::remove_file(&path)?;
                pause(round);
                manifests::replace(&path, &whole)?;
            }
            _ => {
                manifests::replace(&path, &format!("# round {round}\n{whole}"))?;
                pause(round);
                manifests::replace(&path, &whole)?;
            }
        }
        pause(round);
    }
    println!("{DISTURBED} disturbances: {}", flood.end(lab)?);
    scenario.until("everything is as it was", |status| {
        let none = status["problems"].as_array().is_some_and(Vec::is_empty);
        none && status["mode"] == "enforce" && status["refused"].is_null()
    })?;
    Ok(())
}

#[test]
fn an_api_server_whose_connections_break_again_and_again_lets_nothing_through() -> Result<()> {
    let flaps = match std::env::var("EGRESS_CHAOS_FLAPS") {
        Ok(number) => number.parse().context("EGRESS_CHAOS_FLAPS")?,
        Err(_) => FLAPS,
    };
    let plane = ControlPlane::start()?;
    plane.cluster.install_lenient()?;
    let scenario = KubeLab::new(&plane, "enforce")?;
    let lab = &scenario.lab;
    let flood = Flood::start(lab)?;
    for flap in 0..flaps {
        // Lists and watches are cut at any moment of theirs.
        scenario.relay.cut();
        std::thread::sleep(Duration::from_millis(50 + (flap as u64 * 130) % 500));
        scenario.relay.mend();
        std::thread::sleep(Duration::from_millis(20 + (flap as u64 * 170) % 700));
        scenario.relay.disconnect();
    }
    println!("{flaps} breaks: {}", flood.end(lab)?);
    let (_, removed) = scenario.writes()?;
    ensure!(removed == 0, "{removed} entries were removed");
    wait_until("the agent is in step again", Duration::from_secs(45), || {
        let connected = agent::samples(lab)?;
        Ok(agent::sum(&connected, &["egress_registry_connected"]) == 1.0)
    })?;
    Ok(())
}
