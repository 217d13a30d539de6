//! Definitions of custom resources: Istio's and the Gateway API's own, or lenient ones.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Cluster, documents};
use crate::process;

/// Kinds, as group, versions (the last is stored), kind and plural.
type Kind = (&'static str, &'static [&'static str], &'static str, &'static str);

const NETWORKING: &[&str] = &["v1beta1", "v1"];
const SECURITY: &[&str] = &["v1beta1", "v1"];

/// What the agent reads beside Kubernetes' own objects.
const LENIENT: [Kind; 9] = [
    ("networking.istio.io", NETWORKING, "ServiceEntry", "serviceentries"),
    ("networking.istio.io", NETWORKING, "Gateway", "gateways"),
    ("networking.istio.io", NETWORKING, "VirtualService", "virtualservices"),
    ("networking.istio.io", NETWORKING, "DestinationRule", "destinationrules"),
    ("networking.istio.io", NETWORKING, "Sidecar", "sidecars"),
    ("networking.istio.io", NETWORKING, "WorkloadEntry", "workloadentries"),
    ("security.istio.io", SECURITY, "AuthorizationPolicy", "authorizationpolicies"),
    ("security.istio.io", SECURITY, "PeerAuthentication", "peerauthentications"),
    ("gateway.networking.k8s.io", &["v1"], "Gateway", "gateways"),
];

impl Cluster {
    /// Istio's definitions and the Gateway API's, which the build of istiod keeps beside it.
    ///
    /// # Errors
    /// When they are not there, or the API server refuses them.
    pub fn install_istio(&self) -> Result<()> {
        let istiod = process::built("istiod", "EGRESS_ISTIOD")?;
        let directory = istiod.parent().map(PathBuf::from).unwrap_or_default();
        let mut definitions = Vec::new();
        for file in ["crd-all.gen.yaml", "gateway-api-crd.yaml"] {
            let path = directory.join(file);
            let text = fs::read_to_string(&path).with_context(|| {
                format!("read {}: `cargo xtask setup` keeps it beside istiod", path.display())
            })?;
            let read = documents(&text)?;
            // The Gateway API's file has policies about the definitions, too.
            definitions.extend(
                read.into_iter().filter(|object| object["kind"] == "CustomResourceDefinition"),
            );
        }
        self.define(&definitions)
    }

    /// Definitions of the same kinds that accept every object, as those of another version of
    /// Istio might.
    ///
    /// # Errors
    /// When the API server refuses them.
    pub fn install_lenient(&self) -> Result<()> {
        let definitions: Vec<Value> = LENIENT.iter().map(lenient).collect();
        self.define(&definitions)
    }

    /// The agent's own definitions, as it prints them.
    ///
    /// # Errors
    /// When the agent does not print any, or the API server refuses them.
    pub fn install_own(&self) -> Result<()> {
        let mut command = std::process::Command::new(crate::agent::binary()?);
        let output = command.arg("crd").output().context("run `egress-agent crd`")?;
        if !output.status.success() {
            bail!("`egress-agent crd`: {}", String::from_utf8_lossy(&output.stderr));
        }
        self.define(&documents(&String::from_utf8_lossy(&output.stdout))?)
    }

    /// Creates definitions that are absent and waits until their objects can be read.
    fn define(&self, definitions: &[Value]) -> Result<()> {
        self.create_absent(definitions)?;
        for definition in definitions {
            let text = |pointer: &str| definition.pointer(pointer).and_then(Value::as_str);
            let group = text("/spec/group").context("a definition has a group")?;
            let kind = text("/spec/names/kind").context("a definition has a kind")?;
            let versions = definition["spec"]["versions"].as_array().into_iter().flatten();
            for version in versions.filter(|version| version["served"] == true) {
                let version = version["name"].as_str().unwrap_or_default();
                self.await_kind(&format!("{group}/{version}"), kind)?;
            }
        }
        Ok(())
    }
}

/// A definition that keeps whatever it is given.
fn lenient((group, versions, kind, plural): &Kind) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .enumerate()
        .map(|(index, version)| {
            json!({
                "name": version,
                "served": true,
                "storage": index + 1 == versions.len(),
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                }},
            })
        })
        .collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{group}"),
            // The API server guards the names of its own community.
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": versions,
        },
    })
}
