//! The kernel's programs and the host's `decide` on the same bytes: they must never disagree.
//!
//! Frames are made from the entries of a small policy and their neighbours, then damaged, and run
//! through the loaded programs by `BPF_PROG_TEST_RUN`: the boundary, the wall and the uplink, as
//! each meets them, with flows opened from outside in between. The verdict is compared frame by
//! frame, the reasons by the node's counters at the end of each part. `EGRESS_FUZZ_FRAMES` and
//! `EGRESS_FUZZ_SEED` make it longer and other, `EGRESS_FUZZ_OBJECT` tries other programs than the
//! agent's; a failure prints the seed and the frame.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use egress_agent::policy::Tables;
use egress_agent::policy::tables::At;
use egress_common::key::{
    AddressKey, ExactKey, ExceptionKey, GatewayId, PodId, PolicyId, RangeKey, ReplyKey,
};
use egress_common::packet::{Hook, Icmp, Packet, Shape, protocol};
use egress_common::state::{Exact, Exception, Pod, Range, Rate, range};
use egress_common::{Lookup, Mode, Reason, Subject, Verdict, decide};
use egress_tests::frame::Packet as Datagram;
use egress_tests::kernel::{
    Around, Ground, Kernel, LOOPBACK, MAC, MARKS, Stand, V4, pod, run, tables,
};

#[path = "differential/frames.rs"]
mod frames;
#[path = "differential/parts.rs"]
mod parts;

use frames::{Frame, Random, answer, frame, turned, wire};
use parts::{PARTS, Part, TOKENS};

/// Frames of a run in CI: some seconds.
const FRAMES: u64 = 200_000;
const DATAGRAM: Datagram<'_> = Datagram {
    src: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    dst: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    protocol: protocol::UDP,
    src_port: 0,
    dst_port: 0,
    flags: 0,
    payload: b"x",
};
/// Flows from outside after which all are forgotten: fewer than a pod has places for.
const FLOWS: usize = 400;

/// What the kernel's maps hold, on the host.
struct Model<'a> {
    tables: &'a Tables,
    /// Flows that were opened from outside.
    replies: BTreeSet<ReplyKey>,
    /// The cgroup that flows are remembered by, at the wall.
    cgroup: Option<u64>,
    tokens: Cell<u64>,
}

impl Model<'_> {
    const fn at(&self) -> At<'_> {
        At { tables: self.tables, now: 1 }
    }

    /// The rule by which `pod_ingress` and `wall_ingress` remember; nobody listens here.
    fn track(&mut self, inbound: &Packet) {
        let opens = match inbound.protocol {
            protocol::TCP => inbound.is_bare_syn(),
            protocol::UDP => true,
            protocol::ICMP | protocol::ICMPV6 => inbound.icmp == Icmp::EchoRequest,
            _ => false,
        };
        let whom = match self.cgroup {
            Some(cgroup) => (PodId::of_cgroup(cgroup), self.tables.pods.get(&cgroup)),
            None => (pod().id, self.tables.interfaces.get(&LOOPBACK)),
        };
        let policy = whom.1.map_or(PolicyId::NONE, |pod| pod.policy);
        let (addr, port) = (inbound.src, inbound.src_port);
        let answered = self.range(&RangeKey { policy, addr }).has(range::INBOUND);
        let dialled = inbound.protocol == protocol::UDP
            && self.exact(&ExactKey::new(policy, addr, inbound.protocol, port)).is_some();
        // At the boundary a bridge floods other pods' flows past.
        let own = |pod: &Pod| inbound.dst == pod.v4 || inbound.dst == pod.v6;
        let meant = self.cgroup.is_some() || whom.1.is_some_and(own);
        if opens && meant && inbound.shape == Shape::Ip && answered && !dialled {
            let to = inbound.dst_port;
            self.replies.insert(ReplyKey::new(whom.0, addr, port, to, inbound.flow_protocol));
        }
    }
}

impl Lookup for Model<'_> {
    fn exact(&self, key: &ExactKey) -> Option<Exact> {
        self.at().exact(key)
    }
    fn address(&self, key: &AddressKey) -> u32 {
        self.at().address(key)
    }
    fn range(&self, key: &RangeKey) -> Range {
        self.at().range(key)
    }
    fn exception(&self, key: &ExceptionKey) -> Option<Exception> {
        self.at().exception(key)
    }
    fn reply(&self, key: &ReplyKey) -> bool {
        let key = self.cgroup.map_or(*key, |cgroup| key.at_socket(cgroup, 0));
        self.replies.contains(&key)
    }
    fn over_rate(&self, who: &Subject, _: GatewayId) -> bool {
        let limited = self.tables.policies.get(&who.policy).expect("its policy").pod_rate;
        if limited == Rate::NONE {
            return false;
        }
        let left = self.tokens.get();
        self.tokens.set(left.saturating_sub(1));
        left == 0
    }
    fn foreign_socket(&self, who: &Subject) -> bool {
        who.flags & Pod::OWNER != 0
    }
    fn now(&self) -> u64 {
        1
    }
}

/// What a program must return for a frame, the mark it must leave, and what is counted.
struct Wanted {
    returned: &'static [i32],
    mark: u32,
    counted: Option<(Verdict, Reason)>,
    says: String,
}

impl Part {
    /// The frame as the hook sees it.
    fn packet(&self, hook: Hook, bytes: &[u8]) -> Packet {
        let mut packet = Packet::unparsed(hook);
        if matches!(hook, Hook::Wall | Hook::WallIngress) {
            wire::network(&mut packet, &Frame(&bytes[14..]), frames::protocol(bytes));
        } else {
            wire::frame(&mut packet, &Frame(bytes), frames::protocol(bytes), false);
        }
        packet
    }

    fn hook(&self, program: &str) -> Hook {
        *Hook::ALL.iter().find(|hook| hook.name() == program).expect("a program is a hook's")
    }

    fn wanted(&self, bytes: &[u8], model: &Model<'_>, mark: u32, stand: Stand) -> Wanted {
        // No heartbeat was ever written.
        const SILENCE: u64 = u64::MAX;
        let hook = self.hook(self.program);
        let packet = self.packet(hook, bytes);
        let Tables { config, policies, pods, interfaces, .. } = model.tables;
        let (wall, uplink) = (hook == Hook::Wall, hook == Hook::UplinkEgress);
        let entry = if wall { pods.get(&stand.cgroup) } else { interfaces.get(&LOOPBACK) };
        let known = |pod: &Pod| Subject::of(pod, policies.get(&pod.policy), config, SILENCE);
        let mut who = entry.map_or_else(|| Subject::unknown(config), known);
        who.guarded = wall && entry.is_some_and(|pod| pod.guarded != 0);
        if uplink {
            let mode = match mark {
                mark if mark & MARKS.1 != 0 => Mode::Enforce,
                mark if mark & MARKS.0 != 0 => Mode::Audit,
                _ => {
                    let says = "unmarked".to_owned();
                    return Wanted { returned: &[-1], mark, counted: None, says };
                }
            };
            who = Subject::uplink(config, mode);
        }
        let ruling = decide(&who, &packet, model);
        let verdict = who.verdict(ruling.reason);
        let dropped = verdict == Verdict::Drop;
        let says = format!("{verdict} {} by line {}", ruling.reason, ruling.line);
        let told = Some((verdict, ruling.reason));
        let late = dropped && ruling.line >= 7;
        let (returned, counted): (&[i32], _) = if wall && late && who.defers(&packet) {
            (&[1], None)
        } else if wall {
            let last = dropped || who.flags & Pod::BOUNDARY == 0;
            (if dropped { &[0] } else { &[1] }, told.filter(|_| last))
        } else if uplink {
            let judged = told.filter(|_| verdict != Verdict::Allow);
            (if dropped { &[2] } else { &[-1] }, judged)
        } else if late && who.answers && packet.is_answerable() {
            // An answer that cannot be made of a damaged frame is silence.
            (&[7, 2], told)
        } else {
            (if dropped { &[2] } else { &[-1] }, told)
        };
        let marked = hook == Hook::PodEgress && verdict == Verdict::Allow;
        let bit = match who.mode {
            Mode::Enforce => config.mark_enforce,
            Mode::Audit => config.mark_audit,
            Mode::Off => 0,
        };
        let mark = mark | if marked && (8..=11).contains(&ruling.line) { bit } else { 0 };
        Wanted { returned, mark, counted, says }
    }

    /// Runs so many frames and gives what was counted.
    fn fuzz(
        &self,
        stand: Stand,
        frames: u64,
        random: &mut Random,
    ) -> Result<BTreeMap<(Verdict, Reason), u64>> {
        let mut tables = tables();
        (self.tables)(&mut tables, stand);
        let programs: Vec<&str> = self.tracker.into_iter().chain([self.program]).collect();
        let mut kernel = Kernel::load(&programs, &tables)?;
        let program = kernel.program(self.program)?;
        let tracker = self.tracker.map(|name| kernel.program(name)).transpose()?;
        let wall = self.program == "wall";
        let ifindex = if wall { stand.ifindex } else { 0 };
        let cgroup = wall.then_some(stand.cgroup);
        let tokens = Cell::new(TOKENS);
        let mut model = Model { tables: &tables, replies: BTreeSet::new(), cgroup, tokens };
        let mut came: Vec<Vec<u8>> = Vec::new();
        let mut expected: BTreeMap<(Verdict, Reason), u64> = BTreeMap::new();
        for number in 0..frames {
            let mut frame = frame(random);
            if let (Some(name), Some(tracker), true) = (self.tracker, tracker, random.one_in(4)) {
                let inbound = turned(frame);
                let passed = run(tracker, &inbound, Around { ifindex, mark: 0 })?.verdict;
                assert_eq!(passed, if wall { 1 } else { -1 }, "{name} dropped {inbound:02x?}");
                model.track(&self.packet(self.hook(name), &inbound));
                if model.replies.len() >= FLOWS {
                    kernel.forget_replies()?;
                    model.replies.clear();
                }
                came.truncate(15);
                came.insert(0, inbound);
                continue;
            }
            if !came.is_empty() && random.one_in(3) {
                let one = random.below(came.len());
                frame = answer(random, &came[one]);
            }
            let mark = if self.program == "uplink_egress" {
                random.of(&[0, 0x4000, MARKS.0, MARKS.1, MARKS.1 | 0x4000])
            } else {
                0
            };
            let wanted = self.wanted(&frame, &model, mark, stand);
            let ran = run(program, &frame, Around { ifindex, mark })?;
            assert!(
                wanted.returned.contains(&ran.verdict) && ran.mark == wanted.mark,
                "{}, frame {number}: {ran:?}, but the host says {}\n{frame:02x?}",
                self.name,
                wanted.says
            );
            if let Some(counted) = wanted.counted {
                *expected.entry(counted).or_default() += 1;
            }
        }
        for reason in Reason::ALL {
            for verdict in Verdict::ALL {
                let counted = kernel.counted(*verdict, *reason)?;
                let wanted = expected.get(&(*verdict, *reason)).copied().unwrap_or(0);
                assert_eq!(counted, wanted, "{}: {verdict} {reason}", self.name);
            }
        }
        Ok(expected)
    }
}

/// What a pod's own loopback says opens no flow: a raw socket may say anything there.
#[test]
fn what_loops_back_opens_no_flow() -> Result<()> {
    let part = PARTS.iter().find(|part| part.name == "the wall").context("no such part")?;
    Ground::new()?.run(|stand| {
        let mut tables = tables();
        (part.tables)(&mut tables, stand);
        let kernel = Kernel::load(&["wall", "wall_ingress"], &tables)?;
        let (ingress, wall) = (kernel.program("wall_ingress")?, kernel.program("wall")?);
        let near = Around { ifindex: stand.ifindex, mark: 0 };
        // A remote that may be answered and not dialled.
        let [remote, own] = [[198, 51, 100, 7].into(), V4.into()];
        let asks = Datagram { src: remote, src_port: 7777, dst: own, dst_port: 80, ..DATAGRAM };
        let answers = Datagram { src: own, src_port: 80, dst: remote, dst_port: 7777, ..DATAGRAM };
        let [asks, answers] = [asks, answers].map(|one| one.ethernet(MAC, MAC));
        for (from, passes) in [(Around::default(), 0), (near, 1)] {
            run(ingress, &asks, from)?;
            let verdict = run(wall, &answers, near)?.verdict;
            assert_eq!(verdict, passes, "after a datagram from {from:?}");
        }
        Ok(())
    })
}

fn from_environment(name: &str, otherwise: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(otherwise),
    }
}

#[test]
fn kernel_and_host_agree_on_every_frame() -> Result<()> {
    let frames = from_environment("EGRESS_FUZZ_FRAMES", FRAMES)?;
    let seed = from_environment("EGRESS_FUZZ_SEED", 1)?;
    println!("{frames} frames, seed {seed}");
    let ground = Ground::new()?;
    let met = ground.run(|stand| {
        let mut random = Random(seed);
        let mut met: BTreeSet<Reason> = BTreeSet::new();
        for part in &PARTS {
            let own = frames * part.share / 16;
            println!("{own} through {}:", part.name);
            for ((verdict, reason), counted) in part.fuzz(stand, own, &mut random)? {
                println!("  {counted:>9} {verdict} {reason}");
                met.insert(reason);
            }
        }
        Ok(met)
    })?;
    // A generator that stops reaching a reason tests nothing of it. Two are said of calls, which have
    // no test run: suite redirect makes them.
    let called = [Reason::Redirected, Reason::RedirectUnavailable];
    for reason in Reason::ALL.iter().filter(|reason| !called.contains(reason)) {
        assert!(met.contains(reason), "no frame met {reason}");
    }
    Ok(())
}
