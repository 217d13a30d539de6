//! `cargo xtask test`: every tier in order of cost, and no tier is skipped in silence.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::setup::{self, Need};
use crate::{object, paths, process};

#[derive(Args, Default)]
pub(crate) struct Arguments {
    /// Run only tests whose name contains one of these.
    filter: Vec<String>,
}

/// Packages whose tests need nothing but a compiler.
const PURE: [&str; 3] = ["egress-common", "egress-agent", "xtask"];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    paths::require_root("test")?;
    setup::ensure(&[Need::Net, Need::Envoy, Need::ControlPlane, Need::Istiod])?;
    object::ensure_kept()?;
    // The agent suite runs the agent's program, which building a test of another package omits.
    process::run(cargo("build").args(["--package", "egress-agent", "--bins"]))?;

    let tiers = [
        ("pure", &PURE[..], Threads::Many),
        ("eBPF crate on the host", &["egress-ebpf"], Threads::Many),
        ("object, kernel and agent", &["egress-tests"], Threads::One),
    ];
    let start = Instant::now();
    let mut total = Tally::default();
    let mut failed = Vec::new();
    for (name, packages, threads) in tiers {
        eprintln!("test: {name}");
        let mut command = tier(packages, threads, &arguments.filter)?;
        // What libtest prints is passed on as it is, and counted on the way.
        if let Err(error) = process::run_read(&mut command, |line| total.read(line)) {
            eprintln!("test: {error:#}");
            failed.push(name);
        }
    }
    let Tally { passed, failed: broken, ignored } = total;
    let seconds = start.elapsed().as_secs();
    eprintln!("test: {passed} passed, {broken} failed, {ignored} ignored, in {seconds} s");
    if !failed.is_empty() {
        bail!("tests failed: {}", failed.join("; "));
    }
    if passed == 0 {
        bail!("no test was run: no name contains {}", arguments.filter.join(" or "));
    }
    Ok(())
}

/// What libtest's `test result:` lines add up to.
#[derive(Default, Debug, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Tally {
    fn read(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once("test result: ") else { return };
        for part in counts.split(['.', ';']) {
            let Some((number, what)) = part.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// How many tests of one tier run at a time.
#[derive(Clone, Copy)]
enum Threads {
    Many,
    /// Kernel suites share one kernel: cgroup hooks of two tests must not judge each other.
    One,
}

fn tier(packages: &[&str], threads: Threads, filter: &[String]) -> Result<Command> {
    let mut command = cargo("test");
    command.arg("--no-fail-fast");
    for package in packages {
        command.args(["--package", package]);
    }
    command.env("EGRESS_ENVOY", setup::envoy()?).env("EGRESS_AGENT", agent());
    command
        .env("EGRESS_CONTROL_PLANE", setup::control_plane()?)
        .env("EGRESS_ISTIOD", setup::istiod()?);
    command.env("EGRESS_EBPF_OBJECT_PATH", paths::root().join(crate::sources::OBJECT));
    command.arg("--").args(filter);
    match threads {
        Threads::Many => {}
        Threads::One => {
            command.arg("--test-threads=1");
        }
    }
    Ok(command)
}

/// The agent's program, as [`run`] has built it.
pub(crate) fn agent() -> std::path::PathBuf {
    paths::debug_program("egress-agent")
}

fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(paths::root()).arg(subcommand);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_suites_add_up() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 9 filtered out; finished",
            "test a ... ok",
            "test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; x",
        ] {
            tally.read(line);
        }
        assert_eq!(tally, Tally { passed: 7, failed: 1, ignored: 1 });
    }
}
