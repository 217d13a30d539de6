//! Addresses of the lab. They are constants: every lab has namespaces of its own, so two of them
//! never meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A pair of addresses, one of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dual {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Dual {
    /// From the parts of each.
    pub const fn new([a, b, c, d]: [u8; 4], [s, t, u, v, w, x, y, z]: [u16; 8]) -> Self {
        Self { v4: Ipv4Addr::new(a, b, c, d), v6: Ipv6Addr::new(s, t, u, v, w, x, y, z) }
    }

    /// Both, IPv4 first.
    pub const fn both(self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)]
    }

    /// Whether `ip` is one of them.
    pub fn has(self, ip: IpAddr) -> bool {
        self.both().contains(&ip)
    }
}

/// Of a pod: 10.244.1.`host` and fd00:244:1::`host`.
pub const fn pod(host: u8) -> Dual {
    Dual {
        v4: Ipv4Addr::new(10, 244, 1, host),
        v6: Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, host as u16),
    }
}

/// The node, on its uplink.
pub const NODE: Dual =
    Dual { v4: Ipv4Addr::new(172, 31, 0, 2), v6: Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, 2) };

/// The router in the internet namespace that the node's uplink ends at.
pub const ROUTER: Dual =
    Dual { v4: Ipv4Addr::new(172, 31, 0, 1), v6: Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, 1) };

/// `api.stripe.com`, and everything else the article's manifests declare outside.
pub const STRIPE: Dual = Dual {
    v4: Ipv4Addr::new(203, 0, 113, 10),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10),
};

/// A host nobody declared.
pub const ELSEWHERE: Dual = Dual {
    v4: Ipv4Addr::new(203, 0, 113, 66),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x66),
};

/// A resolver outside the cluster that the policy names: the one outside address, beside the
/// gateway's traffic, that may be seen on the uplink.
pub const RESOLVER: Dual = Dual {
    v4: Ipv4Addr::new(203, 0, 113, 53),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x53),
};

/// What pods use as next hop, as with a point-to-point CNI plugin.
pub const NEXT_HOP: Dual =
    Dual { v4: Ipv4Addr::new(169, 254, 1, 1), v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1) };

/// MAC address of the node's end of every pod's interface pair.
pub const NODE_MAC: [u8; 6] = [0x0a, 0x58, 0xa9, 0xfe, 0x01, 0x01];

/// MAC address of a pod's end of its interface pair.
pub const fn pod_mac(host: u8) -> [u8; 6] {
    [0x0a, 0x58, 0x0a, 0xf4, 0x01, host]
}

/// The link-local address that an interface with this MAC gives itself (RFC 4291 appendix A).
pub const fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// A MAC address in its usual form.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
