//! `cargo xtask test`: every tier in order of cost, and no tier is skipped in silence.

use std::process::Command;

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
    setup::ensure(&[Need::Net, Need::Envoy])?;
    object::ensure_kept()?;
    // The agent suite runs the agent's program, which building a test of another package omits.
    process::run(cargo("build").args(["--package", "egress-agent", "--bins"]))?;

    let tiers = [
        ("pure", &PURE[..], Threads::Many),
        ("eBPF crate on the host", &["egress-ebpf"], Threads::Many),
        ("object, kernel and agent", &["egress-tests"], Threads::One),
    ];
    let mut failed = Vec::new();
    for (name, packages, threads) in tiers {
        eprintln!("test: {name}");
        if let Err(error) = process::run(&mut tier(packages, threads, &arguments.filter)?) {
            eprintln!("test: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("tests failed: {}", failed.join("; "));
    }
    Ok(())
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
