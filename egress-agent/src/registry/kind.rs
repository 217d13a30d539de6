//! The kinds of objects that are read, and what each of them is for.

use super::gateway_api::GATEWAY_API_GROUP;

/// Kinds that are read; all others are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Pod,
    Namespace,
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
    ServiceEntry,
    Gateway,
    VirtualService,
    DestinationRule,
    Sidecar,
    AuthorizationPolicy,
    /// A Gateway of the Gateway API, which is another kind than Istio's.
    ApiGateway,
    /// Of the mesh's configuration only, see [`is_mesh_config`](super::istio::is_mesh_config).
    ConfigMap,
    EgressPolicy,
    EgressException,
}

impl Kind {
    /// Every kind.
    pub(super) const ALL: &'static [Self] = &[
        Self::Pod,
        Self::Namespace,
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::ServiceCidr,
        Self::ServiceEntry,
        Self::Gateway,
        Self::VirtualService,
        Self::DestinationRule,
        Self::Sidecar,
        Self::AuthorizationPolicy,
        Self::ApiGateway,
        Self::ConfigMap,
        Self::EgressPolicy,
        Self::EgressException,
    ];

    /// The kind of a group and kind name; `None` for what is not read.
    pub(super) fn of(group: &str, kind: &str) -> Option<Self> {
        match (group, kind) {
            ("", "Pod") => Some(Self::Pod),
            ("", "Namespace") => Some(Self::Namespace),
            ("", "Service") => Some(Self::Service),
            ("", "Node") => Some(Self::Node),
            ("discovery.k8s.io", "EndpointSlice") => Some(Self::EndpointSlice),
            ("networking.k8s.io", "ServiceCIDR") => Some(Self::ServiceCidr),
            ("networking.istio.io", "ServiceEntry") => Some(Self::ServiceEntry),
            ("networking.istio.io", "Gateway") => Some(Self::Gateway),
            ("networking.istio.io", "VirtualService") => Some(Self::VirtualService),
            ("networking.istio.io", "DestinationRule") => Some(Self::DestinationRule),
            ("networking.istio.io", "Sidecar") => Some(Self::Sidecar),
            ("security.istio.io", "AuthorizationPolicy") => Some(Self::AuthorizationPolicy),
            (GATEWAY_API_GROUP, "Gateway") => Some(Self::ApiGateway),
            ("", "ConfigMap") => Some(Self::ConfigMap),
            // Whatever its group: a policy lost to a typing error would protect nobody, silently.
            (_, "EgressPolicy") => Some(Self::EgressPolicy),
            (_, "EgressException") => Some(Self::EgressException),
            _ => None,
        }
    }

    /// The name in `kind`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
            Self::ServiceEntry => "ServiceEntry",
            Self::Gateway | Self::ApiGateway => "Gateway",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::Sidecar => "Sidecar",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::ConfigMap => "ConfigMap",
            Self::EgressPolicy => "EgressPolicy",
            Self::EgressException => "EgressException",
        }
    }

    /// Whether objects of the kind live in a namespace.
    pub(super) const fn namespaced(self) -> bool {
        match self {
            Self::Pod
            | Self::Service
            | Self::EndpointSlice
            | Self::ServiceEntry
            | Self::Gateway
            | Self::VirtualService
            | Self::DestinationRule
            | Self::Sidecar
            | Self::AuthorizationPolicy
            | Self::ApiGateway
            | Self::ConfigMap => true,
            Self::Namespace
            | Self::Node
            | Self::ServiceCidr
            | Self::EgressPolicy
            | Self::EgressException => false,
        }
    }

    /// Whether the kind is this project's own.
    pub(super) const fn is_own(self) -> bool {
        matches!(self, Self::EgressPolicy | Self::EgressException)
    }

    /// Whether objects of the kind take gateways away from policies that ask for it.
    pub(super) const fn narrows(self) -> bool {
        matches!(self, Self::Sidecar | Self::AuthorizationPolicy | Self::ConfigMap)
    }

    /// Whether the kernel's entries depend on objects of the kind: one that was never read makes
    /// the snapshot incomplete. Istio's objects only classify, or narrow what stays as it is
    /// without them; every tenant may write some, and none may hold up everybody's removals.
    pub(super) const fn decides(self) -> bool {
        match self {
            Self::Pod
            | Self::Namespace
            | Self::Service
            | Self::EndpointSlice
            | Self::Node
            | Self::ServiceCidr
            | Self::ApiGateway
            | Self::EgressPolicy
            | Self::EgressException => true,
            Self::ServiceEntry
            | Self::Gateway
            | Self::VirtualService
            | Self::DestinationRule
            | Self::Sidecar
            | Self::AuthorizationPolicy
            | Self::ConfigMap => false,
        }
    }
}
