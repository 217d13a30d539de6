//! The map entry a ruling rests on, as text, and the object it came from.

use egress_common::key::{Addr, AddressKey, ExactKey, ExceptionKey, PolicyId, RangeKey};
use egress_common::packet::{Packet, protocol};
use egress_common::state::{Capture, Exact, Target, range};
use egress_common::{Reason, Ruling, Subject};

use super::redirect::Redirection;
use crate::policy::{Coverage, Desired, Narrowed, Snapshot, Tables};

/// An entry and where it came from.
pub(super) struct Found {
    pub(super) text: String,
    pub(super) origin: Option<String>,
}

/// What was asked, and of what.
pub(super) struct Asked<'a> {
    pub(super) desired: &'a Desired,
    pub(super) live: &'a Tables,
    pub(super) snapshot: &'a Snapshot,
    pub(super) pod: &'a Coverage,
    pub(super) who: &'a Subject,
    pub(super) packet: &'a Packet,
    /// What redirection says of it, where it has something to say.
    pub(super) redirection: Option<&'a Redirection>,
    /// Boot clock, nanoseconds.
    pub(super) now: u64,
}

impl Asked<'_> {
    /// The entry; `None` where the decision rests on there being none, or on the packet alone.
    pub(super) fn found(&self, ruling: Ruling) -> Option<Found> {
        match ruling.reason {
            Reason::Resolver
            | Reason::Gateway
            | Reason::RateLimited
            | Reason::GatewayDraining
            | Reason::Infrastructure
            | Reason::Resolved
            | Reason::HiddenExternal => self.exact(),
            Reason::GatewayPort => self.address(false),
            Reason::GatewayForbidden => self.address(true),
            Reason::Cluster => {
                let listed = |exact: &&Exact| exact.target == Target::Node.number();
                let node = self.live.exact.get(&self.exact_key()).filter(listed).is_some();
                if node { self.exact() } else { self.range(range::CLUSTER) }
            }
            Reason::Metadata => self.range(range::METADATA),
            Reason::MeshVip => self.range(range::MESH_VIP),
            Reason::Node | Reason::Tunnel => self.range(range::NODE),
            Reason::Exception => self.exception(),
            Reason::Exempt => self.identity(),
            Reason::Redirected | Reason::RedirectUnavailable => self.redirect(),
            Reason::Local
            | Reason::Reply
            | Reason::Ethertype
            | Reason::Malformed
            | Reason::Fragment
            | Reason::SpoofedSource
            | Reason::Protocol
            | Reason::ForeignResolver
            | Reason::NotGateway
            | Reason::Unresolved
            | Reason::UnknownPod
            | Reason::PolicyStale
            | Reason::ForeignSocket => None,
        }
    }

    fn exact_key(&self) -> ExactKey {
        ExactKey::new(self.who.policy, self.packet.dst, self.packet.protocol, self.packet.dst_port)
    }

    fn exact(&self) -> Option<Found> {
        let key = self.exact_key();
        let entry = self.live.exact.get(&key)?;
        let target = Target::from_number(entry.target).map_or("unknown", Target::name);
        let known = self.desired.gateways.iter().find(|gateway| {
            entry.gateway != egress_common::key::GatewayId::NONE && gateway.id == entry.gateway.0
        });
        let gateway = known.map_or_else(String::new, |gateway| format!(" {}", gateway.name));
        Some(Found {
            text: format!(
                "EXACT[{}, {} {}] = {target}{gateway}",
                self.policy(),
                protocol_name(key.protocol()),
                std::net::SocketAddr::new(key.addr().ip(), key.port()),
            ),
            origin: self.desired.origins.exact.get(&key).map(ToString::to_string),
        })
    }

    /// What is known of the whole address; `forbidden` where the pod may not use the gateway.
    fn address(&self, forbidden: bool) -> Option<Found> {
        let addr = self.packet.dst;
        self.live.addresses.get(&AddressKey { policy: self.who.policy, addr })?;
        let own = |gateway: &&crate::policy::GatewayState| {
            self.pod.policy.as_ref().is_some_and(|policy| gateway.policies.contains(policy))
        };
        let there = self.desired.gateways.iter().filter(|gateway| {
            gateway.endpoints.iter().any(|endpoint| Addr::from(endpoint.address.ip) == addr)
        });
        let mut there: Vec<_> = there.collect();
        there.sort_by_key(|gateway| !own(gateway));
        let gateway = there.first();
        let name = gateway.map_or_else(String::new, |gateway| format!(" {}", gateway.name));
        let named_by = match self.narrowed() {
            Some(narrowed) if forbidden => Some(narrowed.by.to_string()),
            _ => gateway.map(|gateway| format!("EgressPolicy {}", gateway.policies.join(", "))),
        };
        Some(Found {
            text: format!("ADDRESSES[{}, {addr}] = gateway{name}", self.policy()),
            origin: named_by,
        })
    }

    /// What keeps the pod's namespace from the gateway that has the address, where the pod's own
    /// policy names that gateway.
    pub(super) fn narrowed(&self) -> Option<&Narrowed> {
        let ip = self.packet.dst.ip();
        let ambient = self.pod.capture == Capture::Ambient;
        let named = |narrowed: &Narrowed| {
            let mut gateways = self.desired.gateways.iter();
            gateways.any(|one| {
                one.name == narrowed.gateway
                    && self.pod.policy.as_ref().is_some_and(|policy| one.policies.contains(policy))
            })
        };
        self.desired.narrowed.iter().find(|narrowed| {
            narrowed.namespace == self.pod.pod.namespace
                && narrowed.ambient == ambient
                && narrowed.addresses.iter().any(|own| own.to_canonical() == ip)
                && named(narrowed)
        })
    }

    /// The longest prefix, with the origin of the widest one that says this of the address: the
    /// narrower ones only repeat it.
    fn range(&self, kind: u32) -> Option<Found> {
        let (key, value) = self.live.longest(self.who.policy, self.packet.dst)?;
        // A wide prefix of IPv6 covers every mapped address and says nothing about them.
        let family = if self.packet.dst.is_v4() { RangeKey::bits(true, 0) } else { 0 };
        let mut wider = self.live.covering(self.who.policy, self.packet.dst);
        let source = wider.find(|((bits, _), range)| *bits >= family && range.has(kind));
        let source = source.map_or(key, |(key, _)| key);
        Some(Found {
            text: format!("RANGES[{}, {}] = {}", self.policy(), prefix(*key), kinds(value.kinds)),
            origin: self.desired.origins.ranges.get(source).map(ToString::to_string),
        })
    }

    fn redirect(&self) -> Option<Found> {
        let redirection = self.redirection?;
        let family = if self.packet.dst.is_v4() { "IPv4" } else { "IPv6" };
        Some(Found {
            text: format!(
                "REDIRECTS[{}, tcp {}, {family}] = {}",
                self.policy(),
                self.packet.dst_port,
                redirection.addresses()
            ),
            origin: self.desired.origins.policies.get(&self.who.policy).map(ToString::to_string),
        })
    }

    fn exception(&self) -> Option<Found> {
        let (key, value) = self.live.longest(self.who.policy, self.packet.dst)?;
        let Packet { protocol, dst_port, .. } = *self.packet;
        let keys = [(protocol, dst_port), (protocol, 0), (0, 0)];
        let keys = keys.map(|(protocol, port)| ExceptionKey::new(value.exceptions, protocol, port));
        let in_force = |key: &ExceptionKey| {
            let exception = self.live.exceptions.get(key)?;
            let left = exception.expires.checked_sub(self.now).filter(|left| *left > 0)?;
            Some((*key, left / 1_000_000_000))
        };
        let (found, seconds) = keys.iter().find_map(in_force)?;
        Some(Found {
            text: format!(
                "EXCEPTIONS[{}, {}] = in force for another {seconds} s",
                self.policy(),
                prefix(*key)
            ),
            origin: self.desired.origins.exceptions.get(&found).map(ToString::to_string),
        })
    }

    /// The pod's own entry says that nobody judges it.
    fn identity(&self) -> Option<Found> {
        let place = match (self.pod.ifindex, self.pod.cgroup) {
            (Some(ifindex), _) => format!("INTERFACES[{ifindex}]"),
            (None, Some(cgroup)) => format!("PODS[{cgroup}]"),
            (None, None) => return None,
        };
        Some(Found {
            text: format!("{place} = pod {}, {}", self.pod.pod, self.policy()),
            origin: None,
        })
    }

    fn policy(&self) -> String {
        match self.desired.origins.policies.get(&self.who.policy) {
            Some(origin) => format!("policy {}", origin.name),
            None if self.who.policy == PolicyId::NONE => "no policy".to_owned(),
            None => format!("policy number {:#x}", self.who.policy.0),
        }
    }
}

pub(super) fn protocol_name(number: u8) -> &'static str {
    match number {
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        _ => "icmp",
    }
}

fn prefix((bits, RangeKey { addr, .. }): (u32, RangeKey)) -> String {
    let v4 = RangeKey::bits(true, 0);
    let length =
        if addr.is_v4() && bits >= v4 { bits - v4 } else { bits - RangeKey::bits(false, 0) };
    format!("{addr}/{length}")
}

fn kinds(kinds: u32) -> String {
    let names = [
        (range::CLUSTER, "cluster"),
        (range::NODE, "node"),
        (range::METADATA, "metadata"),
        (range::MESH_VIP, "mesh_vip"),
        (range::INBOUND, "inbound"),
    ];
    let set: Vec<&str> =
        names.iter().filter(|(bit, _)| kinds & bit != 0).map(|(_, name)| *name).collect();
    set.join("+")
}
