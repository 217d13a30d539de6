//! Frames made from the entries of the small policy and their neighbours, then damaged; and how the
//! host reads them.

use egress_tests::kernel::{MAC, V4, V6, v6};

#[path = "../../../egress-ebpf/src/wire.rs"]
#[expect(dead_code, reason = "the parser of the programs, of which one number is theirs alone")]
pub(crate) mod wire;

/// A generator whose whole state is its seed (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub(crate) fn one_in(&mut self, chance: u64) -> bool {
        self.next().is_multiple_of(chance)
    }

    pub(crate) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
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

pub(crate) fn frame(random: &mut Random) -> Vec<u8> {
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
pub(crate) struct Frame<'a>(pub(crate) &'a [u8]);

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
pub(crate) fn protocol(frame: &[u8]) -> u16 {
    const SMALLEST_TYPE: u16 = 0x0600;
    let kind = u16::from_be_bytes([frame[12], frame[13]]);
    match frame.get(14..16) {
        _ if kind >= SMALLEST_TYPE => kind,
        Some([0xff, 0xff]) => 1,
        _ => 4,
    }
}

/// The frame as it comes back, or as it came: addresses and ports exchanged.
pub(crate) fn turned(mut frame: Vec<u8>) -> Vec<u8> {
    let (from, to, length, ports) = match [frame[12], frame[13]] {
        [0x08, 0x00] => (26, 30, 4, 34),
        [0x86, 0xdd] => (22, 38, 16, 54),
        _ => return frame,
    };
    for at in 0..length {
        frame.swap(from + at, to + at);
    }
    let ported = matches!(frame[if ports == 34 { 23 } else { 20 }], 6 | 17);
    if ported && frame.len() >= ports + 4 {
        frame.swap(ports, ports + 2);
        frame.swap(ports + 1, ports + 3);
    }
    frame
}

/// An answer to a frame that came in: turned, and what opened the flow goes on.
pub(crate) fn answer(random: &mut Random, inbound: &[u8]) -> Vec<u8> {
    let mut frame = turned(inbound.to_vec());
    frame[6..12].copy_from_slice(&MAC);
    let (kind, header, flags) = match [frame[12], frame[13]] {
        [0x08, 0x00] => (23, 34, 47),
        [0x86, 0xdd] => (20, 54, 67),
        _ => return frame,
    };
    match frame.get(kind) {
        Some(6) if frame.len() > flags => frame[flags] = random.of(&[0x12, 0x10, 0x18, 0x02]),
        Some(1) if frame.len() > header => frame[header] = 0,
        Some(58) if frame.len() > header => frame[header] = 129,
        _ => {}
    }
    frame
}
