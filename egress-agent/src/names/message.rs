//! Reads DNS answers, by RFC 1035 and with the fewest assumptions that serve.
//!
//! A message may be cut off anywhere, may be made to hurt, and comes from the network: every
//! access is bounded, a compressed name may only point backwards, and records beyond a limit are
//! not read. Only the answer section counts, and in it only what the question leads to by way of
//! aliases: authority and additional records are nobody's answer.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::name::{Name, Reader};

/// Records of one answer that are read.
const MOST_RECORDS: u16 = 256;
/// Aliases that a question may lead through.
const MOST_ALIASES: usize = 16;

const INTERNET: u16 = 1;
const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The name that was asked for, lower case.
    pub host: Name,
    /// What the question leads to, each once, in the order of the message.
    pub addresses: Vec<Address>,
}

/// An address of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address; a mapped one as IPv4.
    pub ip: IpAddr,
    /// Seconds for which it may be used: the least of its own and of the aliases before it.
    pub ttl: u32,
}

/// What a message is, if not an answer to learn from: label of `egress_dns_answers_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Names and addresses were learned.
    Learned,
    /// A good answer without an address.
    NoAddress,
    /// The resolver refused or found nothing.
    Failed,
    /// Marked as cut off: its reader asks again over TCP.
    Truncated,
    /// Longer than what the kernel copies, or cut off without saying so: what was read counts.
    Partial,
    /// A query, or another kind of message.
    NoAnswer,
    /// Not to be read.
    Malformed,
    /// Part of a TCP connection whose beginning was not seen, or that lost a segment.
    OutOfOrder,
    /// From port 53 of something that nobody named a resolver.
    ForeignResolver,
}

impl Outcome {
    /// Every outcome, for metrics that must exist at zero.
    pub const ALL: &[Self] = &[
        Self::Learned,
        Self::NoAddress,
        Self::Failed,
        Self::Truncated,
        Self::Partial,
        Self::NoAnswer,
        Self::Malformed,
        Self::OutOfOrder,
        Self::ForeignResolver,
    ];

    /// The metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Learned => "learned",
            Self::NoAddress => "no_address",
            Self::Failed => "failed",
            Self::Truncated => "truncated",
            Self::Partial => "partial",
            Self::NoAnswer => "no_answer",
            Self::Malformed => "malformed",
            Self::OutOfOrder => "out_of_order",
            Self::ForeignResolver => "foreign_resolver",
        }
    }
}

/// Reads one message, without the length that TCP puts in front. `cut` says that there was more of
/// it.
///
/// # Errors
/// The outcome, where there is nothing to learn.
pub fn read(message: &[u8], cut: bool) -> Result<(Outcome, Answer), Outcome> {
    let header = Header::read(message).ok_or(Outcome::Malformed)?;
    header.judge()?;
    let mut reader = Reader::new(message, Header::LENGTH);
    let host = reader.name().ok_or(Outcome::Malformed)?;
    let (kind, class) = (reader.half(), reader.half());
    let asked = kind.zip(class).ok_or(Outcome::Malformed)?;
    if asked.1 != INTERNET {
        return Err(Outcome::NoAnswer);
    }
    let mut records = Vec::new();
    let mut whole = !cut && header.answers <= MOST_RECORDS;
    for _ in 0..header.answers.min(MOST_RECORDS) {
        match record(&mut reader, message) {
            Some(record) => records.push(record),
            None if cut => {
                whole = false;
                break;
            }
            None => return Err(Outcome::Malformed),
        }
    }
    let addresses = resolve(&host, &records);
    if addresses.is_empty() {
        return Err(if whole { Outcome::NoAddress } else { Outcome::Partial });
    }
    let outcome = if whole { Outcome::Learned } else { Outcome::Partial };
    Ok((outcome, Answer { host, addresses }))
}

struct Header {
    flags: u16,
    questions: u16,
    answers: u16,
}

impl Header {
    const LENGTH: usize = 12;
    const RESPONSE: u16 = 0x8000;
    const OPCODE: u16 = 0x7800;
    const TRUNCATED: u16 = 0x0200;
    const RCODE: u16 = 0x000f;

    fn read(message: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(message, 2);
        let (flags, questions, answers) = (reader.half()?, reader.half()?, reader.half()?);
        (message.len() >= Self::LENGTH).then_some(Self { flags, questions, answers })
    }

    const fn judge(&self) -> Result<(), Outcome> {
        if self.flags & Self::RESPONSE == 0 || self.flags & Self::OPCODE != 0 {
            return Err(Outcome::NoAnswer);
        }
        // One that answers no question, or several, cannot be held against what was asked.
        if self.questions != 1 {
            return Err(Outcome::NoAnswer);
        }
        if self.flags & Self::RCODE != 0 {
            return Err(Outcome::Failed);
        }
        if self.flags & Self::TRUNCATED != 0 {
            return Err(Outcome::Truncated);
        }
        Ok(())
    }
}

/// A record that matters here.
struct Record {
    owner: Name,
    ttl: u32,
    data: Data,
}

enum Data {
    Alias(Name),
    Addresses(Vec<IpAddr>),
    Other,
}

fn record(reader: &mut Reader<'_>, message: &[u8]) -> Option<Record> {
    let owner = reader.name()?;
    let (kind, class, ttl) = (reader.half()?, reader.half()?, reader.word()?);
    let length = usize::from(reader.half()?);
    let at = reader.at();
    let data = reader.bytes(length)?;
    let data = match (class, kind) {
        (INTERNET, A) => {
            Data::Addresses(vec![Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into()])
        }
        (INTERNET, AAAA) => {
            let ip = Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?);
            Data::Addresses(vec![IpAddr::V6(ip).to_canonical()])
        }
        (INTERNET, CNAME) => {
            // Compression may point anywhere before it, but the name ends with its record.
            let mut inside = Reader::new(message.get(..at + length)?, at);
            let alias = inside.name()?;
            (inside.at() == at + length).then_some(Data::Alias(alias))?
        }
        (INTERNET, SVCB | HTTPS) => service(data)?,
        _ => Data::Other,
    };
    // RFC 2181 §8: with the top bit set it means zero.
    let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
    Some(Record { owner, ttl, data })
}

/// Hints of addresses in a service record (RFC 9460); an alias form is an alias.
fn service(data: &[u8]) -> Option<Data> {
    const IPV4_HINT: u16 = 4;
    const IPV6_HINT: u16 = 6;
    let mut reader = Reader::new(data, 0);
    let priority = reader.half()?;
    // Never compressed: it is read on its own bytes.
    let target = reader.name()?;
    if priority == 0 {
        return Some(if target.is_root() { Data::Other } else { Data::Alias(target) });
    }
    let mut found = Vec::new();
    while reader.at() < data.len() {
        let (key, length) = (reader.half()?, usize::from(reader.half()?));
        let value = reader.bytes(length)?;
        match key {
            IPV4_HINT => {
                let (ips, rest) = value.as_chunks::<4>();
                rest.is_empty().then_some(())?;
                found.extend(ips.iter().map(|ip| IpAddr::from(*ip)));
            }
            IPV6_HINT => {
                let (ips, rest) = value.as_chunks::<16>();
                rest.is_empty().then_some(())?;
                found.extend(ips.iter().map(|ip| IpAddr::from(*ip).to_canonical()));
            }
            _ => {}
        }
    }
    // Hints are the target's addresses; another target's are asked for by name.
    Some(if target.is_root() { Data::Addresses(found) } else { Data::Alias(target) })
}

/// Follows aliases from the question to addresses, in whatever order the records stand.
fn resolve(host: &Name, records: &[Record]) -> Vec<Address> {
    let mut reached = BTreeSet::from([host]);
    let mut least = u32::MAX;
    for _ in 0..MOST_ALIASES {
        let before = reached.len();
        for record in records {
            if let Data::Alias(target) = &record.data
                && reached.contains(&record.owner)
                && reached.insert(target)
            {
                least = least.min(record.ttl);
            }
        }
        if reached.len() == before {
            break;
        }
    }
    let mut addresses: Vec<Address> = Vec::new();
    for record in records.iter().filter(|record| reached.contains(&record.owner)) {
        let Data::Addresses(ips) = &record.data else { continue };
        for ip in ips.iter().copied() {
            if addresses.iter().all(|known| known.ip != ip) {
                addresses.push(Address { ip, ttl: record.ttl.min(least) });
            }
        }
    }
    addresses
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
