//! `bpf-linker`, built by cargo at the last version that works with this compiler's LLVM.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Staging, tool_program};
use crate::process::Lines;
use crate::{paths, process};

/// Later versions want a newer LLVM than the one in rustc 1.95.
pub(crate) const VERSION: &str = "0.10.3";
const NAME: &str = "bpf-linker";

/// The linker's program.
pub(crate) fn program() -> Result<PathBuf> {
    tool_program(NAME, VERSION, "bin/bpf-linker")
}

pub(super) fn ensure() -> Result<String> {
    let program = program()?;
    if program.is_file() {
        return Ok(format!("{VERSION} is here"));
    }
    eprintln!("setup: {NAME}: building {VERSION} with cargo, about a minute and a half");
    let directory = paths::tool(NAME, VERSION)?;
    let staging = Staging::beside(&directory)?;
    let mut cargo = Command::new("cargo");
    cargo
        .args(["install", NAME, "--version", VERSION, "--locked", "--root"])
        .arg(&staging.0)
        // Flags and directories meant for the caller's project are not meant for this tool.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR");
    process::run_long(NAME, &mut cargo, Lines::Shown)?;
    let said = process::output(Command::new(staging.0.join("bin").join(NAME)).arg("--version"))?;
    ensure!(said.contains(VERSION), "{NAME} says it is {}, not {VERSION}", said.trim());
    staging.finish("", &directory)?;
    Ok(format!("installed {VERSION} in {}", directory.display()))
}
