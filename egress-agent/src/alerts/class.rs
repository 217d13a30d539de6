//! What a reason says about where traffic went: the words of the auditor's question.

use egress_common::Reason;

/// Where traffic went, or tried to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationClass {
    /// To an endpoint of a gateway.
    Gateway,
    /// To the cluster: its pods and Services, the pod itself, answers to whoever asked.
    Cluster,
    /// To named resolvers, the API server and other named infrastructure.
    Infrastructure,
    /// To the outside through an exception.
    Exception,
    /// To the outside by another way than an endpoint of a gateway.
    Bypass,
    /// Denied for another reason: what a policy allows is limited, or the packet is none it judges.
    Refused,
    /// Not judged.
    Exempt,
}

impl DestinationClass {
    /// Every class.
    pub const ALL: &'static [Self] = &[
        Self::Gateway,
        Self::Cluster,
        Self::Infrastructure,
        Self::Exception,
        Self::Bypass,
        Self::Refused,
        Self::Exempt,
    ];

    /// The label's value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Cluster => "cluster",
            Self::Infrastructure => "infrastructure",
            Self::Exception => "exception",
            Self::Bypass => "bypass",
            Self::Refused => "refused",
            Self::Exempt => "exempt",
        }
    }

    /// The class of a reason. Whoever adds a reason says here whether it wakes somebody.
    pub const fn of(reason: Reason) -> Self {
        match reason {
            Reason::Gateway | Reason::Redirected | Reason::Resolved => Self::Gateway,
            Reason::Cluster | Reason::Local | Reason::Reply => Self::Cluster,
            Reason::Resolver | Reason::Infrastructure => Self::Infrastructure,
            Reason::Exception => Self::Exception,
            Reason::NotGateway
            | Reason::SpoofedSource
            | Reason::Protocol
            | Reason::Metadata
            | Reason::MeshVip
            | Reason::Tunnel
            | Reason::HiddenExternal
            | Reason::ForeignResolver
            | Reason::ForeignSocket
            | Reason::Unresolved => Self::Bypass,
            Reason::Ethertype
            | Reason::Malformed
            | Reason::Fragment
            | Reason::RateLimited
            | Reason::GatewayPort
            | Reason::GatewayForbidden
            | Reason::GatewayDraining
            | Reason::Node
            | Reason::UnknownPod
            | Reason::PolicyStale
            | Reason::RedirectUnavailable => Self::Refused,
            Reason::Exempt => Self::Exempt,
        }
    }

    /// A matcher's pattern of its reasons.
    pub fn pattern(self) -> String {
        let reasons = Reason::ALL.iter().filter(|reason| Self::of(**reason) == self);
        reasons.map(|reason| reason.name()).collect::<Vec<_>>().join("|")
    }
}
