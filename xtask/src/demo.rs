//! `cargo xtask demo`: builds what the demo runs, then becomes the demo.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::process::Lines;
use crate::setup::{self, Need};
use crate::{object, paths, process, test};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Print one JSON object per stage instead of the report for people.
    #[arg(long)]
    json: bool,
    /// Keep namespaces, Envoys and agent running until Ctrl-C, to look around.
    #[arg(long)]
    stay: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    paths::require_root("demo")?;
    setup::ensure(&[Need::Net, Need::Envoy])?;
    object::ensure_kept()?;
    eprintln!("demo: building the agent and the demo; the first time takes some minutes");
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(paths::root())
        .args(["build", "--quiet", "--package", "egress-agent", "--package", "egress-tests"])
        .args(["--bin", "egress-agent", "--bin", "demo"]);
    process::run_long("building", &mut cargo, Lines::Kept)?;

    let program = paths::debug_program("demo");
    let mut demo = Command::new(&program);
    demo.env("EGRESS_ENVOY", setup::envoy()?).env("EGRESS_AGENT", test::agent());
    for (wanted, flag) in [(arguments.json, "--json"), (arguments.stay, "--stay")] {
        if wanted {
            demo.arg(flag);
        }
    }
    // Replacing this process gives the demo our terminal, our signals and our exit code.
    Err(demo.exec()).with_context(|| format!("cannot start {}", program.display()))
}
