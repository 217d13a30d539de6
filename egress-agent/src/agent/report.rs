//! What this node says about itself in the cluster.

use tokio::sync::watch;

use super::{AgentState, States};
use crate::registry::{Enforced, NodeReport};
use crate::supervise::Shutdown;

/// The report before the first snapshot was applied.
pub(super) fn starting() -> NodeReport {
    NodeReport {
        enforced: Enforced::Unknown,
        reason: "RegistryNotRead",
        message: "the agent waits for its first view of the cluster; what the kernel held before \
                  stays in force"
            .to_owned(),
        nodes: 0,
    }
}

/// Keeps the report at what the agent's state says, until shutdown.
pub(super) async fn keep(
    mut states: States,
    publish: watch::Sender<NodeReport>,
    mut shutdown: Shutdown,
) -> anyhow::Result<()> {
    loop {
        let now = report(&states.borrow_and_update());
        publish.send_if_modified(|said| {
            let news = *said != now;
            if news {
                *said = now;
            }
            news
        });
        tokio::select! {
            () = shutdown.requested() => return Ok(()),
            changed = states.changed() => if changed.is_err() {
                // The enforcer has ended, which ends the agent; this is not the reason.
                shutdown.requested().await;
                return Ok(());
            },
        }
    }
}

/// The report of a running agent. It follows from this node alone: a policy's mode is not in it,
/// or one edit would have every node write at once.
pub(super) fn report(state: &AgentState) -> NodeReport {
    let nodes = state.snapshot.nodes.len();
    let lost = state.hooks.iter().filter(|hook| hook.needed && !hook.attached);
    let lost: Vec<&str> = lost.map(|hook| hook.hook).collect();
    let (enforced, reason, message) = if let Some(first) = lost.first() {
        let message = format!(
            "{} of the kernel's hooks are not attached or not ours, the first is {first}: see \
             egress-agent status",
            lost.len()
        );
        (Enforced::False, "HookNotAttached", message)
    } else if let Some(refused) = &state.refused {
        let message = format!("{refused}; the last policies that fitted stay in force");
        (Enforced::False, "PolicyNotApplied", message)
    } else {
        let message = "every hook is attached and the kernel holds what the policies ask for";
        (Enforced::True, "InForce", message.to_owned())
    };
    NodeReport { enforced, reason, message, nodes }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::datapath::HookStatus;
    use crate::policy::{Desired, Snapshot};

    fn state() -> AgentState {
        AgentState::of(Snapshot::default(), Desired::default())
    }

    fn hook(attached: bool) -> HookStatus {
        let target = "ifindex 7".to_owned();
        HookStatus {
            hook: "pod_egress",
            target,
            attached,
            ahead: 0,
            needed: true,
            detail: String::new(),
        }
    }

    #[test]
    fn a_node_is_in_force_while_every_hook_is_attached_and_nothing_was_refused() {
        let mut state = state();
        state.hooks = Arc::new(vec![hook(true)]);
        assert_eq!(report(&state).enforced, Enforced::True);
        // Redirection's own hooks enforce nothing.
        state.hooks = Arc::new(vec![HookStatus { needed: false, ..hook(false) }]);
        assert_eq!(report(&state).enforced, Enforced::True);
        state.refused = Some("the table is full".to_owned());
        let refused = report(&state);
        assert_eq!((refused.enforced, refused.reason), (Enforced::False, "PolicyNotApplied"));
        assert!(refused.message.contains("the table is full"), "{}", refused.message);
        state.hooks = Arc::new(vec![hook(true), hook(false)]);
        let lost = report(&state);
        assert_eq!((lost.enforced, lost.reason), (Enforced::False, "HookNotAttached"));
        assert!(lost.message.contains("pod_egress"), "{}", lost.message);
    }

    #[test]
    fn before_the_first_snapshot_nothing_is_claimed() {
        assert_eq!(starting().enforced, Enforced::Unknown);
    }
}
