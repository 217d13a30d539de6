//! `cargo xtask test`: every tier in order of cost, and no tier is skipped in silence.

mod suites;

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::setup::{self, Need};
use crate::{matrix, object, paths, process};

#[derive(Args, Default)]
pub(crate) struct Arguments {
    /// Run only tests whose name contains one of these.
    filter: Vec<String>,
}

/// Packages whose tests need nothing but a compiler.
const PURE: [&str; 3] = ["egress-common", "egress-agent", "xtask"];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    paths::require_root("test")?;
    setup::ensure(&[Need::Net, Need::Envoy, Need::ControlPlane, Need::Istiod, Need::Prometheus])?;
    object::ensure_kept()?;
    // The agent suite runs the agent's program, which building a test of another package omits.
    process::run(cargo("build").args(["--package", "egress-agent", "--bins"]))?;

    let tiers = [("pure", &PURE[..]), ("eBPF crate on the host", &["egress-ebpf"])];
    let start = Instant::now();
    let mut total = Tally::default();
    let mut failed = Vec::new();
    let mut ended = |name: &'static str, outcome: Result<()>| {
        if let Err(error) = outcome {
            eprintln!("test: {error:#}");
            failed.push(name);
        }
    };
    for (name, packages) in tiers {
        eprintln!("test: {name}");
        let mut command = tier(packages, &arguments.filter)?;
        // What libtest prints is passed on as it is, and counted on the way.
        ended(name, process::run_read(&mut command, |line| total.read(line)));
    }
    let name = "object, kernel and agent";
    eprintln!("test: {name}");
    ended(name, kernel(&arguments.filter, &mut total));
    if arguments.filter.is_empty() || arguments.filter.iter().any(|word| word == "matrix") {
        eprintln!("test: the oldest and the newest kernel");
        match matrix::subset() {
            Ok(kernels) => total.passed += kernels,
            Err(error) => ended("kernels", Err(error)),
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

fn tier(packages: &[&str], filter: &[String]) -> Result<Command> {
    let mut command = cargo("test");
    command.arg("--no-fail-fast");
    for package in packages {
        command.args(["--package", package]);
    }
    environment(&mut command)?;
    command.arg("--").args(filter);
    Ok(command)
}

/// The suites that need root.
fn kernel(filter: &[String], total: &mut Tally) -> Result<()> {
    let package = "egress-tests";
    let suites = suites::build(package, cargo("test"))?;
    let mut template = Command::new("true");
    environment(&mut template)?;
    let directory = suites::directory(package);
    let prepare = |program: &Path| {
        let mut command = Command::new(program);
        command.current_dir(&directory).envs(known(&template)).args(filter);
        // Suites share one kernel: cgroup hooks of two tests of a process would judge each other.
        command.arg("--test-threads=1");
        command
    };
    suites::run(suites, prepare, total, &mut std::io::stdout())
}

/// What [`environment`] has set.
fn known(command: &Command) -> impl Iterator<Item = (&OsStr, &OsStr)> {
    command.get_envs().filter_map(|(name, value)| Some((name, value?)))
}

/// Where a suite finds what it runs.
fn environment(command: &mut Command) -> Result<()> {
    command.env("EGRESS_ENVOY", setup::envoy()?).env("EGRESS_AGENT", agent());
    command
        .env("EGRESS_CONTROL_PLANE", setup::control_plane()?)
        .env("EGRESS_ISTIOD", setup::istiod()?);
    command
        .env("EGRESS_PROMETHEUS", setup::prometheus()?)
        .env("EGRESS_PROMTOOL", setup::promtool()?);
    command.env("EGRESS_EBPF_OBJECT_PATH", paths::root().join(crate::sources::OBJECT));
    Ok(())
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
