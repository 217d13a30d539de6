//! Rules of the node that look at the packet mark, by netlink alone: nftables' own, those that
//! iptables keeps in nftables, and routing rules.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink's attributes and messages are the kernel's to extend"
)]

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::IdentityError;
use super::link::dump;

/// What a rule does with the mark or with a register that may hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Reads the mark.
    LoadMark {
        /// Register.
        to: u32,
    },
    /// Masks and turns bits of a register.
    Bitwise {
        /// Register that is read.
        from: u32,
        /// Register that is written.
        to: u32,
        /// Bits that are kept.
        mask: u32,
        /// Bits that are turned then.
        xor: u32,
    },
    /// Puts something else into a register.
    Overwrite {
        /// Register.
        to: u32,
    },
    /// Compares a register or looks it up.
    Compare {
        /// Register.
        from: u32,
    },
    /// Writes the mark.
    SetMark {
        /// Register.
        from: u32,
    },
    /// A target of iptables that changes these bits of the mark.
    Sets(u32),
    /// A match of iptables that looks at these bits.
    Tests(u32),
}

/// A rule of nftables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// Its number, as `nft -a list ruleset` shows it.
    pub handle: u64,
    /// What it does, as far as marks are concerned.
    pub expressions: Vec<Expression>,
}

/// Priority and mask of every routing rule that looks at the mark, of both families.
///
/// # Errors
/// When the kernel does not answer.
pub fn routing() -> Result<Vec<(u32, u32)>, IdentityError> {
    let request = RouteNetlinkMessage::GetRule(RuleMessage::default());
    let rules = dump("RTM_GETRULE", request, |answer| match answer {
        RouteNetlinkMessage::NewRule(rule) => Some(rule),
        _ => None,
    })?;
    let marked = rules.iter().filter_map(|rule| {
        let (mut priority, mut mark, mut mask) = (0, None, None);
        for attribute in &rule.attributes {
            match attribute {
                RuleAttribute::Priority(value) => priority = *value,
                RuleAttribute::FwMark(value) => mark = Some(*value),
                RuleAttribute::FwMask(value) => mask = Some(*value),
                _ => {}
            }
        }
        // The kernel gives every rule a mask: one without a mark looks at nothing.
        mark.map(|_| (priority, mask.unwrap_or(u32::MAX)))
    });
    Ok(marked.collect())
}

const REQUEST: &str = "NFT_MSG_GETRULE";
const SUBSYSTEM: u16 = 10 << 8;
const GET_RULE: u16 = SUBSYSTEM | 7;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const FLAGS: u16 = 0x301;
/// Length of `struct nlmsghdr`, and with `struct nfgenmsg`.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;

/// Every rule of nftables in this network namespace; none where the kernel has no nftables.
///
/// # Errors
/// When the kernel does not answer, or the caller lacks `CAP_NET_ADMIN`.
pub fn netfilter() -> Result<Vec<Rule>, IdentityError> {
    let failed = |source| IdentityError::Netlink { request: REQUEST, source };
    let mut socket = match Socket::new(NETLINK_NETFILTER) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EPROTONOSUPPORT) => {
            return Ok(Vec::new());
        }
        socket => socket.map_err(failed)?,
    };
    socket.bind_auto().map_err(failed)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
    let mut request = Vec::with_capacity(HEADERS);
    request.extend((HEADERS as u32).to_ne_bytes());
    request.extend(GET_RULE.to_ne_bytes());
    request.extend(FLAGS.to_ne_bytes());
    // Sequence, port, then every family.
    request.extend([0; HEADERS - 8]);
    socket.send(&request, 0).map_err(failed)?;
    let mut rules = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full().map_err(failed)?;
        for (kind, body) in messages(&answer) {
            match kind {
                NEW_RULE => rules.extend(rule(body.get(HEADERS - HEADER..).unwrap_or_default())),
                DONE => return Ok(rules),
                ERROR => match word(body) {
                    0 => {}
                    // No nftables in this kernel.
                    code if code.cast_signed() == -nix::libc::EINVAL => return Ok(rules),
                    code => {
                        let errno = -code.cast_signed();
                        return Err(failed(io::Error::from_raw_os_error(errno)));
                    }
                },
                _ => {}
            }
        }
    }
}

/// Type and body of the messages in a datagram.
fn messages(mut rest: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some(header) = rest.get(..HEADER) {
        let length = word(header) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let Some(body) = rest.get(HEADER..length) else { break };
        found.push((kind, body));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// Type and value of the attributes in a body.
fn attributes(mut rest: &[u8]) -> Vec<(u16, &[u8])> {
    const NESTED_OR_ORDERED: u16 = 0xc000;
    let mut found = Vec::new();
    while let [low, high, kind_low, kind_high, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let kind = u16::from_ne_bytes([kind_low, kind_high]) & !NESTED_OR_ORDERED;
        let Some(value) = rest.get(4..length) else { break };
        found.push((kind, value));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn attribute(body: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(body).into_iter().find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// The first four bytes as the machine has them; zero where there are none.
fn word(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// An attribute of nftables' own: four bytes, network order.
fn number(body: &[u8], wanted: u16) -> Option<u32> {
    Some(u32::from_be_bytes(*attribute(body, wanted)?.first_chunk()?))
}

/// The four bytes inside a nested datum.
fn datum(body: &[u8], wanted: u16) -> Option<u32> {
    const VALUE: u16 = 1;
    attribute(attribute(body, wanted)?, VALUE).map(word)
}

fn text(body: &[u8], wanted: u16) -> String {
    let bytes = attribute(body, wanted).unwrap_or_default();
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn rule(body: &[u8]) -> Option<Rule> {
    const TABLE: u16 = 1;
    const CHAIN: u16 = 2;
    const HANDLE: u16 = 3;
    const EXPRESSIONS: u16 = 4;
    let handle = u64::from_be_bytes(*attribute(body, HANDLE)?.first_chunk()?);
    let expressions = attributes(attribute(body, EXPRESSIONS).unwrap_or_default());
    let expressions = expressions.into_iter().filter_map(|(_, body)| expression(body)).collect();
    Some(Rule { table: text(body, TABLE), chain: text(body, CHAIN), handle, expressions })
}

/// `uapi/linux/netfilter/nf_tables.h` and the `xt_*.h` of iptables' extensions.
fn expression(body: &[u8]) -> Option<Expression> {
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    const META_MARK: u32 = 3;
    let data = attribute(body, DATA).unwrap_or_default();
    Some(match text(body, NAME).as_str() {
        "meta" => match (number(data, 1), number(data, 2)?, number(data, 3)) {
            (Some(to), META_MARK, _) => Expression::LoadMark { to },
            (None, META_MARK, Some(from)) => Expression::SetMark { from },
            (Some(to), _, _) => Expression::Overwrite { to },
            _ => return None,
        },
        "bitwise" => Expression::Bitwise {
            from: number(data, 1)?,
            to: number(data, 2)?,
            mask: datum(data, 4).unwrap_or(u32::MAX),
            xor: datum(data, 5).unwrap_or(0),
        },
        "cmp" | "range" | "byteorder" => Expression::Compare { from: number(data, 1)? },
        "lookup" => Expression::Compare { from: number(data, 2)? },
        "immediate" | "ct" | "payload" | "exthdr" | "rt" | "numgen" | "fib" => {
            Expression::Overwrite { to: number(data, 1)? }
        }
        "socket" | "hash" => Expression::Overwrite { to: number(data, 2)? },
        "match" if text(data, 1) == "mark" => {
            Expression::Tests(word(attribute(data, 3)?.get(4..)?))
        }
        "target" => {
            let info = attribute(data, 3)?;
            match text(data, 1).as_str() {
                // Value and mask: the bits of the one are turned where the others are cleared.
                "MARK" => Expression::Sets(word(info) | word(info.get(4..)?)),
                // Restoring a connection's mark, by the mask of the packet's.
                "CONNMARK" if info.get(12) == Some(&2) => Expression::Sets(word(info.get(8..)?)),
                _ => return None,
            }
        }
        _ => return None,
    })
}
