//! Pods and gateways as objects, with what kubelets and controllers would write about them.

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Cluster, Reference};
use crate::address::Dual;

/// A pod that runs.
#[derive(Clone, Copy, Debug)]
pub struct Pod<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// The node it is bound to.
    pub node: &'a str,
    /// Its service account.
    pub account: &'a str,
    /// Its labels.
    pub labels: &'a [(&'a str, &'a str)],
    /// Its addresses, IPv4 first.
    pub addresses: &'a [IpAddr],
}

impl Pod<'_> {
    /// The object, status included.
    pub fn manifest(&self) -> Value {
        let addresses: Vec<Value> = self.addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": labels(self.labels),
            },
            "spec": {
                "nodeName": self.node,
                "serviceAccountName": self.account,
                "containers": [{"name": "app", "image": "registry.example/app"}],
            },
            "status": {
                "phase": "Running",
                "podIP": self.addresses.first(),
                "podIPs": addresses,
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        })
    }

    /// Names the object.
    pub fn reference(&self) -> Reference {
        Reference::new("v1", "Pod", self.namespace, self.name)
    }
}

fn labels(pairs: &[(&str, &str)]) -> Value {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect()
}

/// The UID that the API server gave to an object.
///
/// # Errors
/// When it has none, so that it was never stored.
pub fn uid(object: &Value) -> Result<String> {
    let uid = object.pointer("/metadata/uid").and_then(Value::as_str);
    Ok(uid.with_context(|| format!("not stored: {object}"))?.to_owned())
}

/// A gateway's Service and the pods behind it, with the slices its controller would keep.
#[derive(Debug)]
pub struct Replicas {
    /// Namespace of all of it.
    pub namespace: &'static str,
    /// Name of the Service and prefix of its slices.
    pub service: &'static str,
    /// Service account of its pods.
    pub account: &'static str,
    /// Labels of its pods and the Service's selector.
    pub labels: &'static [(&'static str, &'static str)],
    /// Named ports: of the Service, and of the pods behind it.
    pub ports: &'static [(&'static str, u16, u16)],
    /// The pods that have an address, the oldest first.
    pub members: Vec<Member>,
}

/// A pod behind a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Name of the pod.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its addresses.
    pub address: Dual,
    /// Whether it is told to go, and goes on serving what it has.
    pub is_terminating: bool,
}

/// Istio's egress gateway as the demo's manifests have it.
pub const EGRESS_GATEWAY: Replicas = Replicas {
    namespace: "istio-system",
    service: "istio-egressgateway",
    account: "istio-egressgateway-service-account",
    labels: &[("app", "istio-egressgateway"), ("istio", "egressgateway")],
    ports: &[("http2", 80, 8080), ("https", 443, 8443)],
    members: Vec::new(),
};

impl Replicas {
    /// The Service itself.
    pub fn manifest(&self) -> Value {
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|(name, port, target)| {
                json!({"name": name, "port": port, "targetPort": target, "protocol": "TCP"})
            })
            .collect();
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": self.service,
                "namespace": self.namespace,
                "labels": labels(self.labels),
            },
            "spec": {"selector": labels(self.labels), "ports": ports},
        })
    }

    /// A pod's object, as the scheduler leaves it: bound to `node`, without an address.
    fn pending(&self, name: &str, node: &str) -> Value {
        let pod = Pod {
            namespace: self.namespace,
            name,
            node,
            account: self.account,
            labels: self.labels,
            addresses: &[],
        };
        let mut pod = pod.manifest();
        pod["status"] = json!({"phase": "Pending"});
        pod
    }

    /// Creates a pod without an address and gives its UID, for the sandbox that gets one.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn create(&self, cluster: &Cluster, name: &str, node: &str) -> Result<String> {
        uid(&cluster.apply(&self.pending(name, node))?)
    }

    /// Gives a created pod its address. The slices do not name it until they are
    /// [published](Self::publish).
    ///
    /// # Errors
    /// When the API server refuses to.
    pub fn run(&mut self, cluster: &Cluster, name: &str, uid: &str, address: Dual) -> Result<()> {
        let status = json!({
            "phase": "Running",
            "podIP": address.v4,
            "podIPs": [{"ip": address.v4}, {"ip": address.v6}],
            "conditions": [{"type": "Ready", "status": "True"}],
        });
        cluster.patch_status(&self.pod(name), &status)?;
        self.members.push(Member {
            name: name.to_owned(),
            uid: uid.to_owned(),
            address,
            is_terminating: false,
        });
        Ok(())
    }

    /// Tells a pod to go, as a scaled deployment does: it is marked, and serves no new ones.
    ///
    /// # Errors
    /// When the API server refuses to.
    pub fn drain(&mut self, cluster: &Cluster, name: &str) -> Result<()> {
        cluster.delete_within(&self.pod(name), 30)?;
        for member in self.members.iter_mut().filter(|member| member.name == name) {
            member.is_terminating = true;
        }
        self.publish(cluster)
    }

    /// Deletes a pod, as its kubelet does when it has ended. The slices name it until they are
    /// [published](Self::publish) again.
    ///
    /// # Errors
    /// When the API server refuses to.
    pub fn delete(&mut self, cluster: &Cluster, name: &str) -> Result<()> {
        self.members.retain(|member| member.name != name);
        cluster.delete(&self.pod(name))
    }

    /// Writes the slices, one of each family.
    ///
    /// # Errors
    /// When the API server refuses them.
    pub fn publish(&self, cluster: &Cluster) -> Result<()> {
        for family in ["IPv4", "IPv6"] {
            cluster.apply(&self.slice(family))?;
        }
        Ok(())
    }

    /// Names one of its pods.
    pub fn pod(&self, name: &str) -> Reference {
        Reference::new("v1", "Pod", self.namespace, name)
    }

    fn slice(&self, family: &str) -> Value {
        let endpoints: Vec<Value> = self
            .members
            .iter()
            .map(|member| {
                let address = match family {
                    "IPv4" => IpAddr::V4(member.address.v4),
                    _ => IpAddr::V6(member.address.v6),
                };
                let live = !member.is_terminating;
                json!({
                    "addresses": [address],
                    "conditions": {
                        "ready": live, "serving": true, "terminating": !live,
                    },
                    "targetRef": {
                        "kind": "Pod",
                        "namespace": self.namespace,
                        "name": member.name,
                        "uid": member.uid,
                    },
                })
            })
            .collect();
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|(name, _, target)| json!({"name": name, "port": target, "protocol": "TCP"}))
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}", self.service, family.to_lowercase()),
                "namespace": self.namespace,
                "labels": {"kubernetes.io/service-name": self.service},
            },
            "addressType": family,
            "ports": ports,
            "endpoints": endpoints,
        })
    }
}
