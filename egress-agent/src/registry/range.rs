//! Ranges in policies, and which of them cannot be meant.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::field::FieldErrors;

/// What a range is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Permanently allowed or answered: it has a sensible smallest prefix.
    Allowed,
    /// The destination of an exception, which may be as wide as it must and ends.
    Excepted,
}

/// Ranges no rule may be about, with the word for each.
const NEVER: [(IpNet, &str); 8] = [
    (v4([127, 0, 0, 0], 8), "loopback"),
    (v4([169, 254, 0, 0], 16), "link-local"),
    (v4([224, 0, 0, 0], 4), "multicast"),
    (v4([0, 0, 0, 0], 8), "unspecified"),
    (v6(Ipv6Addr::LOCALHOST, 128), "loopback"),
    (v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10), "link-local"),
    (v6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8), "multicast"),
    // IPv4 is judged as IPv4; a mapped range would look like one and match nothing.
    (v6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96), "IPv4-mapped"),
];

const fn v4([a, b, c, d]: [u8; 4], len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len))
}

const fn v6(addr: Ipv6Addr, len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(addr, len))
}

/// Reads a range of a policy.
pub(super) fn read(path: &str, text: &str, usage: Use) -> Result<IpNet, FieldErrors> {
    let fail = |message: String| Err(FieldErrors::one(path, message));
    let Some(net) = strict(text) else {
        return fail(format!("`{text}` is not a range; write it as 10.0.0.0/8 or fd00::/64"));
    };
    if net != net.trunc() {
        return fail(format!("`{text}` has host bits set; did you mean {}?", net.trunc()));
    }
    let shortest = match net {
        IpNet::V4(_) => 8,
        IpNet::V6(_) => 16,
    };
    if usage == Use::Allowed && net.prefix_len() < shortest {
        return fail(format!("`{text}` is wider than /{shortest}: no cluster is that large"));
    }
    // An exception as wide as everything necessarily contains these; the verdict order judges
    // them before any exception.
    if let Some((_, word)) = NEVER.iter().find(|(never, _)| never.contains(&net)) {
        return fail(format!("`{text}` is {word}: no rule can allow it"));
    }
    Ok(net)
}

/// A range as every other program reads it. The library's own parser takes leading zeros, which
/// are octal to some and decimal to others.
fn strict(text: &str) -> Option<IpNet> {
    let (address, prefix) = text.split_once('/')?;
    let canonical = prefix.parse::<u8>().is_ok_and(|number| number.to_string() == prefix);
    let address = address.parse::<std::net::IpAddr>().ok()?;
    if canonical { IpNet::new(address, prefix.parse().ok()?).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_ranges_are_refused_by_name() {
        for (text, usage, expected) in [
            (
                "10.0.0.1/8",
                Use::Allowed,
                "r: `10.0.0.1/8` has host bits set; did you mean 10.0.0.0/8?",
            ),
            ("10.0.0.0/7", Use::Excepted, ""),
            (
                "10.0.0.0/7",
                Use::Allowed,
                "r: `10.0.0.0/7` is wider than /8: no cluster is that large",
            ),
            ("fd01::/15", Use::Allowed, "host bits"),
            ("fc00::/15", Use::Allowed, "wider than /16"),
            ("0.0.0.0/0", Use::Excepted, ""),
            ("127.0.0.0/8", Use::Allowed, "loopback"),
            ("127.1.0.0/16", Use::Excepted, "loopback"),
            ("169.254.169.254/32", Use::Excepted, "link-local"),
            ("fe80::/64", Use::Allowed, "link-local"),
            ("239.0.0.0/8", Use::Allowed, "multicast"),
            ("ff02::/16", Use::Allowed, "multicast"),
            ("::1/128", Use::Excepted, "loopback"),
            ("::ffff:10.0.0.0/104", Use::Allowed, "IPv4-mapped"),
            ("10.0.0.0", Use::Allowed, "is not a range"),
            ("010.0.0.0/8", Use::Allowed, "is not a range"),
            ("10.0.0.0/08", Use::Allowed, "is not a range"),
            ("10.0.0.0/+8", Use::Allowed, "is not a range"),
            ("fd00::%1/64", Use::Allowed, "is not a range"),
            ("10.0.0.0/8", Use::Allowed, ""),
            ("fd00:10::/32", Use::Allowed, ""),
        ] {
            match read("r", text, usage) {
                Ok(net) => assert!(expected.is_empty(), "{text} was read as {net}"),
                Err(error) => {
                    let error = error.to_string();
                    assert!(!expected.is_empty() && error.contains(expected), "{text}: {error}");
                }
            }
        }
    }
}
