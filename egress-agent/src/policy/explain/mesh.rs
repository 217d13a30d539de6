//! What the mesh says of a destination outside.

use egress_common::Reason;
use egress_common::state::Capture;

use super::entry::Asked;
use crate::policy::classify::{Class, Classified, Destination, classify, is_outside};
use crate::policy::mesh::OutboundMode;
use crate::policy::mesh::scope::Client;

impl<'a> Asked<'a> {
    /// The pod that asks, as the mesh sees it.
    fn client(&self) -> Client<'a> {
        Client::of(self.snapshot, self.pod)
    }

    /// What the mesh's declarations say of the destination.
    pub(super) fn classified(&self) -> Classified<'a> {
        let destination =
            Destination { host: None, ip: Some(self.packet.dst.ip()), port: self.packet.dst_port };
        classify(self.snapshot, &self.client(), &destination)
    }
}

/// The sentence; `None` for a destination that is not outside.
pub(super) fn says(asked: &Asked<'_>, reason: Reason) -> Option<String> {
    if !is_outside(reason) {
        return None;
    }
    let client = asked.client();
    let Classified { class, declaration, hidden_by } = asked.classified();
    let declared = declaration.map(|one| one.origin.to_string()).unwrap_or_default();
    let namespace = client.namespace;
    Some(match (class, hidden_by) {
        (Class::Declared, _) => format!("declared by {declared}"),
        (Class::OtherNamespace, Some(sidecar)) => {
            format!(
                "other_namespace: {declared} declares it, {} does not import it",
                sidecar.origin
            )
        }
        (Class::OtherNamespace, None) => {
            format!("other_namespace: {declared} declares it and is not exported to {namespace}")
        }
        (Class::Undeclared, _) => format!("undeclared: {}", outbound(asked, &client)),
    })
}

/// What the pod's proxy does with a destination it does not know.
fn outbound(asked: &Asked<'_>, client: &Client<'_>) -> String {
    let (mode, sidecar) = asked.snapshot.mesh.outbound(client);
    let by = sidecar.map_or_else(
        || "the mesh's configuration".to_owned(),
        |sidecar| sidecar.origin.to_string(),
    );
    match (client.capture, mode) {
        (Capture::None, _) => "no proxy asks whether it is".to_owned(),
        (Capture::Ambient, _) => "ztunnel passes it on all the same".to_owned(),
        (Capture::Sidecar, OutboundMode::RegistryOnly) => {
            format!("the sidecar refuses it (REGISTRY_ONLY, by {by})")
        }
        (Capture::Sidecar, OutboundMode::AllowAny) => {
            format!("the sidecar passes it on all the same (ALLOW_ANY, by {by})")
        }
        (Capture::Sidecar, OutboundMode::Other(mode)) => {
            format!("what the sidecar does with it is not known here ({mode}, by {by})")
        }
    }
}
