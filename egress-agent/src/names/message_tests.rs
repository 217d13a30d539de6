//! Messages as servers write them, and as nobody should.

use proptest::prelude::*;

use super::*;

/// A name in wire form, without compression.
fn wire(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// Header and question, class IN.
fn start(flags: u16, name: &str, kind: u16, answers: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for half in [0x1234, flags, 1, answers, 0, 0] {
        bytes.extend(half_bytes(half));
    }
    bytes.extend(wire(name));
    bytes.extend([half_bytes(kind), half_bytes(1)].concat());
    bytes
}

const fn half_bytes(half: u16) -> [u8; 2] {
    half.to_be_bytes()
}

fn record(owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let length = half_bytes(data.len() as u16);
    [owner, &half_bytes(kind), &half_bytes(1), &ttl.to_be_bytes(), &length, data].concat()
}

const ANSWER: u16 = 0x8180;
/// A pointer to the question's name.
const QUESTION: [u8; 2] = [0xc0, 12];

fn parsed(message: &[u8]) -> (Outcome, Vec<(String, u32)>) {
    match read(message, false) {
        Ok((outcome, answer)) => {
            let all = answer.addresses.iter();
            (outcome, all.map(|one| (one.ip.to_string(), one.ttl)).collect())
        }
        Err(outcome) => (outcome, Vec::new()),
    }
}

/// `www.Example.com` → `edge.cdn.net` → two addresses, with a stranger's record and EDNS beside.
fn chain() -> Vec<u8> {
    let mut message = start(ANSWER, "www.Example.com", A, 4);
    message[11] = 1;
    let edge = message.len() + 12;
    message.extend(record(&QUESTION, CNAME, 30, &wire("edge.cdn.net")));
    let pointer = [0xc0, edge as u8];
    message.extend(record(&pointer, A, 300, &[203, 0, 113, 10]));
    message.extend(record(&wire("evil.test"), A, 300, &[6, 6, 6, 6]));
    message.extend(record(&pointer, A, 20, &[203, 0, 113, 11]));
    // The OPT record of EDNS, in the additional section.
    message.extend([0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
    message
}

#[test]
fn addresses_are_those_the_question_leads_to() {
    let (outcome, addresses) = parsed(&chain());
    assert_eq!(outcome, Outcome::Learned);
    let expected = [("203.0.113.10".to_owned(), 30), ("203.0.113.11".to_owned(), 20)];
    assert_eq!(addresses, expected);
    assert_eq!(read(&chain(), false).unwrap().1.host.as_str(), "www.example.com");
}

#[test]
fn aliases_may_stand_in_any_order_and_go_in_circles() {
    let mut message = start(ANSWER, "a.test", AAAA, 4);
    message.extend(record(&wire("c.test"), AAAA, 60, &[0x20; 16]));
    message.extend(record(&wire("b.test"), CNAME, 60, &wire("c.test")));
    message.extend(record(&wire("a.test"), CNAME, 7, &wire("b.test")));
    message.extend(record(&wire("c.test"), CNAME, 60, &wire("a.test")));
    let (outcome, addresses) = parsed(&message);
    assert_eq!((outcome, addresses.len(), addresses[0].1), (Outcome::Learned, 1, 7));
}

#[test]
fn what_is_no_good_answer_is_told_apart() {
    let bare = |flags| start(flags, "a.test", A, 0);
    let mut two = bare(ANSWER);
    two[5] = 2;
    let mut chaos = bare(ANSWER);
    let end = chaos.len();
    chaos[end - 1] = 3;
    for (message, expected) in [
        (bare(0x0100), Outcome::NoAnswer),
        (bare(0x8180 | 0x2800), Outcome::NoAnswer),
        (two, Outcome::NoAnswer),
        (chaos, Outcome::NoAnswer),
        (bare(0x8183), Outcome::Failed),
        (bare(0x8182), Outcome::Failed),
        (bare(0x8380), Outcome::Truncated),
        (bare(ANSWER), Outcome::NoAddress),
        (vec![0; 11], Outcome::Malformed),
        (start(ANSWER, "a.test", A, 1), Outcome::Malformed),
        (chain()[..40].to_vec(), Outcome::Malformed),
    ] {
        assert_eq!(parsed(&message).0, expected, "{message:02x?}");
    }
}

#[test]
fn one_that_was_cut_off_gives_what_is_there() {
    let whole = chain();
    let (outcome, answer) = read(&whole[..whole.len() - 20], true).unwrap();
    assert_eq!((outcome, answer.addresses.len()), (Outcome::Partial, 1));
    assert_eq!(read(&whole[..30], true), Err(Outcome::Malformed));
    assert_eq!(read(&whole[..50], true), Err(Outcome::Partial));
}

#[test]
fn names_that_point_at_themselves_forward_or_without_end_are_refused() {
    for pointer in [[0xc0, 12], [0xc0, 40], [0xff, 0xff]] {
        let mut message = start(ANSWER, "", A, 0)[..12].to_vec();
        message.extend(pointer);
        message.extend([0, 1, 0, 1]);
        message.extend([0; 40]);
        assert_eq!(parsed(&message).0, Outcome::Malformed, "{pointer:02x?}");
    }
    // Forty pointers, each to the one before.
    let mut message = start(ANSWER, "a.test", A, 1);
    let mut last = 12u16;
    let mut names = Vec::new();
    for _ in 0..40 {
        let at = (message.len() + 12 + names.len()) as u16;
        names.extend(half_bytes(0xc000 | last));
        last = at;
    }
    message.extend(record(&QUESTION, 16, 0, &names));
    message[7] = 2;
    message.extend(record(&half_bytes(0xc000 | last), A, 1, &[1, 1, 1, 1]));
    assert_eq!(parsed(&message).0, Outcome::Malformed);
    // A name of more than 255 bytes.
    let long = ["abcdefgh"; 30].join(".");
    assert_eq!(parsed(&start(ANSWER, &long, A, 0)).0, Outcome::Malformed);
}

#[test]
fn a_name_cannot_end_a_line_or_look_like_another() {
    let mut message = start(ANSWER, "x", A, 1);
    message.splice(12..15, [6, b'A', b'\n', b'.', b'"', 0xff, b'_', 0]);
    message.extend(record(&QUESTION, A, 1, &[1, 1, 1, 1]));
    assert_eq!(read(&message, false).unwrap().1.host.as_str(), "a\\010\\046\\034\\255_");
}

#[test]
fn service_records_give_their_hints() {
    let hints = [&[0, 1, 0][..], &[0, 4, 0, 8], &[9, 9, 9, 9, 8, 8, 8, 8]].concat();
    let mut message = start(ANSWER, "a.test", HTTPS, 1);
    message.extend(record(&QUESTION, HTTPS, 60, &hints));
    assert_eq!(parsed(&message).1.len(), 2);
    let uneven = [&[0, 1, 0][..], &[0, 4, 0, 3], &[9, 9, 9]].concat();
    let mut message = start(ANSWER, "a.test", HTTPS, 1);
    message.extend(record(&QUESTION, HTTPS, 60, &uneven));
    assert_eq!(parsed(&message).0, Outcome::Malformed);
}

#[test]
fn a_mapped_address_is_the_one_it_stands_for() {
    let mut message = start(ANSWER, "a.test", AAAA, 1);
    let mapped: std::net::Ipv6Addr = "::ffff:127.0.0.1".parse().unwrap();
    message.extend(record(&QUESTION, AAAA, 1, &mapped.octets()));
    assert_eq!(parsed(&message).1[0].0, "127.0.0.1");
}

/// Cheap and the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below.max(1)
    }
}

/// Real messages with a few bytes changed, taken out, doubled or put in from another.
fn damage(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut message = seeds[dice.roll(seeds.len())].clone();
    for _ in 0..=dice.roll(6) {
        let at = dice.roll(message.len());
        match dice.roll(6) {
            0 => message[at] = dice.roll(256) as u8,
            1 => message[at] ^= 1 << dice.roll(8),
            2 => message.truncate(at.max(1)),
            3 => {
                let other = &seeds[dice.roll(seeds.len())];
                let from = dice.roll(other.len());
                let part = other[from..].iter().take(dice.roll(24)).copied();
                message.splice(at..at, part);
            }
            4 => message[at] = 0xc0 | dice.roll(4) as u8,
            _ => {
                let end = (at + dice.roll(16)).min(message.len());
                message.drain(at..end);
            }
        }
        if message.is_empty() {
            message.push(0);
        }
    }
    message
}

fn holds(message: &[u8], cut: bool) -> bool {
    match read(message, cut) {
        Ok((_, answer)) => {
            // What is read comes out of the message, and is fit to be written anywhere.
            assert!(!answer.addresses.is_empty() && answer.addresses.len() <= message.len() / 4);
            assert!(answer.host.as_str().bytes().all(|byte| (0x21..0x7f).contains(&byte)));
            assert!(answer.host.as_str().len() <= 4 * 255);
            true
        }
        Err(_) => false,
    }
}

/// `EGRESS_DNS_FUZZ_SECONDS=600` makes it ten minutes.
#[test]
fn damaged_messages_are_read_or_refused_and_nothing_else() {
    let text = std::env::var("EGRESS_DNS_FUZZ_SECONDS").unwrap_or_else(|_| "1".to_owned());
    let seconds = text.parse().expect("EGRESS_DNS_FUZZ_SECONDS is a number of seconds");
    let mut hints = start(ANSWER, "a.test", HTTPS, 1);
    hints.extend(record(&QUESTION, HTTPS, 60, &[0, 1, 0, 0, 4, 0, 4, 9, 9, 9, 9]));
    let mut six = start(ANSWER, "six.test", AAAA, 1);
    six.extend(record(&QUESTION, AAAA, 60, &[0x20; 16]));
    let seeds = [chain(), hints, six, start(0x8183, "gone.test", A, 0)];
    let mut dice = Dice(20_261_125);
    let start = std::time::Instant::now();
    let (mut runs, mut good) = (0u64, 0u64);
    while start.elapsed().as_secs() < seconds {
        for _ in 0..10_000 {
            let message = damage(&mut dice, &seeds);
            good += u64::from(holds(&message, dice.roll(2) == 0));
            runs += 1;
        }
    }
    println!("{runs} damaged messages, {good} of them read as answers, in {seconds} s");
    assert!(good > runs / 100 && good < runs);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600), cut: bool) {
        holds(&bytes, cut);
    }

    #[test]
    fn a_written_answer_is_read_back(
        labels in prop::collection::vec("[a-z0-9_-]{1,20}", 1..6),
        ips in prop::collection::vec(any::<[u8; 4]>(), 1..30),
        ttl in 0..=i32::MAX as u32,
    ) {
        let host = labels.join(".");
        let mut message = start(ANSWER, &host, A, ips.len() as u16);
        for ip in &ips {
            message.extend(record(&QUESTION, A, ttl, ip));
        }
        let (outcome, answer) = read(&message, false).unwrap();
        let expected: BTreeSet<IpAddr> = ips.iter().map(|ip| IpAddr::from(*ip)).collect();
        let found: BTreeSet<IpAddr> = answer.addresses.iter().map(|one| one.ip).collect();
        prop_assert_eq!((outcome, answer.host.as_str()), (Outcome::Learned, &*host));
        prop_assert_eq!(found, expected);
        prop_assert!(answer.addresses.iter().all(|one| one.ttl == ttl));
    }
}
