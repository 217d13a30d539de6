//! Gateways to endpoints.
//!
//! An endpoint is an address of an endpoint slice *and* of a running pod in the same namespace
//! with the pinned service account: neither a forged label nor a poisoned slice adds one. Ports
//! come from the slices, never from a constant.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egress_common::packet::protocol;

use super::select::labels_match;
use crate::policy::{
    ExactAddress, GatewayEndpoint, GatewayRef, GatewayState, GatewayTarget, ObjectName, Origin,
    Pod, Problem, ProblemCode, Service, Slice, Snapshot,
};

/// Health and readiness of Envoy; not a way out.
const STATUS_PORT: u16 = 15021;
/// Label Istio puts on the Service of a Gateway API Gateway.
const GATEWAY_NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// Every gateway any policy names.
pub(super) struct Gateways {
    /// Endpoints by reference.
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
    pub(super) policies: Vec<String>,
    /// Endpoints with the object each came from.
    pub(super) endpoints: BTreeMap<GatewayEndpoint, Origin>,
}

impl Gateways {
    pub(super) fn resolve(snapshot: &Snapshot) -> Self {
        let mut all =
            Self { resolved: BTreeMap::new(), pods: BTreeSet::new(), problems: Vec::new() };
        for policy in snapshot.policies.values() {
            for gateway in &policy.gateways {
                if let Some(known) = all.resolved.get_mut(gateway) {
                    known.policies.push(policy.name.clone());
                    continue;
                }
                let resolved = all.endpoints(snapshot, gateway, &policy.origin);
                let policies = vec![policy.name.clone()];
                all.resolved.insert(gateway.clone(), Resolved { policies, endpoints: resolved });
            }
        }
        all
    }

    /// What status and metrics show.
    pub(super) fn states(&self) -> Vec<GatewayState> {
        let states = self.resolved.iter().map(|(gateway, resolved)| GatewayState {
            name: ObjectName { namespace: gateway.namespace.clone(), name: gateway.name() },
            id: super::number(gateway.id()),
            policies: resolved.policies.clone(),
            endpoints: resolved.endpoints.keys().cloned().collect(),
        });
        states.collect()
    }

    fn endpoints(
        &mut self,
        snapshot: &Snapshot,
        gateway: &GatewayRef,
        origin: &Origin,
    ) -> BTreeMap<GatewayEndpoint, Origin> {
        let pods: Vec<&Pod> = candidates(snapshot, gateway).collect();
        let mut endpoints = BTreeMap::new();
        let exists = match &gateway.target {
            GatewayTarget::Pods { labels, ports } => {
                let named = pods.iter().filter(|pod| labels_match(labels, &pod.labels));
                for pod in named {
                    self.pods.insert(pod.uid.clone());
                    let dialled =
                        pod.ips.iter().flat_map(|ip| ports.iter().map(move |p| (*ip, *p)));
                    for (ip, port) in dialled.filter(|_| pod.running) {
                        let address = ExactAddress { ip, protocol: protocol::TCP, port };
                        let pod_name = Some(pod.name.clone());
                        let endpoint = GatewayEndpoint { address, draining: false, pod: pod_name };
                        endpoints.insert(endpoint, pod.origin.clone());
                    }
                }
                true
            }
            GatewayTarget::Service(_) | GatewayTarget::Gateway(_) => {
                let services = services(snapshot, gateway);
                for service in &services {
                    self.of_service(snapshot, service, &pods, &mut endpoints);
                }
                !services.is_empty()
            }
        };
        let name = format!("{}/{}", gateway.namespace, gateway.name());
        if !exists {
            self.problem(
                ProblemCode::GatewayMissing,
                origin,
                format!("names gateway {name}, which does not exist; it opens nothing"),
            );
        } else if endpoints.is_empty() {
            self.problem(
                ProblemCode::GatewayEmpty,
                origin,
                format!(
                    "gateway {name} has no endpoint: no running pod of service account {} is \
                     behind it; everything that must go through it is denied",
                    gateway.service_account
                ),
            );
        }
        endpoints
    }

    fn of_service(
        &mut self,
        snapshot: &Snapshot,
        service: &Service,
        pods: &[&Pod],
        endpoints: &mut BTreeMap<GatewayEndpoint, Origin>,
    ) {
        if !service.selector.is_empty() {
            let selected = pods.iter().filter(|pod| labels_match(&service.selector, &pod.labels));
            self.pods.extend(selected.map(|pod| pod.uid.clone()));
        }
        let mut clean = true;
        for slice in slices(snapshot, &service.name) {
            for endpoint in &slice.endpoints {
                for ip in &endpoint.addresses {
                    let uid = endpoint.pod_uid.as_ref();
                    let Some(pod) = owner(pods, *ip, uid) else {
                        clean = false;
                        self.problem(
                            ProblemCode::EndpointRejected,
                            &slice.origin,
                            format!(
                                "{ip} is not the address of a running pod of gateway {} with its \
                                 service account; it is not an endpoint",
                                service.name
                            ),
                        );
                        continue;
                    };
                    self.pods.insert(pod.uid.clone());
                    let ports = slice.ports.iter().filter(|port| port.port != STATUS_PORT);
                    for port in ports {
                        let address =
                            ExactAddress { ip: *ip, protocol: port.protocol, port: port.port };
                        let pod = Some(pod.name.clone());
                        let draining = !endpoint.serving;
                        endpoints.insert(
                            GatewayEndpoint { address, draining, pod },
                            slice.origin.clone(),
                        );
                    }
                }
            }
        }
        // A client without a proxy dials the Service; kube-proxy then picks any of its
        // endpoints, so every one of them must be the gateway's.
        if clean && !endpoints.is_empty() {
            let ports = service.ports.iter().filter(|port| port.port != STATUS_PORT);
            for port in ports {
                for ip in &service.cluster_ips {
                    let address =
                        ExactAddress { ip: *ip, protocol: port.protocol, port: port.port };
                    let endpoint = GatewayEndpoint { address, draining: false, pod: None };
                    endpoints.insert(endpoint, service.origin.clone());
                }
            }
        }
    }

    fn problem(&mut self, code: ProblemCode, origin: &Origin, message: String) {
        self.problems.push(Problem { code, origin: origin.clone(), message });
    }
}

/// Pods that could be the gateway's: its namespace and service account, on the pod network.
fn candidates<'a>(
    snapshot: &'a Snapshot,
    gateway: &'a GatewayRef,
) -> impl Iterator<Item = &'a Pod> {
    snapshot.pods.values().filter(|pod| {
        pod.name.namespace == gateway.namespace
            && pod.service_account == gateway.service_account
            && !pod.finished
            && !pod.host_network
    })
}

/// The running pod an address belongs to; a target reference must agree.
fn owner<'a>(pods: &[&'a Pod], ip: IpAddr, uid: Option<&String>) -> Option<&'a Pod> {
    let named = |pod: &&&Pod| uid.is_none_or(|uid| *uid == pod.uid);
    pods.iter().filter(named).find(|pod| pod.running && pod.ips.contains(&ip)).copied()
}

fn services<'a>(snapshot: &'a Snapshot, gateway: &GatewayRef) -> Vec<&'a Service> {
    let here = snapshot.services.values().filter(|s| s.name.namespace == gateway.namespace);
    match &gateway.target {
        GatewayTarget::Service(name) => here.filter(|s| s.name.name == *name).collect(),
        GatewayTarget::Gateway(name) => {
            here.filter(|s| s.labels.get(GATEWAY_NAME_LABEL) == Some(name)).collect()
        }
        GatewayTarget::Pods { .. } => Vec::new(),
    }
}

/// Slices of a Service.
pub(super) fn slices<'a>(
    snapshot: &'a Snapshot,
    service: &'a ObjectName,
) -> impl Iterator<Item = &'a Slice> {
    snapshot
        .slices
        .iter()
        .filter(|slice| slice.name.namespace == service.namespace && slice.service == service.name)
}
