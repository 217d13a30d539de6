//! This node's condition `EgressEnforced`, and the taint that keeps pods away until it holds.
//!
//! The condition is written when it changes and at a rare heartbeat, whose age says whether an
//! agent still stands behind it. The taint is taken away once, when what the policies ask for is
//! in force; nothing here ever puts it back, because a node whose agent restarts keeps enforcing.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::discovery::ApiResource;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::super::backoff::jittered;
use super::{Complaint, Enforced, FORBIDDEN, NodeReport, answer, backoff, code, spread};

/// Type of the condition.
const CONDITION: &str = "EgressEnforced";
/// Key of the taint.
const TAINT: &str = "egress-enforcer.io/agent-not-ready";
/// Between two writes that say nothing new. A kubelet writes its Node every five minutes; this
/// adds a sixth of that.
const HEARTBEAT: Duration = Duration::from_secs(1800);
/// How long nothing may be known before that is written: an agent that restarts knows in seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Changes so close together are one.
const SETTLE: Duration = Duration::from_secs(2);

/// What is read of a Node.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Seen {
    spec: Spec,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    taints: Vec<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Condition {
    r#type: String,
    status: String,
    reason: String,
    message: String,
    last_heartbeat_time: Option<Timestamp>,
    last_transition_time: Option<Timestamp>,
}

/// Keeps the condition at what is reported, for ever.
pub(super) async fn keep(client: &Client, name: &str, mut reports: watch::Receiver<NodeReport>) {
    let nodes = Api::all_with(client.clone(), &ApiResource::erase::<Node>(&()));
    let mut condition = Complaint::of(
        "write the condition EgressEnforced of this Node",
        "apiGroups [\"\"], resources [nodes, nodes/status], verbs [get, patch]",
    );
    let mut taint = Complaint::of(
        "take the taint egress-enforcer.io/agent-not-ready from this Node",
        "apiGroups [\"\"], resources [nodes], verbs [patch]",
    );
    let mut backoff = backoff();
    if reports.borrow().enforced == Enforced::Unknown {
        let known = reports.wait_for(|report| report.enforced != Enforced::Unknown);
        let _ = tokio::time::timeout(PATIENCE, known).await;
    }
    loop {
        let report = reports.borrow_and_update().clone();
        let pause = match write(&nodes, name, &report, &mut taint).await {
            Ok(()) => {
                condition.clear();
                backoff.reset();
                jittered(HEARTBEAT)
            }
            Err(error) => {
                condition.about(&error);
                if code(&error) == 403 { jittered(FORBIDDEN) } else { backoff.next() }
            }
        };
        let changed = async {
            // A sender that is gone says nothing new.
            let said =
                |new: &NodeReport| new.enforced != report.enforced || new.reason != report.reason;
            if reports.wait_for(said).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = changed => tokio::time::sleep(SETTLE + spread(report.nodes)).await,
        }
    }
}

/// Writes what is not there already.
async fn write(
    nodes: &Api<DynamicObject>,
    name: &str,
    report: &NodeReport,
    complaint: &mut Complaint,
) -> kube::Result<()> {
    let mut node = answer(nodes.get(name)).await?;
    let seen = Seen::of(&node);
    if let Some(status) = change(&seen.status.conditions, report, Timestamp::now()) {
        let patch = Patch::Strategic(&status);
        node = answer(nodes.patch_status(name, &PatchParams::default(), &patch)).await?;
        tracing::info!(
            status = report.enforced.text(),
            reason = report.reason,
            "condition EgressEnforced of this Node written"
        );
    }
    if report.enforced == Enforced::True {
        match untaint(nodes, name, &node).await {
            Ok(()) => complaint.clear(),
            Err(error) if code(&error) == 409 => return Err(error),
            Err(error) => complaint.about(&error),
        }
    }
    Ok(())
}

/// Takes the taint away, unless the Node has changed since it was read.
async fn untaint(nodes: &Api<DynamicObject>, name: &str, node: &DynamicObject) -> kube::Result<()> {
    let taints = Seen::of(node).spec.taints;
    let Some(others) = without_ours(&taints) else { return Ok(()) };
    // Taints are one value to the server: the version makes sure that nobody's is lost.
    let patch = json!({
        "metadata": { "resourceVersion": node.metadata.resource_version },
        "spec": { "taints": others },
    });
    answer(nodes.patch(name, &PatchParams::default(), &Patch::Merge(&patch))).await?;
    tracing::info!(taint = TAINT, "taint taken from this Node");
    Ok(())
}

impl Seen {
    /// What matters of a Node; nothing of one that cannot be read.
    fn of(node: &DynamicObject) -> Self {
        Self::deserialize(&node.data).unwrap_or_default()
    }
}

/// The taints but ours; `None` when ours is not among them.
fn without_ours(taints: &[Value]) -> Option<Vec<&Value>> {
    let others: Vec<&Value> = taints.iter().filter(|taint| taint["key"] != TAINT).collect();
    (others.len() < taints.len()).then_some(others)
}

/// The patch that makes the condition say what is reported; `None` when it does already, and said
/// so not long ago.
fn change(conditions: &[Condition], report: &NodeReport, now: Timestamp) -> Option<Value> {
    let old = conditions.iter().find(|condition| condition.r#type == CONDITION);
    let status = report.enforced.text();
    let same = old.filter(|old| old.status == status);
    let fresh = |old: &&Condition| {
        let age = old.last_heartbeat_time.map(|then| now.duration_since(then).unsigned_abs());
        age.is_some_and(|age| age < HEARTBEAT / 2)
    };
    let said = |old: &&Condition| old.reason == report.reason && old.message == report.message;
    if same.filter(said).filter(fresh).is_some() {
        return None;
    }
    let since = same.and_then(|old| old.last_transition_time).unwrap_or(now);
    Some(json!({ "status": { "conditions": [{
        "type": CONDITION,
        "status": status,
        "reason": report.reason,
        "message": report.message,
        "lastHeartbeatTime": seconds(now),
        "lastTransitionTime": seconds(since),
    }] } }))
}

/// Kubernetes writes moments in whole seconds.
fn seconds(moment: Timestamp) -> String {
    format!("{moment:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn report(enforced: Enforced, reason: &'static str) -> NodeReport {
        NodeReport { enforced, reason, message: "all of it".to_owned(), nodes: 3 }
    }

    fn condition(status: &str, age: i64) -> Condition {
        Condition {
            r#type: CONDITION.to_owned(),
            status: status.to_owned(),
            reason: "Enforced".to_owned(),
            message: "all of it".to_owned(),
            last_heartbeat_time: Some(at(NOW - age)),
            last_transition_time: Some(at(NOW - 90_000)),
        }
    }

    #[test]
    fn an_agent_that_restarts_writes_nothing_that_is_there() {
        let enforced = report(Enforced::True, "Enforced");
        assert_eq!(change(&[condition("True", 60)], &enforced, at(NOW)), None);
        assert_eq!(change(&[condition("True", 899)], &enforced, at(NOW)), None);
    }

    #[test]
    fn a_heartbeat_keeps_the_moment_of_the_transition() {
        let patch =
            change(&[condition("True", 1800)], &report(Enforced::True, "Enforced"), at(NOW));
        let patch = patch.unwrap();
        let written = &patch["status"]["conditions"][0];
        assert_eq!(written["lastHeartbeatTime"], "2027-01-15T08:00:00Z");
        assert_eq!(written["lastTransitionTime"], "2027-01-14T07:00:00Z");
    }

    #[test]
    fn another_status_is_a_transition_and_another_reason_is_none() {
        let old = [condition("True", 5)];
        let lost = change(&old, &report(Enforced::False, "HookNotAttached"), at(NOW)).unwrap();
        let written = &lost["status"]["conditions"][0];
        assert_eq!(
            (&written["status"], &written["reason"]),
            (&json!("False"), &json!("HookNotAttached"))
        );
        assert_eq!(written["lastTransitionTime"], written["lastHeartbeatTime"]);
        let other = change(&old, &report(Enforced::True, "Other"), at(NOW)).unwrap();
        assert_eq!(other["status"]["conditions"][0]["lastTransitionTime"], "2027-01-14T07:00:00Z");
    }

    #[test]
    fn a_node_without_the_condition_gets_it() {
        let mut foreign = condition("True", 5);
        "Ready".clone_into(&mut foreign.r#type);
        let patch = change(&[foreign], &report(Enforced::Unknown, "Starting"), at(NOW)).unwrap();
        assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 1);
        assert_eq!(patch["status"]["conditions"][0]["status"], "Unknown");
    }

    #[test]
    fn only_our_taint_is_taken_whatever_its_effect() {
        let foreign = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
        let ours = |effect: &str| json!({"key": TAINT, "effect": effect});
        assert_eq!(without_ours(std::slice::from_ref(&foreign)), None);
        let taints = [ours("NoSchedule"), foreign.clone(), ours("NoExecute")];
        assert_eq!(without_ours(&taints), Some(vec![&foreign]));
    }
}
