//! What an operator applies before the agents start, and the credentials these then have.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{ControlPlane, Reference};

/// The agents' namespace.
pub const NAMESPACE: &str = "egress-enforcer";

impl ControlPlane {
    /// Applies every object that `kubectl apply -k deploy` applies; gives them.
    ///
    /// # Errors
    /// When a file is missing, or the API server refuses an object of it.
    pub fn deploy(&self) -> Result<Vec<Value>> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let list = std::fs::read_to_string(directory.join("kustomization.yaml"))?;
        let files = list.lines().filter_map(|line| line.strip_prefix("- "));
        self.cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"},
        }))?;
        let mut applied = Vec::new();
        for file in files {
            let text = std::fs::read_to_string(directory.join(file)).context(file.to_owned())?;
            applied.extend(self.cluster.apply_yaml(&text).context(file.to_owned())?);
        }
        Ok(applied)
    }

    /// The token that a kubelet would mount into an agent's pod on this node.
    ///
    /// # Errors
    /// When nothing was [deployed](Self::deploy).
    pub fn agent_token(&self, node: &str) -> Result<String> {
        let name = format!("egress-agent-{node}");
        let pod = self.cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "nodeName": node, "serviceAccountName": "egress-agent",
                "containers": [{"name": "agent", "image": "none"}],
            },
        }))?;
        let reference = Reference::new("v1", "ServiceAccount", NAMESPACE, "egress-agent");
        let bound = json!({
            "apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod["metadata"]["uid"],
        });
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"boundObjectRef": bound},
        });
        self.request_token(&reference, &request)
    }

    /// A service account in the agents' namespace with these rules, bound in the whole cluster; its
    /// token.
    ///
    /// # Errors
    /// When an object is refused.
    pub fn account(&self, name: &str, rules: Value) -> Result<String> {
        let rbac = "rbac.authorization.k8s.io";
        let version = format!("{rbac}/v1");
        let metadata = json!({"name": name, "namespace": NAMESPACE});
        let subject = json!({"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE});
        self.cluster.apply_all(&[
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
            json!({
                "apiVersion": version, "kind": "ClusterRole", "metadata": {"name": name},
                "rules": rules,
            }),
            json!({
                "apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": name},
                "subjects": [subject],
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
            }),
        ])?;
        self.token(name, &[])
    }

    /// A token of a service account in the agents' namespace for these audiences; for the API
    /// server where there are none.
    ///
    /// # Errors
    /// When there is no such account.
    pub fn token(&self, name: &str, audiences: &[&str]) -> Result<String> {
        let reference = Reference::new("v1", "ServiceAccount", NAMESPACE, name);
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": audiences},
        });
        self.request_token(&reference, &request)
    }

    fn request_token(&self, account: &Reference, request: &Value) -> Result<String> {
        let token = self.cluster.create_subresource(account, "token", request)?;
        Ok(token["status"]["token"].as_str().context("a token")?.to_owned())
    }
}
