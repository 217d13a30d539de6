//! What `doctor` finds on nodes that lack something: each lack is a real one.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use egress_tests::agent::{Agent, binary};
use egress_tests::crowd;
use egress_tests::lab::Lab;
use egress_tests::manifests;
use egress_tests::process::{Place, Process, built, nft, wait_until};
use egress_tests::scenario::Scenario;
use nix::sys::signal::Signal;
use serde_json::Value;

/// The checks in their order: what a machine may rely on.
const NAMES: [&str; 27] = [
    "kernel",
    "capabilities",
    "user-namespace",
    "seccomp",
    "memlock",
    "bpf",
    "lockdown",
    "lsm",
    "unprivileged-bpf",
    "jit",
    "btf",
    "programs",
    "tcx",
    "bpffs",
    "pins",
    "agent",
    "cgroup",
    "cgroup-links",
    "cgroup-programs",
    "network",
    "interface-programs",
    "marks",
    "capacity",
    "inotify",
    "clock",
    "ipvs",
    "conntrack",
];

/// What `doctor` said.
#[derive(Debug)]
struct Said {
    code: i32,
    checks: BTreeMap<String, (String, String, String)>,
}

impl Said {
    fn is(&self, name: &str, status: &str, part: &str) -> Result<()> {
        let (found, detail, remedy) = self.checks.get(name).context("no such check")?;
        let says = detail.contains(part) || remedy.contains(part);
        ensure!(found == status && says, "{name}: {found}, {detail}: {remedy}");
        Ok(())
    }

    /// Every check is OK but those whose status is given.
    fn is_well_but(&self, others: &[(&str, &str, &str)]) -> Result<()> {
        for (name, status, part) in others {
            self.is(name, status, part)?;
        }
        let unwell = self.checks.iter().filter(|(name, (status, _, _))| {
            status != "OK" && others.iter().all(|(other, _, _)| other != name)
        });
        let unwell: Vec<_> = unwell.collect();
        ensure!(unwell.is_empty(), "{unwell:?}");
        let worst = self.checks.values().map(|(status, _, _)| match status.as_str() {
            "OK" => 0,
            "WARN" => 1,
            _ => 2,
        });
        ensure!(Some(self.code) == worst.max(), "exit code {}", self.code);
        Ok(())
    }
}

/// Runs `doctor` on the lab's node, behind `before`, with `more` instead of the lab's own flags.
fn doctor(lab: &Lab, before: &[&str], more: &[&str]) -> Result<Said> {
    let path = |name: &str| lab.file(name).display().to_string();
    let mut flags = vec![
        format!("--cgroup-root={}", lab.cgroups.path().display()),
        format!("--bpffs={}", path("bpffs/egress-enforcer")),
        format!("--run-dir={}", path("run")),
    ];
    flags.retain(|flag| more.iter().all(|more| more.split('=').next() != flag.split('=').next()));
    flags.extend(more.iter().map(|more| (*more).to_owned()));
    let agent = binary()?.display().to_string();
    let mut words: Vec<&str> = before.to_vec();
    words.extend([agent.as_str(), "doctor", "-o", "json"]);
    words.extend(flags.iter().map(String::as_str).filter(|flag| !flag.ends_with("=auto")));
    let place = Place { netns: Some(&lab.node), ..Place::default() };
    let output = place.command(words[0])?.args(&words[1..]).output().context("run doctor")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    let checks: Vec<Value> = serde_json::from_str(&text)
        .with_context(|| format!("doctor said {text:?}, {complaint:?}"))?;
    let of = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let names: Vec<String> = checks.iter().map(|check| of(check, "name")).collect();
    ensure!(names == NAMES, "{names:?}");
    let keys = |check: &Value| check.as_object().map(|object| object.len());
    ensure!(checks.iter().all(|check| keys(check) == Some(4)), "other keys: {text}");
    let checks = checks.iter().map(|check| {
        (of(check, "name"), (of(check, "status"), of(check, "detail"), of(check, "remedy")))
    });
    Ok(Said { code: output.status.code().unwrap_or(-1), checks: checks.collect() })
}

#[test]
fn a_node_that_lacks_nothing_is_well_and_nothing_is_left_behind() -> Result<()> {
    let lab = Lab::new()?;
    let pins = || Ok::<_, anyhow::Error>(std::fs::read_dir(lab.file("bpffs"))?.count());
    let before = pins()?;
    doctor(&lab, &[], &[])?.is_well_but(&[])?;
    ensure!(pins()? == before, "pins are left");

    // The same with the rights that the agent is given.
    let bounded = ["setpriv", "--bounding-set=-all,+bpf,+net_admin,+perfmon", "--inh-caps=-all"];
    let said = doctor(&lab, &bounded, &[])?;
    said.is_well_but(&[])?;
    said.is("tcx", "OK", "CAP_SYS_ADMIN")
}

#[test]
fn each_lack_is_told_from_the_others() -> Result<()> {
    let lab = Lab::new()?;
    let bounded = |set: &'static str| ["setpriv", set, "--inh-caps=-all"];
    for (set, missing) in [
        ("--bounding-set=-all,+net_admin,+perfmon", "CAP_BPF"),
        ("--bounding-set=-all,+bpf,+perfmon", "CAP_NET_ADMIN"),
        ("--bounding-set=-all,+bpf,+net_admin", "CAP_PERFMON"),
    ] {
        let said = doctor(&lab, &bounded(set), &[])?;
        said.is("capabilities", "FAIL", &format!("add {missing} to"))?;
        ensure!(said.code == 2);
        said.is("seccomp", "OK", "")?;
    }
    let said = doctor(&lab, &bounded("--bounding-set=-all,+net_admin,+perfmon"), &[])?;
    said.is("bpf", "FAIL", "see capabilities")?;

    // All capabilities, and still EPERM: of a filter, and of a user namespace.
    let probe = built("probe", "EGRESS_PROBE")?.display().to_string();
    let said = doctor(&lab, &[&probe, "without-bpf"], &[])?;
    said.is("capabilities", "OK", "")?;
    said.is("seccomp", "FAIL", "RuntimeDefault")?;
    said.is("bpf", "FAIL", "see seccomp")?;
    let said = doctor(&lab, &["unshare", "--user", "--map-root-user"], &[])?;
    said.is("user-namespace", "FAIL", "hostUsers")?;
    said.is("bpf", "FAIL", "see user-namespace")?;

    // This kernel does not ask for locked memory.
    doctor(&lab, &["prlimit", "--memlock=0:0"], &[])?.is_well_but(&[])?;

    let shifted = ["unshare", "--time", "--boottime=3600", "--fork"];
    doctor(&lab, &shifted, &[])?.is_well_but(&[("clock", "FAIL", "time namespace")])?;
    Ok(())
}

/// A shell's words before `doctor`: `mounts` in a mount namespace of its own.
fn mounted(mounts: &str) -> Vec<String> {
    let script = format!("{mounts}; exec \"$@\"");
    ["unshare", "--mount", "sh", "-ec", &script, "sh"].map(str::to_owned).into()
}

#[test]
fn places_that_are_missing_or_read_only_are_named() -> Result<()> {
    let lab = Lab::new()?;
    let said = doctor(&lab, &[], &["--bpffs=/run/egress-doctor-none/x"])?;
    said.is_well_but(&[("bpffs", "FAIL", "mount -t bpf")])?;

    let bpffs = lab.file("bpffs").display().to_string();
    let words = mounted(&format!("mount -o remount,bind,ro {bpffs}"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    doctor(&lab, &words, &[])?.is_well_but(&[("bpffs", "FAIL", "remount,rw")])?;

    // No cgroup v2, as on a node with v1 only; and one without pods.
    let words = mounted("mount -t tmpfs none /sys/fs/cgroup");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = doctor(&lab, &words, &["--cgroup-root=auto"])?;
    said.is("cgroup", "FAIL", "unified cgroup hierarchy")?;
    ensure!(said.code == 2);
    let said = doctor(&lab, &[], &["--cgroup-root=/sys/fs"])?;
    said.is("cgroup", "FAIL", "--cgroup-root")?;
    said.is("cgroup-links", "FAIL", "kubepods")
}

#[test]
fn an_agent_its_pins_and_its_neighbours_are_seen() -> Result<()> {
    let mut scenario = Scenario::new("enforce")?;
    let lab = &scenario.lab;
    let pid = scenario.agent.process.pid().to_string();
    let said = doctor(lab, &[], &[])?;
    said.is_well_but(&[("agent", "OK", &pid), ("pins", "OK", "8 links at the cgroup")])?;

    // Somebody else is at the head of a pod's chain, with a name only an administrator is told. An
    // agent that is awake takes the head back.
    scenario.agent.process.signal(Signal::SIGSTOP)?;
    let ahead = crowd::prepend(&lab.node, &lab.cart.interface())?;
    let said = doctor(lab, &[], &[])?;
    said.is("interface-programs", "WARN", "egress_crowd (id ")?;
    ensure!(said.code == 1);
    drop(ahead);
    scenario.agent.process.signal(Signal::SIGCONT)?;

    // Marks: a rule of nftables, one of iptables' kind of mask, one of routing; others do not matter.
    let place = Place { netns: Some(&lab.node), ..Place::default() };
    nft(
        &place,
        "table inet theirs { chain out { type filter hook output priority 0; \
         meta mark & 0x4000 == 0x4000 accept; meta mark set meta mark | 0x8000\n }\n}\n",
    )?;
    doctor(lab, &[], &[])?.is("marks", "OK", "none of 2 rules")?;
    nft(&place, "add rule inet theirs out meta mark & 0x1000 == 0x1000 accept\n")?;
    nft(&place, "add rule inet theirs out meta mark set 0x5\n")?;
    lab.node.batch("rule add fwmark 0x2000/0x2000 priority 77 lookup main\n")?;
    let said = doctor(lab, &[], &[])?;
    for part in ["theirs out tests 0x1000", "theirs out sets 0x3000", "priority 77 tests 0x2000"] {
        said.is("marks", "WARN", part)?;
    }
    manifests::config(&lab.file("other.yaml"), "uplink: {markMask: \"0\"}\n")?;
    let config = format!("--config={}", lab.file("other.yaml").display());
    doctor(lab, &[], &[&config])?.is("marks", "OK", "not marked")?;
    nft(&place, "delete table inet theirs\n")?;
    lab.node.batch("rule delete priority 77\nlink add kube-ipvs0 type bridge\n")?;
    doctor(lab, &[], &[])?.is_well_but(&[("ipvs", "WARN", "hostNetwork")])?;
    lab.node.batch("link delete kube-ipvs0\n")?;

    // A table of another size than the pins have.
    let said = doctor(lab, &[], &["--table-size=96"])?;
    said.is("pins", "FAIL", "--table-size")?;

    // Silent, then gone; a directory that is read-only does not hinder what is there.
    scenario.agent.process.signal(Signal::SIGSTOP)?;
    wait_until("the silence is long", Duration::from_secs(10), || {
        Ok(doctor(lab, &[], &[])?.is("agent", "WARN", "no sign of life").is_ok())
    })?;
    scenario.agent.process.kill();
    let bpffs = lab.file("bpffs").display().to_string();
    let words = mounted(&format!("mount -o remount,bind,ro {bpffs}"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = doctor(lab, &words, &[])?;
    said.is_well_but(&[("bpffs", "WARN", "stays in force"), ("agent", "WARN", "none runs")])?;
    // Where the file system itself is, nothing can be opened either.
    let words = mounted(&format!("mount -o remount,ro {bpffs}"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = doctor(lab, &words, &[])?;
    said.is("bpffs", "FAIL", "no agent can take it over")?;
    said.is("pins", "FAIL", "see bpffs")
}

#[test]
fn an_agent_does_not_start_where_its_clock_is_not_the_kernels() -> Result<()> {
    let lab = Lab::new()?;
    manifests::write(&lab.file("registry"), "enforce")?;
    manifests::config(&lab.file("agent.yaml"), "")?;
    let place = Place { netns: Some(&lab.node), ..Place::default() };
    let mut command: Command = place.command("unshare")?;
    command.args(["--time", "--boottime=3600", "--fork", "--kill-child"]).arg(binary()?);
    command.args(Agent::arguments(&lab)).stderr(lab.log("shifted")?);
    let mut agent = Process::start(command, "an agent in a time namespace")?;
    let status = agent.wait(Duration::from_secs(10))?;
    let log = std::fs::read_to_string(lab.file("log/shifted"))?;
    ensure!(status.code() == Some(2) && log.contains("clock: "), "{status}: {log}");
    Ok(())
}
