//! Mode, verdict and reason: the closed words shared by kernel, metrics, events and CLI.
//!
//! Numbers are written to maps, ring records and archives: they are only ever added to.

/// Declares a field-less `u8` enum with a stable number and a stable name for each variant.
macro_rules! closed_enum {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$vmeta:meta])* $variant:ident = $number:literal $text:literal,)+ }) => {
        $(#[$meta])*
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis enum $name { $($(#[$vmeta])* $variant = $number,)+ }

        impl $name {
            /// Every variant, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable name: metric label, log field, event code and CLI text.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The variant of a number read from a map or a record; `None` for a number this
            /// version does not know.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }

            /// The stable number.
            pub const fn number(self) -> u8 {
                self as u8
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}
pub(crate) use closed_enum;

closed_enum! {
    /// What a policy does with a packet that its rules deny.
    pub enum Mode {
        /// Nothing is judged.
        Off = 0 "off",
        /// Denied packets pass and are reported as [`Verdict::Audit`].
        Audit = 1 "audit",
        /// Denied packets are dropped.
        Enforce = 2 "enforce",
    }
}

closed_enum! {
    /// What happened to a packet. An audited packet is never reported as allowed.
    pub enum Verdict {
        /// A rule allows it.
        Allow = 0 "allow",
        /// It passed, and would have been dropped in mode enforce.
        Audit = 1 "audit",
        /// It was dropped (or, at a socket hook, refused with `EPERM`).
        Drop = 2 "drop",
    }
}

closed_enum! {
    /// Why a packet got its verdict. Below [`Reason::FIRST_DENY`] the rule allows, from there it
    /// denies.
    pub enum Reason {
        /// The pod is governed by no policy, or is a gateway or named infrastructure.
        Exempt = 1 "exempt",
        /// Loopback, the pod's own addresses, exact ARP and neighbour discovery.
        Local = 2 "local",
        /// Answer on a connection that was opened from outside the pod.
        Reply = 3 "reply",
        /// A named resolver on port 53.
        Resolver = 4 "resolver",
        /// An endpoint of one of the policy's gateways.
        Gateway = 5 "gateway",
        /// API server, istiod or other named infrastructure, exact address, protocol and port.
        Infrastructure = 6 "infrastructure",
        /// A pod or service address of the cluster, or a node address listed exactly.
        Cluster = 7 "cluster",
        /// An `EgressException` that is in force.
        Exception = 8 "exception",
        /// A connection to the outside that was rewritten to an endpoint of a gateway.
        Redirected = 9 "redirected",
        /// An address that DNS gave to a limited gateway for a registered host.
        Resolved = 10 "resolved",
        /// A VLAN tag, or an ethertype other than IPv4, IPv6 and ARP.
        Ethertype = 32 "ethertype",
        /// Truncated or inconsistent headers, IPv4 options, IPv6 extension headers, inexact ARP.
        Malformed = 33 "malformed",
        /// An IP fragment toward a destination that is not in the cluster.
        Fragment = 34 "fragment",
        /// The source MAC or address is not the pod's.
        SpoofedSource = 35 "spoofed_source",
        /// Multicast, broadcast, link-local, or a protocol other than TCP and UDP to the outside.
        Protocol = 36 "protocol",
        /// The cloud's instance metadata service.
        Metadata = 37 "metadata",
        /// A virtual address the mesh's own proxy should have consumed inside the pod.
        MeshVip = 38 "mesh_vip",
        /// A tunnel port or protocol toward a node.
        Tunnel = 39 "tunnel",
        /// A Service of the cluster whose endpoints lie outside it.
        HiddenExternal = 40 "hidden_external",
        /// Port 53 or 853 of anything but a named resolver.
        ForeignResolver = 41 "foreign_resolver",
        /// Over the rate the policy allows toward its gateways.
        RateLimited = 42 "rate_limited",
        /// A gateway's address with a port or protocol that is no endpoint.
        GatewayPort = 43 "gateway_port",
        /// An endpoint of a gateway that this pod's policy does not name.
        GatewayForbidden = 44 "gateway_forbidden",
        /// A new connection to an endpoint that is being drained.
        GatewayDraining = 45 "gateway_draining",
        /// A node's address that the policy does not list exactly.
        Node = 46 "node",
        /// Outside the cluster and not an endpoint: the bypass this product exists for.
        NotGateway = 47 "not_gateway",
        /// The agent has not learned this pod yet.
        UnknownPod = 48 "unknown_pod",
        /// The agent's lease has expired and the policy denies new connections then.
        PolicyStale = 49 "policy_stale",
        /// Allowed for the pod, but sent through a socket of neither the pod nor its mesh proxy.
        ForeignSocket = 50 "foreign_socket",
        /// The policy redirects this port, and its gateways have no healthy endpoint for it.
        RedirectUnavailable = 51 "redirect_unavailable",
        /// A limited gateway's own traffic to an address that no answer gave it for a registered host.
        Unresolved = 52 "unresolved",
    }
}

impl Reason {
    /// Reasons from this number on deny; those below allow.
    pub const FIRST_DENY: u8 = 32;
    /// Size of an array indexed by reason number; a power of two above every number in use.
    pub const SLOTS: u32 = 64;

    /// Whether the rule denies. What then happens to the packet depends on the mode.
    pub const fn denies(self) -> bool {
        self.number() >= Self::FIRST_DENY
    }
}

impl Mode {
    /// What a ruling with this reason becomes in this mode. The only place where audit differs
    /// from enforce.
    pub const fn verdict(self, reason: Reason) -> Verdict {
        match (reason.denies(), self) {
            (false, _) | (true, Self::Off) => Verdict::Allow,
            (true, Self::Audit) => Verdict::Audit,
            (true, Self::Enforce) => Verdict::Drop,
        }
    }

    /// The stricter of two modes.
    pub const fn max(self, other: Self) -> Self {
        if self.number() >= other.number() { self } else { other }
    }
}

impl Default for Mode {
    /// What an installation starts with: everything passes, everything is told.
    fn default() -> Self {
        Self::Audit
    }
}

impl Verdict {
    /// Size of an array indexed by verdict number.
    pub const SLOTS: u32 = 4;
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn numbers_and_names_are_frozen() {
        let table: std::vec::Vec<(u8, &str)> =
            Reason::ALL.iter().map(|reason| (reason.number(), reason.name())).collect();
        assert_eq!(
            table,
            [
                (1, "exempt"),
                (2, "local"),
                (3, "reply"),
                (4, "resolver"),
                (5, "gateway"),
                (6, "infrastructure"),
                (7, "cluster"),
                (8, "exception"),
                (9, "redirected"),
                (10, "resolved"),
                (32, "ethertype"),
                (33, "malformed"),
                (34, "fragment"),
                (35, "spoofed_source"),
                (36, "protocol"),
                (37, "metadata"),
                (38, "mesh_vip"),
                (39, "tunnel"),
                (40, "hidden_external"),
                (41, "foreign_resolver"),
                (42, "rate_limited"),
                (43, "gateway_port"),
                (44, "gateway_forbidden"),
                (45, "gateway_draining"),
                (46, "node"),
                (47, "not_gateway"),
                (48, "unknown_pod"),
                (49, "policy_stale"),
                (50, "foreign_socket"),
                (51, "redirect_unavailable"),
                (52, "unresolved"),
            ]
        );
    }

    #[test]
    fn every_number_reads_back_and_fits_the_array() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_number(reason.number()), Some(*reason));
            assert!(u32::from(reason.number()) < Reason::SLOTS);
        }
        assert_eq!(Reason::from_number(0), None);
        assert_eq!(Reason::from_number(31), None);
    }

    #[test]
    fn audit_is_never_reported_as_allow() {
        for reason in Reason::ALL {
            let verdicts = [Mode::Off, Mode::Audit, Mode::Enforce].map(|m| m.verdict(*reason));
            if reason.denies() {
                assert_eq!(verdicts, [Verdict::Allow, Verdict::Audit, Verdict::Drop], "{reason}");
            } else {
                assert_eq!(verdicts, [Verdict::Allow; 3], "{reason}");
            }
        }
    }
}
