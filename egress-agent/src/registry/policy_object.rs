//! `EgressPolicy` and `EgressException`: strict where everything else is tolerant.
//!
//! An unknown field in a policy is a rule its author believes in and nobody applies, so the whole
//! object is refused and every field that is wrong is named.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egress_common::Mode;
use egress_common::state::{DenyResponse, OnAgentLoss};
use ipnet::IpNet;
use serde_json::Value;

use super::field::{AutoOr, FieldErrors, address, typed};
use super::moment;
use super::object::{Metadata, OWN_GROUP};
use super::policy_spec::{
    AddressSpec, DenyResponseText, DestinationSpec, ExceptionSpec, GatewayEgressSpec, GatewaySpec,
    InfrastructureSpec, OnAgentLossText, PolicySpec, RateLimitSpec, RateSpec, RedirectSpec,
    SelectorSpec, Whole,
};
use super::range::{self, Use};
use crate::policy::{
    ConnectionRate, EgressException, EgressPolicy, ExactAddress, GatewayRef, GatewayTarget,
    ObjectName, Origin, RedirectPort, Selector,
};

/// The version of our objects that is read.
pub(super) const VERSION: &str = "v1alpha1";

/// Types the object and checks what is common to both kinds.
fn whole<S: serde::de::DeserializeOwned>(
    value: Value,
    origin: &Origin,
) -> Result<(Metadata, S), FieldErrors> {
    if value.pointer("/spec/mode").is_some_and(Value::is_boolean) {
        return Err(FieldErrors::one(
            "spec.mode",
            "a boolean; write \"off\" in quotes: YAML 1.1 takes a bare off for false",
        ));
    }
    let version = value.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    if version != format!("{OWN_GROUP}/{VERSION}") {
        return Err(FieldErrors::one(
            "apiVersion",
            format!("`{version}` is not known for {}; write {OWN_GROUP}/{VERSION}", origin.kind),
        ));
    }
    let whole: Whole<S> = typed(value)?;
    let Whole { _api_version: _, _kind: _, metadata, spec, _status: _ } = whole;
    if !metadata.namespace.is_empty() {
        return Err(FieldErrors::one(
            "metadata.namespace",
            format!("{} is cluster-scoped; remove the namespace", origin.kind),
        ));
    }
    Ok((metadata, spec))
}

/// A valid policy.
pub(super) fn policy(
    value: Value,
    name: &ObjectName,
    origin: &Origin,
) -> Result<EgressPolicy, FieldErrors> {
    let (metadata, spec): (Metadata, PolicySpec) = whole(value, origin)?;
    let mut errors = FieldErrors::default();
    let created = match metadata.creation_timestamp.as_deref() {
        Some(text) => errors.take(moment::read("metadata.creationTimestamp", text)),
        None => None,
    };
    let selector = match spec.selector {
        Some(selector) => errors.take(selector_of("spec.selector", selector)),
        None => {
            errors.push("spec.selector", "required; write {} to select every pod");
            None
        }
    };
    let mode = match spec.mode {
        Some(text) => Some(text.mode()),
        None => {
            errors.push("spec.mode", "required: off, audit or enforce");
            None
        }
    };
    let gateways = spec.gateways.into_iter().enumerate();
    let gateways: Vec<GatewayRef> = gateways
        .filter_map(|(i, one)| errors.take(gateway(&format!("spec.gateways[{i}]"), one)))
        .collect();
    let cluster_ranges = match spec.cluster_ranges {
        AutoOr::Auto => None,
        AutoOr::List(list) => Some(all(&mut errors, "spec.clusterRanges", &list, |path, text| {
            range::read(path, text, Use::Allowed)
        })),
    };
    let resolvers = match spec.resolvers {
        AutoOr::Auto => None,
        AutoOr::List(list) => {
            Some(all(&mut errors, "spec.resolvers", &list, |path, text| dialled(path, text)))
        }
    };
    let InfrastructureSpec { api_server, istiod, addresses } = spec.infrastructure;
    let infrastructure = all(&mut errors, "spec.infrastructure.addresses", &addresses, exact);
    let nodes = all(&mut errors, "spec.nodes", &spec.nodes, exact);
    let inbound_ranges =
        all(&mut errors, "spec.inboundRanges", &spec.inbound_ranges, |path, text| {
            range::read(path, text, Use::Allowed)
        });
    let gateway_egress = match spec.gateway_egress {
        None => Mode::Off,
        Some(GatewayEgressSpec { mode: Some(text) }) if !gateways.is_empty() => text.mode(),
        Some(GatewayEgressSpec { mode: None }) => {
            errors.push("spec.gatewayEgress.mode", "required: off, audit or enforce");
            Mode::Off
        }
        Some(_) => {
            errors
                .push("spec.gatewayEgress", "needs a gateway to limit: name one in spec.gateways");
            Mode::Off
        }
    };
    let redirect = spec.redirect.map(|spec| redirect(spec, gateways.is_empty()));
    let redirect = redirect.and_then(|read| errors.take(read)).unwrap_or_default();
    let (pod_rate, namespace_rate) = match spec.rate_limit {
        Some(limit) => errors.take(rate_limit(limit)).unwrap_or_default(),
        None => (None, None),
    };
    let policy = selector.zip(mode).map(|(selector, mode)| EgressPolicy {
        name: name.name.clone(),
        selector,
        priority: spec.priority,
        created,
        mode,
        gateways,
        narrow: spec.narrow,
        cluster_ranges,
        resolvers,
        api_server,
        istiod,
        infrastructure,
        nodes,
        inbound_ranges,
        redirect,
        gateway_egress,
        pod_rate,
        namespace_rate,
        deny_response: match spec.deny_response {
            DenyResponseText::Reset => DenyResponse::Reset,
            DenyResponseText::Drop => DenyResponse::Drop,
        },
        host_network: spec.host_network,
        on_agent_loss: match spec.on_agent_loss {
            OnAgentLossText::Hold => OnAgentLoss::Hold,
            OnAgentLossText::DenyNew => OnAgentLoss::DenyNew,
            OnAgentLossText::Audit => OnAgentLoss::Audit,
        },
        origin: origin.clone(),
    });
    errors.finish(policy)
}

/// A valid exception.
pub(super) fn exception(
    value: Value,
    name: &ObjectName,
    origin: &Origin,
) -> Result<EgressException, FieldErrors> {
    let (_, spec): (Metadata, ExceptionSpec) = whole(value, origin)?;
    let mut errors = FieldErrors::default();
    let scope = match spec.scope {
        Some(scope) => errors.take(selector_of("spec.scope", scope)),
        None => {
            errors.push("spec.scope", "required; write {} to cover every pod");
            None
        }
    };
    let destination = match spec.destination {
        Some(destination) => errors.take(destination_of(destination)),
        None => {
            errors.push("spec.destination", "required: cidr, and ports where only some are meant");
            None
        }
    };
    let expires_at = errors.take(moment::read("spec.expiresAt", &spec.expires_at));
    for (path, text, meaning) in [
        ("spec.reason", &spec.reason, "why the exception is needed"),
        ("spec.requester", &spec.requester, "who asked for it"),
    ] {
        if text.trim().is_empty() {
            errors.push(path, format!("required: {meaning}"));
        }
    }
    let exception =
        scope.zip(destination).zip(expires_at).map(|((scope, (cidr, ports)), expires_at)| {
            EgressException {
                name: name.name.clone(),
                scope,
                cidr,
                ports,
                expires_at,
                reason: spec.reason,
                requester: spec.requester,
                origin: origin.clone(),
            }
        });
    errors.finish(exception)
}

/// Ports that line 8 of the verdict order decides on: only named resolvers are reached there.
const DNS_PORTS: [u16; 2] = [53, 853];

/// What is redirected, at least one port and none twice.
fn redirect(spec: RedirectSpec, no_gateway: bool) -> Result<Vec<RedirectPort>, FieldErrors> {
    const PATH: &str = "spec.redirect";
    let RedirectSpec { ports } = spec;
    let mut errors = FieldErrors::default();
    if no_gateway {
        errors.push(PATH, "needs a gateway to redirect to: name one in spec.gateways");
    }
    if ports.is_empty() {
        let meaning =
            "required: the TCP ports to redirect, such as [443, {port: 80, gatewayPort: 8080}]";
        errors.push(&format!("{PATH}.ports"), meaning);
    }
    let mut seen = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let path = format!("{PATH}.ports[{i}]");
        if port.port == 0 {
            errors.push(&format!("{path}.port"), "must be 1 to 65535");
        } else if DNS_PORTS.contains(&port.port) {
            let what = format!("{} is DNS, which only named resolvers get; remove it", port.port);
            errors.push(&format!("{path}.port"), what);
        } else if !seen.insert(port.port) {
            let what = format!("{} is listed twice; a port goes to one gateway port", port.port);
            errors.push(&format!("{path}.port"), what);
        }
        if port.gateway_port == Some(0) {
            let meaning = "must be 1 to 65535: the port the gateway's pods listen on";
            errors.push(&format!("{path}.gatewayPort"), meaning);
        }
    }
    let each = ports.into_iter();
    let each = each.map(|one| RedirectPort { port: one.port, gateway_port: one.gateway_port });
    errors.finish(Some(each.collect()))
}

type Rates = (Option<ConnectionRate>, Option<ConnectionRate>);

/// The rate of each pod and that of a namespace; at least one of them.
fn rate_limit(spec: RateLimitSpec) -> Result<Rates, FieldErrors> {
    const PATH: &str = "spec.rateLimit";
    let RateLimitSpec { connections_per_second, burst, namespace } = spec;
    let mut errors = FieldErrors::default();
    let pod = (connections_per_second.is_some() || burst.is_some())
        .then(|| errors.take(rate(PATH, RateSpec { connections_per_second, burst })));
    let namespace =
        namespace.map(|namespace| errors.take(rate(&format!("{PATH}.namespace"), namespace)));
    if pod.is_none() && namespace.is_none() {
        errors.push(PATH, "is empty: give connectionsPerSecond, namespace or both");
    }
    errors.finish(Some((pod.flatten(), namespace.flatten())))
}

fn rate(path: &str, spec: RateSpec) -> Result<ConnectionRate, FieldErrors> {
    const ALLOWED: std::ops::RangeInclusive<u32> = 1..=1_000_000;
    let mut errors = FieldErrors::default();
    let per_second = spec.connections_per_second.unwrap_or_default();
    // One second's worth at once, unless it is said otherwise.
    let burst = spec.burst.unwrap_or(per_second);
    if spec.connections_per_second.is_none() {
        errors.push(&format!("{path}.connectionsPerSecond"), "required: 1 to 1000000");
    } else if !ALLOWED.contains(&per_second) {
        errors.push(&format!("{path}.connectionsPerSecond"), "must be 1 to 1000000");
    }
    if spec.burst.is_some() && !ALLOWED.contains(&burst) {
        errors.push(&format!("{path}.burst"), "must be 1 to 1000000");
    }
    errors.finish(Some(ConnectionRate { per_second, burst }))
}

fn all<S, T>(
    errors: &mut FieldErrors,
    path: &str,
    list: &[S],
    read: impl Fn(&str, &S) -> Result<T, FieldErrors>,
) -> Vec<T> {
    let each = list.iter().enumerate();
    each.filter_map(|(i, one)| errors.take(read(&format!("{path}[{i}]"), one))).collect()
}

fn selector_of(path: &str, spec: SelectorSpec) -> Result<Selector, FieldErrors> {
    if let Some(i) = spec.namespaces.iter().position(String::is_empty) {
        return Err(FieldErrors::one(&format!("{path}.namespaces[{i}]"), "is empty"));
    }
    Ok(Selector {
        namespaces: spec.namespaces,
        namespace_labels: spec.namespace_selector.match_labels,
        pod_labels: spec.pod_selector.match_labels,
    })
}

fn gateway(path: &str, spec: GatewaySpec) -> Result<GatewayRef, FieldErrors> {
    let GatewaySpec { namespace, service, gateway, pod_selector, ports, service_account } = spec;
    let mut errors = FieldErrors::default();
    if namespace.is_empty() {
        errors.push(&format!("{path}.namespace"), "required: the gateway's namespace");
    }
    if service_account.is_empty() {
        errors.push(
            &format!("{path}.serviceAccount"),
            "required: the service account its pods run as, which no label can forge",
        );
    }
    if pod_selector.is_none() && !ports.is_empty() {
        errors.push(
            &format!("{path}.ports"),
            "only for podSelector; a Service's ports come from its endpoint slices",
        );
    }
    let named = |name: &String| !name.is_empty();
    let target = match (service, gateway, pod_selector) {
        (Some(service), None, None) if named(&service) => Some(GatewayTarget::Service(service)),
        (None, Some(gateway), None) if named(&gateway) => Some(GatewayTarget::Gateway(gateway)),
        (None, None, Some(selector)) => {
            if selector.match_labels.is_empty() {
                errors.push(
                    &format!("{path}.podSelector.matchLabels"),
                    "required: an empty selector would trust every pod of the namespace",
                );
            }
            if ports.is_empty() || ports.contains(&0) {
                let meaning = "required with podSelector: the TCP ports to dial, 1 to 65535";
                errors.push(&format!("{path}.ports"), meaning);
            }
            Some(GatewayTarget::Pods { labels: selector.match_labels, ports })
        }
        _ => {
            errors.push(path, "exactly one of service, gateway and podSelector is required");
            None
        }
    };
    errors.finish(target.map(|target| GatewayRef { namespace, target, service_account }))
}

fn exact(path: &str, spec: &AddressSpec) -> Result<ExactAddress, FieldErrors> {
    let mut errors = FieldErrors::default();
    if spec.port == 0 {
        errors.push(&format!("{path}.port"), "must be 1 to 65535");
    }
    let ip = errors.take(dialled(&format!("{path}.ip"), &spec.ip));
    let (protocol, port) = (spec.protocol.number(), spec.port);
    errors.finish(ip.map(|ip| ExactAddress { ip, protocol, port }))
}

/// An address that something may be sent to.
fn dialled(path: &str, text: &str) -> Result<IpAddr, FieldErrors> {
    if text.parse::<std::net::Ipv6Addr>().is_ok_and(|ip| ip.to_ipv4_mapped().is_some()) {
        let ip = address(path, text)?;
        return Err(FieldErrors::one(path, format!("`{text}` is IPv4-mapped; write {ip}")));
    }
    let ip = address(path, text)?;
    if ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() {
        let what = format!("`{ip}` is a loopback, multicast or unspecified address");
        return Err(FieldErrors::one(path, what));
    }
    Ok(ip)
}

type Destination = (IpNet, Vec<(u8, u16)>);

fn destination_of(spec: DestinationSpec) -> Result<Destination, FieldErrors> {
    let mut errors = FieldErrors::default();
    let cidr = errors.take(range::read("spec.destination.cidr", &spec.cidr, Use::Excepted));
    let ports =
        all(&mut errors, "spec.destination.ports", &spec.ports, |path, port| match port.port {
            Some(0) => Err(FieldErrors::one(
                &format!("{path}.port"),
                "must be 1 to 65535; leave it out for every port of the protocol",
            )),
            one => Ok((port.protocol.number(), one.unwrap_or(0))),
        });
    errors.finish(cidr.map(|cidr| (cidr, ports)))
}
