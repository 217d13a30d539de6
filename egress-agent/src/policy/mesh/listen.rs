//! Where an Istio Gateway's servers really listen: the server's port names a Service's port,
//! and the proxy binds that port's target.

use std::collections::BTreeSet;

use super::MeshGateway;
use crate::policy::snapshot::labels_match;
use crate::policy::{ObjectName, Pod, Service, Snapshot};

/// One server's port on one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listening {
    /// The pod.
    pub pod: ObjectName,
    /// The server's `port.number`.
    pub server: u16,
    /// What the proxy binds.
    pub target: u16,
    /// The Service whose port that is; `None` where no Service has one of this number and the
    /// proxy binds the number itself.
    pub service: Option<ObjectName>,
}

/// Where the servers of a Gateway listen, ordered. Its selector matches pods of every namespace;
/// an empty one stands for every gateway of the mesh, and which those are is not known here.
pub fn listening(snapshot: &Snapshot, gateway: &MeshGateway) -> BTreeSet<Listening> {
    if gateway.selector.is_empty() {
        return BTreeSet::new();
    }
    let selected = snapshot
        .pods
        .values()
        .filter(|pod| !pod.finished && labels_match(&gateway.selector, &pod.labels));
    selected
        .flat_map(|pod| gateway.servers.iter().map(move |server| (pod, server.port)))
        .map(|(pod, server)| {
            let found = target(snapshot, pod, server);
            Listening {
                pod: pod.name.clone(),
                server,
                target: found.map_or(server, |(_, target)| target),
                service: found.map(|(service, _)| service.name.clone()),
            }
        })
        .collect()
}

/// The first Service of the pod that has the port, and where it leads: by number, or by the
/// slice's port of the same name.
fn target<'a>(snapshot: &'a Snapshot, pod: &Pod, port: u16) -> Option<(&'a Service, u16)> {
    let services = snapshot.services.values().filter(|service| {
        service.name.namespace == pod.name.namespace
            && !service.selector.is_empty()
            && labels_match(&service.selector, &pod.labels)
    });
    let mut leading = services.filter_map(|service| {
        let own = service.ports.iter().find(|own| own.port == port)?;
        let slices = snapshot.slices.iter().filter(|slice| {
            slice.name.namespace == service.name.namespace && slice.service == service.name.name
        });
        let named = || slices.flat_map(|slice| &slice.ports).find(|one| one.name == own.name);
        Some((service, own.target.or_else(|| named().map(|one| one.port))?))
    });
    leading.next()
}

#[cfg(test)]
mod tests;
