//! Addresses, identities and map keys.
//!
//! Every key is plain bytes without implicit padding. Addresses of both families share one
//! 16-byte form (IPv4 as `::ffff:a.b.c.d`), so that one map and one rule serve both; whether a
//! packet was IPv4 or IPv6 on the wire is a fact of the packet and never of the key.

mod reply;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use reply::ReplyKey;

/// An IPv4 or IPv6 address: sixteen bytes in network order, IPv4 in its mapped form.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr {
    /// The address as four words whose bytes in memory are in network order: comparisons stay
    /// word-wise in the kernel, and the longest-prefix trie sees the bytes it needs.
    words: [u32; 4],
}

/// Third word of every IPv4-mapped address.
const MAPPED: u32 = u32::from_be(0x0000_ffff);

impl Addr {
    /// `::`, used for "this pod has no address of the family".
    pub const UNSPECIFIED: Self = Self { words: [0; 4] };

    /// `255.255.255.255`.
    pub const BROADCAST: Self = Self::v4([255; 4]);

    /// The address with these sixteen bytes.
    #[inline(always)]
    pub const fn new(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self {
            words: [
                u32::from_ne_bytes([a, b, c, d]),
                u32::from_ne_bytes([e, f, g, h]),
                u32::from_ne_bytes([i, j, k, l]),
                u32::from_ne_bytes([m, n, o, p]),
            ],
        }
    }

    /// The mapped form of an IPv4 address.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self { words: [0, 0, MAPPED, u32::from_ne_bytes(octets)] }
    }

    /// The address whose four words are already in network order, as in a packet or in a
    /// `bpf_sock_addr`.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The mapped form of an IPv4 address word in network order.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self { words: [0, 0, MAPPED, word] }
    }

    /// The four words, in network order in memory.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// The sixteen bytes in network order.
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] = self.words[0].to_ne_bytes();
        let [e, f, g, h] = self.words[1].to_ne_bytes();
        let [i, j, k, l] = self.words[2].to_ne_bytes();
        let [m, n, o, p] = self.words[3].to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// The address as the standard library's type, IPv4 unmapped.
    pub fn ip(self) -> IpAddr {
        let octets = self.octets();
        if self.is_v4() {
            let [.., a, b, c, d] = octets;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from(octets))
        }
    }

    /// Whether this is an IPv4 address in its mapped form.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    /// `0.0.0.0` or `::`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.words[0] == 0
            && self.words[1] == 0
            && (self.words[2] == 0 || self.words[2] == MAPPED)
            && self.words[3] == 0
    }

    /// `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            self.top_v4(0xff00_0000) == 0x7f00_0000
        } else {
            self.words[0] == 0
                && self.words[1] == 0
                && self.words[2] == 0
                && self.words[3] == u32::from_be(1)
        }
    }

    /// `224.0.0.0/4`, `255.255.255.255` or `ff00::/8`.
    #[inline(always)]
    pub const fn is_multicast_or_broadcast(&self) -> bool {
        if self.is_v4() {
            self.top_v4(0xf000_0000) == 0xe000_0000 || self.words[3] == u32::MAX
        } else {
            u32::from_be(self.words[0]) >> 24 == 0xff
        }
    }

    /// Whether it is one of a pod's two, of which one may be unspecified.
    #[inline(always)]
    pub fn is_either(&self, v4: &Self, v6: &Self) -> bool {
        !self.is_unspecified() && (self == v4 || self == v6)
    }

    /// `169.254.0.0/16` or `fe80::/10`.
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        if self.is_v4() {
            self.top_v4(0xffff_0000) == 0xa9fe_0000
        } else {
            u32::from_be(self.words[0]) & 0xffc0_0000 == 0xfe80_0000
        }
    }

    /// `ff02::/16`: what no router passes on.
    #[inline(always)]
    pub const fn is_link_scoped_multicast(&self) -> bool {
        u32::from_be(self.words[0]) >> 16 == 0xff02
    }

    /// The link-local address that an interface with this MAC gives itself (RFC 4291 appendix A).
    #[inline(always)]
    pub const fn link_local(mac: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = mac;
        let high = u32::from_ne_bytes([a ^ 2, b, c, 0xff]);
        let low = u32::from_ne_bytes([0xfe, d, e, f]);
        Self { words: [u32::from_be(0xfe80_0000), 0, high, low] }
    }

    const fn top_v4(&self, mask: u32) -> u32 {
        u32::from_be(self.words[3]) & mask
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self::new(v6.octets()),
        }
    }
}

impl core::fmt::Display for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.ip().fmt(f)
    }
}

impl core::fmt::Debug for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.ip().fmt(f)
    }
}

/// FNV-1a: small, stable across builds and good enough for names the cluster chose. Collisions
/// are looked for when a policy is compiled, never assumed away.
const fn fnv64(parts: &[&[u8]]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut part = 0;
    while part < parts.len() {
        let bytes = parts[part];
        let mut at = 0;
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            at += 1;
        }
        // A separator no Kubernetes name contains, so that ("a", "bc") and ("ab", "c") differ.
        hash = (hash ^ 0xff).wrapping_mul(0x0000_0100_0000_01b3);
        part += 1;
    }
    hash
}

const fn fold32(hash: u64) -> u32 {
    let folded = (hash ^ (hash >> 32)) as u32;
    if folded == 0 { 1 } else { folded }
}

/// A pod, by the hash of its UID: stable across agent restarts without a table of numbers.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId(pub u64);

impl PodId {
    /// The pod of a cgroup the agent has not learned.
    pub const UNKNOWN: Self = Self(0);

    /// The pod with this UID (a UUID, or a static pod's 32-digit configuration hash).
    pub const fn of(uid: &str) -> Self {
        Self(fnv64(&[uid.as_bytes()]))
    }

    /// The owner of the sockets in this cgroup (its id), where what happens at a socket is
    /// remembered before, or without, a pod's interface being known.
    #[inline(always)]
    pub const fn of_cgroup(id: u64) -> Self {
        Self(id)
    }

    /// Whoever is behind this interface, as long as no pod is known to be: a number that is no
    /// cgroup's id, because those count up from one.
    pub const fn of_interface(ifindex: u32) -> Self {
        Self(1 << 63 | ifindex as u64)
    }
}

/// A compiled policy, by the hash of its object's name. [`PolicyId::NONE`] governs nobody.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId(pub u32);

impl PolicyId {
    /// No policy. Its resolver entries are the ones a pod the agent has not learned may ask.
    pub const NONE: Self = Self(0);

    /// What any policy of the node may reach: the tables of the uplink, where nothing tells any
    /// more whose packet it is.
    pub const UPLINK: Self = Self(u32::MAX);

    /// The policy with this (cluster-scoped) name.
    pub const fn of(name: &str) -> Self {
        match fold32(fnv64(&[name.as_bytes()])) {
            u32::MAX => Self(1),
            number => Self(number),
        }
    }
}

/// A gateway, by the hash of its namespace and name. Zero is "no gateway".
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayId(pub u32);

impl GatewayId {
    /// No gateway.
    pub const NONE: Self = Self(0);

    /// The gateway with this namespace and name.
    pub const fn of(namespace: &str, name: &str) -> Self {
        Self(fold32(fnv64(&[namespace.as_bytes(), name.as_bytes()])))
    }
}

/// A namespace, by the hash of its name. Zero is "not known".
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId(pub u32);

impl NamespaceId {
    /// The namespace of a pod the agent has not learned.
    pub const UNKNOWN: Self = Self(0);

    /// The namespace with this name.
    pub const fn of(name: &str) -> Self {
        Self(fold32(fnv64(&[name.as_bytes()])))
    }
}

/// Key of the exact table: one (policy, address, protocol, port).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExactKey {
    policy: PolicyId,
    addr: Addr,
    /// Network order.
    port: [u8; 2],
    protocol: u8,
    pad: u8,
}

impl ExactKey {
    /// `port` in host order.
    #[inline(always)]
    pub const fn new(policy: PolicyId, addr: Addr, protocol: u8, port: u16) -> Self {
        Self { policy, addr, port: port.to_be_bytes(), protocol, pad: 0 }
    }

    /// The policy the entry belongs to.
    pub const fn policy(&self) -> PolicyId {
        self.policy
    }

    /// The destination address.
    pub const fn addr(&self) -> Addr {
        self.addr
    }

    /// The IP protocol number.
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// The destination port, host order.
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }
}

/// Key of the address table: what is known of a whole address, whatever the port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressKey {
    /// The policy the entry belongs to.
    pub policy: PolicyId,
    /// The destination address.
    pub addr: Addr,
}

/// Data of the range trie. The trie's own prefix length counts the 32 bits of the policy first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeKey {
    /// The policy, as the leading 32 bits of the trie's key.
    pub policy: PolicyId,
    /// The prefix, host bits zero.
    pub addr: Addr,
}

impl RangeKey {
    /// Trie prefix length of an exact address: the policy's 32 bits and all 128 of the address.
    pub const FULL_BITS: u32 = 32 + 128;

    /// Trie prefix length for a prefix of `len` bits of the address's own family.
    pub const fn bits(is_v4: bool, len: u8) -> u32 {
        32 + if is_v4 { 96 } else { 0 } + len as u32
    }
}

/// Key of the exception table: one (set, protocol, port). Zero means "any" for the last two.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExceptionKey {
    set: u32,
    /// Network order; zero for any port.
    port: [u8; 2],
    protocol: u8,
    pad: u8,
}

impl ExceptionKey {
    /// `port` in host order, 0 for any; `protocol` 0 for any.
    #[inline(always)]
    pub const fn new(set: u32, protocol: u8, port: u16) -> Self {
        Self { set, port: port.to_be_bytes(), protocol, pad: 0 }
    }

    /// The set of exceptions this entry belongs to.
    pub const fn set(&self) -> u32 {
        self.set
    }
}

const _: () = {
    assert!(size_of::<Addr>() == 16 && align_of::<Addr>() == 4);
    assert!(size_of::<ExactKey>() == 24);
    assert!(size_of::<AddressKey>() == 20);
    assert!(size_of::<RangeKey>() == 20);
    assert!(size_of::<ExceptionKey>() == 8);
    assert!(size_of::<ReplyKey>() == 32);
};

#[cfg(test)]
mod tests;
