//! Prefixes, each with everything that is true of it.
//!
//! The kernel's trie returns only the longest match, so every prefix carries the union of the
//! kinds of all prefixes that cover it, and the exceptions of all of them. Exception sets are
//! numbered by their content and never change under a number: a prefix can only point at the set
//! it was compiled with, or at one that is not there yet and allows nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_common::Addr;
use egress_common::key::{ExceptionKey, PolicyId, RangeKey};
use egress_common::state::{Exception, Range, range};
use ipnet::{IpNet, Ipv4Net};

use super::configured;
use super::facts::{Facts, canonical, host};
use super::identity::Variant;
use crate::policy::tables::masked;
use crate::policy::{Desired, EgressException, NodeState, Origin, Problem, ProblemCode};

/// Addresses ambient's probes are rewritten to (Istio's defaults).
const AMBIENT_PROBES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 7, 127)),
    IpAddr::V6(Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff)),
];

/// Everything IPv4.
const ALL_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));

/// What is true of one prefix by itself.
struct Own<'a> {
    kinds: u32,
    /// Kinds that nothing inside has, whatever another prefix says.
    barred: u32,
    exceptions: Vec<&'a EgressException>,
    origin: Origin,
}

/// Adds the prefixes of one variant under its number.
pub(super) fn add(
    id: PolicyId,
    variant: &Variant<'_>,
    facts: &Facts<'_>,
    node: &NodeState,
    desired: &mut Desired,
) {
    let prefixes = collect(variant, facts, node, desired);
    enter(id, &prefixes, node, desired);
}

/// Pods nobody knows yet may answer what any pod may answer, and look for neighbours in the cluster.
pub(super) fn add_remotes_of_unknown_pods(
    facts: &Facts<'_>,
    node: &NodeState,
    desired: &mut Desired,
) {
    let mut prefixes = Prefixes(BTreeMap::new());
    for net in facts.auto_ranges() {
        prefixes.mark(*net, range::CLUSTER | range::INBOUND, &configured("cluster ranges"));
    }
    for net in &facts.nodes {
        prefixes.mark(*net, range::NODE, &configured("node addresses"));
    }
    prefixes.mark_remotes(facts);
    prefixes.bar_services(facts);
    enter(PolicyId::NONE, &prefixes.0, node, desired);
}

/// Enters prefixes under a number, each with everything that its wider ones say.
fn enter(
    id: PolicyId,
    prefixes: &BTreeMap<IpNet, Own<'_>>,
    node: &NodeState,
    desired: &mut Desired,
) {
    for (net, own) in prefixes {
        let covering = || supernets(*net).filter_map(|net| prefixes.get(&net));
        let kinds = covering().fold(0, |kinds, own| kinds | own.kinds)
            & !covering().fold(0, |barred, own| barred | own.barred);
        let exceptions: Vec<&EgressException> =
            covering().flat_map(|own| &own.exceptions).copied().collect();
        let exceptions = exception_set(&exceptions, node, desired);
        let key = trie_key(id, *net);
        desired.tables.ranges.insert(key, Range { kinds, exceptions });
        desired.origins.ranges.insert(key, own.origin.clone());
    }
}

fn collect<'a>(
    variant: &Variant<'a>,
    facts: &Facts<'_>,
    node: &NodeState,
    desired: &mut Desired,
) -> BTreeMap<IpNet, Own<'a>> {
    let policy = variant.policy;
    let mut prefixes = Prefixes(BTreeMap::new());
    let ranges = facts.ranges(policy);
    if ranges.is_empty() {
        desired.problems.push(Problem {
            code: ProblemCode::ClusterRangesUnknown,
            origin: policy.origin.clone(),
            message: "no cluster range is known, so nothing in the cluster but exact entries may \
                      be reached: set cluster.ranges in the agent's configuration or \
                      spec.clusterRanges"
                .to_owned(),
        });
    }
    let from = match policy.cluster_ranges {
        Some(_) => policy.origin.clone(),
        None => configured("cluster ranges"),
    };
    for net in ranges {
        prefixes.mark(net, range::CLUSTER | range::INBOUND, &from);
    }
    for net in &facts.nodes {
        prefixes.mark(*net, range::NODE, &configured("node addresses"));
    }
    for ip in &node.addresses {
        prefixes.mark(host(*ip), range::THIS_NODE, &configured("this node's addresses"));
    }
    // On a bridge the node has an address among those of its pods, behind which all its ports are.
    let doors = node.addresses.iter().filter(|ip| !facts.pod_ips.contains(*ip));
    for ip in doors {
        prefixes.mark(host(*ip), range::NODE, &configured("this node's addresses"));
    }
    prefixes.mark_remotes(facts);
    let cluster = facts.cluster;
    for ip in &cluster.metadata_addresses {
        prefixes.mark(host(*ip), range::METADATA, &configured("cluster.metadataAddresses"));
    }
    for net in &cluster.mesh_vip_ranges {
        prefixes.mark(*net, range::MESH_VIP, &configured("cluster.meshVipRanges"));
    }
    for net in &policy.inbound_ranges {
        prefixes.mark(*net, range::INBOUND, &policy.origin);
    }
    for exception in &variant.exceptions {
        prefixes.mark(exception.cidr, 0, &exception.origin).exceptions.push(exception);
    }
    prefixes.bar_services(facts);
    // The trie holds IPv4 as a corner of IPv6: a prefix of IPv6 wide enough to cover it says
    // nothing about IPv4.
    if prefixes.0.keys().any(covers_all_v4) {
        prefixes.mark(ALL_V4, 0, &configured("all of IPv4"));
    }
    prefixes.0
}

struct Prefixes<'a>(BTreeMap<IpNet, Own<'a>>);

impl<'a> Prefixes<'a> {
    /// Remotes whose connections any pod may answer, whatever governs it.
    fn mark_remotes(&mut self, facts: &Facts<'_>) {
        for net in &facts.nodes {
            self.mark(*net, range::INBOUND, &configured("node addresses"));
        }
        for net in &facts.cluster.inbound_ranges {
            self.mark(*net, range::INBOUND, &configured("cluster.inboundRanges"));
        }
        for ip in AMBIENT_PROBES {
            self.mark(host(ip), range::INBOUND, &configured("ambient probes"));
        }
    }

    /// No remote has a Service's address: only answers carry one, to what the pod itself sent there.
    /// A flow opened "from" it would be the pod's own way to wherever the Service leads next.
    fn bar_services(&mut self, facts: &Facts<'_>) {
        let ranges = &facts.snapshot.service_ranges;
        for net in ranges {
            self.mark(*net, 0, &configured("service ranges")).barred |= range::INBOUND;
        }
        for service in facts.snapshot.services.values() {
            for net in service.cluster_ips.iter().map(|ip| host(*ip)) {
                let known = ranges.iter().any(|range| canonical(*range).contains(&net));
                let answered = |net| {
                    self.0.get(&net).is_some_and(|own: &Own<'_>| own.kinds & range::INBOUND != 0)
                };
                if !known && supernets(net).any(answered) {
                    self.mark(net, 0, &service.origin).barred |= range::INBOUND;
                }
            }
        }
    }

    fn mark(&mut self, net: IpNet, kinds: u32, origin: &Origin) -> &mut Own<'a> {
        let new = || Own { kinds: 0, barred: 0, exceptions: Vec::new(), origin: origin.clone() };
        let own = self.0.entry(canonical(net)).or_insert_with(new);
        own.kinds |= kinds;
        own
    }
}

/// Whether the trie would find this prefix of IPv6 for every address of IPv4.
fn covers_all_v4(net: &IpNet) -> bool {
    match net {
        IpNet::V4(_) => false,
        IpNet::V6(net) => net.contains(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()),
    }
}

/// The prefix itself and every wider one of its family.
fn supernets(net: IpNet) -> impl Iterator<Item = IpNet> {
    (0..=net.prefix_len()).filter_map(move |len| Some(IpNet::new(net.addr(), len).ok()?.trunc()))
}

fn trie_key(policy: PolicyId, net: IpNet) -> (u32, RangeKey) {
    let bits = RangeKey::bits(net.addr().is_ipv4(), net.prefix_len());
    let addr = masked(Addr::from(net.addr()).octets(), bits - 32);
    (bits, RangeKey { policy, addr })
}

/// Writes the entries of a set and returns its number; zero for none.
fn exception_set(exceptions: &[&EgressException], node: &NodeState, desired: &mut Desired) -> u32 {
    let mut entries: BTreeMap<(u8, u16), &EgressException> = BTreeMap::new();
    for exception in exceptions {
        let anything = [(0, 0)];
        let ports = if exception.ports.is_empty() { &anything[..] } else { &exception.ports };
        for port in ports {
            let latest = entries.entry(*port).or_insert(exception);
            if latest.expires_at < exception.expires_at {
                *latest = exception;
            }
        }
    }
    if entries.is_empty() {
        return 0;
    }
    // Absolute times, because the boot clock's distance to them is measured anew every time.
    let mut content = String::new();
    for ((protocol, port), exception) in &entries {
        // Writing to a string cannot fail.
        let _ = write!(content, "{protocol}:{port}:{}:{};", exception.expires_at, exception.name);
    }
    // The hash that names policies; it is never zero.
    let PolicyId(set) = PolicyId::of(&content);
    let wanted: BTreeMap<ExceptionKey, (Exception, &Origin)> = entries
        .iter()
        .map(|((protocol, port), exception)| {
            let expires = boot_time(exception.expires_at, node.boot_epoch);
            let key = ExceptionKey::new(set, *protocol, *port);
            (key, (Exception { expires }, &exception.origin))
        })
        .collect();
    let known = desired.origins.exceptions.range(ExceptionKey::new(set, 0, 0)..);
    let known: Vec<_> = known.take_while(|(key, _)| key.set() == set).collect();
    let same = known.iter().copied().eq(wanted.iter().map(|(key, (_, origin))| (key, *origin)));
    if !known.is_empty() && !same {
        desired.problems.extend(entries.values().map(|exception| Problem {
            code: ProblemCode::IdentityCollision,
            origin: exception.origin.clone(),
            message: format!(
                "its ports have the number {set:#x}, which is taken; it is not in force: rename it"
            ),
        }));
        return 0;
    }
    for (key, (exception, origin)) in wanted {
        desired.tables.exceptions.insert(key, exception);
        desired.origins.exceptions.insert(key, origin.clone());
    }
    set
}

/// An absolute time on the kernel's boot clock; zero, which is never in force, for one before the
/// boot.
fn boot_time(seconds: i64, boot_epoch: i128) -> u64 {
    let nanos = i128::from(seconds) * 1_000_000_000 + boot_epoch;
    u64::try_from(nanos.max(0)).unwrap_or(u64::MAX)
}
