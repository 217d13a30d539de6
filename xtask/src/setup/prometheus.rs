//! Prometheus and promtool, as Debian has them: unpacked, not installed, so that no service starts.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Staging, apt, tool_program};
use crate::process::Lines;
use crate::{paths, process};

const NAME: &str = "prometheus";
/// Whatever version the machine's Debian has: what is tested with it works with any of this decade.
const VERSION: &str = "debian";

/// Prometheus' own program.
pub(crate) fn server() -> Result<PathBuf> {
    tool_program(NAME, VERSION, "usr/bin/prometheus")
}

/// Checks and tests rules.
pub(crate) fn promtool() -> Result<PathBuf> {
    tool_program(NAME, VERSION, "usr/bin/promtool")
}

pub(super) fn ensure() -> Result<String> {
    if server()?.is_file() && promtool()?.is_file() {
        return Ok("is here".to_owned());
    }
    let directory = paths::tool(NAME, VERSION)?;
    let staging = Staging::beside(&directory)?;
    let package = apt::download(NAME, &staging.0)?;
    process::run_long(
        "unpacking",
        Command::new("dpkg").arg("-x").arg(&package).arg(staging.0.join("unpacked")),
        Lines::Kept,
    )?;
    // A program that lacks a library says so here and not in the middle of a test.
    let promtool = staging.0.join("unpacked/usr/bin/promtool");
    let said = process::output(Command::new(promtool).arg("--version"))?;
    let version = said.split_whitespace().nth(2).context("promtool says no version")?.to_owned();
    staging.finish("unpacked", &directory)?;
    Ok(format!("unpacked {version} in {}", directory.display()))
}
