//! Exact entries and what is known of whole addresses.
//!
//! Where one address and port mean several things, the verdict order's earlier line wins: hidden
//! external, resolver, gateway, infrastructure, node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egress_common::key::{Addr, AddressKey, ExactKey, PolicyId};
use egress_common::packet::protocol::{TCP, UDP};
use egress_common::state::{Exact, Target, address};
use ipnet::IpNet;

use super::Facts;
use super::gateway::slices;
use crate::policy::{Desired, EgressPolicy, ExactAddress, ObjectName, Origin, Service, Snapshot};

const DNS: u16 = 53;
/// istiod's ports for workloads: XDS and CA over TLS, and plaintext XDS.
const ISTIOD_PORTS: [u16; 2] = [15012, 15010];

/// Adds one policy's entries.
pub(super) fn add(id: PolicyId, policy: &EgressPolicy, facts: &Facts<'_>, desired: &mut Desired) {
    let mut out = Out { id, desired };
    for (address, origin) in hidden(policy, facts) {
        out.exact(address, Exact::plain(Target::HiddenExternal), &origin);
        out.bits(address.ip, address::HIDDEN_EXTERNAL);
    }
    for (address, origin) in resolvers(policy, facts.snapshot) {
        out.exact(address, Exact::plain(Target::Resolver), &origin);
    }
    for (gateway, resolved) in &facts.gateways.resolved {
        let own = policy.gateways.contains(gateway);
        for (endpoint, origin) in &resolved.endpoints {
            if own {
                let entry = Exact::gateway(gateway.id(), endpoint.draining);
                out.exact(endpoint.address, entry, origin);
            }
            let bit = if own { address::GATEWAY } else { address::FOREIGN_GATEWAY };
            out.bits(endpoint.address.ip, bit);
        }
    }
    for (address, origin) in infrastructure(policy, facts.snapshot) {
        out.exact(address, Exact::plain(Target::Infrastructure), &origin);
    }
    for address in &policy.nodes {
        out.exact(*address, Exact::plain(Target::Node), &policy.origin);
    }
}

/// Pods nobody knows yet may ask every resolver that some policy names.
pub(super) fn add_resolvers_of_unknown_pods(
    snapshot: &Snapshot,
    _: &Facts<'_>,
    desired: &mut Desired,
) {
    let mut out = Out { id: PolicyId::NONE, desired };
    for policy in snapshot.policies.values() {
        for (address, origin) in resolvers(policy, snapshot) {
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

/// Service ports that end outside the cluster: a tenant who writes a slice by hand must not turn
/// a cluster address into a way out.
fn hidden(policy: &EgressPolicy, facts: &Facts<'_>) -> Entries {
    let ranges = facts.ranges(policy);
    let inside = |ip: IpAddr| {
        let net = IpNet::from(ip);
        facts.pod_ips.contains(&ip)
            || ranges.iter().any(|range| range.contains(&net))
            || facts.nodes.iter().any(|node| node.contains(&net))
    };
    let mut hidden = Vec::new();
    for service in facts.snapshot.services.values() {
        let outside = slices(facts.snapshot, &service.name).filter(|slice| {
            slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).any(|ip| !inside(*ip))
        });
        let names: BTreeSet<&str> =
            outside.flat_map(|slice| &slice.ports).map(|port| port.name.as_str()).collect();
        for port in service.ports.iter().filter(|port| names.contains(port.name.as_str())) {
            for ip in &service.cluster_ips {
                let address = ExactAddress { ip: *ip, protocol: port.protocol, port: port.port };
                hidden.push((address, service.origin.clone()));
            }
        }
    }
    hidden
}

fn resolvers(policy: &EgressPolicy, snapshot: &Snapshot) -> Entries {
    let both = |ip: IpAddr, origin: &Origin| {
        [UDP, TCP].map(|protocol| (ExactAddress { ip, protocol, port: DNS }, origin.clone()))
    };
    if let Some(named) = &policy.resolvers {
        return named.iter().flat_map(|ip| both(*ip, &policy.origin)).collect();
    }
    let mut found = Vec::new();
    for service in snapshot.services.values().filter(|service| is_cluster_dns(service)) {
        found.extend(service.cluster_ips.iter().flat_map(|ip| both(*ip, &service.origin)));
        for slice in slices(snapshot, &service.name) {
            if slice.ports.iter().any(|port| port.port == DNS) {
                let ips = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
                found.extend(ips.flat_map(|ip| both(*ip, &slice.origin)));
            }
        }
    }
    found
}

fn is_cluster_dns(service: &Service) -> bool {
    let labelled = service.labels.get("k8s-app").is_some_and(|app| app == "kube-dns");
    let named = service.name.name == "kube-dns" || service.name.name == "coredns";
    service.name.namespace == "kube-system" && (labelled || named)
}

fn infrastructure(policy: &EgressPolicy, snapshot: &Snapshot) -> Entries {
    let mut found: Entries =
        policy.infrastructure.iter().map(|address| (*address, policy.origin.clone())).collect();
    if policy.api_server {
        let name = ObjectName { namespace: "default".to_owned(), name: "kubernetes".to_owned() };
        if let Some(service) = snapshot.services.get(&name) {
            of_service(snapshot, service, |_| true, &mut found);
        }
    }
    if policy.istiod {
        for service in snapshot.services.values() {
            let labelled = service.labels.get("app").is_some_and(|app| app == "istiod");
            if labelled && service.name.namespace == "istio-system" {
                of_service(snapshot, service, |port| ISTIOD_PORTS.contains(&port), &mut found);
            }
        }
    }
    found
}

/// A Service's own addresses and its endpoints', on the ports that are wanted.
fn of_service(
    snapshot: &Snapshot,
    service: &Service,
    wanted: impl Fn(u16) -> bool,
    found: &mut Entries,
) {
    for port in service.ports.iter().filter(|port| wanted(port.port)) {
        for ip in &service.cluster_ips {
            let address = ExactAddress { ip: *ip, protocol: port.protocol, port: port.port };
            found.push((address, service.origin.clone()));
        }
    }
    let names: BTreeSet<&str> = service
        .ports
        .iter()
        .filter(|port| wanted(port.port))
        .map(|port| port.name.as_str())
        .collect();
    for slice in slices(snapshot, &service.name) {
        for port in slice.ports.iter().filter(|port| names.contains(port.name.as_str())) {
            for ip in slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses) {
                let address = ExactAddress { ip: *ip, protocol: port.protocol, port: port.port };
                found.push((address, slice.origin.clone()));
            }
        }
    }
}
