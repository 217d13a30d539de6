//! Rules about one file at a time.

use super::scrub::{code, has_word, positions};
use super::{File, Finding};

/// Product files are read top to bottom by people.
const MAX_LINES: usize = 450;
const PRODUCT: [&str; 4] = ["egress-common/", "egress-ebpf/", "egress-agent/", "xtask/"];
/// The agent's raw system calls, and its only unsafe code.
const UNSAFE_ALLOWED: [&str; 2] =
    ["egress-agent/src/datapath/sys.rs", "egress-agent/src/datapath/sys/probe.rs"];

pub(super) fn check(file: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    machine_paths(file, &mut findings);
    unfinished(file, &mut findings);
    if !file.path.ends_with(".rs") {
        return findings;
    }
    let code = code(&file.text);
    if is_product(&file.path) {
        length(file, &mut findings);
        module_doc(file, &mut findings);
    }
    unfinished_code(file, &code, &mut findings);
    ignored_tests(file, &mut findings);
    if file.path.starts_with("egress-agent/") && !UNSAFE_ALLOWED.contains(&file.path.as_str()) {
        each(file, &code, &mut findings, |line| {
            let [home, _] = UNSAFE_ALLOWED;
            has_word(line, "unsafe")
                .then(|| ("unsafe", format!("move it to {home}, behind a safe function")))
        });
    }
    if file.path == "egress-ebpf/src/main.rs" {
        each(file, &code, &mut findings, |line| {
            positions(line, "_").any(|at| line[at + 1..].trim_start().starts_with("=>")).then(
                || {
                    (
                        "packet fate",
                        "name every case: each outcome has a fate of its own".to_owned(),
                    )
                },
            )
        });
    }
    findings
}

/// A source file of the product, not one of its tests.
fn is_product(path: &str) -> bool {
    PRODUCT.iter().any(|part| path.starts_with(part))
        && path.ends_with(".rs")
        && !path.ends_with("tests.rs")
        && !path.contains("/tests/")
}

fn each(
    file: &File,
    code: &[String],
    findings: &mut Vec<Finding>,
    rule: impl Fn(&str) -> Option<(&'static str, String)>,
) {
    findings.extend(code.iter().enumerate().filter_map(|(index, line)| {
        rule(line).map(|(rule, remedy)| Finding::new(file, index + 1, rule, remedy))
    }));
}

fn length(file: &File, findings: &mut Vec<Finding>) {
    let lines = file.text.lines().count();
    if lines > MAX_LINES {
        let remedy = format!("{lines} lines, at most {MAX_LINES}: split it by concern");
        findings.push(Finding::new(file, lines, "length", remedy));
    }
}

fn module_doc(file: &File, findings: &mut Vec<Finding>) {
    if !file.text.starts_with("//!") {
        let remedy = "begin with `//!`: what this file is, why it exists, what always holds";
        findings.push(Finding::new(file, 1, "module doc", remedy));
    }
}

/// Words that promise work instead of doing it. Written in two halves: this file has none.
fn unfinished(file: &File, findings: &mut Vec<Finding>) {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let text = [".rs", ".toml", ".md", ".yaml", ".yml", ".json", ".sh", "/run"];
    if !text.iter().any(|ending| file.path.ends_with(ending)) {
        return;
    }
    for (index, line) in file.text.lines().enumerate() {
        for word in words.iter().filter(|word| has_word(line, word)) {
            let remedy = format!("{word}: do it now, or open an issue and drop the note");
            findings.push(Finding::new(file, index + 1, "unfinished", remedy));
        }
    }
}

fn unfinished_code(file: &File, code: &[String], findings: &mut Vec<Finding>) {
    for name in ["todo", "unimplemented", "dbg"] {
        each(file, code, findings, |line| {
            positions(line, name).any(|at| line[at + name.len()..].starts_with('!')).then(|| {
                (
                    "unfinished",
                    format!("`{name}!` is for the time of writing: finish and remove it"),
                )
            })
        });
    }
}

fn ignored_tests(file: &File, findings: &mut Vec<Finding>) {
    let remedy = "say why and who runs it: #[ignore = \"reason\"]";
    for (index, line) in file.text.lines().enumerate() {
        let Some(rest) = line.trim_start().strip_prefix("#[ignore") else { continue };
        if !rest.trim_start().starts_with('=') {
            findings.push(Finding::new(file, index + 1, "ignored test", remedy));
        }
    }
}

/// Absolute paths of somebody's machine, in any file, built objects included.
fn machine_paths(file: &File, findings: &mut Vec<Finding>) {
    let homes = [concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/ho", "me/")];
    for (index, line) in file.text.lines().enumerate() {
        for home in homes {
            let starts = line.match_indices(home).any(|(position, _)| {
                let before = line[..position].chars().next_back();
                // Part of a longer path is something else; so is a pattern with a placeholder.
                before.is_none_or(|c| !(c.is_alphanumeric() || "_-./*}~".contains(c)))
            });
            if starts {
                let remedy = format!("`{home}` is a path of one machine: make it relative");
                findings.push(Finding::new(file, index + 1, "machine path", remedy));
            }
        }
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
