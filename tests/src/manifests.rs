//! The cluster's objects, as the demo and the suites write them into the agent's directory.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::address::{self, NODE, RESOLVER, STRIPE};
use crate::control_plane::documents;
use crate::lab::{CART, CHECKOUT, GATEWAY, Identity, LEDGER};

const CLUSTER: &str = include_str!("../manifests/demo/cluster.yaml");
const STRIPE_EGRESS: &str = include_str!("../manifests/demo/stripe.yaml");
const POLICY: &str = include_str!("../manifests/demo/policy.yaml");
const CONFIG: &str = include_str!("../manifests/demo/agent.yaml");

/// Fills the placeholders of a manifest.
fn filled(text: &str) -> String {
    let mut text = text.to_owned();
    let pods = [("CART", CART), ("CHECKOUT", CHECKOUT), ("GATEWAY", GATEWAY), ("LEDGER", LEDGER)];
    for (word, Identity { uid, host, name, .. }) in pods {
        let ips = address::pod(host);
        let name = name.rsplit('/').next().unwrap_or(name);
        text = text
            .replace(&format!("@{word}_UID@"), uid)
            .replace(&format!("@{word}_NAME@"), name)
            .replace(&format!("@{word}_V4@"), &ips.v4.to_string())
            .replace(&format!("@{word}_V6@"), &ips.v6.to_string());
    }
    for (word, dual) in [("NODE", NODE), ("RESOLVER", RESOLVER), ("STRIPE", STRIPE)] {
        text = text
            .replace(&format!("@{word}_V4@"), &dual.v4.to_string())
            .replace(&format!("@{word}_V6@"), &dual.v6.to_string());
    }
    text
}

/// Writes a file so that nobody reads half of it.
///
/// # Errors
/// When the directory cannot be written.
pub fn replace(path: &Path, text: &str) -> Result<()> {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, text).with_context(|| format!("write {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("replace {}", path.display()))
}

/// Writes the whole cluster, with the policy in `mode`.
///
/// # Errors
/// When the directory cannot be written.
pub fn write(registry: &Path, mode: &str) -> Result<()> {
    replace(&registry.join("cluster.yaml"), &filled(CLUSTER))?;
    replace(&registry.join("stripe.yaml"), &filled(STRIPE_EGRESS))?;
    policy(registry, mode)
}

/// Writes the policy alone, in another mode.
///
/// # Errors
/// When the directory cannot be written.
pub fn policy(registry: &Path, mode: &str) -> Result<()> {
    replace(&registry.join("policy.yaml"), &filled(POLICY).replace("@MODE@", mode))
}

/// The same objects one by one, as an API server takes them: without the UIDs, which it gives.
///
/// # Errors
/// When a manifest cannot be read.
pub fn objects(mode: &str) -> Result<Vec<Value>> {
    let text = [filled(CLUSTER), filled(STRIPE_EGRESS), filled(POLICY).replace("@MODE@", mode)];
    let mut objects = documents(&text.join("\n---\n"))?;
    for object in &mut objects {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("uid");
        }
    }
    Ok(objects)
}

/// The agent's configuration file, with more lines.
///
/// # Errors
/// When it cannot be written.
pub fn config(path: &Path, more: &str) -> Result<()> {
    replace(path, &format!("{}{more}", filled(CONFIG)))
}

/// A running pod on `node-a`; `spec` are further fields of its spec.
pub fn pod(Identity { name, uid, .. }: Identity, ips: address::Dual, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, uid: {uid}}}\n\
         spec: {{nodeName: node-a, {spec}containers: [{{name: app, image: x}}]}}\n\
         status: {{phase: Running, podIPs: [{{ip: {}}}, {{ip: \"{}\"}}]}}\n",
        ips.v4, ips.v6
    )
}
