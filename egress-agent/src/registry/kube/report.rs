//! What the agent writes to the API server: its Node's condition, and what became of policies.
//!
//! Every agent writes to its own Node alone, when something changed or twice an hour; what all of
//! them could say of one object, the one that holds a lease says. So the writes of a cluster grow
//! with its nodes and not with their square, although every agent watches every Node.
//!
//! Invariant: nothing waits for this. A server that is gone or refuses costs a line in the log;
//! what the kernel enforces does not notice.

use std::time::Duration;

use kube::Client;
use tokio::sync::watch;
use tokio::time::timeout;

use super::backoff::{Backoff, jittered};
use crate::supervise::Shutdown;

mod lease;
mod node;
mod status;
mod verdict;

/// The agents' own namespace, where their credentials name none.
pub(super) const NAMESPACE: &str = "egress-enforcer";
/// Name of the Lease in that namespace.
pub(super) const LEASE: &str = "egress-agent";
/// What is done to the Lease once it is there.
pub(super) const LEASE_VERBS: [&str; 2] = ["get", "update"];
/// What is done to this agent's own Node: the condition is in its status, the taint is not.
pub(super) const NODE_VERBS: [(&str, &[&str]); 2] =
    [("nodes", &["get", "patch"]), ("nodes/status", &["patch"])];
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Before asking again what was forbidden: somebody has to change a role first.
const FORBIDDEN: Duration = Duration::from_secs(600);
/// Share of every node in what is spread over the cluster: ten requests a second altogether.
const SHARE: Duration = Duration::from_millis(100);

/// Whether what the cluster's policies ask for is in force on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforced {
    /// It is, verified against the kernel.
    True,
    /// A part of it is not.
    False,
    /// Nothing is known yet; what the kernel held before stays in force.
    Unknown,
}

impl Enforced {
    /// The status of a condition.
    const fn text(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// What a node says about itself: plain values, changed only when they say something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    /// Whether what is asked for is in force.
    pub enforced: Enforced,
    /// One word for programs.
    pub reason: &'static str,
    /// A sentence for people, without numbers that change by themselves.
    pub message: String,
    /// Nodes of the cluster, for the pace at which they share what is spread.
    pub nodes: usize,
}

/// Writes to the API server on behalf of one node.
pub struct Reporter {
    client: Client,
    node: String,
}

impl Reporter {
    /// For the node of this name.
    pub(in crate::registry) fn new(client: Client, node: &str) -> Self {
        Self { client, node: node.to_owned() }
    }

    /// Writes until shutdown.
    pub async fn run(self, reports: watch::Receiver<NodeReport>, shutdown: Shutdown) {
        let mut until = shutdown.clone();
        let node = async {
            tokio::select! {
                () = until.requested() => {}
                () = node::keep(&self.client, &self.node, reports.clone()) => {}
            }
        };
        let status = status::lead(&self.client, &self.node, reports.clone(), shutdown);
        tokio::join!(node, status);
    }
}

/// A failure is said once, and again only after it went well.
struct Complaint {
    /// What cannot be done: `write the condition of this Node`.
    what: &'static str,
    /// The rule that would allow it.
    rule: &'static str,
    said: Option<u16>,
}

impl Complaint {
    const fn of(what: &'static str, rule: &'static str) -> Self {
        Self { what, rule, said: None }
    }

    fn about(&mut self, error: &kube::Error) {
        let code = code(error);
        if self.said.replace(code) == Some(code) {
            return;
        }
        let (what, error) = (self.what, error.to_string());
        if code == 403 {
            tracing::warn!(
                what,
                error,
                rule = self.rule,
                "the API server forbids it; enforcement is not affected, grant the rule"
            );
        } else {
            tracing::warn!(what, error, "not written; enforcement is not affected, tried again");
        }
    }

    const fn clear(&mut self) {
        self.said = None;
    }
}

/// The HTTP status of a refusal; 0 without an answer.
const fn code(error: &kube::Error) -> u16 {
    if let kube::Error::Api(status) = error { status.code } else { 0 }
}

/// The answer, unless it takes too long.
async fn answer<T>(asked: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    timeout(ANSWER, asked).await.unwrap_or_else(|_| {
        let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in ten seconds");
        Err(kube::Error::Service(Box::new(late)))
    })
}

/// Pauses after a failure: nothing here is urgent, and a server that is short of breath has more
/// important callers.
const fn backoff() -> Backoff {
    Backoff::new(Duration::from_secs(1), Duration::from_secs(60))
}

/// A random part of what all nodes share, so that what happens to all of them at once does not
/// reach the server at once.
fn spread(nodes: usize) -> Duration {
    let span = SHARE.saturating_mul(u32::try_from(nodes).unwrap_or(u32::MAX));
    jittered(span * 2).saturating_sub(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_share_ten_requests_a_second_whatever_their_number() {
        assert_eq!(spread(0), Duration::ZERO);
        let waits: Vec<Duration> = (0..256).map(|_| spread(1000)).collect();
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(100)), "{waits:?}");
        let early = waits.iter().filter(|wait| **wait < Duration::from_secs(50)).count();
        assert!((64..192).contains(&early), "{early} of 256 in the first half");
    }
}
