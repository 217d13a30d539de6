//! The kernel's program and the host's `decide` on the same bytes: they must never disagree.
//!
//! Frames are made from the entries of a small policy and their neighbours, then damaged, and run
//! through the loaded `pod_egress` by `BPF_PROG_TEST_RUN`. The verdict is compared frame by frame,
//! the reasons by the node's counters at the end. `EGRESS_FUZZ_FRAMES` and `EGRESS_FUZZ_SEED` make
//! it longer and other; a failure prints the seed and the frame.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, PerCpuArray};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use egress_agent::datapath::object;
use egress_agent::policy::Tables;
use egress_agent::policy::tables::At;
use egress_common::key::{
    Addr, AddressKey, ExactKey, ExceptionKey, GatewayId, NamespaceId, PodId, PolicyId, RangeKey,
};
use egress_common::packet::{Hook, Packet};
use egress_common::state::{
    Config, Counter, Exact, Exception, OnAgentLoss, Pod, Policy, Range, Target, address, range,
};
use egress_common::{Mode, Reason, Subject, Verdict, decide};
use nix::libc;

#[path = "../../egress-ebpf/src/wire.rs"]
#[expect(dead_code, reason = "the parser of the programs, of which one entry is used here")]
mod wire;

/// A test run's packet comes in by the loopback device.
const IFINDEX: u32 = 1;
const POLICY: PolicyId = PolicyId(7);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const V4: [u8; 4] = [10, 0, 1, 2];
const V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
/// Frames of a run in CI: some seconds.
const FRAMES: u64 = 200_000;

fn v6(last: u8) -> [u8; 16] {
    let mut octets = V6;
    octets[15] = last;
    octets
}

fn pod() -> Pod {
    Pod {
        id: PodId(1),
        policy: POLICY,
        capture: 0,
        flags: Pod::BOUNDARY,
        mac: MAC,
        proxy_uid: Pod::NO_PROXY,
        proxy_gid: Pod::NO_PROXY,
        v4: Addr::v4(V4),
        v6: Addr::new(V6),
        namespace: NamespaceId(1),
        guarded: 0,
        netns: 0,
    }
}

/// A policy in which every line of the order has something to match.
fn tables() -> Tables {
    let mut tables = Tables::default();
    tables.policies.insert(POLICY, Policy::new(Mode::Enforce, OnAgentLoss::Hold));
    tables.interfaces.insert(IFINDEX, pod());
    let gateway = GatewayId(9);
    for (addr, protocol, port, entry) in [
        (Addr::v4([10, 0, 2, 2]), 6, 8443, Exact::gateway(gateway, false)),
        (Addr::new(v6(9)), 6, 8443, Exact::gateway(gateway, false)),
        (Addr::v4([10, 0, 2, 3]), 6, 8443, Exact::gateway(gateway, true)),
        (Addr::v4([10, 0, 0, 10]), 17, 53, Exact::plain(Target::Resolver)),
        (Addr::v4([192, 0, 2, 1]), 6, 6443, Exact::plain(Target::Infrastructure)),
        (Addr::v4([10, 0, 9, 1]), 6, 10250, Exact::plain(Target::Node)),
        (Addr::v4([10, 0, 3, 3]), 6, 443, Exact::plain(Target::HiddenExternal)),
    ] {
        tables.exact.insert(ExactKey::new(POLICY, addr, protocol, port), entry);
    }
    for (addr, bits) in [
        (Addr::v4([10, 0, 2, 2]), address::GATEWAY),
        (Addr::new(v6(9)), address::GATEWAY),
        (Addr::v4([10, 0, 2, 9]), address::FOREIGN_GATEWAY),
    ] {
        tables.addresses.insert(AddressKey { policy: POLICY, addr }, bits);
    }
    for (addr, bits, kinds, exceptions) in [
        (Addr::v4([10, 0, 0, 0]), 104, range::CLUSTER | range::INBOUND, 0),
        (Addr::v4([10, 0, 9, 1]), 128, range::CLUSTER | range::NODE, 0),
        (Addr::new([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 16, range::CLUSTER, 0),
        (Addr::v4([169, 254, 169, 254]), 128, range::METADATA, 0),
        (Addr::v4([240, 240, 0, 0]), 112, range::MESH_VIP, 0),
        (Addr::v4([198, 51, 100, 0]), 120, 0, 3),
    ] {
        let key = RangeKey { policy: POLICY, addr };
        tables.ranges.insert((32 + bits, key), Range { kinds, exceptions });
    }
    tables.exceptions.insert(ExceptionKey::new(3, 6, 443), Exception { expires: u64::MAX });
    tables
}

fn fill(ebpf: &mut Ebpf, tables: &Tables) -> Result<()> {
    fn map<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<T>
    where
        T: TryFrom<&'a mut aya::maps::Map, Error = aya::maps::MapError>,
    {
        Ok(T::try_from(ebpf.map_mut(name).with_context(|| format!("no map {name}"))?)?)
    }
    map::<Array<_, Config>>(ebpf, "CONFIG")?.set(0, tables.config, 0)?;
    let mut policies: HashMap<_, PolicyId, Policy> = map(ebpf, "POLICIES")?;
    tables.policies.iter().try_for_each(|(key, value)| policies.insert(key, value, 0))?;
    let mut interfaces: HashMap<_, u32, Pod> = map(ebpf, "INTERFACES")?;
    tables.interfaces.iter().try_for_each(|(key, value)| interfaces.insert(key, value, 0))?;
    let mut exact: HashMap<_, ExactKey, Exact> = map(ebpf, "EXACT")?;
    tables.exact.iter().try_for_each(|(key, value)| exact.insert(key, value, 0))?;
    let mut addresses: HashMap<_, AddressKey, u32> = map(ebpf, "ADDRESSES")?;
    tables.addresses.iter().try_for_each(|(key, value)| addresses.insert(key, value, 0))?;
    let mut ranges: LpmTrie<_, RangeKey, Range> = map(ebpf, "RANGES")?;
    for ((bits, key), value) in &tables.ranges {
        ranges.insert(&Key::new(*bits, *key), *value, 0)?;
    }
    let mut exceptions: HashMap<_, ExceptionKey, Exception> = map(ebpf, "EXCEPTIONS")?;
    tables.exceptions.iter().try_for_each(|(key, value)| exceptions.insert(key, value, 0))?;
    Ok(())
}

/// A generator whose whole state is its seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn one_in(&mut self, chance: u64) -> bool {
        self.next().is_multiple_of(chance)
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

const ADDRESSES4: [[u8; 4]; 17] = [
    V4,
    V4,
    V4,
    [10, 0, 2, 2],
    [10, 0, 2, 3],
    [10, 0, 2, 9],
    [10, 0, 0, 10],
    [10, 0, 3, 3],
    [10, 0, 9, 1],
    [10, 7, 7, 7],
    [192, 0, 2, 1],
    [198, 51, 100, 7],
    [169, 254, 169, 254],
    [240, 240, 1, 1],
    [127, 0, 0, 1],
    [224, 0, 0, 1],
    [203, 0, 113, 10],
];
const PORTS: [u16; 11] = [53, 853, 443, 8443, 8444, 6443, 10250, 4789, 8472, 80, 40000];
const PROTOCOLS: [u8; 12] = [6, 6, 6, 17, 17, 17, 1, 58, 4, 47, 132, 0];
const FLAGS: [u8; 6] = [0x02, 0x02, 0x10, 0x18, 0x12, 0x04];

fn address6(random: &mut Random) -> [u8; 16] {
    let mapped = |[a, b, c, d]: [u8; 4]| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d];
    let multicast = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let outside = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let own4 = mapped(random.of(&ADDRESSES4));
    random.of(&[V6, V6, V6, v6(9), v6(9), v6(3), outside, multicast, link_local, [0; 16], own4])
}

fn transport(random: &mut Random, protocol: u8) -> Vec<u8> {
    let payload = random.below(24);
    let ports = [random.of(&PORTS).to_be_bytes(), random.of(&PORTS).to_be_bytes()].concat();
    let mut bytes = match protocol {
        6 => {
            let length = if random.one_in(8) { random.below(16) as u8 } else { 5 };
            let rest = [0, 0, 0, 1, 0, 0, 0, 2, length << 4, random.of(&FLAGS), 0, 0, 0, 0, 0, 0];
            [ports, rest.to_vec()].concat()
        }
        17 => [ports, vec![0, 8, 0, 0]].concat(),
        1 => vec![random.of(&[0, 3, 8, 11, 5]), 0, 0, 0, 0, 7, 0, 0],
        58 => vec![random.of(&[1, 2, 128, 129, 133, 135, 136, 143]), 0, 0, 0, 0, 7, 0, 0],
        _ => Vec::new(),
    };
    // What an error quotes is a packet itself.
    if matches!(protocol, 1 | 58) && random.one_in(2) {
        let quoted = if protocol == 1 { ipv4(random, 17) } else { ipv6(random, 17) };
        bytes.extend(quoted);
    }
    bytes.extend(std::iter::repeat_n(0xa5, payload));
    bytes
}

fn ipv4(random: &mut Random, protocol: u8) -> Vec<u8> {
    let body = if protocol == 17 && random.one_in(3) {
        vec![0x9c, 0x40, 1, 0xbb, 0, 8, 0, 0]
    } else {
        transport(random, protocol)
    };
    let source = if random.one_in(8) { random.of(&ADDRESSES4) } else { V4 };
    let total = (20 + body.len()) as u16;
    let total = if random.one_in(16) { random.next() as u16 } else { total };
    let fragment: u16 = if random.one_in(12) { random.of(&[0x2000, 1, 0x1fff]) } else { 0x4000 };
    let first = if random.one_in(16) { random.of(&[0x46, 0x4f, 0x44, 0x65]) } else { 0x45 };
    let mut bytes = vec![first, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, protocol, 0, 0]);
    bytes.extend(source);
    bytes.extend(random.of(&ADDRESSES4));
    bytes.extend(body);
    bytes
}

fn ipv6(random: &mut Random, protocol: u8) -> Vec<u8> {
    let body = if protocol == 17 && random.one_in(3) {
        vec![0x9c, 0x40, 1, 0xbb, 0, 8, 0, 0]
    } else {
        transport(random, protocol)
    };
    let next =
        if random.one_in(8) { random.of(&[0, 43, 44, 50, 51, 59, 60, 135]) } else { protocol };
    let length = if random.one_in(16) { random.next() as u16 } else { body.len() as u16 };
    let source = if random.one_in(6) { address6(random) } else { V6 };
    let mut bytes = vec![if random.one_in(16) { 0x45 } else { 0x60 }, 0, 0, 0];
    bytes.extend(length.to_be_bytes());
    bytes.extend([next, random.of(&[255, 64, 1])]);
    bytes.extend(source);
    bytes.extend(address6(random));
    bytes.extend(body);
    bytes
}

fn arp(random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, random.of(&[1, 2, 3])];
    bytes.extend(if random.one_in(4) { [9; 6] } else { MAC });
    bytes.extend(if random.one_in(4) { random.of(&ADDRESSES4) } else { V4 });
    bytes.extend([0; 6]);
    bytes.extend(random.of(&ADDRESSES4));
    bytes.extend(std::iter::repeat_n(0, random.of(&[0, 0, 18, 40])));
    bytes
}

fn frame(random: &mut Random) -> Vec<u8> {
    let protocol = random.of(&PROTOCOLS);
    let (kind, body) = match random.below(16) {
        0..=7 => (0x0800u16, ipv4(random, protocol)),
        8..=13 => (0x86dd, ipv6(random, protocol)),
        14 => (0x0806, arp(random)),
        _ => (random.of(&[0x8100, 0x88a8, 0x88b5, 0x8847, 0x002e, 0x0004, 0x86dd]), vec![0; 46]),
    };
    let mut bytes = vec![0x0a, 0x58, 0, 0, 0, 1];
    bytes.extend(if random.one_in(16) { [9; 6] } else { MAC });
    bytes.extend(kind.to_be_bytes());
    bytes.extend(body);
    if random.one_in(2) {
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            bytes[at] = random.of(&[0, 1, 0xff, random.0 as u8]);
        }
    }
    if random.one_in(6) {
        bytes.truncate(14 + random.below(bytes.len() - 13));
    }
    // Test runs refuse a shorter header of these types (Linux 6.18, net/bpf/test_run.c); the
    // parser's own tests cut them everywhere.
    let least = match [bytes[12], bytes[13]] {
        [0x08, 0x00] => 34,
        [0x86, 0xdd] => 54,
        _ => 14,
    };
    bytes.resize(bytes.len().max(least), 0);
    bytes
}

/// The bytes as the parser reads them.
struct Frame<'a>(&'a [u8]);

impl wire::Bytes for Frame<'_> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }
    fn half(&self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(self.0.get(at..at + 2)?.try_into().ok()?))
    }
    fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.0.get(at..at + 4)?.try_into().ok()?))
    }
    fn len(&self) -> u32 {
        self.0.len() as u32
    }
    fn is_gso(&self) -> bool {
        false
    }
}

/// What the kernel takes the frame for (`eth_type_trans`, net/ethernet/eth.c).
fn protocol(frame: &[u8]) -> u16 {
    const SMALLEST_TYPE: u16 = 0x0600;
    let kind = u16::from_be_bytes([frame[12], frame[13]]);
    match frame.get(14..16) {
        _ if kind >= SMALLEST_TYPE => kind,
        Some([0xff, 0xff]) => 1,
        _ => 4,
    }
}

fn judge(frame: &[u8], tables: &Tables) -> (Verdict, Reason) {
    let policy = tables.policies.get(&POLICY);
    let who = Subject::of(&pod(), policy, &tables.config, 0);
    let mut packet = Packet::unparsed(Hook::PodEgress);
    wire::frame(&mut packet, &Frame(frame), protocol(frame), false);
    let ruling = decide(&who, &packet, &At { tables, now: 0 });
    (who.verdict(ruling.reason), ruling.reason)
}

/// `union bpf_attr` of `BPF_PROG_TEST_RUN`, up to what is used (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    verdict: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context: [u64; 3],
    batch: [u32; 2],
}

fn run(program: i32, frame: &[u8]) -> Result<i32> {
    const BPF_PROG_TEST_RUN: libc::c_int = 10;
    let mut attributes = TestRun {
        program: program as u32,
        size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat: 1,
        ..TestRun::default()
    };
    // SAFETY: the attributes and the frame outlive the call, which writes only into the former.
    let failed = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<TestRun>())
    };
    ensure!(failed == 0, "test run: {}", std::io::Error::last_os_error());
    Ok(attributes.verdict as i32)
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
    let tables = tables();
    let mut ebpf = EbpfLoader::new().load(object())?;
    fill(&mut ebpf, &tables)?;
    let program: &mut SchedClassifier =
        ebpf.program_mut("pod_egress").context("no program")?.try_into()?;
    program.load()?;
    let descriptor = program.fd()?.as_fd().as_raw_fd();
    let mut random = Random(seed);
    let mut expected: BTreeMap<(u8, u8), u64> = BTreeMap::new();
    for number in 0..frames {
        let frame = frame(&mut random);
        let (verdict, reason) = judge(&frame, &tables);
        let kernel = run(descriptor, &frame)?;
        let wanted = if verdict == Verdict::Drop { 2 } else { -1 };
        assert_eq!(
            kernel, wanted,
            "seed {seed}, frame {number}: the host says {verdict} {reason}\n{frame:02x?}"
        );
        *expected.entry((verdict.number(), reason.number())).or_default() += 1;
    }
    let totals: PerCpuArray<_, Counter> =
        PerCpuArray::try_from(ebpf.map("NODE_COUNTERS").context("no counters")?)?;
    println!("{frames} frames, seed {seed}:");
    for reason in Reason::ALL {
        for verdict in [Verdict::Allow, Verdict::Drop] {
            let slot = u32::from(verdict.number()) * Reason::SLOTS + u32::from(reason.number());
            let counted: u64 = totals.get(&slot, 0)?.iter().map(|one| one.packets).sum();
            let wanted = expected.get(&(verdict.number(), reason.number())).copied().unwrap_or(0);
            assert_eq!(counted, wanted, "seed {seed}: {verdict} {reason}");
            if counted > 0 {
                println!("  {counted:>9} {verdict} {reason}");
            }
        }
    }
    // A generator that stops reaching a reason tests nothing of it.
    let never = [
        Reason::Exempt,
        Reason::Reply,
        Reason::RateLimited,
        Reason::UnknownPod,
        Reason::PolicyStale,
        Reason::ForeignSocket,
    ];
    for reason in Reason::ALL.iter().filter(|reason| !never.contains(reason)) {
        let met = expected.keys().any(|(_, number)| *number == reason.number());
        assert!(met, "no frame met {reason}");
    }
    Ok(())
}
