//! `cargo xtask build`: a new eBPF object, kept in the repository, and the agent around it.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::{object, paths, process};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Build the agent optimised.
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    object::keep(&paths::target().join("bpf"))?;
    let mut cargo = Command::new("cargo");
    cargo.current_dir(paths::root()).args(["build", "--package", "egress-agent"]);
    if arguments.release {
        cargo.arg("--release");
    }
    process::run(&mut cargo)
}
