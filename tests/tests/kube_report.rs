//! What the agent writes to a real API server: its Node's condition, the startup taint, and the
//! statuses of policies by whichever agent holds the lease.

use std::path::{Path, PathBuf};
use std::sync::MutexGuard;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use egress_agent::registry::{Enforced, NodeReport, Registry, Source};
use egress_agent::supervise::{self, ShutdownTrigger};
use egress_tests::control_plane::{self, Cluster, ControlPlane, NAMESPACE, Reference};
use egress_tests::process::wait_until;
use kube::config::Kubeconfig;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const TAINT: &str = "egress-enforcer.io/agent-not-ready";

/// The writing half of an agent, without a datapath: what it reports is up to the test.
struct Writer {
    report: watch::Sender<NodeReport>,
    trigger: Option<ShutdownTrigger>,
    task: JoinHandle<()>,
}

impl Writer {
    fn start(runtime: &Runtime, kubeconfig: &Path, node: &str, report: NodeReport) -> Result<Self> {
        let source = Source::Kube(Some(kubeconfig.to_owned()));
        let registry = runtime.block_on(Registry::open(&source, Some(node)))?;
        let reporter = registry.reporter().context("an API server has a reporter")?;
        let (report, reports) = watch::channel(report);
        let (trigger, shutdown) = supervise::pair();
        let task = runtime.spawn(reporter.run(reports, shutdown));
        Ok(Self { report, trigger: Some(trigger), task })
    }

    /// Ends it as a signal ends an agent.
    fn stop(mut self, runtime: &Runtime) -> Result<()> {
        drop(self.trigger.take());
        let ended = async { tokio::time::timeout(Duration::from_secs(5), self.task).await };
        runtime.block_on(ended).context("it does not end in time")??;
        Ok(())
    }
}

fn report(enforced: Enforced, reason: &'static str) -> NodeReport {
    NodeReport { enforced, reason, message: "of a test".to_owned(), nodes: 1 }
}

fn setup() -> Result<(MutexGuard<'static, ControlPlane>, Runtime)> {
    let plane = control_plane::shared()?;
    plane.cluster.install_own()?;
    plane.clear()?;
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    plane.cluster.apply(&namespace)?;
    plane.cluster.delete_all("coordination.k8s.io/v1", "Lease")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    Ok((plane, runtime))
}

/// A kubeconfig whose namespace is the agents', with the administrator's credentials or those of a
/// service account.
fn kubeconfig(plane: &ControlPlane, name: &str, token: Option<&str>) -> Result<PathBuf> {
    let mut file = Kubeconfig::read_from(plane.kubeconfig())?;
    for context in file.contexts.iter_mut().filter_map(|context| context.context.as_mut()) {
        context.namespace = Some(NAMESPACE.to_owned());
    }
    if let Some(token) = token {
        for user in &mut file.auth_infos {
            user.auth_info = Some(serde_json::from_value(json!({ "token": token }))?);
        }
    }
    let path = plane.file(name);
    std::fs::write(&path, serde_json::to_vec(&file)?)?;
    Ok(path)
}

fn node(plane: &ControlPlane, name: &str) -> Result<Reference> {
    plane.cluster.apply(&json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {control_plane::MARK: "true"}},
        "spec": {"taints": [
            {"key": "example.com/maintenance", "value": "x", "effect": "NoSchedule"},
            {"key": TAINT, "effect": "NoSchedule"},
        ]},
        "status": {"conditions": [{
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
            "lastHeartbeatTime": "2026-11-25T00:00:00Z", "lastTransitionTime": "2026-11-25T00:00:00Z",
        }]},
    }))?;
    Ok(Reference::of_cluster("v1", "Node", name))
}

/// A condition of an object, by type.
fn condition(object: &Value, wanted: &str) -> Option<Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == wanted).cloned()
}

fn taints(node: &Value) -> Vec<&str> {
    let taints = node["spec"]["taints"].as_array().into_iter().flatten();
    taints.filter_map(|taint| taint["key"].as_str()).collect()
}

fn becomes(
    plane: &ControlPlane,
    reference: &Reference,
    seconds: u64,
    what: &str,
    is: impl Fn(&Value) -> bool,
) -> Result<Value> {
    wait_until(what, Duration::from_secs(seconds), || Ok(is(&plane.cluster.get(reference)?)))
        .with_context(|| format!("{:#}", plane.cluster.get(reference).unwrap_or_default()))?;
    plane.cluster.get(reference)
}

#[test]
fn a_node_says_whether_it_enforces_and_loses_its_taint_for_ever() -> Result<()> {
    let (plane, runtime) = setup()?;
    let node = node(&plane, "node-a")?;
    let kubeconfig = kubeconfig(&plane, "admin", None)?;
    let starting = report(Enforced::Unknown, "RegistryNotRead");
    let writer = Writer::start(&runtime, &kubeconfig, "node-a", starting)?;
    std::thread::sleep(Duration::from_secs(2));
    let before = plane.cluster.get(&node)?;
    assert!(taints(&before).contains(&TAINT) && condition(&before, "EgressEnforced").is_none());

    writer.report.send_replace(report(Enforced::True, "InForce"));
    let ready =
        becomes(&plane, &node, 20, "the taint is gone", |node| !taints(node).contains(&TAINT))?;
    assert!(taints(&ready).contains(&"example.com/maintenance"), "{ready:#}");
    let said = condition(&ready, "EgressEnforced").context("the condition")?;
    assert_eq!((&said["status"], &said["reason"]), (&json!("True"), &json!("InForce")));
    assert!(condition(&ready, "Ready").is_some(), "the kubelet's condition stays");

    writer.report.send_replace(report(Enforced::False, "HookNotAttached"));
    let lost = becomes(&plane, &node, 20, "the condition is False", |node| {
        condition(node, "EgressEnforced").is_some_and(|said| said["status"] == "False")
    })?;
    // The taint never comes back: the kernel enforces what it was given.
    assert!(!taints(&lost).contains(&TAINT), "{lost:#}");
    writer.stop(&runtime)
}

#[test]
fn an_agent_that_restarts_writes_nothing_new() -> Result<()> {
    let (plane, runtime) = setup()?;
    let node = node(&plane, "node-a")?;
    let kubeconfig = kubeconfig(&plane, "admin", None)?;
    let in_force = report(Enforced::True, "InForce");
    let writer = Writer::start(&runtime, &kubeconfig, "node-a", in_force.clone())?;
    let ready =
        becomes(&plane, &node, 20, "the taint is gone", |node| !taints(node).contains(&TAINT))?;
    writer.stop(&runtime)?;
    let writer = Writer::start(&runtime, &kubeconfig, "node-a", in_force)?;
    std::thread::sleep(Duration::from_secs(3));
    let version = |node: &Value| node["metadata"]["resourceVersion"].clone();
    assert_eq!(version(&plane.cluster.get(&node)?), version(&ready));
    writer.stop(&runtime)
}

fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "egress-enforcer.io/v1alpha1", "kind": "EgressPolicy",
        "metadata": {"name": name}, "spec": spec,
    })
}

fn policy_reference(name: &str) -> Reference {
    Reference::of_cluster("egress-enforcer.io/v1alpha1", "EgressPolicy", name)
}

#[test]
fn one_agent_says_what_became_of_policies_and_another_takes_over() -> Result<()> {
    let (plane, runtime) = setup()?;
    let kubeconfig = kubeconfig(&plane, "admin", None)?;
    let idle = || report(Enforced::Unknown, "RegistryNotRead");
    let first = Writer::start(&runtime, &kubeconfig, "node-a", idle())?;
    let lease = Reference::new("coordination.k8s.io/v1", "Lease", NAMESPACE, "egress-agent");
    let held_by = |node: &'static str| {
        move |lease: &Value| {
            let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
            holder.starts_with(&format!("{node}_"))
        }
    };
    wait_until("somebody holds the lease", Duration::from_secs(20), || {
        Ok(plane.cluster.get(&lease).is_ok_and(|lease| held_by("node-a")(&lease)))
    })?;
    let second = Writer::start(&runtime, &kubeconfig, "node-b", idle())?;

    let spec = json!({"selector": {"namespaces": ["shop"]}, "mode": "audit"});
    plane.cluster.apply(&policy("shop", spec))?;
    let accepted = |status: &'static str, generation: i64| {
        move |policy: &Value| {
            condition(policy, "Accepted").is_some_and(|said| {
                said["status"] == status && said["observedGeneration"] == generation
            })
        }
    };
    let shop = policy_reference("shop");
    becomes(&plane, &shop, 10, "the policy is accepted", accepted("True", 1))?;
    plane.cluster.apply(&policy("all", json!({"selector": {}, "mode": "audit", "priority": 5})))?;
    let covered = becomes(&plane, &shop, 10, "the policy is shadowed", |policy| {
        condition(policy, "Shadowed").is_some_and(|said| said["status"] == "True")
    })?;
    let said = condition(&covered, "Shadowed").context("the condition")?;
    assert!(
        said["message"].as_str().is_some_and(|text| text.contains("EgressPolicy all")),
        "{said}"
    );

    // The end of an agent lets go of the lease; the other one looks within half a minute.
    first.stop(&runtime)?;
    becomes(&plane, &lease, 45, "the other agent holds the lease", held_by("node-b"))?;
    plane.cluster.patch(&shop, &json!({"spec": {"priority": 9}}))?;
    becomes(&plane, &shop, 10, "the new generation is accepted", accepted("True", 2))?;
    becomes(&plane, &shop, 10, "and governs", |policy| {
        condition(policy, "Shadowed").is_some_and(|said| said["status"] == "False")
    })?;
    second.stop(&runtime)
}

#[test]
fn an_agent_that_lost_the_lease_writes_no_more() -> Result<()> {
    let (plane, runtime) = setup()?;
    let kubeconfig = kubeconfig(&plane, "admin", None)?;
    let idle = report(Enforced::Unknown, "RegistryNotRead");
    let writer = Writer::start(&runtime, &kubeconfig, "node-a", idle)?;
    plane.cluster.apply(&policy("shop", json!({"selector": {}, "mode": "audit"})))?;
    let shop = policy_reference("shop");
    let told = |policy: &Value| condition(policy, "Accepted").is_some();
    becomes(&plane, &shop, 20, "the policy is accepted", told)?;

    let lease = Reference::new("coordination.k8s.io/v1", "Lease", NAMESPACE, "egress-agent");
    plane.cluster.patch(&lease, &json!({"spec": {"holderIdentity": "somebody-else"}}))?;
    // It learns of it when it renews, every 15 s at most.
    std::thread::sleep(Duration::from_secs(18));
    plane.cluster.apply(&policy("late", json!({"selector": {}, "mode": "audit"})))?;
    std::thread::sleep(Duration::from_secs(5));
    let late = plane.cluster.get(&policy_reference("late"))?;
    assert!(!told(&late), "{late:#}");
    // Its end leaves the other's lease alone.
    writer.stop(&runtime)?;
    assert_eq!(plane.cluster.get(&lease)?["spec"]["holderIdentity"], "somebody-else");
    Ok(())
}

#[test]
fn what_is_forbidden_is_left_out_and_the_rest_goes_on() -> Result<()> {
    let (plane, runtime) = setup()?;
    let node = node(&plane, "node-a")?;
    // The Node may be written, the lease may not.
    let rules = json!([{
        "apiGroups": [""], "resources": ["nodes", "nodes/status"], "verbs": ["get", "patch"],
    }]);
    let token = plane.account("no-lease", rules)?;
    let kubeconfig = kubeconfig(&plane, "no-lease", Some(&token))?;
    plane.cluster.apply(&policy("shop", json!({"selector": {}, "mode": "audit"})))?;
    let writer = Writer::start(&runtime, &kubeconfig, "node-a", report(Enforced::True, "InForce"))?;
    becomes(&plane, &node, 20, "the taint is gone", |node| !taints(node).contains(&TAINT))?;
    let untouched = plane.cluster.get(&policy_reference("shop"))?;
    ensure!(condition(&untouched, "Accepted").is_none(), "{untouched:#}");
    writer.stop(&runtime)
}

#[test]
fn without_any_right_it_waits_and_ends_when_asked() -> Result<()> {
    let (plane, runtime) = setup()?;
    let node = node(&plane, "node-a")?;
    let token = plane.account("nobody", json!([]))?;
    let kubeconfig = kubeconfig(&plane, "nobody", Some(&token))?;
    let writer = Writer::start(&runtime, &kubeconfig, "node-a", report(Enforced::True, "InForce"))?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(!writer.task.is_finished(), "a refusal must not end it");
    let untouched = plane.cluster.get(&node)?;
    assert!(taints(&untouched).contains(&TAINT));
    writer.stop(&runtime)
}

#[test]
fn with_the_rights_of_deploy_an_agent_writes_its_own_node_and_policies_and_nothing_else()
-> Result<()> {
    let (plane, runtime) = setup()?;
    plane.deploy()?;
    let (own, other) = (node(&plane, "node-a")?, node(&plane, "node-b")?);
    let token = plane.agent_token("node-a")?;
    let kubeconfig = kubeconfig(&plane, "agent", Some(&token))?;
    plane.cluster.apply(&policy("shop", json!({"selector": {}, "mode": "audit"})))?;
    let writer = Writer::start(&runtime, &kubeconfig, "node-a", report(Enforced::True, "InForce"))?;
    becomes(&plane, &own, 20, "the taint is gone", |node| {
        !taints(node).contains(&TAINT) && condition(node, "EgressEnforced").is_some()
    })?;
    becomes(&plane, &policy_reference("shop"), 20, "the policy is accepted", |policy| {
        condition(policy, "Accepted").is_some_and(|said| said["status"] == "True")
    })?;
    writer.stop(&runtime)?;

    // A token that was stolen from one node is worth nothing against another.
    let agent = Cluster::connect(&kubeconfig)?;
    let refused = |outcome: Result<Value>, expected: &str| -> Result<()> {
        let error = format!("{:#}", outcome.err().context("it was allowed")?);
        ensure!(error.contains(expected), "{error}");
        Ok(())
    };
    let untainted = json!({"spec": {"taints": []}});
    wait_until("the policy about Nodes is in force", Duration::from_secs(20), || {
        Ok(agent.patch(&other, &json!({"metadata": {"labels": {"a": "b"}}})).is_err())
    })?;
    refused(agent.patch(&other, &untainted), "may write that Node alone")?;
    let ready = json!({"conditions": [{"type": "EgressEnforced", "status": "True"}]});
    refused(agent.patch_status(&other, &ready), "may write that Node alone")?;
    // Nor for anything but its purpose on its own.
    refused(agent.patch(&own, &untainted), "takes away no taint but its own")?;
    let cordon = json!({"spec": {"unschedulable": true}});
    refused(agent.patch(&own, &cordon), "changes nothing else of a Node")?;
    let label = json!({"metadata": {"labels": {"node-role.kubernetes.io/x": ""}}});
    refused(agent.patch(&own, &label), "changes nothing else of a Node")?;
    let ready = json!({"conditions": [{"type": "Ready", "status": "False"}]});
    refused(agent.patch_status(&own, &ready), "no condition but EgressEnforced")?;
    // And a policy is read by agents, never written.
    let off = json!({"spec": {"mode": "off"}});
    refused(agent.patch(&policy_reference("shop"), &off), "cannot patch resource")
}
