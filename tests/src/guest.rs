//! The agent proved on the kernel that runs this, for the kernel matrix: the lab, the real agent,
//! frames counted outside, a kill and a replacement in a flood.
//!
//! What a kernel has or lacks is a [`finding`]; a proof that cannot go on ends with an error, which
//! is one too.

pub mod finding;
pub mod machine;

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::address::{STRIPE, pod};
use crate::agent::{self, Agent, binary};
use crate::flood::{Crew, PORT};
use crate::lab::{GATEWAY, Lab};
use crate::netns::ip;
use crate::process::{Place, Process, ending, wait_until};
use crate::scenario::{Scenario, to};
use finding::tell;

/// The capabilities that the documentation promises to be enough.
const PROMISED: &str = "-all,+bpf,+net_admin,+perfmon";
/// What kernels before 5.11 ask for beside them: memory of maps counts against a limit there.
const BEFORE_5_11: &str = "-all,+bpf,+net_admin,+perfmon,+sys_resource";
/// Where the gateway of the lab listens.
const GATEWAY_PORT: u16 = 8443;

/// Everything, one finding after the other.
///
/// # Errors
/// When the lab or the agent does not come up, or the judge sees nothing.
pub fn prove() -> Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("osrelease")?;
    tell("kernel", &Ok(release.trim().to_owned()));
    tell("netkit", &netkit());
    let lab = Lab::new()?;
    let start = Instant::now();
    let mut scenario = Scenario::on(lab, "enforce", &[])?;
    tell("programs load", &Ok(format!("ready after {:.1} s", start.elapsed().as_secs_f32())));
    hooks(&scenario.lab)?;
    let _gateway = scenario.server(&scenario.lab.gateway.place(), "tcp", GATEWAY_PORT)?;
    for (family, index) in [("IPv4", 0), ("IPv6", 1)] {
        tell(&format!("{family} to the gateway"), &allowed(&scenario, index));
        tell(&format!("{family} past it, by a socket"), &denied(&scenario, index, Way::Socket));
        tell(&format!("{family} past it, by hand"), &denied(&scenario, index, Way::Packet));
    }
    let events = wait_until("an event is told", Duration::from_secs(5), || {
        Ok(std::fs::metadata(scenario.lab.file("events")).is_ok_and(|file| file.len() > 0))
    });
    tell("event ring", &events.map(|_| "read".to_owned()));

    scenario.agent.process.kill();
    tell("IPv4 past it, agent killed", &denied(&scenario, 0, Way::Packet));
    tell("IPv6 past it, agent killed", &denied(&scenario, 1, Way::Packet));
    let (replaced, successor) = replaced(&scenario);
    tell("replaced in a flood", &replaced);
    drop(successor);
    tell("uninstall", &uninstalled(&mut scenario));
    Ok(())
}

/// Which hooks the kernel took, and how those of interfaces are attached.
fn hooks(lab: &Lab) -> Result<()> {
    let status = agent::status(lab)?;
    let hooks = status["hooks"].as_array().context("status has no hooks")?;
    let all = |names: &[&str]| -> Result<String> {
        let of = |hook: &&Value| names.iter().any(|name| hook["hook"] == *name);
        let found: Vec<&Value> = hooks.iter().filter(of).collect();
        ensure!(found.len() >= names.len(), "only {} places", found.len());
        match found.iter().find(|hook| hook["attached"] != true) {
            Some(loose) => bail!("{}: {}", loose["hook"], loose["detail"]),
            None => Ok(format!("{} places", found.len())),
        }
    };
    let cgroup = ["wall", "wall_ingress", "connect4", "connect6", "sendmsg4", "sendmsg6"];
    tell("cgroup links", &all(&cgroup));
    tell("getpeername", &all(&["getpeername4", "getpeername6"]));
    let by = |places: String| {
        let pins = std::fs::read_dir(lab.file("bpffs/egress-enforcer/links/tcx"));
        let tcx = pins.is_ok_and(|mut pins| pins.next().is_some());
        format!("{}, {places}", if tcx { "tcx" } else { "clsact" })
    };
    tell("interfaces", &all(&["pod_egress", "pod_ingress", "uplink_egress"]).map(by));
    Ok(())
}

/// A pair of this kind, made and removed.
fn netkit() -> Result<String> {
    ip(&["link", "add", "egress-nk", "type", "netkit"])?;
    ip(&["link", "delete", "egress-nk"])?;
    Ok("made".to_owned())
}

fn allowed(scenario: &Scenario, family: usize) -> Result<String> {
    let [v4, v6] = pod(GATEWAY.host).both();
    let address = to(if family == 0 { v4 } else { v6 }, GATEWAY_PORT);
    let outcome = scenario.lab.attempt(&scenario.lab.cart.place(), &["tcp", &address])?;
    ensure!(outcome.ok, "{outcome:?}");
    Ok("answered".to_owned())
}

/// How a pod sends.
#[derive(Clone, Copy)]
enum Way {
    /// The socket hooks and the wall see it.
    Socket,
    /// Only the boundary does.
    Packet,
}

fn denied(scenario: &Scenario, family: usize, way: Way) -> Result<String> {
    let lab = &scenario.lab;
    let [v4, v6] = STRIPE.both();
    let address: SocketAddr = (if family == 0 { v4 } else { v6 }, PORT).into();
    let arguments = match way {
        Way::Socket => vec!["tcp".to_owned(), address.to_string()],
        Way::Packet => lab.by_hand("packet", &lab.cart, address),
    };
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (outcome, escaped) = scenario.judged(&lab.cart.place(), &arguments)?;
    ensure!(escaped == 0, "{escaped} frames outside");
    match way {
        Way::Socket => ensure!(outcome.refused(), "{outcome:?}"),
        // A packet socket is told nothing: that its frame was sent and did not arrive is the proof.
        Way::Packet => ensure!(outcome.ok, "{outcome:?}"),
    }
    Ok("0 frames outside".to_owned())
}

/// A new agent, with no more rights than documented, takes over from the killed one while a pod
/// floods by every way.
fn replaced(scenario: &Scenario) -> (Result<String>, Option<Process>) {
    let lab = &scenario.lab;
    let work = || {
        let mark = lab.sniffer.mark();
        let flood = Crew::flood(lab, &[&lab.cart])?;
        let started = successor(lab);
        let attempts = flood.end()?;
        lab.settle();
        let arrivals = lab.sniffer.escapes(mark)?.len();
        ensure!(arrivals == 0, "{arrivals} of {attempts} attempts arrived");
        Ok((format!("{attempts} attempts, 0 arrivals"), started?))
    };
    match work() {
        Ok((said, process)) => (Ok(said), Some(process)),
        Err(error) => (Err(error), None),
    }
}

fn successor(lab: &Lab) -> Result<Process> {
    let place = Place { netns: Some(&lab.node), ..Place::default() };
    let start = |set: &str| {
        let mut command = place.command("setpriv")?;
        command.arg(format!("--bounding-set={set}")).arg("--inh-caps=-all").arg(binary()?);
        command.args(Agent::arguments(lab)).stdout(Stdio::null()).stderr(lab.log("successor")?);
        let mut process = Process::start(command, "the next agent")?;
        // One that has ended is waited for no longer, and is not ready.
        let mut ended = None;
        let ready = wait_until("the next agent is ready", Duration::from_secs(30), || {
            ended = process.ended()?;
            Ok(ended.is_some() || is_at_work(lab)?)
        });
        let outcome = match ended {
            Some(status) => Err(anyhow!("the next agent ended with {}", ending(status))),
            None => ready,
        };
        let Err(error) = outcome else { return Ok(process) };
        let log = std::fs::read_to_string(lab.file("log/successor")).unwrap_or_default();
        Err(error.context(log.lines().last().unwrap_or_default().to_owned()))
    };
    match start(PROMISED) {
        Ok(process) => {
            tell("capabilities", &Ok("BPF, NET_ADMIN, PERFMON".to_owned()));
            Ok(process)
        }
        Err(refused) => {
            let process = start(BEFORE_5_11).context(format!("{refused:#}"))?;
            tell("capabilities", &Ok("BPF, NET_ADMIN, PERFMON, SYS_RESOURCE".to_owned()));
            Ok(process)
        }
    }
}

/// Whether the agent is ready and every hook runs its program.
fn is_at_work(lab: &Lab) -> Result<bool> {
    let (code, said) = agent::probe(lab, "/readyz")?;
    ensure!(code == 200, "not ready: {said}");
    let status = agent::status(lab)?;
    let hooks = status["hooks"].as_array().context("status has no hooks")?;
    let loose = hooks.iter().find(|hook| hook["attached"] != true);
    ensure!(loose.is_none(), "{loose:?}");
    Ok(true)
}

/// Nothing of the agent's is left; and the judge, who has seen nothing so far, sees what leaves.
fn uninstalled(scenario: &mut Scenario) -> Result<String> {
    let lab = &scenario.lab;
    let pins = lab.file("bpffs/egress-enforcer");
    let place = Place { netns: Some(&lab.node), ..Place::default() };
    let mut command = place.command(binary()?)?;
    command.arg("uninstall").arg("--bpffs").arg(&pins).arg("--run-dir").arg(lab.file("run"));
    let output = command.output().context("uninstall")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    ensure!(!pins.exists(), "{} is still there", pins.display());
    let [v4, v6] = STRIPE.both();
    for address in [v4, v6] {
        let place = scenario.lab.cart.place();
        let (free, escaped) = scenario.judged(&place, &["tcp", &to(address, PORT)])?;
        ensure!(free.ok && escaped > 0, "the judge is blind: {free:?}, {escaped} frames");
    }
    Ok("nothing held, frames outside again".to_owned())
}
