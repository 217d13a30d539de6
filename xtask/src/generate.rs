//! `cargo xtask generate`: writes the files that are made from the code.
//!
//! The tests that compare them with the code write them instead, so that there is one place that
//! knows what belongs into which file.

use std::process::Command;

use anyhow::Result;

use crate::{paths, process};

pub(crate) fn run() -> Result<()> {
    process::run(
        Command::new("cargo")
            .current_dir(paths::root())
            .args(["test", "--quiet", "--package", "egress-agent", "--lib"])
            .arg("generated")
            .env("EGRESS_GENERATE", "1"),
    )
}
