//! The matrix as a table: a row a finding, a column a kernel.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::Report;
use crate::process;

/// Between two of these the kept page has the last table.
const FENCE: &str = "<!-- matrix -->";

/// Markdown.
pub(super) fn of(reports: &[Report]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for finding in reports.iter().flat_map(|report| &report.findings) {
        if !names.contains(&finding.name.as_str()) {
            names.push(&finding.name);
        }
    }
    let row = |first: &str, cells: Vec<String>| format!("| {first} | {} |\n", cells.join(" | "));
    let mut table = row("", reports.iter().map(|report| report.line.clone()).collect());
    table.push_str(&row("---", reports.iter().map(|_| "---".to_owned()).collect()));
    for name in names {
        let cell = |report: &Report| {
            let found = report.findings.iter().find(|finding| finding.name == name);
            found.map_or_else(
                || "not reached".to_owned(),
                |found| match found.holds {
                    true => found.detail.clone(),
                    false => format!("NO: {}", first_line(&found.detail)),
                },
            )
        };
        table.push_str(&row(name, reports.iter().map(cell).collect()));
    }
    let taken = reports.iter().map(|report| format!("{} s", report.seconds)).collect();
    table.push_str(&row("the whole proof took", taken));
    for report in reports {
        if let Some(why) = &report.broke {
            table.push_str(&format!("\nkernel {}: the proof ended early: {why}\n", report.line));
        }
    }
    table
}

/// Writes the table into the page, with the day it was measured.
pub(super) fn keep(page: &Path, table: &str) -> Result<()> {
    let failed = || format!("cannot update {}", page.display());
    let text = fs::read_to_string(page).with_context(failed)?;
    let mut parts = text.split(FENCE);
    let (Some(before), Some(_), Some(after), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        anyhow::bail!("{} has not two lines {FENCE}", page.display());
    };
    let day = process::output(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?;
    let measured = format!(
        "{before}{FENCE}\nMeasured on {} by `cargo xtask matrix`, a debug build; the numbered kernels \
         under emulation (qemu, TCG).\n\n{table}{FENCE}{after}",
        day.trim()
    );
    fs::write(page, measured).with_context(failed)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
