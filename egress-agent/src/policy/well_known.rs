//! Services that every cluster and every mesh has under a name of its own: what `auto` resolvers
//! and the infrastructure switches of a policy stand for.
//!
//! The compiler reads these, and a registry that watches by demand asks for exactly these.

use super::Service;
use super::mesh::ISTIO_NAMESPACE;

/// Namespace of the cluster's DNS Service.
pub const DNS_NAMESPACE: &str = "kube-system";
/// Its names, and the label on which installers agree.
const DNS_NAMES: [&str; 2] = ["kube-dns", "coredns"];
const DNS_LABEL: (&str, &str) = ("k8s-app", "kube-dns");

/// Namespace and name of the API server's own Service.
pub const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// Label of every revision's control plane Service in Istio's root namespace.
pub const ISTIOD_LABEL: (&str, &str) = ("app", "istiod");

/// Label Istio puts on the Service of a Gateway API Gateway; the value is the Gateway's name.
pub const GATEWAY_NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// Whether this is the cluster's DNS Service, or one of them.
pub fn is_cluster_dns(service: &Service) -> bool {
    service.name.namespace == DNS_NAMESPACE
        && (DNS_NAMES.contains(&service.name.name.as_str()) || is_labelled(service, DNS_LABEL))
}

/// Whether this is a control plane of the mesh.
pub fn is_istiod(service: &Service) -> bool {
    service.name.namespace == ISTIO_NAMESPACE && is_labelled(service, ISTIOD_LABEL)
}

fn is_labelled(service: &Service, (key, value): (&str, &str)) -> bool {
    service.labels.get(key).is_some_and(|label| label == value)
}
