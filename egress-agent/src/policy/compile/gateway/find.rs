//! What one reference stands for.

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;
use std::net::IpAddr;

use egress_common::packet::protocol;
use egress_common::state::Capture;

use super::owner::{Owners, belongs};
use super::{Endpoint, GATEWAY_NAME_LABEL, Resolved, full_name};
use crate::policy::compile::facts::Facts;
use crate::policy::snapshot::labels_match;
use crate::policy::{
    ExactAddress, GatewayRef, GatewayTarget, ObjectName, Origin, Pod, RejectReason, Rejection,
    Service, ServicePort,
};

/// Health and readiness of Envoy; not a way out.
const STATUS_PORT: u16 = 15021;
/// Where the pods of a waypoint, and those that ztunnel captures, are really dialled.
pub(in crate::policy::compile) const HBONE_PORT: u16 = 15008;
/// Label of a waypoint's pods.
const MANAGED_LABEL: (&str, &str) = ("gateway.istio.io/managed", "istio.io-mesh-controller");

/// Finds what one reference stands for.
pub(super) struct Finder<'a> {
    facts: &'a Facts<'a>,
    owners: &'a Owners<'a>,
    gateway: &'a GatewayRef,
    pub(super) resolved: Resolved,
    /// UIDs of the pods that no policy governs because they are the gateway's.
    pub(super) exempt: BTreeSet<String>,
    pub(super) rejected: Vec<Rejection>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(
        facts: &'a Facts<'a>,
        owners: &'a Owners<'a>,
        gateway: &'a GatewayRef,
    ) -> Self {
        Self {
            facts,
            owners,
            gateway,
            resolved: Resolved::default(),
            exempt: BTreeSet::new(),
            rejected: Vec::new(),
        }
    }

    /// Whether what the reference names exists.
    pub(super) fn search(&mut self) -> bool {
        match &self.gateway.target {
            GatewayTarget::Pods { labels, ports } => {
                let named: Vec<&Pod> =
                    self.candidates().filter(|pod| labels_match(labels, &pod.labels)).collect();
                for pod in &named {
                    self.of_pod(pod, ports);
                }
                !named.is_empty()
            }
            GatewayTarget::Service(_) | GatewayTarget::Gateway(_) => {
                let services = self.services();
                for service in &services {
                    self.of_service(service);
                }
                !services.is_empty()
            }
        }
    }

    /// Pods that could be the gateway's: its namespace and service account, on the pod network.
    /// Those in quarantine are among them.
    fn candidates(&self) -> impl Iterator<Item = &'a Pod> + use<'a> {
        let gateway = self.gateway;
        self.facts.snapshot.pods.values().filter(move |pod| {
            let own = matches!(belongs(gateway, pod), Ok(()) | Err(RejectReason::Quarantined));
            own && !pod.finished
        })
    }

    /// The Services the reference is about. Whoever may write a Service may write any label on
    /// it; only the garbage collector's own reference tells whose it is.
    fn services(&mut self) -> Vec<&'a Service> {
        let snapshot = self.facts.snapshot;
        let object = |name: &String| ObjectName {
            namespace: self.gateway.namespace.clone(),
            name: name.clone(),
        };
        match &self.gateway.target {
            GatewayTarget::Service(name) => {
                snapshot.services.get(&object(name)).into_iter().collect()
            }
            GatewayTarget::Gateway(name) => {
                let Some(owner) = snapshot.mesh.api_gateways.get(&object(name)) else {
                    return Vec::new();
                };
                let labelled = snapshot.services.values().filter(|service| {
                    service.name.namespace == self.gateway.namespace
                        && service.labels.get(GATEWAY_NAME_LABEL) == Some(name)
                });
                let (owned, others): (Vec<&Service>, Vec<&Service>) =
                    labelled.partition(|service| service.gateway_owners.contains(&owner.uid));
                for service in others {
                    let subject = service.name.to_string();
                    self.reject(RejectReason::UnownedService, subject, &service.origin);
                }
                owned
            }
            GatewayTarget::Pods { .. } => Vec::new(),
        }
    }

    /// A pod that is named directly.
    fn of_pod(&mut self, pod: &Pod, ports: &[u16]) {
        self.take(pod);
        for ip in pod.ips.iter().map(IpAddr::to_canonical) {
            if self.owners.is_reserved(ip) {
                self.reject(RejectReason::ReservedAddress, ip.to_string(), &pod.origin);
                continue;
            }
            let tunnel = is_tunnelled(pod).then_some(HBONE_PORT);
            for port in ports.iter().copied().chain(tunnel) {
                let address = ExactAddress { ip, protocol: protocol::TCP, port };
                self.endpoint(address, !pod.ready, pod, None, &pod.origin);
            }
        }
    }

    fn of_service(&mut self, service: &'a Service) {
        self.resolved.services.insert(service.name.clone());
        self.resolved.addresses.extend(&service.cluster_ips);
        if !service.selector.is_empty() {
            for pod in self.candidates() {
                if labels_match(&service.selector, &pod.labels) {
                    self.take(pod);
                }
            }
        }
        let (mut clean, mut serving, mut some) = (true, false, false);
        for slice in self.facts.slices(&service.name) {
            let ports = self.ports(service, &slice.ports, &slice.origin);
            for endpoint in &slice.endpoints {
                for ip in endpoint.addresses.iter().map(IpAddr::to_canonical) {
                    let pod = match self.owners.find(self.gateway, ip, endpoint) {
                        Ok(pod) => pod,
                        Err(reason) => {
                            // Service translation sends nothing new to what does not serve, and
                            // what it sends to an address nobody has arrives nowhere.
                            let lagging =
                                reason == RejectReason::PodGone && self.owners.is_free(ip);
                            clean &= lagging || !endpoint.serving;
                            self.refuse(reason, ip, &slice.origin);
                            continue;
                        }
                    };
                    self.take(pod);
                    (serving, some) = (serving || endpoint.serving, some || pod.running);
                    let tunnel = is_tunnelled(pod).then_some(Offered {
                        protocol: protocol::TCP,
                        port: HBONE_PORT,
                        serves: None,
                    });
                    for Offered { protocol, port, serves } in ports.iter().copied().chain(tunnel) {
                        let address = ExactAddress { ip, protocol, port };
                        self.endpoint(address, !endpoint.serving, pod, serves, &slice.origin);
                    }
                }
            }
        }
        // A client without a proxy dials the Service; kube-proxy then picks any of its
        // endpoints, so every one of them must be the gateway's.
        if clean && some {
            for port in service.ports.iter().filter(|port| port.port != STATUS_PORT) {
                for ip in service.cluster_ips.iter().copied() {
                    let address = ExactAddress { ip, protocol: port.protocol, port: port.port };
                    let (serves, origin) = (BTreeSet::new(), service.origin.clone());
                    self.add(address, Endpoint { draining: !serving, pod: None, serves, origin });
                }
            }
        }
    }

    /// The ports of a slice that are the Service's: of the same name and protocol, and where the
    /// Service selects its pods and names the target's number, of that number.
    fn ports(
        &mut self,
        service: &Service,
        offered: &[ServicePort],
        origin: &Origin,
    ) -> Vec<Offered> {
        let mut taken = Vec::with_capacity(offered.len());
        for port in offered.iter().filter(|port| port.port != STATUS_PORT) {
            let leads_here = |own: &ServicePort| {
                let pinned = own.target.filter(|_| !service.selector.is_empty());
                own.name == port.name
                    && own.protocol == port.protocol
                    && pinned.is_none_or(|target| target == port.port)
            };
            if let Some(own) = service.ports.iter().find(|own| leads_here(own)) {
                let serves = Some(own.port);
                taken.push(Offered { protocol: port.protocol, port: port.port, serves });
            } else {
                let subject = format!("port {} `{}`", port.port, port.name);
                self.reject(RejectReason::UnexpectedPort, subject, origin);
            }
        }
        taken
    }

    /// Takes the pod for one of the gateway's. In quarantine it stays that, so that its addresses
    /// do not pass for any pod's, but it is not exempt any more.
    fn take(&mut self, pod: &Pod) {
        self.resolved.pods.insert(pod.uid.clone());
        self.resolved.addresses.extend(pod.ips.iter().map(IpAddr::to_canonical));
        if pod.quarantined {
            self.reject(RejectReason::Quarantined, pod.name.to_string(), &pod.origin);
        } else {
            self.exempt.insert(pod.uid.clone());
        }
    }

    /// Adds what may be dialled, unless its pod does not run yet or is in quarantine. `serves` is
    /// the Service's port that leads there.
    fn endpoint(
        &mut self,
        address: ExactAddress,
        draining: bool,
        pod: &Pod,
        serves: Option<u16>,
        origin: &Origin,
    ) {
        if pod.running && !pod.quarantined {
            let (pod, serves) = (Some(pod.name.clone()), serves.into_iter().collect());
            self.add(address, Endpoint { draining, pod, serves, origin: origin.clone() });
        }
    }

    /// Where two slices disagree, one that serves is enough.
    fn add(&mut self, address: ExactAddress, endpoint: Endpoint) {
        match self.resolved.endpoints.entry(address) {
            Entry::Vacant(slot) => {
                slot.insert(endpoint);
            }
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                known.draining &= endpoint.draining;
                known.serves.extend(endpoint.serves);
            }
        }
    }

    /// Notes a slice's address that is no endpoint.
    fn refuse(&mut self, reason: RejectReason, ip: IpAddr, origin: &Origin) {
        // The pod itself is told of, once for all its addresses and slices.
        let quarantined = (reason == RejectReason::Quarantined)
            .then(|| {
                self.candidates().find(|pod| pod.ips.iter().any(|own| own.to_canonical() == ip))
            })
            .flatten();
        match quarantined {
            Some(pod) => self.take(pod),
            None => self.reject(reason, ip.to_string(), origin),
        }
    }

    fn reject(&mut self, reason: RejectReason, subject: String, origin: &Origin) {
        let gateway = full_name(self.gateway);
        self.rejected.push(Rejection { gateway, reason, subject, origin: origin.clone() });
    }
}

/// A slice's port that is the Service's.
#[derive(Clone, Copy)]
struct Offered {
    protocol: u8,
    port: u16,
    /// The Service's own port that leads to it.
    serves: Option<u16>,
}

/// Whether the pod is dialled through the mesh's tunnel, whatever its ports are.
fn is_tunnelled(pod: &Pod) -> bool {
    let (key, value) = MANAGED_LABEL;
    pod.capture == Capture::Ambient || pod.labels.get(key).is_some_and(|managed| managed == value)
}
