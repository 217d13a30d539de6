//! Gateways to endpoints.
//!
//! An endpoint is an address of an endpoint slice *and* of a running pod in the same namespace
//! with the pinned service account: neither a forged label nor a poisoned slice adds one. Ports
//! come from the slices, never from a constant.
//!
//! Every address of a gateway is the gateway's whether or not it may be dialled right now, so
//! that what is no endpoint, or no longer one, is denied and does not pass as any pod's address.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egress_common::key::GatewayId;
use egress_common::packet::protocol;

use super::facts::Facts;
use super::select::labels_match;
use crate::policy::{
    ExactAddress, GatewayEndpoint, GatewayRef, GatewayState, GatewayTarget, ObjectName, Origin,
    Pod, Problem, ProblemCode, Service, SliceEndpoint,
};

/// Health and readiness of Envoy; not a way out.
const STATUS_PORT: u16 = 15021;
/// Label Istio puts on the Service of a Gateway API Gateway.
const GATEWAY_NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// Every gateway any policy names.
#[derive(Default)]
pub(super) struct Gateways {
    /// By reference.
    pub(super) resolved: BTreeMap<GatewayRef, Resolved>,
    /// UIDs of the pods that are gateways.
    pub(super) pods: BTreeSet<String>,
    /// What is wrong with them.
    pub(super) problems: Vec<Problem>,
}

/// One gateway.
#[derive(Default)]
pub(super) struct Resolved {
    /// Policies that name it.
    pub(super) policies: BTreeSet<String>,
    /// What may be dialled.
    pub(super) endpoints: BTreeMap<ExactAddress, Endpoint>,
    /// Addresses of its pods and Services.
    pub(super) addresses: BTreeSet<IpAddr>,
}

/// What is known of an endpoint.
pub(super) struct Endpoint {
    pub(super) draining: bool,
    pub(super) pod: Option<ObjectName>,
    pub(super) origin: Origin,
}

impl Gateways {
    pub(super) fn resolve(facts: &Facts<'_>) -> Self {
        let mut all = Self::default();
        let mut numbers: BTreeMap<GatewayId, ObjectName> = BTreeMap::new();
        let policies = facts.snapshot.policies.values();
        let references: BTreeSet<&GatewayRef> =
            policies.clone().flat_map(|policy| &policy.gateways).collect();
        for gateway in references {
            let name = full_name(gateway);
            let owner = numbers.entry(gateway.id()).or_insert_with(|| name.clone());
            let collision = (*owner != name).then(|| owner.clone());
            let mut found = Finder { facts, gateway, all: &mut all, resolved: Resolved::default() };
            let exists = found.search();
            let mut resolved = found.resolved;
            let (code, message) = if let Some(owner) = collision {
                resolved.endpoints.clear();
                let message = format!(
                    "gateway {name} has the same number {:#x} as gateway {owner} and is refused; \
                     it opens nothing: rename one of the two",
                    gateway.id().0
                );
                (Some(ProblemCode::IdentityCollision), message)
            } else if !exists {
                (Some(ProblemCode::GatewayMissing), missing(gateway, &name))
            } else if resolved.endpoints.is_empty() {
                let message = format!(
                    "gateway {name} has no endpoint: no running pod of service account {} is \
                     behind it, so everything that must go through it is denied; start one, or \
                     correct spec.gateways",
                    gateway.service_account
                );
                (Some(ProblemCode::GatewayEmpty), message)
            } else {
                (None, String::new())
            };
            for policy in policies.clone().filter(|policy| policy.gateways.contains(gateway)) {
                resolved.policies.insert(policy.name.clone());
                all.problems.extend(code.map(|code| Problem {
                    code,
                    origin: policy.origin.clone(),
                    message: message.clone(),
                }));
            }
            all.resolved.insert(gateway.clone(), resolved);
        }
        all
    }

    /// What status and metrics show.
    pub(super) fn states(&self) -> Vec<GatewayState> {
        let states = self.resolved.iter().map(|(gateway, resolved)| {
            let endpoints = resolved.endpoints.iter().map(|(address, endpoint)| GatewayEndpoint {
                address: *address,
                draining: endpoint.draining,
                pod: endpoint.pod.clone(),
            });
            GatewayState {
                name: full_name(gateway),
                id: gateway.id().0,
                policies: resolved.policies.iter().cloned().collect(),
                endpoints: endpoints.collect(),
            }
        });
        states.collect()
    }
}

fn full_name(gateway: &GatewayRef) -> ObjectName {
    ObjectName { namespace: gateway.namespace.clone(), name: gateway.name() }
}

fn missing(gateway: &GatewayRef, name: &ObjectName) -> String {
    let what = match &gateway.target {
        GatewayTarget::Service(service) => format!("no Service {service}"),
        GatewayTarget::Gateway(gateway) => {
            format!("no Service with the label {GATEWAY_NAME_LABEL}={gateway}")
        }
        GatewayTarget::Pods { .. } => {
            "no pod with these labels and this service account".to_owned()
        }
    };
    format!(
        "names gateway {name}, but namespace {} has {what}; it opens nothing: create it, or \
         correct spec.gateways",
        gateway.namespace
    )
}

/// Finds what one reference stands for.
struct Finder<'a> {
    facts: &'a Facts<'a>,
    gateway: &'a GatewayRef,
    all: &'a mut Gateways,
    resolved: Resolved,
}

impl Finder<'_> {
    /// Whether what the reference names exists.
    fn search(&mut self) -> bool {
        let pods = candidates(self.facts, self.gateway);
        match &self.gateway.target {
            GatewayTarget::Pods { labels, ports } => {
                let named: Vec<&Pod> =
                    pods.into_iter().filter(|pod| labels_match(labels, &pod.labels)).collect();
                for pod in &named {
                    self.take(pod);
                    for (ip, port) in
                        pod.ips.iter().flat_map(|ip| ports.iter().map(move |port| (*ip, *port)))
                    {
                        let address = ExactAddress { ip, protocol: protocol::TCP, port };
                        self.endpoint(address, false, Some(pod), &pod.origin);
                    }
                }
                !named.is_empty()
            }
            GatewayTarget::Service(_) | GatewayTarget::Gateway(_) => {
                let services = services(self.facts, self.gateway);
                for service in &services {
                    self.of_service(service, &pods);
                }
                !services.is_empty()
            }
        }
    }

    fn of_service(&mut self, service: &Service, pods: &[&Pod]) {
        self.resolved.addresses.extend(&service.cluster_ips);
        if !service.selector.is_empty() {
            for pod in pods.iter().filter(|pod| labels_match(&service.selector, &pod.labels)) {
                self.take(pod);
            }
        }
        let (mut clean, mut serving, mut some) = (true, false, false);
        for slice in self.facts.slices(&service.name) {
            for endpoint in &slice.endpoints {
                for ip in endpoint.addresses.iter().map(IpAddr::to_canonical) {
                    let Some(pod) = owner(pods, ip, endpoint) else {
                        clean = false;
                        self.reject(service, ip, &slice.origin);
                        continue;
                    };
                    self.take(pod);
                    (serving, some) = (serving || endpoint.serving, some || pod.running);
                    for port in slice.ports.iter().filter(|port| port.port != STATUS_PORT) {
                        let address = ExactAddress { ip, protocol: port.protocol, port: port.port };
                        self.endpoint(address, !endpoint.serving, Some(pod), &slice.origin);
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
                    self.endpoint(address, !serving, None, &service.origin);
                }
            }
        }
    }

    /// Takes the pod for one of the gateway's.
    fn take(&mut self, pod: &Pod) {
        self.all.pods.insert(pod.uid.clone());
        self.resolved.addresses.extend(pod.ips.iter().map(IpAddr::to_canonical));
    }

    /// Adds what may be dialled, unless its pod does not run yet. Where two slices disagree, one
    /// that serves is enough.
    fn endpoint(
        &mut self,
        address: ExactAddress,
        draining: bool,
        pod: Option<&Pod>,
        origin: &Origin,
    ) {
        if pod.is_some_and(|pod| !pod.running) {
            return;
        }
        match self.resolved.endpoints.entry(address) {
            Entry::Vacant(slot) => {
                let pod = pod.map(|pod| pod.name.clone());
                slot.insert(Endpoint { draining, pod, origin: origin.clone() });
            }
            Entry::Occupied(mut known) => known.get_mut().draining &= draining,
        }
    }

    fn reject(&mut self, service: &Service, ip: IpAddr, origin: &Origin) {
        self.all.problems.push(Problem {
            code: ProblemCode::EndpointRejected,
            origin: origin.clone(),
            message: format!(
                "{ip} is no address of a pod of namespace {} with service account {}, so it is no \
                 endpoint of gateway {}, and the Service's own address is closed with it; remove \
                 it from the slice, or correct serviceAccount in the policy",
                service.name.namespace, self.gateway.service_account, service.name
            ),
        });
    }
}

/// Pods that could be the gateway's: its namespace and service account, on the pod network.
fn candidates<'a>(facts: &Facts<'a>, gateway: &GatewayRef) -> Vec<&'a Pod> {
    let pods = facts.snapshot.pods.values().filter(|pod| {
        pod.name.namespace == gateway.namespace
            && pod.service_account == gateway.service_account
            && !pod.finished
            && !pod.host_network
    });
    pods.collect()
}

/// The pod an address belongs to; a target reference must agree.
fn owner<'a>(pods: &[&'a Pod], ip: IpAddr, endpoint: &SliceEndpoint) -> Option<&'a Pod> {
    let named = |pod: &&Pod| endpoint.pod_uid.as_ref().is_none_or(|uid| *uid == pod.uid);
    let owns = |pod: &&Pod| pod.ips.iter().any(|own| own.to_canonical() == ip);
    pods.iter().copied().filter(named).find(owns)
}

fn services<'a>(facts: &Facts<'a>, gateway: &GatewayRef) -> Vec<&'a Service> {
    let all = &facts.snapshot.services;
    match &gateway.target {
        GatewayTarget::Service(name) => {
            let namespace = gateway.namespace.clone();
            all.get(&ObjectName { namespace, name: name.clone() }).into_iter().collect()
        }
        GatewayTarget::Gateway(name) => {
            let named = |service: &&Service| {
                service.name.namespace == gateway.namespace
                    && service.labels.get(GATEWAY_NAME_LABEL) == Some(name)
            };
            all.values().filter(named).collect()
        }
        GatewayTarget::Pods { .. } => Vec::new(),
    }
}
