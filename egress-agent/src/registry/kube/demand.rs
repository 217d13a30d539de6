//! What must be watched: as much as the compiler reads for these policies, and no more.
//!
//! A few watches stand always; the others follow from the policies, and some of those from the
//! Services that the first ones found. Pure: the same objects always ask for the same watches.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::policy::mesh::ISTIO_NAMESPACE;
use crate::policy::well_known::{
    API_SERVER, DNS_NAMESPACE, GATEWAY_NAME_LABEL, ISTIOD_LABEL, is_cluster_dns, is_istiod,
};
use crate::policy::{EgressPolicy, GatewayTarget, Service};
use crate::registry::object::Kind;

/// Label with the name of a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// One list that is kept in step with the server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Watch {
    /// Of which kind.
    pub(super) kind: Kind,
    /// In which namespace; all of them, or none, where absent.
    pub(super) namespace: Option<String>,
    /// Which of the objects there.
    pub(super) select: Select,
}

/// Which objects a watch selects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Select {
    /// Every one.
    All,
    /// The one of this name.
    Name(String),
    /// Pods of this node.
    Node(String),
    /// Pods that run as this service account.
    Account(String),
    /// Those with all of these labels; their owner may change the labels at any time.
    Labels(BTreeMap<String, String>),
}

impl Watch {
    fn all(kind: Kind) -> Self {
        Self { kind, namespace: None, select: Select::All }
    }

    fn within(kind: Kind, namespace: &str, select: Select) -> Self {
        Self { kind, namespace: Some(namespace.to_owned()), select }
    }

    /// The slices of a Service.
    fn slices(namespace: &str, service: &str) -> Self {
        Self::within(Kind::EndpointSlice, namespace, label(SERVICE_NAME, service))
    }

    /// The field selector; empty for none.
    pub(super) fn fields(&self) -> String {
        match &self.select {
            Select::All | Select::Labels(_) => String::new(),
            Select::Name(name) => format!("metadata.name={name}"),
            Select::Node(node) => format!("spec.nodeName={node}"),
            Select::Account(account) => format!("spec.serviceAccountName={account}"),
        }
    }

    /// The label selector; empty for none.
    pub(super) fn labels(&self) -> String {
        match &self.select {
            Select::All | Select::Name(_) | Select::Node(_) | Select::Account(_) => String::new(),
            Select::Labels(labels) => {
                let pairs: Vec<String> =
                    labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                pairs.join(",")
            }
        }
    }

    /// Whether an object that leaves the list is gone for good: what it is selected by cannot be
    /// changed while it exists.
    pub(super) const fn only_loses_deleted(&self) -> bool {
        match &self.select {
            Select::All | Select::Name(_) | Select::Node(_) | Select::Account(_) => true,
            Select::Labels(_) => false,
        }
    }
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (fields, labels) = (self.fields(), self.labels());
        match &self.namespace {
            Some(namespace) => write!(f, "namespace {namespace}")?,
            None => f.write_str("cluster")?,
        }
        [fields, labels]
            .iter()
            .filter(|text| !text.is_empty())
            .try_for_each(|text| write!(f, ", {text}"))
    }
}

fn label(key: &str, value: &str) -> Select {
    Select::Labels(BTreeMap::from([(key.to_owned(), value.to_owned())]))
}

/// What is watched whatever the policies say. The match names every kind, so that a new one must
/// be thought about.
pub(super) fn standing(node: &str) -> BTreeSet<Watch> {
    let watch = |kind: Kind| match kind {
        Kind::Pod => Some(Watch { kind, namespace: None, select: Select::Node(node.to_owned()) }),
        // Which of them matter is for the policies to say.
        Kind::Service | Kind::EndpointSlice | Kind::ApiGateway => None,
        // The mesh's own configuration is among them; what else is there is not read.
        Kind::ConfigMap => Some(Watch::within(kind, ISTIO_NAMESPACE, Select::All)),
        Kind::Namespace
        | Kind::Node
        | Kind::ServiceCidr
        | Kind::ServiceEntry
        | Kind::Gateway
        | Kind::VirtualService
        | Kind::DestinationRule
        | Kind::Sidecar
        | Kind::AuthorizationPolicy
        | Kind::EgressPolicy
        | Kind::EgressException => Some(Watch::all(kind)),
    };
    Kind::ALL.iter().filter_map(|kind| watch(*kind)).collect()
}

/// What one policy needs, as far as these Services tell. Where a Service is itself among what
/// the policy needs, the answer grows once it is listed.
pub(super) fn needs<'a>(
    policy: &EgressPolicy,
    services: impl Iterator<Item = &'a Service> + Clone,
) -> BTreeSet<Watch> {
    let mut needs = BTreeSet::new();
    let slices = |service: &Service| Watch::slices(&service.name.namespace, &service.name.name);
    // Those a Service selects, whoever they run as: one that does not belong there is to be named.
    let selected = |service: &Service| {
        let labels = Select::Labels(service.selector.clone());
        let pods = Watch::within(Kind::Pod, &service.name.namespace, labels);
        (!service.selector.is_empty()).then_some(pods)
    };
    for gateway in &policy.gateways {
        let namespace = &*gateway.namespace;
        let account = Select::Account(gateway.service_account.clone());
        needs.insert(Watch::within(Kind::Pod, namespace, account));
        match &gateway.target {
            GatewayTarget::Service(name) => {
                needs.insert(Watch::within(Kind::Service, namespace, Select::Name(name.clone())));
                needs.insert(Watch::slices(namespace, name));
                let itself = services.clone().find(|service| {
                    service.name.namespace == namespace && service.name.name == *name
                });
                needs.extend(itself.and_then(selected));
            }
            GatewayTarget::Gateway(name) => {
                let itself = Select::Name(name.clone());
                needs.insert(Watch::within(Kind::ApiGateway, namespace, itself));
                let named = label(GATEWAY_NAME_LABEL, name);
                needs.insert(Watch::within(Kind::Service, namespace, named));
                let its = services.clone().filter(|service| {
                    service.name.namespace == namespace
                        && service.labels.get(GATEWAY_NAME_LABEL) == Some(name)
                });
                needs.extend(its.clone().map(slices));
                needs.extend(its.filter_map(selected));
            }
            GatewayTarget::Pods { .. } => {}
        }
    }
    if policy.resolvers.is_none() {
        // Few, and which of them is the one is told by names and labels both.
        needs.insert(Watch::within(Kind::Service, DNS_NAMESPACE, Select::All));
        for service in services.clone().filter(|service| is_cluster_dns(service)) {
            needs.insert(slices(service));
            needs.extend(selected(service));
        }
    }
    if policy.api_server {
        let (namespace, name) = API_SERVER;
        needs.insert(Watch::within(Kind::Service, namespace, Select::Name(name.to_owned())));
        needs.insert(Watch::slices(namespace, name));
    }
    if policy.istiod {
        let (key, value) = ISTIOD_LABEL;
        needs.insert(Watch::within(Kind::Service, ISTIO_NAMESPACE, label(key, value)));
        needs.extend(services.filter(|service| is_istiod(service)).map(slices));
    }
    needs
}

#[cfg(test)]
#[path = "demand_tests.rs"]
mod tests;
