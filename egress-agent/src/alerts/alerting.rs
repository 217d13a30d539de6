//! The alerts.

use super::thresholds::{
    AUDIT_FOR, AUDIT_STEP, DOWN_FOR, EMPTY_FOR, EXPIRING_WITHIN, FULL_FOR, FULL_PERCENT,
    HUNG_AFTER, LOST_WINDOW, RISING_BASELINE, RISING_FLOOR, RISING_FOR, RISING_SETTLED,
    RISING_TIMES, STALE_AFTER, SURGE_BASELINE, SURGE_FLOOR, SURGE_FOR, SURGE_SETTLED, SURGE_TIMES,
    SUSTAINED_FOR, SUSTAINED_PACKETS, UNCOVERED_FOR,
};
use super::{Alert, DestinationClass, JOB, Pace, Severity};
use crate::metrics::Metric;

/// Every alert, in the order of the documentation.
pub fn alerts(pace: Pace) -> Vec<Alert> {
    let mut alerts = traffic(pace);
    alerts.extend(coverage(pace));
    alerts.extend(agent(pace));
    alerts.extend(exceptions(pace));
    for alert in &mut alerts {
        alert.hold = pace.seconds(alert.hold);
    }
    alerts
}

/// What workloads do.
fn traffic(pace: Pace) -> Vec<Alert> {
    let bypass = DestinationClass::Bypass.pattern();
    let attempts = format!("egress:workload_denied_packets:increase5m{{reason=~\"{bypass}\"}}");
    let (surging, denied) =
        ("egress:namespace_external_bytes:rate5m", "egress:namespace_denied_packets:rate5m");
    let (day, settled) = (pace.span(SURGE_BASELINE), pace.span(SURGE_SETTLED));
    let floor = pace.rate(RISING_FLOOR);
    let (hour, apart) = (pace.span(RISING_BASELINE), pace.span(RISING_SETTLED));
    vec![
        Alert {
            name: "EgressBypassAttempt",
            severity: Severity::Warning,
            hold: 0,
            expr: format!(
                "sum by (source_namespace, source_workload, verdict) (\n  {attempts}\n) > 0"
            ),
            summary: "{{ $labels.source_namespace }}/{{ $labels.source_workload }} tried to leave past the gateway",
            description: "Workload {{ $labels.source_workload }} in namespace {{ $labels.source_namespace }} sent about {{ printf \"%.0f\" $value }} packets in 5 minutes to the outside by another way than an egress gateway. Verdict {{ $labels.verdict }}: drop was stopped, audit went out.",
        },
        Alert {
            name: "EgressBypassSustained",
            severity: Severity::Critical,
            hold: SUSTAINED_FOR,
            expr: format!(
                "sum by (source_namespace, source_workload) (\n  {attempts}\n) >= {SUSTAINED_PACKETS}"
            ),
            summary: "{{ $labels.source_namespace }}/{{ $labels.source_workload }} keeps trying to leave past the gateway",
            description: "Workload {{ $labels.source_workload }} in namespace {{ $labels.source_namespace }} has been sending to the outside past the egress gateway for 15 minutes, about {{ printf \"%.0f\" $value }} packets in the last 5.",
        },
        Alert {
            name: "EgressNamespaceBytesSurge",
            severity: Severity::Warning,
            hold: SURGE_FOR,
            expr: format!(
                "{surging}\n> {SURGE_TIMES} * clamp_min(\n  quantile_over_time(0.95, {surging}[{day}] \
                 offset {settled}) or {surging} * 0,\n  {SURGE_FLOOR}\n)"
            ),
            summary: "Namespace {{ $labels.source_namespace }} suddenly sends much more to the outside",
            description: "Pods of namespace {{ $labels.source_namespace }} send {{ $value | humanize1024 }}B/s to the outside, through gateways, exceptions or around them: more than four times what they sent during 95 % of the day before.",
        },
        Alert {
            name: "EgressDeniedRising",
            severity: Severity::Warning,
            hold: RISING_FOR,
            expr: format!(
                "{denied} > {floor}\nand\n{denied} > {RISING_TIMES} * (\n  \
                 avg_over_time({denied}[{hour}] offset {apart}) or {denied} * 0\n)"
            ),
            summary: "Denied packets of namespace {{ $labels.source_namespace }} are rising",
            description: "{{ printf \"%.1f\" $value }} packets a second of namespace {{ $labels.source_namespace }} are denied, for whatever reason: more than three times as many as in the hour before.",
        },
    ]
}

/// What is enforced, and where.
fn coverage(pace: Pace) -> Vec<Alert> {
    let (pods, policy_pods) = (Metric::Pods.name(), Metric::PolicyPods.name());
    let (endpoints, problems) = (Metric::GatewayEndpoints.name(), Metric::RegistryProblems.name());
    let audited = format!("sum by (policy) ({policy_pods}{{mode=\"audit\"}})");
    // The step belongs to the days it divides.
    let (days, audit) = (pace.seconds(AUDIT_FOR), pace.span(AUDIT_FOR));
    let step = Pace::REAL.span((days * AUDIT_STEP / AUDIT_FOR).max(1));
    vec![
        Alert {
            name: "EgressPodsNotCovered",
            severity: Severity::Critical,
            hold: UNCOVERED_FOR,
            expr: format!("{pods}{{state=~\"no_interface|no_cgroup|missing\"}} > 0"),
            summary: "{{ $value }} pods on {{ $labels.instance }} are not enforced everywhere",
            description: "{{ $value }} governed pods on {{ $labels.instance }} have state {{ $labels.state }}: the agent found no interface, no cgroup, or neither, so that a hook that should judge them does not.",
        },
        Alert {
            name: "EgressGatewaySetEmpty",
            severity: Severity::Critical,
            hold: EMPTY_FOR,
            expr: format!(
                "max by (gateway) ({endpoints}{{state=\"serving\"}}) == 0\nor\n\
                 max by (code) ({problems}{{code=\"gateway_missing\"}}) > 0"
            ),
            summary: "Gateway {{ $labels.gateway }} has no endpoint that serves",
            description: "No node has a serving endpoint of gateway {{ $labels.gateway }} (where none is named, a policy names a gateway that does not exist): pods governed by its policies reach nothing outside.",
        },
        Alert {
            name: "EgressAuditTooLong",
            severity: Severity::Info,
            hold: 0,
            expr: format!(
                "min_over_time(({audited})[{audit}:{step}]) > 0\nand on (policy)\n\
                 sum by (policy) ({policy_pods}{{mode=\"audit\"}} offset {audit}) > 0"
            ),
            summary: "Policy {{ $labels.policy }} has been in audit for two weeks",
            description: "Policy {{ $labels.policy }} has governed at least {{ $value }} pods in mode audit for 14 days: what they send past the gateway is reported and not stopped.",
        },
    ]
}

/// Whether the agents do their work.
fn agent(pace: Pace) -> Vec<Alert> {
    let (stale, hung) = (pace.age(STALE_AFTER), pace.age(HUNG_AFTER));
    let (synced, lease) = (Metric::RegistryLastSync.name(), Metric::LeaseAge.name());
    let (entries, capacity) = (Metric::MapEntries.name(), Metric::MapCapacity.name());
    let (lost, problems) = (Metric::EventsLost.name(), Metric::RegistryProblems.name());
    vec![
        Alert {
            name: "EgressRegistryStale",
            severity: Severity::Critical,
            hold: 0,
            expr: format!("time() - {synced} > {stale}"),
            summary: "The agent on {{ $labels.instance }} has not heard from its registry for {{ $value | humanizeDuration }}",
            description: "The agent on {{ $labels.instance }} keeps enforcing what it last knew. New pods, gateways' new endpoints and changed policies do not reach the kernel.",
        },
        Alert {
            name: "EgressAgentDown",
            severity: Severity::Critical,
            hold: DOWN_FOR,
            expr: format!(
                "up{{job=\"{JOB}\"}} == 0\nor\nabsent(up{{job=\"{JOB}\"}})\nor\n{lease} > {hung}"
            ),
            summary: "The agent on {{ $labels.instance }} is down or hangs",
            description: "The agent on {{ $labels.instance }} does not answer Prometheus, or its loop does not beat; without an instance, Prometheus knows no agent at all. The kernel goes on enforcing by each policy's onAgentLoss; changes do not reach it.",
        },
        Alert {
            name: "EgressEventsLost",
            severity: Severity::Warning,
            hold: 0,
            expr: format!("increase({lost}[{}]) > 0", pace.span(LOST_WINDOW)),
            summary: "{{ $labels.instance }} lost events or counts at stage {{ $labels.stage }}",
            description: "About {{ printf \"%.0f\" $value }} records were lost at stage {{ $labels.stage }} on {{ $labels.instance }} in 10 minutes. Enforcement is not affected; the evidence has a gap of known size.",
        },
        Alert {
            name: "EgressMapNearlyFull",
            severity: Severity::Warning,
            hold: FULL_FOR,
            expr: format!(
                "100 * {entries} / {capacity} > {FULL_PERCENT}\nor\n{problems}{{code=\"table_full\"}} > 0"
            ),
            summary: "Kernel table {{ $labels.map }} on {{ $labels.instance }} is nearly full",
            description: "Kernel table {{ $labels.map }} on {{ $labels.instance }} is {{ printf \"%.0f\" $value }} % full (where no table is named, a policy did not fit already). A change that does not fit is refused whole and the old state stays.",
        },
    ]
}

/// What is let through until a time.
fn exceptions(pace: Pace) -> Vec<Alert> {
    let left = format!("max by (exception) ({}) - time()", Metric::ExceptionExpiry.name());
    let within = pace.seconds(EXPIRING_WITHIN);
    vec![
        Alert {
            name: "EgressBreakGlassInUse",
            severity: Severity::Info,
            hold: 0,
            expr: format!("{left} > 0"),
            summary: "Exception {{ $labels.exception }} is in force",
            description: "EgressException {{ $labels.exception }} lets pods past the gateway for {{ $value | humanizeDuration }} more. The kernel ends it by its own clock.",
        },
        Alert {
            name: "EgressBreakGlassExpiring",
            severity: Severity::Warning,
            hold: 0,
            expr: format!("{left} > 0 and {left} < {within}"),
            summary: "Exception {{ $labels.exception }} ends in {{ $value | humanizeDuration }}",
            description: "What EgressException {{ $labels.exception }} lets past the gateway is denied again in {{ $value | humanizeDuration }}. Extend it if it is still needed, or tell who uses it.",
        },
    ]
}
