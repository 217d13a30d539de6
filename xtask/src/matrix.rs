//! `cargo xtask matrix`: the object and the agent on every kernel they are made for.
//!
//! Each of Debian's kernels is booted under an emulator (TCG: no machine here has a KVM that runs
//! stock kernels) with one static program as its process 1, which builds the lab of the tests, runs
//! the real agent in it and says one line a finding. The running kernel is asked the same without
//! an emulator.

mod initramfs;
mod table;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::setup::{self, KERNELS, Kernel, Need};
use crate::{object, paths, process};
use initramfs::Initramfs;

/// The kernel that runs this.
const RUNNING: &str = "running";
/// What the default test run asks: the oldest and the newest.
const SUBSET: [&str; 2] = ["5.10", "7.3"];
/// What every line of a finding begins with (`egress_tests::guest::finding`).
const MARK: &str = "egress-matrix ";
/// Longest that one kernel may take, on a machine that others use too.
const PATIENCE: &str = "900s";
/// Times the patience of the lab's own waits: the emulator is that much slower.
const SLOWNESS: &str = "10";
/// Modules that a cloud kernel leaves out, and what is in one kernel and not in another.
const MODULES: [&str; 3] = ["veth", "sch_ingress", "cls_bpf"];
/// Programs of this machine that the lab calls.
const TOOLS: [&str; 2] = ["ip", "setpriv"];

#[derive(Args, Default)]
pub(crate) struct Arguments {
    /// Only these: 5.10, 6.1, 6.12, 7.3, running. All of them, and docs/kernels.md, where absent.
    kernels: Vec<String>,
}

/// What one kernel said.
struct Report {
    line: String,
    findings: Vec<Finding>,
    /// Why the proof ended early, or nothing.
    broke: Option<String>,
    seconds: u64,
}

struct Finding {
    name: String,
    holds: bool,
    detail: String,
}

/// What a kernel may lack without an agent that enforces less: then something else does it.
const OPTIONAL: [&str; 1] = ["netkit"];

impl Report {
    fn is_well(&self) -> bool {
        let holds = |finding: &Finding| finding.holds || OPTIONAL.contains(&finding.name.as_str());
        self.broke.is_none() && !self.findings.is_empty() && self.findings.iter().all(holds)
    }

    /// Reads one line of the console.
    fn read(&mut self, line: &str) {
        let Some((_, said)) = line.split_once(MARK) else { return };
        let Ok(said) = serde_json::from_str::<Value>(said) else {
            self.broke = Some(format!("a line that is no finding: {said}"));
            return;
        };
        let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
        if said["broke"].is_string() {
            self.broke = Some(text("broke"));
        } else {
            let holds = said["holds"] == true;
            self.findings.push(Finding { name: text("name"), holds, detail: text("detail") });
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let known: Vec<&str> = KERNELS.iter().map(|kernel| kernel.line).chain([RUNNING]).collect();
    let wanted: Vec<&str> = match arguments.kernels.as_slice() {
        [] => known.clone(),
        some => some.iter().map(String::as_str).collect(),
    };
    if let Some(other) = wanted.iter().find(|line| !known.contains(line)) {
        bail!("no kernel `{other}`: there are {}", known.join(", "));
    }
    let reports = prove(&wanted)?;
    let table = table::of(&reports);
    show(&table)?;
    let well = reports.iter().all(Report::is_well);
    if well && arguments.kernels.is_empty() {
        table::keep(&paths::root().join("docs/kernels.md"), &table)?;
    }
    ensure!(well, "the agent does not hold on every kernel: see above");
    Ok(())
}

/// The part of it that belongs to every test run; how many kernels it holds on.
pub(crate) fn subset() -> Result<u64> {
    let reports = prove(&SUBSET)?;
    show(&table::of(&reports))?;
    ensure!(reports.iter().all(Report::is_well), "the agent does not hold on every kernel");
    Ok(reports.len() as u64)
}

fn show(table: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{table}").context("cannot write standard output")
}

fn prove(lines: &[&str]) -> Result<Vec<Report>> {
    paths::require_root("matrix")?;
    setup::ensure(&[Need::Net, Need::Kernels])?;
    object::ensure_kept()?;
    let programs = Programs::build()?;
    // Two at a time: the emulator has a core for each of a kernel's, and a kernel waits a lot.
    let mut reports = Vec::new();
    for pair in lines.chunks(2) {
        let outcomes = std::thread::scope(|scope| {
            let programs = &programs;
            let started: Vec<_> =
                pair.iter().map(|line| scope.spawn(move || programs.prove(line))).collect();
            let ended = started
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| bail!("a proof ended in a panic")));
            ended.collect::<Result<Vec<_>>>()
        })?;
        reports.extend(outcomes);
    }
    Ok(reports)
}

/// Static programs, so that a kernel needs nothing else.
struct Programs {
    directory: PathBuf,
}

/// Each with its package: process 1, the agent itself, and what sends and serves in pods.
const PROGRAMS: [(&str, &str); 3] =
    [("guest", "egress-tests"), ("egress-agent", "egress-agent"), ("probe", "egress-tests")];

impl Programs {
    /// Links what is compiled already once more, statically: only the last step differs.
    fn build() -> Result<Self> {
        let directory = paths::target().join("matrix");
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        for (program, package) in PROGRAMS {
            let mut cargo = Command::new("cargo");
            cargo.current_dir(paths::root());
            cargo.args(["rustc", "--quiet", "--package", package, "--bin", program, "--"]);
            cargo.args(["-C", "target-feature=+crt-static", "-C", "strip=symbols"]);
            process::run(&mut cargo)?;
            let copy = directory.join(program);
            // A copy that runs somewhere cannot be written.
            let _ = fs::remove_file(&copy);
            fs::copy(paths::debug_program(program), &copy)
                .with_context(|| format!("cannot copy {program} to {}", copy.display()))?;
        }
        Ok(Self { directory })
    }

    fn path(&self, program: &str) -> PathBuf {
        self.directory.join(program)
    }

    fn prove(&self, line: &str) -> Result<Report> {
        let kernel = KERNELS.into_iter().find(|kernel| kernel.line == line);
        let command = match kernel {
            Some(kernel) => self.machine(kernel)?,
            None => self.here(),
        };
        eprintln!("matrix: kernel {line} starts");
        let start = Instant::now();
        let mut report =
            Report { line: line.to_owned(), findings: Vec::new(), broke: None, seconds: 0 };
        let mut console = Vec::new();
        let ended = process::read_lines(&mut bounded(&command), |line| {
            report.read(line);
            console.push(line.to_owned());
            Ok(())
        });
        report.seconds = start.elapsed().as_secs();
        if let Err(error) = ended
            && report.broke.is_none()
        {
            report.broke = Some(format!("{error:#}"));
        }
        if report.findings.last().is_none_or(|last| last.name != LAST) && report.broke.is_none() {
            report.broke = Some("the kernel stopped in the middle".to_owned());
        }
        let log = self.directory.join(format!("{line}.log"));
        fs::write(&log, console.join("\n"))
            .with_context(|| format!("cannot write {}", log.display()))?;
        let well = if report.is_well() { "holds" } else { "DOES NOT HOLD" };
        eprintln!("matrix: kernel {line} {well} ({} s; {})", report.seconds, log.display());
        Ok(report)
    }

    /// The guest on the running kernel.
    fn here(&self) -> Command {
        let mut command = Command::new(self.path("guest"));
        for (program, variable) in [("egress-agent", "EGRESS_AGENT"), ("probe", "EGRESS_PROBE")] {
            command.env(variable, self.path(program));
        }
        command
    }

    /// The guest as process 1 of another.
    fn machine(&self, kernel: Kernel) -> Result<Command> {
        let archive = self.directory.join(format!("{}.cpio", kernel.line));
        let mut initramfs = Initramfs::default();
        for (program, _) in PROGRAMS {
            let path = if program == "guest" { "init" } else { &format!("bin/{program}") };
            initramfs.file(path, &read(&self.path(program))?);
        }
        for tool in TOOLS {
            let missing = || format!("{tool} is not installed");
            initramfs.program(&paths::find_program(tool).with_context(missing)?)?;
        }
        initramfs.modules(&kernel.modules()?, &MODULES)?;
        initramfs.write(&archive)?;
        let mut qemu = setup::qemu()?;
        qemu.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "Haswell-noTSX"]);
        qemu.args(["-smp", "2", "-m", "768", "-nodefaults", "-no-reboot"]);
        qemu.args(["-display", "none", "-serial", "stdio", "-kernel"]).arg(kernel.image()?);
        qemu.arg("-initrd").arg(&archive).arg("-append").arg(format!(
            "console=ttyS0 quiet panic=-1 no_timer_check PATH=/bin EGRESS_AGENT=/bin/egress-agent \
             EGRESS_PROBE=/bin/probe EGRESS_PATIENCE={SLOWNESS}"
        ));
        Ok(qemu)
    }
}

/// The finding that a complete proof ends with.
const LAST: &str = "uninstall";

/// The same command, ended when it takes too long.
fn bounded(command: &Command) -> Command {
    let mut bounded = Command::new("timeout");
    bounded.args(["--kill-after=5s", PATIENCE]).arg(command.get_program()).args(command.get_args());
    let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    bounded.envs(set);
    bounded
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str]) -> Report {
        let mut report =
            Report { line: "x".to_owned(), findings: Vec::new(), broke: None, seconds: 1 };
        lines.iter().for_each(|line| report.read(line));
        report
    }

    const HOLDS: &str = r#"egress-matrix {"name":"uninstall","holds":true,"detail":"d"}"#;

    #[test]
    fn kernel_messages_between_findings_are_no_findings() {
        let report = report(&["[    1.0] Run /init as init process", HOLDS, ""]);
        assert!(report.is_well() && report.findings.len() == 1);
    }

    #[test]
    fn what_may_be_missing_is_told_apart_from_what_may_not() {
        let missing = |name: &str| {
            let line = format!(r#"egress-matrix {{"name":"{name}","holds":false,"detail":"no"}}"#);
            report(&[HOLDS, &line]).is_well()
        };
        assert!(missing("netkit"));
        assert!(!missing("programs load"));
        assert!(
            !report(&[]).is_well() && !report(&[HOLDS, r#"egress-matrix {"broke":"x"}"#]).is_well()
        );
    }
}
