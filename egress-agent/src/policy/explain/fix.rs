//! What to do about a verdict, one sentence for each reason.

use egress_common::Reason;
use egress_common::key::{ExactKey, GatewayId};
use egress_common::packet::protocol;
use egress_common::state::{Exact, Target};

use super::entry::Asked;
use crate::policy::Narrowed;
use crate::policy::classify::{Class, Classified};
use crate::policy::mesh::listen::listening;

/// The sentence.
pub(super) fn fix(asked: &Asked<'_>, reason: Reason) -> String {
    let text = match reason {
        Reason::Exempt => {
            "nothing: no policy judges this pod; select it in an EgressPolicy to change that"
        }
        Reason::Local
        | Reason::Reply
        | Reason::Resolver
        | Reason::Gateway
        | Reason::Infrastructure
        | Reason::Resolved
        | Reason::Cluster => "nothing: it is allowed",
        Reason::Redirected => return redirected(asked),
        Reason::RedirectUnavailable => {
            "give the policy's gateways a healthy endpoint of this address family for the port: see \
             gateways and problems in `egress-agent status`"
        }
        Reason::Exception => "nothing for now: it stops with the exception",
        Reason::GatewayPort => return gateway_port(asked),
        Reason::NotGateway => match asked.redirection {
            Some(later) if later.outcome.to.is_some() => {
                let to = later.gateways(asked.desired);
                return format!("nothing: in mode enforce it is redirected to {to}");
            }
            _ => return not_gateway(asked),
        },
        Reason::Unresolved => {
            "register the host in a ServiceEntry, so that what DNS answers the gateway for it is open; \
             an address without a name goes into an EgressException for the gateway's pods"
        }
        Reason::Ethertype | Reason::Malformed | Reason::Fragment => {
            "find the process that sends it: no ordinary socket does"
        }
        Reason::SpoofedSource if asked.packet.src.is_unspecified() => {
            "the pod has no address of this family: only a forged source could reach it; correct \
             status.podIPs if it should have one"
        }
        Reason::SpoofedSource => {
            "find the process that forges the source; a pod that routes for others cannot be governed"
        }
        Reason::Protocol => "use TCP or UDP through the gateway; nothing else leaves the cluster",
        Reason::Metadata => {
            "use workload identity instead of the node's metadata service; no policy can open it"
        }
        Reason::MeshVip => {
            "check the pod's proxy: the mesh should have taken this connection over inside the pod"
        }
        Reason::Tunnel => "find the process: pods have no business with a node's tunnel ports",
        Reason::HiddenExternal => {
            "the Service ends outside the cluster: declare the destination as a ServiceEntry and route \
             it through the gateway"
        }
        Reason::ForeignResolver => {
            "use the cluster's resolver, or name this one in spec.resolvers of the policy"
        }
        Reason::RateLimited => "raise the policy's rate, or find what opens so many connections",
        Reason::GatewayForbidden => return gateway_forbidden(asked),
        Reason::GatewayDraining => "retry: another endpoint of the gateway takes new connections",
        Reason::Node => "list the node's address, protocol and port in spec.nodes of the policy",
        Reason::UnknownPod => {
            "wait for the registry to name the pod, and check `egress-agent status`"
        }
        Reason::ForeignSocket => {
            "find who opened the socket: it came into the pod from another cgroup"
        }
        Reason::PolicyStale => "restart the agent: its lease has expired",
    };
    text.to_owned()
}

/// Which connections it holds for, and which not.
fn redirected(asked: &Asked<'_>) -> String {
    let to = asked.redirection.map_or_else(String::new, |to| to.gateways(asked.desired));
    format!(
        "nothing: what applications dial goes to {to}; what is sent without connect, as through a \
         raw socket, is denied as not_gateway"
    )
}

/// The object that forbids it, or nobody who named it.
fn gateway_forbidden(asked: &Asked<'_>) -> String {
    match asked.narrowed() {
        Some(Narrowed { by, why, .. }) => format!("{by} {why}, or set narrow: false in the policy"),
        None => "name this gateway in spec.gateways of the pod's policy".to_owned(),
    }
}

/// The ports that would have been right.
fn gateway_port(asked: &Asked<'_>) -> String {
    let open = |(key, entry): (&ExactKey, &Exact)| {
        let here = key.policy() == asked.who.policy && key.addr() == asked.packet.dst;
        let gateway = entry.gateway != GatewayId::NONE && entry.target == Target::Gateway.number();
        (here && gateway)
            .then(|| format!("{}/{}", key.port(), super::entry::protocol_name(key.protocol())))
    };
    let open: Vec<String> = asked.live.exact.iter().filter_map(open).collect();
    if let Some(text) = served(asked) {
        text
    } else if open.is_empty() {
        "nothing at this address may be dialled now: see the gateway's endpoints and problems in \
         `egress-agent status`"
            .to_owned()
    } else {
        format!("dial an endpoint of the gateway: here {}", open.join(", "))
    }
}

/// What an Istio Gateway makes of the number that was dialled, where it is not what is bound.
fn served(asked: &Asked<'_>) -> Option<String> {
    let (ip, port) = (asked.packet.dst.ip(), asked.packet.dst_port);
    let there = |name: &crate::policy::ObjectName| {
        let mut pods = asked.snapshot.pods.values();
        pods.any(|pod| pod.name == *name && pod.ips.iter().any(|own| own.to_canonical() == ip))
    };
    let mut servers = asked.snapshot.mesh.gateways.values().flat_map(|gateway| {
        listening(asked.snapshot, gateway).into_iter().map(move |one| (gateway, one))
    });
    let (gateway, server) = servers.find(|(_, one)| one.server == port && there(&one.pod))?;
    match server.service {
        None => Some(format!(
            "{} serves port {port}, but no Service of the gateway leads there: add the port to the \
             Service",
            gateway.origin
        )),
        Some(service) if server.target != port => Some(format!(
            "{} serves port {port} of Service {service}, which its pods have at {}: dial that",
            gateway.origin, server.target
        )),
        Some(_) => None,
    }
}

/// Declared or not: who should have taken the connection to the gateway.
fn not_gateway(asked: &Asked<'_>) -> String {
    let policy = asked.pod.policy.as_ref();
    let own = asked
        .desired
        .gateways
        .iter()
        .filter(|gateway| policy.is_some_and(|policy| gateway.policies.contains(policy)));
    let names: Vec<String> = own.map(|gateway| gateway.name.to_string()).collect();
    if names.is_empty() {
        return "name a gateway in spec.gateways of the policy, or open it for a time with an \
                EgressException"
            .to_owned();
    }
    let gateways = names.join(" or ");
    if asked.packet.protocol != protocol::TCP {
        return format!(
            "use TCP through {gateways}: the mesh carries nothing else; or open it for a time with \
             an EgressException"
        );
    }
    let Classified { class, declaration, hidden_by } = asked.classified();
    match (class, declaration) {
        (Class::Declared, Some(declared)) if declared.routed_by.is_empty() => format!(
            "{} declares it, but no VirtualService routes it: route it through {gateways}",
            declared.origin
        ),
        (Class::Declared, Some(declared)) => format!(
            "{} declares it and it is routed: this process went around its proxy; send it through \
             the mesh",
            declared.origin
        ),
        (Class::OtherNamespace, Some(declared)) => {
            let namespace = &asked.pod.pod.namespace;
            let remedy = match hidden_by {
                Some(sidecar) => format!("import it in {}", sidecar.origin),
                None => format!("export it to {namespace} with its exportTo"),
            };
            format!(
                "{} declares it, but not for namespace {namespace}: {remedy}, or declare it there, \
                 and route it through {gateways}",
                declared.origin
            )
        }
        (Class::Declared | Class::OtherNamespace | Class::Undeclared, _) => format!(
            "declare it with a ServiceEntry and route it through {gateways}, or open it for a time \
             with an EgressException"
        ),
    }
}
