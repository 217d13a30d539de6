//! Pods: who owns which address, which cgroup, and how the mesh captures it.

use std::collections::BTreeMap;

use egress_common::state::Capture;
use serde::Deserialize;
use serde_json::Value;

use super::field::{FieldErrors, address, typed};
use super::object::{Metadata, Object, text_enum};
use crate::policy::snapshot::{PROXY_CONTAINER, QUARANTINE};
use crate::policy::{Interception, ObjectName, Origin, Pod};

/// Set by the kubelet on the API's image of a static pod; the value names the pod's cgroup.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Set by the sidecar injector.
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
/// Set by the CNI agent once ztunnel captures the pod.
const AMBIENT: &str = "ambient.istio.io/redirection";
/// Label of the template that a ReplicaSet was made for, and suffix of the ReplicaSet's name.
const TEMPLATE_HASH: &str = "pod-template-hash";
/// The condition of a pod that serves.
const READY: &str = "Ready";
/// Start of the annotations that shape a sidecar's capture.
const INTERCEPTION: &str = "traffic.sidecar.istio.io/";
/// User and group of Istio's proxy where its container does not say.
const PROXY_ID: u32 = 1337;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct Spec {
    service_account_name: Option<String>,
    node_name: Option<String>,
    host_network: bool,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct Container {
    name: String,
    security_context: SecurityContext,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct SecurityContext {
    run_as_user: Option<u32>,
    run_as_group: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct Status {
    phase: Option<Phase>,
    conditions: Vec<Condition>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
    container_statuses: Vec<ContainerStatus>,
    init_container_statuses: Vec<ContainerStatus>,
    ephemeral_container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct PodIp {
    ip: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

text_enum! {
    /// `status.phase`.
    Phase {
        Pending = "Pending",
        Running = "Running",
        Succeeded = "Succeeded",
        Failed = "Failed",
    }
}

/// A pod. One that is being deleted stays what its phase says until the object is gone: its
/// connections are still there.
pub(super) fn pod(value: Value, name: &ObjectName, origin: &Origin) -> Result<Pod, FieldErrors> {
    let object: Object<Spec, Status> = typed(value)?;
    let Object { metadata, spec, status } = object;
    let spec = spec.unwrap_or_default();
    if metadata.uid.is_empty() {
        return Err(FieldErrors::one("metadata.uid", "required: the pod's cgroup is named by it"));
    }
    let finished = matches!(status.phase, Some(Phase::Succeeded | Phase::Failed));
    // Only a mirror pod's own annotation counts. `kubernetes.io/config.hash` alone could be put
    // on any pod and would hide its real cgroup; a pod with the mirror annotation is never run
    // by the kubelet under its own UID.
    let mirrored = metadata.annotations.get(MIRROR).filter(|hash| !hash.is_empty());
    let (capture, proxy) = captured(&metadata, &spec);
    Ok(Pod {
        cgroup_uid: mirrored.unwrap_or(&metadata.uid).clone(),
        name: name.clone(),
        service_account: spec
            .service_account_name
            .filter(|account| !account.is_empty())
            .unwrap_or_else(|| "default".to_owned()),
        node: spec.node_name.filter(|node| !node.is_empty()),
        ips: if finished { Vec::new() } else { ips(&status)? },
        running: status.phase == Some(Phase::Running),
        ready: !status.conditions.iter().any(|one| one.kind == READY && one.status == "False"),
        finished,
        host_network: spec.host_network,
        capture,
        proxy,
        interception: interception(&metadata),
        containers: containers(&status),
        quarantined: metadata.labels.contains_key(QUARANTINE),
        workload: workload(&metadata, name),
        origin: origin.clone(),
        uid: metadata.uid,
        labels: metadata.labels,
    })
}

fn ips(status: &Status) -> Result<Vec<std::net::IpAddr>, FieldErrors> {
    if status.pod_ips.is_empty() {
        let one = status.pod_ip.iter().filter(|text| !text.is_empty());
        return one.map(|text| address("status.podIP", text)).collect();
    }
    let read = |(i, entry): (usize, &PodIp)| address(&format!("status.podIPs[{i}].ip"), &entry.ip);
    status.pod_ips.iter().enumerate().map(read).collect()
}

/// Names by id: `containerd://ID` names the container that runs as ID.
fn containers(status: &Status) -> BTreeMap<String, String> {
    let all = status.container_statuses.iter().chain(&status.init_container_statuses);
    let all = all.chain(&status.ephemeral_container_statuses);
    let running = all.filter_map(|one| {
        let (_, id) = one.container_id.split_once("://")?;
        Some((id.to_owned(), one.name.clone()))
    });
    running.collect()
}

/// What the annotations take out of capture. What cannot be read in them explains nothing, as it
/// does nothing for the proxy either.
fn interception(metadata: &Metadata) -> Interception {
    let said = |key: &str| metadata.annotations.get(&format!("{INTERCEPTION}{key}"));
    let parts = |key: &str| {
        let parts = said(key).map(String::as_str).unwrap_or_default().split(',');
        parts.map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    let ports = |key: &str| -> Vec<u16> {
        let parts: Vec<String> = parts(key);
        parts.iter().filter_map(|part| part.parse().ok()).collect()
    };
    let ranges = |key: &str| -> Vec<ipnet::IpNet> {
        let parts: Vec<String> = parts(key);
        parts.iter().filter_map(|part| part.parse().ok()).collect()
    };
    let include = said("includeOutboundIPRanges").filter(|ranges| ranges.trim() != "*");
    Interception {
        exclude_ports: ports("excludeOutboundPorts"),
        exclude_ranges: ranges("excludeOutboundIPRanges"),
        include_ranges: include.map(|_| ranges("includeOutboundIPRanges")),
        include_ports: ports("includeOutboundPorts"),
    }
}

/// How the mesh captures the pod, with the sidecar's user and group.
fn captured(metadata: &Metadata, spec: &Spec) -> (Capture, Option<(u32, u32)>) {
    let mut containers = spec.containers.iter().chain(&spec.init_containers);
    let proxy = containers.find(|container| container.name == PROXY_CONTAINER);
    if proxy.is_some() || metadata.annotations.contains_key(SIDECAR_STATUS) {
        let context = proxy.map(|container| container.security_context).unwrap_or_default();
        let user = context.run_as_user.unwrap_or(PROXY_ID);
        return (Capture::Sidecar, Some((user, context.run_as_group.unwrap_or(PROXY_ID))));
    }
    match metadata.annotations.get(AMBIENT).map(String::as_str) {
        Some("enabled") => (Capture::Ambient, None),
        _ => (Capture::None, None),
    }
}

/// The workload that owns the pod: a Deployment rather than its ReplicaSet.
fn workload(metadata: &Metadata, name: &ObjectName) -> (String, String) {
    let owners = &metadata.owner_references;
    let Some(owner) = owners.iter().find(|owner| owner.controller).or(owners.first()) else {
        return ("Pod".to_owned(), name.name.clone());
    };
    match owner.kind.as_str() {
        // The owner of a static pod's image is the Node, which is no workload.
        "Node" => ("Pod".to_owned(), name.name.clone()),
        "ReplicaSet" => match deployment(&owner.name, &metadata.labels) {
            Some(deployment) => ("Deployment".to_owned(), deployment.to_owned()),
            None => (owner.kind.clone(), owner.name.clone()),
        },
        _ => (owner.kind.clone(), owner.name.clone()),
    }
}

fn deployment<'a>(set: &'a str, labels: &BTreeMap<String, String>) -> Option<&'a str> {
    let name = set.strip_suffix(labels.get(TEMPLATE_HASH)?.as_str())?.strip_suffix('-')?;
    (!name.is_empty()).then_some(name)
}
