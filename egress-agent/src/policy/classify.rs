//! What the mesh says of a destination outside: declared, and for whom.
//!
//! One function for events, `explain` and whatever checks manifests. It only names things: no
//! verdict depends on it, and nothing it returns reaches the kernel.

use std::cmp::Reverse;
use std::net::IpAddr;

use egress_common::Reason;
use egress_common::state::Capture;
use serde::Serialize;

use super::mesh::Sidecar;
use super::mesh::host::covers;
use super::mesh::scope::{Client, is_exported};
use super::{Declaration, Snapshot};

/// A destination as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination<'a> {
    /// The name it was looked up by, where that is known.
    pub host: Option<&'a str>,
    /// The address, where there is one.
    pub ip: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

/// What the mesh's declarations say of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// A ServiceEntry that the asking pod's namespace can see declares it.
    Declared,
    /// One declares it, and is not exported to that namespace or not imported there.
    OtherNamespace,
    /// None declares it.
    Undeclared,
}

impl Class {
    /// The word in events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::OtherNamespace => "other_namespace",
            Self::Undeclared => "undeclared",
        }
    }
}

/// The answer, with what it rests on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Classified<'a> {
    /// The class.
    pub class: Class,
    /// The ServiceEntry that declares it, visible or not.
    pub declaration: Option<&'a Declaration>,
    /// The Sidecar that does not import it, where it is exported.
    pub hidden_by: Option<&'a Sidecar>,
}

/// Whether a verdict with this reason is about a destination outside, of which the mesh may say
/// something; everything else is about the packet, or about what the cluster itself has.
pub const fn is_outside(reason: Reason) -> bool {
    match reason {
        Reason::NotGateway
        | Reason::Exception
        | Reason::ForeignResolver
        | Reason::Redirected
        | Reason::RedirectUnavailable
        | Reason::Resolved
        | Reason::Unresolved => true,
        Reason::Exempt
        | Reason::Local
        | Reason::Reply
        | Reason::Resolver
        | Reason::Gateway
        | Reason::Infrastructure
        | Reason::Cluster
        | Reason::Ethertype
        | Reason::Malformed
        | Reason::Fragment
        | Reason::SpoofedSource
        | Reason::Protocol
        | Reason::Metadata
        | Reason::MeshVip
        | Reason::Tunnel
        | Reason::HiddenExternal
        | Reason::GatewayPort
        | Reason::GatewayForbidden
        | Reason::GatewayDraining
        | Reason::RateLimited
        | Reason::Node
        | Reason::UnknownPod
        | Reason::PolicyStale
        | Reason::ForeignSocket => false,
    }
}

/// Whether a declaration can be seen.
#[derive(Clone, Copy)]
enum Visibility<'a> {
    Seen,
    NotExported,
    NotImported(&'a Sidecar),
}

/// Classifies a destination for a pod. Of several declarations one that can be seen wins, then
/// one of the pod's own namespace, then the longest prefix, then the first by name.
pub fn classify<'a>(
    snapshot: &'a Snapshot,
    client: &Client<'_>,
    destination: &Destination<'_>,
) -> Classified<'a> {
    // What the cluster itself has given away nobody else can declare.
    let foreign = destination.ip.filter(|ip| !is_inside(snapshot, *ip));
    let destination = Destination { ip: foreign, ..*destination };
    let matching = snapshot.declarations.iter().filter_map(|declaration| {
        let prefix = declares(declaration, &destination)?;
        let visibility = visibility(snapshot, client, declaration, &destination);
        let seen = matches!(visibility, Visibility::Seen);
        let own = declaration.name.namespace == client.namespace;
        let order = (Reverse(seen), Reverse(own), Reverse(prefix), &declaration.name);
        Some((order, declaration, visibility))
    });
    let Some((_, declaration, visibility)) = matching.min_by_key(|(order, _, _)| *order) else {
        return Classified { class: Class::Undeclared, declaration: None, hidden_by: None };
    };
    let (class, hidden_by) = match visibility {
        Visibility::Seen => (Class::Declared, None),
        Visibility::NotExported => (Class::OtherNamespace, None),
        Visibility::NotImported(sidecar) => (Class::OtherNamespace, Some(sidecar)),
    };
    Classified { class, declaration: Some(declaration), hidden_by }
}

/// How exactly a ServiceEntry declares the destination: the bits of the prefix that covers its
/// address, more than any prefix has for a name. `None` where it does not.
fn declares(declaration: &Declaration, destination: &Destination<'_>) -> Option<u8> {
    const NAMED: u8 = u8::MAX;
    if !declaration.ports.is_empty() && !declaration.ports.contains(&destination.port) {
        return None;
    }
    let named = destination
        .host
        .is_some_and(|host| declaration.hosts.iter().any(|declared| covers(declared, host)));
    if named {
        return Some(NAMED);
    }
    let ip = destination.ip?;
    let covering = declaration.addresses.iter().filter(|net| net.contains(&ip));
    covering.map(ipnet::IpNet::prefix_len).max()
}

/// Whether the asking pod's proxy would know of a declaration.
fn visibility<'a>(
    snapshot: &'a Snapshot,
    client: &Client<'_>,
    declaration: &Declaration,
    destination: &Destination<'_>,
) -> Visibility<'a> {
    // Ambient mode ignores `exportTo` as well as Sidecars.
    if client.capture == Capture::Ambient {
        return Visibility::Seen;
    }
    let from = &declaration.name.namespace;
    let config = snapshot.mesh.config(client.revision);
    if !is_exported(&declaration.export_to, &config, from, client.namespace) {
        return Visibility::NotExported;
    }
    let Some(sidecar) = snapshot.mesh.sidecar(client) else { return Visibility::Seen };
    // Where the name is known, only what declares that name counts.
    let by_name = |declared: &&String| destination.host.is_some_and(|host| covers(declared, host));
    let named = declaration.hosts.iter().any(|declared| by_name(&declared));
    let mut hosts = declaration.hosts.iter().filter(|declared| !named || by_name(declared));
    let imported =
        hosts.any(|host| sidecar.imports(client.namespace, from, host, destination.port));
    if imported { Visibility::Seen } else { Visibility::NotImported(sidecar) }
}

/// Whether a pod or a Service of the cluster has the address.
fn is_inside(snapshot: &Snapshot, ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let has = |own: &IpAddr| own.to_canonical() == ip;
    snapshot.services.values().any(|service| service.cluster_ips.iter().any(has))
        || snapshot.pods.values().any(|pod| !pod.host_network && pod.ips.iter().any(has))
}

#[cfg(test)]
mod tests;
