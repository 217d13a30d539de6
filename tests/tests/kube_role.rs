//! The rights in `deploy/` are exactly what the agent uses: none is missing, none is left over.
//!
//! The judge is the API server's own audit log.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use egress_tests::agent::{self, Agent};
use egress_tests::control_plane::{ControlPlane, NAMESPACE, Reference};
use egress_tests::kube_lab::{KubeLab, NODE, registry};
use egress_tests::process::wait_until;
use serde_json::{Value, json};

const USER: &str = "system:serviceaccount:egress-enforcer:egress-agent";
/// Every request of the agent, when it begins to be answered and when it was.
const AUDIT: &str = r#"{
    "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "Metadata", "users": ["system:serviceaccount:egress-enforcer:egress-agent"]},
        {"level": "None"}
    ]
}"#;
/// A policy whose gateway, resolvers and infrastructure lead to every watch there is.
const EVERYTHING: &str = r#"
apiVersion: egress-enforcer.io/v1alpha1
kind: EgressPolicy
metadata: {name: everything}
spec:
  selector: {namespaces: [bank]}
  mode: audit
  gateways:
  - {namespace: istio-system, gateway: egress, serviceAccount: egress-istio}
  infrastructure: {apiServer: true, istiod: true}
---
apiVersion: egress-enforcer.io/v1alpha1
kind: EgressException
metadata: {name: outage}
spec:
  scope: {namespaces: [bank]}
  destination: {cidr: 198.51.100.0/24, ports: [{port: 443, protocol: TCP}]}
  expiresAt: "2099-12-01T00:00:00Z"
  reason: a test
  requester: tests@example.com
"#;

/// One right: a verb on a resource of a group, in a namespace or in all of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    namespace: Option<String>,
    group: String,
    resource: String,
    verb: String,
}

/// Every right of the roles among these objects.
fn granted(objects: &[Value]) -> BTreeSet<Right> {
    let words = |rule: &Value, field: &str| -> Vec<String> {
        let list = rule[field].as_array().into_iter().flatten();
        list.filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let mut rights = BTreeSet::new();
    let is_role = |object: &&Value| object["kind"] == "Role" || object["kind"] == "ClusterRole";
    for role in objects.iter().filter(is_role) {
        let namespace = role["metadata"]["namespace"].as_str().map(str::to_owned);
        for rule in role["rules"].as_array().into_iter().flatten() {
            for group in words(rule, "apiGroups") {
                for resource in words(rule, "resources") {
                    for verb in words(rule, "verbs") {
                        let (namespace, group) = (namespace.clone(), group.clone());
                        let resource = resource.clone();
                        rights.insert(Right { namespace, group, resource, verb });
                    }
                }
            }
        }
    }
    rights
}

/// What the agent asked for: what it was allowed, and what it was denied.
fn asked(log: &Path) -> Result<(Vec<Right>, Vec<String>)> {
    let text = fs::read_to_string(log).context("read the audit log")?;
    let (mut allowed, mut denied) = (Vec::new(), Vec::new());
    // The last line may be on its way.
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    for event in events.filter(|event| event["user"]["username"] == USER) {
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
        if event["responseStatus"]["code"] == 403 {
            denied.push(format!("{} {}", event["verb"], event["requestURI"]));
            continue;
        }
        // Paths that are no resource are everybody's: versions and discovery.
        let Some(resource) = text("/objectRef/resource") else { continue };
        let resource = match text("/objectRef/subresource") {
            Some(subresource) => format!("{resource}/{subresource}"),
            None => resource.to_owned(),
        };
        allowed.push(Right {
            namespace: text("/objectRef/namespace").map(str::to_owned),
            group: text("/objectRef/apiGroup").unwrap_or_default().to_owned(),
            resource,
            verb: text("/verb").unwrap_or_default().to_owned(),
        });
    }
    Ok((allowed, denied))
}

/// Whether a granted right is what was needed for a request.
fn covers(right: &Right, request: &Right) -> bool {
    let within = right.namespace.is_none() || right.namespace == request.namespace;
    within
        && Right { namespace: None, ..right.clone() }
            == Right { namespace: None, ..request.clone() }
}

#[test]
fn the_agent_uses_every_right_of_deploy_and_misses_none() -> Result<()> {
    let files = tempfile::tempdir()?;
    let (policy, log) = (files.path().join("audit.yaml"), files.path().join("audit.log"));
    fs::write(&policy, AUDIT)?;
    let plane = ControlPlane::with(&[
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", log.display()),
    ])?;
    plane.cluster.install_lenient()?;
    let (lab, _gateway) = KubeLab::prepare(&plane, "enforce")?;
    let deployed = plane.deploy()?;
    plane.cluster.apply_yaml(EVERYTHING)?;
    let taint = json!({"key": "egress-enforcer.io/agent-not-ready", "effect": "NoSchedule"});
    let node = Reference::of_cluster("v1", "Node", NODE);
    plane.cluster.patch(&node, &json!({"spec": {"taints": [taint]}}))?;
    let (_relay, kubeconfig) = plane.relay(&lab, Some(&plane.agent_token(NODE)?))?;
    let _agent = Agent::start_on(&lab, &registry(&kubeconfig), &[])?;
    agent::wait_for_mode(&lab, "enforce")?;

    let granted = granted(&deployed);
    ensure!(granted.len() > 20, "{} holds no roles: {granted:?}", NAMESPACE);
    let mut unused = Vec::new();
    let used = wait_until("every right was used", Duration::from_secs(60), || {
        let (allowed, _) = asked(&log)?;
        unused = granted
            .iter()
            .filter(|right| !allowed.iter().any(|request| covers(right, request)))
            .collect();
        Ok(unused.is_empty())
    });
    used.with_context(|| format!("in deploy/ and never used: {unused:#?}"))?;
    let (allowed, denied) = asked(&log)?;
    ensure!(denied.is_empty(), "denied, so missing in deploy/: {denied:#?}");
    let watches = allowed.iter().filter(|right| right.verb == "watch").count();
    println!("{} rights, all used; {} requests, {watches} watches", granted.len(), allowed.len());
    let uncovered: BTreeSet<&Right> = allowed
        .iter()
        .filter(|request| !granted.iter().any(|right| covers(right, request)))
        .collect();
    ensure!(uncovered.is_empty(), "allowed by something else than deploy/: {uncovered:#?}");
    Ok(())
}
