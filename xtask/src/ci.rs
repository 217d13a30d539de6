//! `cargo xtask ci`: what every change must pass, cheapest first.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{object, paths, process, sources, test, tidy};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Leave out the tests, where `cargo xtask test` has just run.
    #[arg(long)]
    no_test: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut failed = Vec::new();
    let mut step = |name: &'static str, outcome: Result<()>| match outcome {
        Ok(()) => eprintln!("ci: {name}: passed"),
        Err(error) => {
            eprintln!("ci: {name}: {error:#}");
            failed.push(name);
        }
    };
    // All of them, so that one run tells everything there is to mend.
    step("fmt", cargo(&["fmt", "--all", "--check"]));
    step("tidy", tidy::run());
    step("clippy", cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]));
    step("eBPF object", reproduce());
    if !arguments.no_test {
        step("test", test::run(&test::Arguments::default()));
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    eprintln!("ci: everything passed");
    Ok(())
}

/// Builds the object from nothing and compares it with the kept one, byte for byte.
fn reproduce() -> Result<()> {
    let output = paths::target().join("bpf-clean");
    match fs::remove_dir_all(&output) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", output.display()));
        }
        _ => {}
    }
    let rebuilt = object::make(&output)?;
    let path = paths::root().join(sources::OBJECT);
    let kept = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if rebuilt != kept {
        let differs = rebuilt.iter().zip(&kept).position(|(new, old)| new != old);
        bail!(
            "the kept eBPF object ({}, {} bytes) is not what its sources make ({} bytes, first \
             difference at {}): run `cargo xtask build` with the toolchain named in {} and commit \
             the result",
            sources::OBJECT,
            kept.len(),
            rebuilt.len(),
            differs.unwrap_or(kept.len().min(rebuilt.len())),
            sources::RECORD,
        );
    }
    Ok(())
}

fn cargo(arguments: &[&str]) -> Result<()> {
    process::run(Command::new("cargo").current_dir(paths::root()).args(arguments))
}
