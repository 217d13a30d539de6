//! What to do about a verdict, one sentence for each reason.

use egress_common::Reason;
use egress_common::Subject;
use egress_common::key::{ExactKey, GatewayId};
use egress_common::state::Target;

use super::Question;
use crate::policy::{Declaration, Desired, Tables};

/// The sentence.
pub(super) fn fix(
    desired: &Desired,
    live: &Tables,
    declarations: &[Declaration],
    who: &Subject,
    question: &Question,
    reason: Reason,
) -> String {
    let text = match reason {
        Reason::Exempt => {
            "nothing: no policy judges this pod; select it in an EgressPolicy to change that"
        }
        Reason::Local
        | Reason::Reply
        | Reason::Resolver
        | Reason::Gateway
        | Reason::Infrastructure
        | Reason::Cluster => "nothing: it is allowed",
        Reason::Exception => "nothing for now: it stops with the exception",
        Reason::GatewayPort => return gateway_port(live, who, question),
        Reason::NotGateway => return not_gateway(desired, declarations, question),
        Reason::Ethertype | Reason::Malformed | Reason::Fragment => {
            "find the process that sends it: no ordinary socket does"
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
        Reason::GatewayForbidden => "name this gateway in spec.gateways of the pod's policy",
        Reason::GatewayDraining => "retry: another endpoint of the gateway takes new connections",
        Reason::Node => "list the node's address, protocol and port in spec.nodes of the policy",
        Reason::UnknownPod => {
            "wait for the registry to name the pod, and check `egress-agent status`"
        }
        Reason::PolicyStale => "restart the agent: its lease has expired",
    };
    text.to_owned()
}

/// The ports that would have been right.
fn gateway_port(live: &Tables, who: &Subject, question: &Question) -> String {
    let addr = question.ip.into();
    let endpoint = |(key, entry): (&ExactKey, &egress_common::state::Exact)| {
        let dialled = key.policy() == who.policy && key.addr() == addr;
        (dialled && entry.gateway != GatewayId::NONE && entry.target != Target::Draining.number())
            .then(|| key.port().to_string())
    };
    let ports: Vec<String> = live.exact.iter().filter_map(endpoint).collect();
    format!("dial one of the gateway's endpoints: port {} of this address", ports.join(", "))
}

/// Declared or not: who should have taken the connection to the gateway.
fn not_gateway(desired: &Desired, declarations: &[Declaration], question: &Question) -> String {
    let declares = |declaration: &&Declaration| {
        declaration.addresses.iter().any(|net| net.contains(&question.ip))
            && (declaration.ports.is_empty() || declaration.ports.contains(&question.port))
    };
    let gateways: Vec<String> =
        desired.gateways.iter().map(|gateway| gateway.name.to_string()).collect();
    let gateways = gateways.join(" or ");
    match declarations.iter().find(declares) {
        Some(declared) if declared.routed_by.is_empty() => format!(
            "{} declares it, but no VirtualService routes it: route it through {gateways}",
            declared.origin
        ),
        Some(declared) => format!(
            "{} declares it and it is routed: this process went around its proxy; send it through \
             the mesh",
            declared.origin
        ),
        None => format!(
            "declare it with a ServiceEntry and route it through {gateways}, or open it for a time \
             with an EgressException"
        ),
    }
}
