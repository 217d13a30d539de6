//! The rules as text: a plain file for Prometheus, and the same in a `PrometheusRule`.
//!
//! Written by hand rather than by a YAML library: expressions are blocks that people can read.

use super::recording::{audited, classes, cross_check, shared};
use super::thresholds::{AUDITED_EVERY, STEP};
use super::{Alert, Pace, RUNBOOKS, Recording, alerts};

const HEAD: &str = "# Made from egress-agent/src/alerts by `cargo xtask generate`.\n";

/// A rules file, as `rule_files` of Prometheus names it.
pub fn plain(pace: Pace) -> String {
    format!("{HEAD}{}", groups(pace))
}

/// The same for the Prometheus Operator.
pub fn prometheus_rule(pace: Pace) -> String {
    let groups = groups(pace).replace('\n', "\n  ");
    format!(
        "{HEAD}apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: \
         egress-enforcer\n  namespace: egress-enforcer\n  labels: {{app.kubernetes.io/name: \
         egress-enforcer}}\nspec:\n  {}\n",
        groups.trim_end()
    )
}

fn groups(pace: Pace) -> String {
    let mut text = String::from("groups:\n");
    group(&mut text, "egress-enforcer", None, &shared(pace), &alerts(pace));
    let step = Some(pace.span(STEP));
    group(&mut text, "egress-enforcer-classes", step, &classes(pace), &[]);
    let every = Some(pace.span(AUDITED_EVERY));
    group(&mut text, "egress-enforcer-audit", every, &audited(pace), &[]);
    group(&mut text, "egress-enforcer-istio", None, &cross_check(pace), &[]);
    text
}

/// Rules of a group are evaluated in order: what alerts read is recorded before.
fn group(
    text: &mut String,
    name: &str,
    interval: Option<String>,
    recordings: &[Recording],
    alerts: &[Alert],
) {
    text.push_str(&format!("- name: {name}\n"));
    if let Some(interval) = interval {
        text.push_str(&format!("  interval: {interval}\n"));
    }
    text.push_str("  rules:\n");
    for rule in recordings {
        text.push_str(&format!("  - record: {}\n    expr: |-\n{}", rule.name, block(&rule.expr)));
        if let Some((label, value)) = rule.label {
            text.push_str(&format!("    labels: {{{label}: {value}}}\n"));
        }
    }
    for alert in alerts {
        text.push_str(&format!("  - alert: {}\n    expr: |-\n{}", alert.name, block(&alert.expr)));
        if alert.hold > 0 {
            text.push_str(&format!("    for: {}\n", Pace::REAL.span(alert.hold)));
        }
        text.push_str(&format!("    labels: {{severity: {}}}\n", alert.severity.name()));
        text.push_str(&format!(
            "    annotations:\n      summary: >-\n        {}\n      description: >-\n        {}\n      \
             runbook_url: {RUNBOOKS}/{}\n",
            alert.summary, alert.description, alert.name
        ));
    }
}

fn block(expr: &str) -> String {
    expr.lines().map(|line| format!("      {line}\n")).collect()
}
