//! Exact entries and what is known of whole addresses.
//!
//! Where one address and port mean several things, the verdict order's earlier line wins: hidden
//! external, resolver, gateway, infrastructure, node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egress_common::key::{Addr, AddressKey, ExactKey, PolicyId};
use egress_common::packet::protocol::{TCP, UDP};
use egress_common::state::{Exact, Target, address};

use super::facts::Facts;
use super::gateway::{Gateways, Resolved};
use super::hidden::Suspects;
use super::identity::Variant;
use crate::policy::well_known::{API_SERVER, is_cluster_dns, is_istiod};
use crate::policy::{Desired, EgressPolicy, ExactAddress, ObjectName, Origin, Service};

const DNS: u16 = 53;
/// istiod's ports for workloads: XDS and CA over TLS, and plaintext XDS.
const ISTIOD_PORTS: [u16; 2] = [15012, 15010];

/// Adds one policy's entries under this number.
pub(super) fn add(
    id: PolicyId,
    variant: &Variant<'_>,
    facts: &Facts<'_>,
    gateways: &Gateways,
    suspects: &Suspects<'_>,
    desired: &mut Desired,
) {
    let policy = variant.policy;
    let mut out = Out { id, desired };
    let services = infrastructure_services(policy, facts);
    // What the policy names as infrastructure ends where its operator says: the API server of a
    // managed cluster is neither a pod nor a node.
    let named: BTreeSet<ExactAddress> = services.iter().map(|(address, _)| *address).collect();
    for (address, origin) in suspects.outside(&facts.ranges(policy)) {
        if !named.contains(&address) {
            out.exact(address, Exact::plain(Target::HiddenExternal), &origin);
            out.bits(address.ip, address::HIDDEN_EXTERNAL);
        }
    }
    for (address, origin) in resolvers(policy, facts) {
        out.exact(address, Exact::plain(Target::Resolver), &origin);
    }
    for (gateway, resolved) in &gateways.resolved {
        let own = policy.gateways.contains(gateway) && !variant.forbidden.contains(gateway);
        for (address, endpoint) in resolved.endpoints.iter().filter(|_| own) {
            out.exact(*address, Exact::gateway(gateway.id(), endpoint.draining), &endpoint.origin);
        }
        let bit = if own { address::GATEWAY } else { address::FOREIGN_GATEWAY };
        let led = other_ways(resolved, facts);
        for ip in resolved.addresses.iter().copied().chain(led) {
            out.bits(ip, bit);
        }
    }
    for (address, origin) in services {
        out.exact(address, Exact::plain(Target::Infrastructure), &origin);
    }
    for address in &policy.infrastructure {
        out.exact(*address, Exact::plain(Target::Infrastructure), &policy.origin);
    }
    for address in &policy.nodes {
        out.exact(*address, Exact::plain(Target::Node), &policy.origin);
    }
}

/// Addresses of other Services that lead to the gateway's pods. On this node nobody looks again after
/// their translation, so they would reach an endpoint past the policy's gateways and rates.
fn other_ways(resolved: &Resolved, facts: &Facts<'_>) -> Vec<IpAddr> {
    let services = facts.snapshot.services.values();
    let leads = |service: &&Service| {
        let slices = facts.slices(&service.name).iter();
        let mut ips = slices.flat_map(|slice| &slice.endpoints).flat_map(|one| &one.addresses);
        !resolved.services.contains(&service.name)
            && ips.any(|ip| resolved.addresses.contains(&ip.to_canonical()))
    };
    let own = |service: &Service| [&service.cluster_ips[..], &service.external_ips].concat();
    services.filter(leads).flat_map(own).collect()
}

/// Pods nobody knows yet may ask every resolver that some policy names.
pub(super) fn add_resolvers_of_unknown_pods(facts: &Facts<'_>, desired: &mut Desired) {
    let mut out = Out { id: PolicyId::NONE, desired };
    for policy in facts.snapshot.policies.values() {
        for (address, origin) in resolvers(policy, facts) {
            out.exact(address, Exact::plain(Target::Resolver), &origin);
        }
    }
}

struct Out<'a> {
    id: PolicyId,
    desired: &'a mut Desired,
}

impl Out<'_> {
    /// The first meaning of a key stays.
    fn exact(&mut self, address: ExactAddress, entry: Exact, origin: &Origin) {
        let ExactAddress { ip, protocol, port } = address;
        let key = ExactKey::new(self.id, Addr::from(ip), protocol, port);
        self.desired.tables.exact.entry(key).or_insert(entry);
        self.desired.origins.exact.entry(key).or_insert_with(|| origin.clone());
    }

    fn bits(&mut self, ip: IpAddr, bits: u32) {
        let key = AddressKey { policy: self.id, addr: Addr::from(ip) };
        *self.desired.tables.addresses.entry(key).or_insert(0) |= bits;
    }
}

type Entries = Vec<(ExactAddress, Origin)>;

fn resolvers(policy: &EgressPolicy, facts: &Facts<'_>) -> Entries {
    let both = |ip: IpAddr, origin: &Origin| {
        [UDP, TCP].map(|protocol| (ExactAddress { ip, protocol, port: DNS }, origin.clone()))
    };
    if let Some(named) = &policy.resolvers {
        return named.iter().flat_map(|ip| both(*ip, &policy.origin)).collect();
    }
    let mut found = Vec::new();
    for service in facts.snapshot.services.values().filter(|service| is_cluster_dns(service)) {
        found.extend(service.cluster_ips.iter().flat_map(|ip| both(*ip, &service.origin)));
        for slice in facts.slices(&service.name) {
            if slice.ports.iter().any(|port| port.port == DNS) {
                let ips = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
                // A slice alone opens nothing: the address must be a pod's.
                let pods = ips.map(IpAddr::to_canonical).filter(|ip| facts.pod_ips.contains(ip));
                found.extend(pods.flat_map(|ip| both(ip, &slice.origin)));
            }
        }
    }
    found
}

/// Entries of the API server's and istiod's Services, as far as the policy wants them.
fn infrastructure_services(policy: &EgressPolicy, facts: &Facts<'_>) -> Entries {
    let mut found = Vec::new();
    if policy.api_server {
        let (namespace, name) = API_SERVER;
        let name = ObjectName { namespace: namespace.to_owned(), name: name.to_owned() };
        if let Some(service) = facts.snapshot.services.get(&name) {
            of_service(facts, service, |_| true, &mut found);
        }
    }
    if policy.istiod {
        let services = facts.snapshot.services.values();
        for service in services.filter(|service| is_istiod(service)) {
            of_service(facts, service, |port| ISTIOD_PORTS.contains(&port), &mut found);
        }
    }
    found
}

/// A Service's own addresses and its endpoints', on the ports that are wanted.
fn of_service(
    facts: &Facts<'_>,
    service: &Service,
    wanted: impl Fn(u16) -> bool,
    found: &mut Entries,
) {
    let mut names = BTreeSet::new();
    for port in service.ports.iter().filter(|port| wanted(port.port)) {
        names.insert(&*port.name);
        for ip in service.cluster_ips.iter().copied() {
            let address = ExactAddress { ip, protocol: port.protocol, port: port.port };
            found.push((address, service.origin.clone()));
        }
    }
    for slice in facts.slices(&service.name) {
        for port in slice.ports.iter().filter(|port| names.contains(&*port.name)) {
            for ip in slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).copied() {
                let address = ExactAddress { ip, protocol: port.protocol, port: port.port };
                found.push((address, slice.origin.clone()));
            }
        }
    }
}
