//! Can this node enforce? Each check tries what the agent will do, and names its remedy.
//!
//! The agent makes the cheap ones of them at its start ([`preflight`]) and ends where one fails;
//! `doctor` makes them all ([`examine`]). Nothing is left behind by either. `docs/doctor.md` says
//! what each means.

mod kernel;
mod marks;
mod neighbours;
mod node;
mod pins;
mod rights;

use std::path::Path;

use crate::datapath::Options;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// Something is weaker than it could be.
    Warn,
    /// The node cannot enforce.
    Fail,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Check {
    /// Short name.
    pub name: &'static str,
    /// Outcome.
    pub status: CheckStatus,
    /// What was found.
    pub detail: String,
    /// What to do; empty where nothing is to be done.
    pub remedy: String,
}

/// What is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Where and how the datapath is loaded.
    pub options: &'a Options,
    /// Directory of the lock.
    pub run_dir: &'a Path,
    /// Cgroup v2 directory that holds `kubepods`, where it is named.
    pub cgroup_root: Option<&'a Path>,
    /// Bits of the packet mark that are ours.
    pub mark: u32,
}

/// What one check found.
struct Finding {
    status: CheckStatus,
    detail: String,
    remedy: String,
}

impl Finding {
    fn ok(detail: impl Into<String>) -> Self {
        Self { status: CheckStatus::Ok, detail: detail.into(), remedy: String::new() }
    }

    fn warn(detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: CheckStatus::Warn, detail: detail.into(), remedy: remedy.into() }
    }

    fn fail(detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: CheckStatus::Fail, detail: detail.into(), remedy: remedy.into() }
    }
}

/// When a check is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// At the agent's start too.
    Start,
    /// By `doctor` only: it takes long, or touches what pods use, or only ever warns.
    Asked,
}

/// A check, by its name.
type Examination = (&'static str, When, fn(&Node<'_>) -> Finding);

/// Every check, in the order in which one explains the next. Names are stable.
const CHECKS: [Examination; 27] = [
    ("kernel", When::Start, kernel::version),
    ("capabilities", When::Start, rights::capabilities),
    ("user-namespace", When::Start, rights::user_namespace),
    ("seccomp", When::Start, rights::seccomp),
    ("memlock", When::Start, rights::memlock),
    ("bpf", When::Start, rights::objects),
    ("lockdown", When::Asked, kernel::lockdown),
    ("lsm", When::Asked, kernel::security_modules),
    ("unprivileged-bpf", When::Asked, kernel::unprivileged),
    ("jit", When::Asked, kernel::jit),
    ("btf", When::Asked, kernel::btf),
    ("programs", When::Asked, rights::programs),
    ("tcx", When::Asked, rights::tcx),
    ("bpffs", When::Start, pins::bpffs),
    ("pins", When::Start, pins::shape),
    ("agent", When::Asked, pins::agent),
    ("cgroup", When::Start, node::cgroup),
    ("cgroup-links", When::Asked, node::cgroup_links),
    ("cgroup-programs", When::Asked, neighbours::at_cgroup),
    ("network", When::Asked, node::network),
    ("interface-programs", When::Asked, neighbours::at_interfaces),
    ("marks", When::Asked, marks::conflicts),
    ("capacity", When::Asked, pins::capacity),
    ("inotify", When::Start, node::inotify),
    ("clock", When::Start, node::clock),
    ("ipvs", When::Asked, node::ipvs),
    ("conntrack", When::Asked, node::conntrack),
];

/// The checks that the agent makes at its start.
pub fn preflight(node: &Node<'_>) -> Vec<Check> {
    CHECKS
        .iter()
        .filter(|(_, when, _)| *when == When::Start)
        .map(|check| make(node, check))
        .collect()
}

/// Every check.
pub fn examine(node: &Node<'_>) -> Vec<Check> {
    CHECKS.iter().map(|check| make(node, check)).collect()
}

fn make(node: &Node<'_>, (name, _, examination): &Examination) -> Check {
    let Finding { status, detail, remedy } = examination(node);
    Check { name, status, detail, remedy }
}

/// A file of the kernel's, trimmed; `None` where it cannot be read.
fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::Way;

    #[test]
    fn every_check_is_explained() {
        let page = include_str!("../../docs/doctor.md");
        for (name, _, _) in CHECKS {
            assert!(page.contains(&format!("| `{name}` |")), "docs/doctor.md has no {name}");
        }
        let explained = page.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(explained, CHECKS.len(), "docs/doctor.md explains what is no check");
    }

    #[test]
    fn names_are_unique_and_findings_that_warn_have_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            bpffs: dir.path().to_owned(),
            kernel_log: false,
            capacity: None,
            attach: Way::default(),
        };
        let node = Node { options: &options, run_dir: dir.path(), cgroup_root: None, mark: 0x3000 };
        let checks = examine(&node);
        let names: std::collections::BTreeSet<_> = checks.iter().map(|check| check.name).collect();
        assert_eq!(names.len(), checks.len());
        for check in checks {
            assert!(!check.detail.is_empty(), "{check:?}");
            assert_eq!(check.status == CheckStatus::Ok, check.remedy.is_empty(), "{check:?}");
        }
    }
}
