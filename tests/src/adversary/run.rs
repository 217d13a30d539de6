//! Playing the attacks and judging them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};

use anyhow::{Context, Result, ensure};

use super::scene::{Family, Scene};
use super::stage::{Arrived, Stage};
use super::{Accomplice, Actor, Attack, When, attacks};
use crate::lab::{CART, CHECKOUT, LEDGER, PROXY};
use crate::process::{Place, Process};
use crate::wiring::Wiring;

/// Whether the attackers stay in their pod's cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroup {
    /// As the container runtime put them.
    Own,
    /// They have escaped to one that no pod owns, where only the boundary sees them.
    Escaped,
}

/// What each attack met, as its sender saw it, by `id/family`.
pub type Complaints = BTreeMap<String, String>;

/// The scenes of all attacks of one kind that are possible on this wiring.
pub fn scenes(wiring: Wiring, when: When) -> Vec<(&'static Attack, Scene)> {
    let mut scenes = Vec::new();
    for attack in attacks().filter(|attack| attack.when == when) {
        for family in Family::ALL {
            if attack.impossible(family, wiring).is_none() {
                let host = host(attack.actor);
                scenes.extend(Scene::of(attack.id, family, wiring, host).map(|s| (attack, s)));
            }
        }
    }
    scenes
}

fn host(actor: Actor) -> u8 {
    match actor {
        Actor::Nobody | Actor::FalseProxy | Actor::Raw | Actor::Admin | Actor::Stranger => {
            CART.host
        }
        Actor::App | Actor::ProxyUser | Actor::ProxyGroup => CHECKOUT.host,
    }
}

/// Plays these attacks, one actor after the other, and gives what arrived and what was complained.
///
/// # Errors
/// When an attacker or a judge fails; an attack that fails is no error.
pub fn play(
    stage: &Stage,
    scenes: &[(&'static Attack, Scene)],
    cgroup: Cgroup,
) -> Result<(Arrived, Complaints)> {
    let mut complaints = Complaints::new();
    for (attack, scene) in scenes {
        let helped = match attack.accomplice {
            None => Ok(()),
            Some(Accomplice::Node(run)) => stage.lab.node.run(|| Ok(run(scene)?)),
            Some(Accomplice::Peer(run)) => {
                let theirs = Scene { host: LEDGER.host, ..*scene };
                stage.lab.ledger.netns.run(|| Ok(run(&theirs)?))
            }
        };
        helped.with_context(|| format!("the accomplice of {}", attack.id))?;
    }
    // What accomplices are answered proves nothing.
    stage.lab.settle();
    stage.clear()?;
    for actor in Actor::ALL {
        let theirs: Vec<_> =
            scenes.iter().filter(|(attack, _)| attack.actor == actor).copied().collect();
        if theirs.is_empty() {
            continue;
        }
        let mut process = start(stage, actor, &theirs, cgroup)?;
        note(&mut process, &mut complaints)?;
    }
    stage.lab.settle();
    Ok((stage.arrived()?, complaints))
}

/// Attackers that hold what they opened, each a process of its own.
#[derive(Debug)]
pub struct Held(Vec<(Process, BufReader<std::process::ChildStdout>)>);

impl Held {
    /// Starts them and waits until each holds something.
    ///
    /// # Errors
    /// When one does not come so far.
    pub fn start(stage: &Stage, scenes: &[(&'static Attack, Scene)]) -> Result<Self> {
        let mut held = Vec::new();
        for (attack, scene) in scenes {
            let one = [(*attack, *scene)];
            let mut process = start(stage, attack.actor, &one, Cgroup::Own)?;
            let stdout = process.child().stdout.take().context("no output")?;
            let mut lines = BufReader::new(stdout);
            let mut line = String::new();
            lines.read_line(&mut line)?;
            ensure!(line == "held\n", "{} over {:?}: {line}", attack.id, scene.family);
            held.push((process, lines));
        }
        Ok(Self(held))
    }

    /// Lets them go on, and gives what arrived since.
    ///
    /// # Errors
    /// When an attacker or a judge fails.
    pub fn go_on(self, stage: &Stage) -> Result<(Arrived, Complaints)> {
        stage.clear()?;
        let mut complaints = Complaints::new();
        for (mut process, mut lines) in self.0 {
            let mut stdin = process.child().stdin.take().context("no input")?;
            stdin.write_all(b"\n")?;
            let mut line = String::new();
            lines.read_line(&mut line)?;
            complaint(&line, &mut complaints)?;
            // What is left open sends again what was not acknowledged.
        }
        stage.lab.settle();
        Ok((stage.arrived()?, complaints))
    }
}

fn start(
    stage: &Stage,
    actor: Actor,
    scenes: &[(&'static Attack, Scene)],
    cgroup: Cgroup,
) -> Result<Process> {
    let lab = &stage.lab;
    let (uid, gid) = PROXY;
    let (pod, user) = match actor {
        Actor::Nobody | Actor::Stranger => (&lab.cart, Some((65534, 65534))),
        Actor::FalseProxy => (&lab.cart, Some(PROXY)),
        Actor::Raw | Actor::Admin => (&lab.cart, None),
        Actor::App => (&lab.checkout, Some((1000, 1000))),
        Actor::ProxyUser => (&lab.checkout, Some((uid, 1000))),
        Actor::ProxyGroup => (&lab.checkout, Some((1000, gid))),
    };
    let capabilities = match actor {
        Actor::Raw => Some("+net_raw"),
        Actor::Admin => Some("+net_raw,+net_admin"),
        Actor::Nobody
        | Actor::FalseProxy
        | Actor::App
        | Actor::ProxyUser
        | Actor::ProxyGroup
        | Actor::Stranger => None,
    };
    let stays = cgroup == Cgroup::Own && actor != Actor::Stranger;
    let place = Place { user, cgroup: stays.then_some(pod.cgroup.as_path()), ..pod.place() };
    Process::start(stage.probe(&place, capabilities, scenes)?, &format!("attacks of {actor:?}"))
}

fn note(process: &mut Process, complaints: &mut Complaints) -> Result<()> {
    for line in super::stage::read(process)?.lines() {
        complaint(line, complaints)?;
    }
    Ok(())
}

fn complaint(line: &str, complaints: &mut Complaints) -> Result<()> {
    let (name, said) = line.trim_end().split_once(' ').context("an attack said nothing")?;
    complaints.insert(name.to_owned(), said.to_owned());
    Ok(())
}

/// Performs attacks given as `id/family@host`, one after the other: the probe's part. Each is
/// followed by a line with its number and what became of it.
///
/// # Errors
/// When a name is unknown, or the output is closed.
pub fn perform(wiring: Wiring, names: &[String]) -> std::io::Result<()> {
    for name in names {
        let unknown = || std::io::Error::other(format!("no attack is called {name}"));
        let (id, rest) = name.split_once('/').ok_or_else(unknown)?;
        let (digit, host) = rest.split_once('@').ok_or_else(unknown)?;
        let family = if digit == "4" { Family::V4 } else { Family::V6 };
        let host = host.parse().map_err(|_| unknown())?;
        let attack = attacks().find(|attack| attack.id == id).ok_or_else(unknown)?;
        let scene = Scene::of(id, family, wiring, host).ok_or_else(unknown)?;
        let said = match (attack.run)(&scene) {
            Ok(()) => "sent".to_owned(),
            Err(error) => error.to_string().replace('\n', " "),
        };
        writeln!(std::io::stdout(), "{id}/{digit} {said}")?;
    }
    Ok(())
}

/// What was found of one attack on one wiring over one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// It arrived where nothing enforces.
    pub without: bool,
    /// It arrived under enforcement: a leak.
    pub enforced: bool,
}

/// Findings by attack, wiring and family.
#[derive(Debug, Default)]
pub struct Report(BTreeMap<(&'static str, &'static str, Family), Finding>);

impl Report {
    /// Adds what was found on one wiring.
    pub fn add(
        &mut self,
        wiring: Wiring,
        scenes: &[(&'static Attack, Scene)],
        without: &Arrived,
        enforced: &Arrived,
    ) {
        for (attack, scene) in scenes {
            let sign = (attack.judge, scene.number());
            let found =
                Finding { without: without.contains(&sign), enforced: enforced.contains(&sign) };
            let entry = self.0.entry((attack.id, wiring.name(), scene.family)).or_insert(found);
            entry.without |= found.without;
            entry.enforced |= found.enforced;
        }
    }

    /// Whatever is not as it should be: leaks, and attacks that never arrive.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for ((id, wiring, family), found) in &self.0 {
            let at = format!("{id} over {family:?}, {wiring}");
            if found.enforced {
                faults.push(format!("{at}: gets through under enforcement"));
            }
            if !found.without {
                faults
                    .push(format!("{at}: does not arrive without enforcement, and proves nothing"));
            }
        }
        faults
    }

    /// The table for people, and the line that sums it up.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:34} {:10} {:>10} {:>10} {:>10} {:>10}   (without / enforced)\n",
            "attack", "holds", "routed v4", "routed v6", "bridge v4", "bridge v6"
        );
        for attack in attacks() {
            let _ = write!(text, "{:34} {:10}", attack.id, attack.actor.tier().name());
            for wiring in Wiring::ALL {
                for family in Family::ALL {
                    let cell = match self.0.get(&(attack.id, wiring.name(), family)) {
                        None => "-".to_owned(),
                        Some(found) => format!("{}/{}", word(found.without), word(found.enforced)),
                    };
                    let _ = write!(text, " {cell:>10}");
                }
            }
            text.push('\n');
        }
        let leaks = self.0.values().filter(|found| found.enforced).count();
        let _ = write!(
            text,
            "{} attacks in {} settings, {leaks} leaks",
            attacks().count(),
            self.0.len()
        );
        text
    }
}

const fn word(arrived: bool) -> &'static str {
    if arrived { "yes" } else { "no" }
}
