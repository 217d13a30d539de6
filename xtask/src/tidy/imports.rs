//! The dependency direction: who may know whom.
//!
//! `egress-common` knows `core`; `policy` is pure; `registry` alone speaks to Kubernetes,
//! `datapath` alone to the kernel, and neither knows the other; `events` sees typed events, never
//! maps; nothing depends on the tests, and `xtask` on none of our crates.

use super::scrub::{code, gated, positions};
use super::{File, Finding};

const AGENT: &str = "egress-agent/src/";
const RULE: &str = "dependency direction";

/// Kernel-facing crates, as they are written in code.
const AYA: [&str; 3] = ["aya", "aya_obj", "aya_log"];
const KUBE: [&str; 2] = ["kube", "k8s_openapi"];

pub(super) fn check(file: &File) -> Vec<Finding> {
    if file.path.ends_with("Cargo.toml") {
        return manifest(file);
    }
    let Some(inside) = file.path.strip_prefix(AGENT).filter(|path| path.ends_with(".rs")) else {
        return Vec::new();
    };
    let module = inside.split(['/', '.']).next().unwrap_or_default();
    let code = code(&file.text);
    let mut findings = Vec::new();
    let mut forbid = |crates: &[&str], why: &str| {
        for (index, line) in code.iter().enumerate() {
            if let Some(name) = crates.iter().find(|name| uses_crate(line, name)) {
                findings.push(Finding::new(file, index + 1, RULE, format!("`{name}`: {why}")));
            }
        }
    };
    if module != "datapath" {
        forbid(&AYA, "only `datapath` speaks to the kernel; give this module typed values");
    }
    if module != "registry" {
        forbid(&KUBE, "only `registry` speaks to Kubernetes; give this module typed values");
    }
    if module == "policy" {
        forbid(&["tokio"], "`policy` is pure: take values in, give values back");
    }
    let paths: &[(&str, &str)] = match module {
        "policy" => &[
            ("SystemTime::now", "`policy` has no clock: take the time as a parameter"),
            ("Instant::now", "`policy` has no clock: take the time as a parameter"),
            ("Timestamp::now", "`policy` has no clock: take the time as a parameter"),
            ("Zoned::now", "`policy` has no clock: take the time as a parameter"),
        ],
        "registry" => &[("crate::datapath", "`registry` publishes; it does not know the kernel")],
        "datapath" => &[("crate::registry", "`datapath` applies; it does not know the registry")],
        "events" => &[("crate::datapath", "`events` sees typed events, never maps")],
        _ => &[],
    };
    for (index, line) in code.iter().enumerate() {
        for (path, why) in paths.iter().filter(|(path, _)| positions(line, path).next().is_some()) {
            findings.push(Finding::new(file, index + 1, RULE, format!("`{path}`: {why}")));
        }
    }
    findings
}

/// `egress-common` is the contract with the kernel: outside tests and the agent's feature `user`
/// it imports `core` only.
pub(super) fn check_core_only(files: &[File]) -> Vec<Finding> {
    const GATES: [&str; 2] = ["cfg(test)", "cfg(feature"];
    let ours =
        |file: &&File| file.path.starts_with("egress-common/src/") && file.path.ends_with(".rs");
    // Modules that are themselves behind a gate, by the name of their file.
    let mut behind = vec!["tests.rs".to_owned()];
    for file in files.iter().filter(ours) {
        let code = code(&file.text);
        for (line, _) in code.iter().zip(gated(&code, &GATES)).filter(|(_, gated)| *gated) {
            if let Some((_, name)) = line.split_once("mod ") {
                behind.push(format!("{}.rs", name.trim_end_matches([';', ' '])));
            }
        }
    }
    let mut findings = Vec::new();
    for file in files.iter().filter(ours) {
        if behind.iter().any(|name| file.path.ends_with(&format!("/{name}"))) {
            continue;
        }
        let code = code(&file.text);
        for (index, (line, gated)) in code.iter().zip(gated(&code, &GATES)).enumerate() {
            let foreign = ["std", "alloc", "aya"].into_iter().find(|name| uses_crate(line, name));
            if let (Some(name), false) = (foreign, gated) {
                let remedy = format!("`{name}`: egress-common runs in the kernel, use `core`");
                findings.push(Finding::new(file, index + 1, RULE, remedy));
            }
        }
    }
    findings
}

/// Dependencies in a manifest that would turn the direction around.
fn manifest(file: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut table = "";
    for (index, line) in file.text.lines().enumerate() {
        if line.starts_with('[') {
            table = line.trim();
        }
        if !table.contains("dependencies") {
            continue;
        }
        let names = |prefix: &str| line.starts_with(prefix) || table.contains(prefix);
        let remedy = if file.path == "xtask/Cargo.toml" && names("egress-") {
            "xtask depends on none of our crates: it must run when they do not compile"
        } else if file.path != "tests/Cargo.toml" && names("egress-tests") {
            "nothing depends on the tests: move what is shared into a crate of the product"
        } else {
            continue;
        };
        findings.push(Finding::new(file, index + 1, RULE, remedy));
    }
    findings
}

/// Whether `line` names the crate: `name::`, `use name;`, `use name as`; a module of that name
/// behind `::` is another thing.
fn uses_crate(line: &str, name: &str) -> bool {
    positions(line, name).any(|at| {
        let (before, after) = (line[..at].trim_end(), &line[at + name.len()..]);
        let named = after.starts_with("::") || before.ends_with("use");
        named && (!before.ends_with("::") || is_global(before))
    })
}

/// `::name` with nothing before it means the crate.
fn is_global(before: &str) -> bool {
    let path = before.strip_suffix("::").unwrap_or(before);
    !path.ends_with(|c: char| c.is_alphanumeric() || "_>".contains(c))
}

#[cfg(test)]
#[path = "imports_tests.rs"]
mod tests;
