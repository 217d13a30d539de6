//! The suites that need root, side by side.
//!
//! Such a suite waits far more than it computes. Each lab has namespaces, cgroups and a bpffs of
//! its own, named after its process, so that labs of two processes do not meet; within one process
//! they would: tests of one suite stay in order.

use std::collections::{BTreeSet, VecDeque};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::Tally;
use crate::{paths, process};

/// How many suites run at a time.
const LANES: usize = 4;
/// Suites that run with no other beside them: what they look at belongs to the whole kernel, or
/// they measure time that others would take from them.
const ALONE: [&str; 1] = ["alerts"];
/// Started first, because nothing shortens a long suite that starts last.
const LONG: [&str; 9] = [
    "adversary",
    "kube_registry",
    "kube_crd",
    "kube_report",
    "kube_scale",
    "kube_outage",
    "redirect",
    "alerts",
    "alert_traffic",
];
/// Between two lines that say what is at work.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// One test program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Suite {
    name: String,
    program: PathBuf,
}

/// Builds the suites of `package` and names them.
///
/// # Errors
/// When they do not compile, or cargo's messages are not what they were.
pub(super) fn build(package: &str, mut cargo: Command) -> Result<Vec<Suite>> {
    cargo.args(["--no-run", "--message-format=json-render-diagnostics", "--package", package]);
    let messages = process::output_shown(&mut cargo)?;
    let suites = messages.lines().filter_map(|line| suite(line).transpose());
    let suites = suites.collect::<Result<Vec<_>>>()?;
    if suites.is_empty() {
        bail!("{package} has no suites: cargo named no test program");
    }
    Ok(suites)
}

/// The suite that one of cargo's messages is about, if any.
fn suite(line: &str) -> Result<Option<Suite>> {
    let message: Value = serde_json::from_str(line).context("read a message of cargo")?;
    let is_test = message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
    let (Some(name), Some(program)) =
        (message["target"]["name"].as_str(), message["executable"].as_str())
    else {
        return Ok(None);
    };
    Ok(is_test.then(|| Suite { name: name.to_owned(), program: program.into() }))
}

/// Runs all of them, each with the environment that `prepare` gives it. Prints what a suite said
/// in one piece when it has ended, and adds its results to `total`.
///
/// # Errors
/// Names every suite that failed.
pub(super) fn run(
    suites: Vec<Suite>,
    prepare: impl Fn(&Path) -> Command + Sync,
    total: &mut Tally,
    out: &mut (impl Write + Send),
) -> Result<()> {
    let (alone, mut beside): (Vec<_>, Vec<_>) =
        suites.into_iter().partition(|suite| ALONE.contains(&suite.name.as_str()));
    let rank = |suite: &Suite| LONG.iter().position(|name| *name == suite.name);
    beside.sort_by_key(|suite| rank(suite).unwrap_or(LONG.len()));
    let floor = Floor {
        told: Mutex::new((total, out)),
        failed: Mutex::default(),
        at_work: Mutex::default(),
    };
    floor.work(beside, LANES, &prepare);
    floor.work(alone, 1, &prepare);
    let failed = floor.failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}

/// What the lanes share.
struct Floor<'a, W> {
    told: Mutex<(&'a mut Tally, &'a mut W)>,
    failed: Mutex<Vec<String>>,
    at_work: Mutex<BTreeSet<String>>,
}

impl<W: Write + Send> Floor<'_, W> {
    fn work(&self, suites: Vec<Suite>, lanes: usize, prepare: &(impl Fn(&Path) -> Command + Sync)) {
        let queue = Mutex::new(VecDeque::from(suites));
        std::thread::scope(|scope| {
            for _ in 0..lanes {
                scope.spawn(|| {
                    while let Some(suite) = { held(&queue).pop_front() } {
                        self.one(&suite, prepare(&suite.program));
                    }
                });
            }
        });
    }

    fn one(&self, suite: &Suite, mut command: Command) {
        let (start, mut beat) = (Instant::now(), Instant::now());
        held(&self.at_work).insert(suite.name.clone());
        let mut said = Vec::new();
        let outcome = process::read_lines(&mut command, |line| {
            said.push(line.to_owned());
            if beat.elapsed() > HEARTBEAT {
                beat = Instant::now();
                eprintln!("test: at work on {}", names(&held(&self.at_work)));
            }
            Ok(())
        });
        held(&self.at_work).remove(&suite.name);
        // One suite's lines in one piece: nobody else prints meanwhile.
        let mut told = held(&self.told);
        let (total, out) = &mut *told;
        let seconds = start.elapsed().as_secs_f64();
        let mut text = format!("     Running {} ({seconds:.1} s)\n", suite.name);
        for line in said {
            total.read(&line);
            text.push_str(&line);
            text.push('\n');
        }
        let written = out.write_all(text.as_bytes());
        for error in outcome.err().into_iter().chain(written.err().map(Into::into)) {
            eprintln!("test: {}: {error:#}", suite.name);
            held(&self.failed).push(suite.name.clone());
        }
    }
}

fn names(suites: &BTreeSet<String>) -> String {
    suites.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// What another lane panicked over is still what it was.
fn held<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where cargo runs the tests of a package.
pub(super) fn directory(package: &str) -> PathBuf {
    paths::root().join(package.trim_start_matches("egress-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_programs_are_suites() {
        let message = |reason: &str, test: bool| {
            format!(
                r#"{{"reason":"{reason}","target":{{"name":"enforce"}},"profile":{{"test":{test}}},
                "executable":"/t/enforce-1"}}"#
            )
        };
        let found = suite(&message("compiler-artifact", true)).unwrap();
        assert_eq!(found, Some(Suite { name: "enforce".into(), program: "/t/enforce-1".into() }));
        assert_eq!(suite(&message("compiler-artifact", false)).unwrap(), None);
        assert_eq!(suite(r#"{"reason":"build-finished","success":true}"#).unwrap(), None);
        assert!(suite("Compiling").is_err());
    }

    #[test]
    fn lanes_run_every_suite_once_and_name_those_that_fail() {
        let suites = ["one", "two", "three", "four"];
        let suites = suites.map(|name| Suite { name: name.to_owned(), program: name.into() });
        let shell = |program: &Path| {
            let result = "test result: ok. 1 passed; 0 failed; 0 ignored";
            let exit = i32::from(program == Path::new("two"));
            let mut command = Command::new("sh");
            command.args(["-c", &format!("echo '{result}'; exit {exit}")]);
            command
        };
        let (mut total, mut out) = (Tally::default(), Vec::new());
        let error = run(suites.to_vec(), shell, &mut total, &mut out).unwrap_err().to_string();
        assert_eq!(error, "two");
        assert_eq!(total, Tally { passed: 4, failed: 0, ignored: 0 });
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out.matches("Running four").count(), 1, "{out}");
    }
}
