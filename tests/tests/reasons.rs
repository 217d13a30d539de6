//! Every reason to deny is produced by a loaded program on a packet: none is unreachable, and one
//! that is added without a case does not compile.
//!
//! Traffic over real namespaces has them too, each in the suite of what it protects; here all of
//! them stand in one table.

use anyhow::{Result, ensure};
use egress_agent::policy::Tables;
use egress_common::state::{OnAgentLoss, Pod, Policy, Rate};
use egress_common::{Mode, Reason, Verdict};
use egress_tests::frame::{Packet, SYN, protocol};
use egress_tests::kernel::{Around, Ground, Kernel, LOOPBACK, MAC, POLICY, V4, run, tables};

/// What produces a reason.
struct Case {
    program: &'static str,
    /// A change of the tables.
    with: fn(&mut Tables),
    /// Frames of the pod; the last one is denied for the reason.
    frames: Vec<Vec<u8>>,
}

fn packet(dst: &str, protocol: u8, port: u16) -> Packet<'static> {
    let dst = dst.parse().expect("an address");
    let flags = if protocol == protocol::TCP { SYN } else { 0 };
    Packet { src: V4.into(), dst, protocol, src_port: 40000, dst_port: port, flags, payload: b"" }
}

fn frame(packet: &Packet<'_>) -> Vec<u8> {
    packet.ethernet(MAC, [2; 6])
}

/// At the boundary, by the tables as they are.
fn sent(frame: Vec<u8>) -> Case {
    Case { program: "pod_egress", with: |_| {}, frames: vec![frame] }
}

fn tcp(dst: &str, port: u16) -> Vec<u8> {
    frame(&packet(dst, protocol::TCP, port))
}

fn udp(dst: &str, port: u16) -> Vec<u8> {
    frame(&packet(dst, protocol::UDP, port))
}

/// The frame with other bytes at some places.
fn changed(mut frame: Vec<u8>, bytes: &[(usize, u8)]) -> Vec<u8> {
    for (at, byte) in bytes {
        frame[*at] = *byte;
    }
    frame
}

const OUTSIDE: &str = "203.0.113.10";
const GATEWAY: &str = "10.0.2.2";
const NODE: &str = "10.0.9.1";

/// The case of a reason; `None` for one that allows, or that no packet meets.
fn case(reason: Reason) -> Option<Case> {
    Some(match reason {
        Reason::Exempt
        | Reason::Local
        | Reason::Reply
        | Reason::Resolver
        | Reason::Gateway
        | Reason::Infrastructure
        | Reason::Cluster
        | Reason::Exception
        | Reason::Resolved
        | Reason::Redirected => return None,
        // Of a socket's own call alone, which no test run makes: suite `redirect` counts it.
        Reason::RedirectUnavailable => return None,
        Reason::Ethertype => sent(changed(tcp(OUTSIDE, 443), &[(12, 0x88), (13, 0xb5)])),
        // A header with options.
        Reason::Malformed => sent(changed(tcp(OUTSIDE, 443), &[(14, 0x46)])),
        Reason::Fragment => sent(changed(udp(OUTSIDE, 443), &[(20, 0x20)])),
        Reason::SpoofedSource => sent(changed(tcp(OUTSIDE, 443), &[(29, 99)])),
        Reason::Protocol => sent(udp("224.0.0.1", 5353)),
        Reason::Metadata => sent(tcp("169.254.169.254", 80)),
        Reason::MeshVip => sent(tcp("240.240.1.1", 80)),
        Reason::Tunnel => sent(udp(NODE, 8472)),
        Reason::HiddenExternal => sent(tcp("10.0.3.3", 443)),
        Reason::ForeignResolver => sent(udp(OUTSIDE, 53)),
        Reason::RateLimited => Case {
            with: |tables| {
                let policy = tables.policies.get_mut(&POLICY).expect("the policy");
                policy.pod_rate = Rate::per_second(1, 1);
            },
            frames: vec![tcp(GATEWAY, 8443), tcp(GATEWAY, 8443)],
            ..sent(Vec::new())
        },
        Reason::GatewayPort => sent(tcp(GATEWAY, 22)),
        Reason::GatewayForbidden => sent(tcp("10.0.2.9", 8443)),
        Reason::GatewayDraining => sent(tcp("10.0.2.3", 8443)),
        Reason::Node => sent(tcp(NODE, 22)),
        Reason::NotGateway => sent(tcp(OUTSIDE, 443)),
        Reason::UnknownPod => Case {
            program: "wall",
            with: |tables| tables.config.unknown_pod = Mode::Enforce.number(),
            ..sent(tcp(GATEWAY, 8443))
        },
        // No heartbeat was ever written.
        Reason::PolicyStale => Case {
            with: |tables| {
                tables.config.lease = 1;
                let stale = Policy::new(Mode::Enforce, OnAgentLoss::DenyNew);
                tables.policies.insert(POLICY, stale);
            },
            ..sent(tcp(GATEWAY, 8443))
        },
        Reason::Unresolved => Case {
            with: |tables| {
                let pod = tables.interfaces.get_mut(&LOOPBACK).expect("the pod");
                pod.flags |= Pod::LIMITED;
            },
            ..sent(tcp(OUTSIDE, 443))
        },
        // The run's socket is in a cgroup that is no pod's.
        Reason::ForeignSocket => Case {
            with: |tables| {
                let pod = tables.interfaces.get_mut(&LOOPBACK).expect("the pod");
                pod.flags |= Pod::OWNER;
            },
            ..sent(tcp(GATEWAY, 8443))
        },
    })
}

/// Runs a case and gives how often the reason was counted for its last frame.
fn produced(case: &Case, reason: Reason, ifindex: u32, level: u8) -> Result<u64> {
    let mut tables = tables();
    tables.config.kubepods_level = level;
    (case.with)(&mut tables);
    let kernel = Kernel::load(&[case.program], &tables)?;
    let around = match case.program {
        // The wall sees interfaces inside the pod.
        "wall" => Around { ifindex, ..Around::default() },
        _ => Around::default(),
    };
    let program = kernel.program(case.program)?;
    let (last, before) = case.frames.split_last().expect("a frame");
    for frame in before {
        run(program, frame, around)?;
    }
    let earlier = kernel.counted(Verdict::Drop, reason)?;
    let dropped = if case.program == "wall" { 0 } else { 2 };
    let verdict = run(program, last, around)?.verdict;
    ensure!(verdict == dropped, "{reason}: {} returned {verdict}", case.program);
    Ok(kernel.counted(Verdict::Drop, reason)? - earlier)
}

#[test]
fn every_reason_to_deny_is_produced_by_a_program() -> Result<()> {
    let ground = Ground::new()?;
    ground.run(|stand| {
        for reason in Reason::ALL {
            let case = case(*reason);
            let called = matches!(reason, Reason::RedirectUnavailable);
            assert_eq!(
                case.is_some(),
                reason.denies() && !called,
                "{reason} needs a case, or needs none"
            );
            let Some(case) = case else { continue };
            let counted = produced(&case, *reason, stand.ifindex, stand.level)?;
            println!("{reason}: {} denied and counted it", case.program);
            assert_eq!(counted, 1, "{reason} was not counted by {}", case.program);
        }
        Ok(())
    })
}
