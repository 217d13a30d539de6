//! Every metric there is: name, type, labels and help.
//!
//! A family can only be made from an entry of this table and takes its labels' names from it, so
//! that what is not written here cannot be exported. `docs/metrics.md` is made from it, and the
//! tests of alerts and dashboards read it. A label is a closed word or a name of the cluster,
//! never an address, a port or a host.

use egress_common::state::{Direction, loss, tally};
use egress_common::{Mode, Reason, Verdict};

use crate::datapath::{hook_names, map_names};
use crate::events::Mechanism;
use crate::policy::{CoverageState, ProblemCode, RejectReason};

/// What a metric's number does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises; its name ends in `_total`.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Classes of a duration, with `_bucket`, `_sum` and `_count`.
    Histogram,
}

impl Kind {
    /// The word of the exposition format.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A label.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// What its values are.
    pub values: Values,
}

/// What a label's values are.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// Names from the cluster; what they name.
    Names(&'static str),
    /// These words and no others.
    Words(fn() -> Vec<&'static str>),
}

const fn names(name: &'static str, what: &'static str) -> Label {
    Label { name, values: Values::Names(what) }
}

const fn words(name: &'static str, all: fn() -> Vec<&'static str>) -> Label {
    Label { name, values: Values::Words(all) }
}

/// The words of a closed enum that a filter lets through.
macro_rules! all {
    ($kind:ty $(, $filter:expr)?) => {
        || <$kind>::ALL.iter().copied()$(.filter($filter))?.map(<$kind>::name).collect()
    };
}

const NAMESPACE: Label = names("source_namespace", "namespace of the pod");
const WORKLOAD: Label =
    names("source_workload", "name of the pod's controller; of the pod, where it has none");
const POD: Label = names("source_pod", "name of the pod");
const GATEWAY: Label =
    names("gateway", "`namespace/name` of the gateway; empty where the reason is about none");
const VERDICT: Label = words("verdict", all!(Verdict));
const REASON: Label = words("reason", all!(Reason));
const DENIAL: Label = words("reason", all!(Reason, |reason| reason.denies()));
const DIRECTION: Label = words("direction", all!(Direction));
const MODE: Label = words("mode", all!(Mode));
const POLICY: Label = names("policy", "the `EgressPolicy`");
const EXCEPTION: Label = names("exception", "the `EgressException`");
const COVERAGE: Label = words("state", all!(CoverageState));
const ENDPOINT: Label = words("state", || vec!["serving", "draining"]);
const REJECTION: Label = words("reason", all!(RejectReason));
const PROBLEM: Label = words("code", all!(ProblemCode));
const RESULT: Label = words("result", || vec!["applied", "refused"]);
const HOOK: Label = words("hook", hook_names);
const MAP: Label = words("map", map_names);
const STAGE: Label = words("stage", || {
    let kernel = loss::NAMES.into_iter().filter(|name| loss::EVENTS.contains(name));
    kernel.chain(tally::NAMES).collect()
});
const LOST_STATE: Label = words("what", || {
    let others = |name: &&str| *name != "suppressed" && !loss::EVENTS.contains(name);
    loss::NAMES.into_iter().filter(others).chain(["totals"]).collect()
});
const MECHANISM: Label = words("mechanism", || Mechanism::ALL.map(Mechanism::name).into());
const VERSION: Label = names("version", "the agent's version");
const SCHEMA: Label = names("schema", "number of the kernel tables' layout");

macro_rules! catalogue {
    ($($group:literal { $($(#[$about:meta])* $variant:ident = $kind:ident $name:literal
        [$($label:expr),* $(,)?] $help:literal;)+ })+) => {
        /// A metric; see the module.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Metric { $($(#[doc = $help] $variant,)+)+ }

        impl Metric {
            /// Every metric, in the order of the reference.
            pub const ALL: &'static [Self] = &[$($(Self::$variant,)+)+];

            /// The name.
            pub const fn name(self) -> &'static str {
                match self { $($(Self::$variant => $name,)+)+ }
            }

            /// The type.
            pub const fn kind(self) -> Kind {
                match self { $($(Self::$variant => Kind::$kind,)+)+ }
            }

            /// What it counts or says.
            pub const fn help(self) -> &'static str {
                match self { $($(Self::$variant => $help,)+)+ }
            }

            /// The labels, in the order in which their values are given.
            pub const fn labels(self) -> &'static [Label] {
                match self { $($(Self::$variant => &[$($label),*],)+)+ }
            }

            /// The section of the reference.
            pub const fn group(self) -> &'static str {
                match self { $($(Self::$variant => $group,)+)+ }
            }
        }
    };
}

catalogue! {
    "Traffic of pods" {
        PodConnections = Counter "egress_pod_connections_total"
            [NAMESPACE, WORKLOAD, POD, GATEWAY, VERDICT, REASON]
            "Connections opened or attempted by a pod; for protocols without connections, datagrams.";
        PodPackets = Counter "egress_pod_packets_total"
            [NAMESPACE, WORKLOAD, POD, GATEWAY, VERDICT, REASON, DIRECTION]
            "Packets of a pod, by verdict and direction.";
        PodBytes = Counter "egress_pod_bytes_total"
            [NAMESPACE, WORKLOAD, POD, GATEWAY, VERDICT, REASON, DIRECTION]
            "Bytes of a pod on the wire that were not dropped, by gateway and direction.";
        PodRedirects = Counter "egress_pod_redirects_total"
            [NAMESPACE, WORKLOAD, POD, GATEWAY]
            "Connections of a pod to the outside that were rewritten to a gateway; each is also one of its connections with reason gateway.";
    }
    "Traffic of workloads" {
        WorkloadConnections = Counter "egress_workload_connections_total"
            [NAMESPACE, WORKLOAD, GATEWAY, VERDICT, REASON]
            "egress_pod_connections_total summed over a workload, pods that are gone included.";
        WorkloadPackets = Counter "egress_workload_packets_total"
            [NAMESPACE, WORKLOAD, GATEWAY, VERDICT, REASON, DIRECTION]
            "egress_pod_packets_total summed over a workload, pods that are gone included.";
        WorkloadBytes = Counter "egress_workload_bytes_total"
            [NAMESPACE, WORKLOAD, GATEWAY, VERDICT, REASON, DIRECTION]
            "egress_pod_bytes_total summed over a workload, pods that are gone included.";
        WorkloadRedirects = Counter "egress_workload_redirects_total"
            [NAMESPACE, WORKLOAD, GATEWAY]
            "egress_pod_redirects_total summed over a workload, pods that are gone included.";
    }
    "The node" {
        NodeDrops = Counter "egress_node_drops_total" [DENIAL]
            "Packets and socket calls refused on this node, by reason.";
        NodeAudit = Counter "egress_node_audit_total" [DENIAL]
            "Packets let through on this node that mode enforce would have dropped, by reason.";
    }
    "Coverage and policies" {
        Pods = Gauge "egress_pods" [COVERAGE]
            "Pods of this node, by state of coverage.";
        PolicyPods = Gauge "egress_policy_pods" [POLICY, MODE]
            "Pods of this node that a policy governs, by the mode in force for them.";
        EnforcementMode = Gauge "egress_enforcement_mode" [MODE]
            "1 for the strictest mode in force.";
        ExceptionsInForce = Gauge "egress_exceptions_in_force" []
            "EgressExceptions that have not expired.";
        ExceptionExpiry = Gauge "egress_exception_expiry_timestamp_seconds" [EXCEPTION]
            "When an EgressException ends, seconds since the epoch; absent once it has ended.";
    }
    "Gateways" {
        GatewayEndpoints = Gauge "egress_gateway_endpoints" [GATEWAY, ENDPOINT]
            "Endpoints of a gateway, by state.";
        RejectedEndpoints = Counter "egress_gateway_rejected_endpoints_total" [REJECTION]
            "What was offered as part of a gateway and refused, by reason, counted as it appeared.";
    }
    "Registry" {
        RegistryConnected = Gauge "egress_registry_connected" []
            "1 while the registry is known to be as its source has it.";
        RegistryLastSync = Gauge "egress_registry_last_sync_timestamp_seconds" []
            "When the registry was last known to be as its source has it.";
        RegistryProblems = Gauge "egress_registry_problems" [PROBLEM]
            "Problems the agent reports, by class.";
        RegistryPropagation = Histogram "egress_registry_propagation_seconds" []
            "Time from the moment a change was noticed to the moment the kernel held it.";
    }
    "Kernel" {
        ProgramAttached = Gauge "egress_bpf_program_attached" [HOOK]
            "Links of a hook that run this agent's program.";
        MapEntries = Gauge "egress_bpf_map_entries" [MAP]
            "Entries of a kernel table.";
        MapCapacity = Gauge "egress_bpf_map_capacity" [MAP]
            "Room of a kernel table.";
        Applies = Counter "egress_apply_total" [RESULT]
            "Policies applied or refused whole.";
        KernelLost = Counter "egress_kernel_lost_total" [LOST_STATE]
            "What a kernel table had no room for: counter (a pod's counts; the node's have them), reply (a flow from outside), original (a redirected socket's peer), call (an audited call's event; its packets have theirs), exposed (what passed of a pod not covered); totals (a file of totals that could not be read).";
        Generation = Gauge "egress_policy_generation" []
            "Generation of the policy the kernel runs.";
    }
    "Events" {
        EventsLost = Counter "egress_events_lost_total" [STAGE]
            "Denied decisions that no written event stands for, by the stage that lost them.";
        EventsSuppressed = Counter "egress_events_suppressed_total" []
            "Denied decisions that raised no event of their own: repeats of one just told, and listener reports.";
        EventsWritten = Counter "egress_events_written_total" []
            "Events written.";
        EventsDecisions = Counter "egress_events_decisions_total" []
            "Denied decisions that the written events stand for, without the suppressed: with these and the lost ones, all that were denied.";
        BypassAttempts = Counter "egress_workload_bypass_attempts_total"
            [NAMESPACE, WORKLOAD, MECHANISM]
            "Attempts of a workload to get around the gateways, by how, as far as events tell of them; since the agent's start.";
    }
    "The agent" {
        LeaseAge = Gauge "egress_agent_lease_age_seconds" []
            "Age of the agent's last heartbeat.";
        SeriesTruncated = Counter "egress_metrics_series_truncated_total" []
            "Label sets of pods and workloads that found no room among this node's series and count as `_overflow`.";
        BuildInfo = Gauge "egress_build_info" [VERSION, SCHEMA]
            "1, with the agent's version and schema.";
    }
}

/// The reference of `docs/metrics.md`: a table for each section, and the labels.
pub fn reference() -> String {
    let mut text = String::new();
    let mut group = "";
    for metric in Metric::ALL {
        if metric.group() != group {
            group = metric.group();
            text += &format!(
                "### {group}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n"
            );
        }
        let labels: Vec<String> =
            metric.labels().iter().map(|label| format!("`{}`", label.name)).collect();
        let (name, kind) = (metric.name(), metric.kind().name());
        text += &format!("| `{name}` | {kind} | {} | {} |\n", labels.join(" "), metric.help());
        if is_last_of_group(*metric) {
            text.push('\n');
        }
    }
    text + &labels()
}

fn is_last_of_group(metric: Metric) -> bool {
    let last = Metric::ALL.iter().rfind(|other| other.group() == metric.group());
    last == Some(&metric)
}

/// Each label once for each set of values, with the metrics that have it where sets differ.
fn labels() -> String {
    let mut rows: Vec<(&str, String, Vec<&str>)> = Vec::new();
    for metric in Metric::ALL {
        for label in metric.labels() {
            let values = match label.values {
                Values::Names(what) => what.to_owned(),
                Values::Words(all) => {
                    let words: Vec<String> =
                        all().into_iter().map(|word| format!("`{word}`")).collect();
                    words.join(" ")
                }
            };
            match rows.iter_mut().find(|(name, of, _)| *name == label.name && *of == values) {
                Some((_, _, metrics)) => metrics.push(metric.name()),
                None => rows.push((label.name, values, vec![metric.name()])),
            }
        }
    }
    rows.sort_by_key(|(name, _, _)| *name);
    let mut text = String::from("### Labels\n\n| label | values | of |\n|---|---|---|\n");
    for (name, values, metrics) in &rows {
        let shared = rows.iter().filter(|(other, _, _)| other == name).count() > 1;
        let of: Vec<String> = metrics.iter().map(|metric| format!("`{metric}`")).collect();
        let of = if shared { of.join(" ") } else { String::new() };
        text += &format!("| `{name}` | {values} | {of} |\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_named_as_prometheus_users_expect() {
        for metric in Metric::ALL {
            let name = metric.name();
            assert!(name.starts_with("egress_"), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind() == Kind::Counter, "{name}");
            assert!(metric.help().ends_with('.'), "{name}: {}", metric.help());
        }
        let mut names: Vec<&str> = Metric::ALL.iter().map(|metric| metric.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Metric::ALL.len(), "a name is there twice");
    }

    #[test]
    fn no_label_is_an_address_or_one_that_a_scrape_adds() {
        const FOREIGN: [&str; 6] = ["namespace", "pod", "instance", "job", "node", "container"];
        const PARTS: [&str; 7] = ["address", "ip", "port", "host", "destination", "path", "url"];
        for metric in Metric::ALL {
            for label in metric.labels() {
                assert!(!FOREIGN.contains(&label.name), "{}", metric.name());
                let mut parts = label.name.split('_');
                assert!(parts.all(|part| !PARTS.contains(&part)), "{}", metric.name());
            }
        }
    }
}
