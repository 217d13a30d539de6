//! `cargo xtask tidy`: the house rules that a compiler cannot check.
//!
//! Rules are functions from the text of files to findings, so that each has a test that makes it
//! fail. They read code without its comments and strings, line by line; a rule that would need a
//! parser is not here.

mod imports;
mod order;
mod rules;
mod scrub;

use std::fmt;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{paths, process};

/// One tracked file.
pub(crate) struct File {
    /// From the root of the repository, with `/`.
    pub(crate) path: String,
    /// Its text; bytes that are not UTF-8 are replaced.
    pub(crate) text: String,
}

/// A broken rule, and what to do about it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    /// From 1; 0 for the file as a whole.
    line: usize,
    rule: &'static str,
    remedy: String,
}

impl Finding {
    fn new(file: &File, line: usize, rule: &'static str, remedy: impl Into<String>) -> Self {
        Self { path: file.path.clone(), line, rule, remedy: remedy.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, rule, remedy } = self;
        write!(f, "{path}:{}: {rule}: {remedy}", (*line).max(1))
    }
}

pub(crate) fn run() -> Result<()> {
    let files = tracked()?;
    let findings = check(&files);
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} house rules broken; each line above says what to do", findings.len());
    }
    eprintln!("tidy: {} files keep the house rules", files.len());
    Ok(())
}

fn check(files: &[File]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = files
        .iter()
        .flat_map(|file| {
            let mut found = rules::check(file);
            found.extend(imports::check(file));
            found
        })
        .collect();
    findings.extend(imports::check_core_only(files));
    findings.extend(order::check(files));
    findings.sort();
    findings
}

/// Every file that is, or is about to be, in the repository.
fn tracked() -> Result<Vec<File>> {
    let listing = process::output(Command::new("git").current_dir(paths::root()).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))
    .context("tidy reads the files that git tracks")?;
    let mut files = Vec::new();
    for path in listing.split('\0').filter(|path| !path.is_empty()) {
        match std::fs::read(paths::root().join(path)) {
            Ok(bytes) => files.push(File {
                path: path.to_owned(),
                text: String::from_utf8_lossy(&bytes).into_owned(),
            }),
            // Deleted but not yet committed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {path}")),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_place_an_editor_can_open() {
        let file = File { path: "a/b.rs".to_owned(), text: String::new() };
        let finding = Finding::new(&file, 7, "length", "split it");
        assert_eq!(finding.to_string(), "a/b.rs:7: length: split it");
        assert_eq!(Finding::new(&file, 0, "doc", "add it").to_string(), "a/b.rs:1: doc: add it");
    }

    #[test]
    fn this_repository_is_read() {
        let files = tracked().unwrap();
        assert!(files.iter().any(|file| file.path == "xtask/src/tidy.rs"));
    }
}
