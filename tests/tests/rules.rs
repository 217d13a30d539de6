//! Rules and dashboards as files: promtool's own tests, and every expression against the catalogue.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use egress_agent::alerts::{Pace, alerts, recordings};
use egress_agent::metrics::{Kind, Metric, Values};
use egress_tests::dashboards;
use egress_tests::prometheus::promtool;
use promql_parser::parser::{self, AggregateExpr, BinaryExpr, Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;

/// Labels that a scrape adds.
const SCRAPE: [&str; 2] = ["instance", "job"];
/// Labels of our recorded series.
const RECORDED: [&str; 6] =
    ["source_namespace", "source_workload", "verdict", "reason", "direction", "destination_class"];
/// What is not ours, and its labels.
const FOREIGN: [(&str, &[&str]); 4] = [
    ("up", &SCRAPE),
    ("ALERTS", &["alertname", "alertstate"]),
    ("istio_tcp_sent_bytes_total", &ISTIO),
    ("istio_tcp_received_bytes_total", &ISTIO),
];
const ISTIO: [&str; 4] =
    ["reporter", "source_workload", "source_workload_namespace", "destination_workload"];

fn alerts_file(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/alerts").join(name).display().to_string()
}

fn yaml(name: &str) -> Result<Value> {
    let text = std::fs::read_to_string(alerts_file(name)).with_context(|| name.to_owned())?;
    serde_saphyr::from_str(&text).with_context(|| name.to_owned())
}

#[test]
fn promtool_takes_the_rules_and_every_case_holds() -> Result<()> {
    promtool(&["check", "rules", &alerts_file("rules.yaml")])?;
    promtool(&["test", "rules", &alerts_file("tests.yaml"), &alerts_file("tests-days.yaml")])?;
    Ok(())
}

#[test]
fn the_operators_object_has_the_same_groups() -> Result<()> {
    let object = yaml("prometheusrule.yaml")?;
    assert_eq!(object["kind"], "PrometheusRule");
    assert_eq!(object["spec"]["groups"], yaml("rules.yaml")?["groups"]);
    Ok(())
}

#[test]
fn every_alert_has_a_case_that_fires_and_one_that_does_not() -> Result<()> {
    let recorded: BTreeMap<&str, BTreeSet<String>> = recordings(Pace::REAL)
        .iter()
        .map(|rule| Ok((rule.name, names(&rule.expr)?)))
        .collect::<Result<_>>()?;
    let mut cases = Vec::new();
    for file in ["tests.yaml", "tests-days.yaml"] {
        cases.extend(yaml(file)?["tests"].as_array().cloned().unwrap_or_default());
    }
    for alert in alerts(Pace::REAL) {
        let mut inputs = names(&alert.expr)?;
        // What is recorded may be recorded from what is recorded.
        for _ in 0..2 {
            for name in inputs.clone() {
                inputs.extend(recorded.get(name.as_str()).into_iter().flatten().cloned());
            }
        }
        // A case that does not even have what the alert reads shows nothing.
        let (mut fires, mut silent) = (0, 0);
        for case in &cases {
            let text = case["input_series"].to_string();
            let about = inputs
                .iter()
                .filter(|name| !["up", Metric::Generation.name()].contains(&name.as_str()));
            let mut about = about.peekable();
            let only_up = about.peek().is_none();
            if !only_up && !about.any(|name| text.contains(&format!("{name}{{"))) {
                continue;
            }
            for check in case["promql_expr_test"].as_array().into_iter().flatten() {
                if check["expr"] != "ALERTS{alertstate=\"firing\"}" {
                    continue;
                }
                let named = format!("alertname=\\\"{}\\\"", alert.name);
                if check["exp_samples"].to_string().contains(&named) {
                    fires += 1
                } else {
                    silent += 1
                }
            }
        }
        println!("{}: fires in {fires} checks, is silent in {silent}", alert.name);
        ensure!(fires > 0 && silent > 0, "{} lacks a case", alert.name);
    }
    Ok(())
}

#[test]
fn every_expression_of_the_rules_reads_what_is_exported() -> Result<()> {
    for rule in recordings(Pace::REAL) {
        check(&rule.expr).with_context(|| rule.name)?;
    }
    for alert in alerts(Pace::REAL) {
        check(&alert.expr).with_context(|| alert.name)?;
    }
    Ok(())
}

#[test]
fn every_expression_of_the_dashboards_reads_what_is_exported() -> Result<()> {
    for (name, dashboard) in dashboards::all()? {
        for panel in dashboards::panels(&dashboard) {
            for expression in dashboards::expressions(panel) {
                let what = || format!("{name}: {}: {expression}", panel["title"]);
                check(&dashboards::filled(expression, "5m")).with_context(what)?;
            }
        }
        for variable in dashboard["templating"]["list"].as_array().into_iter().flatten() {
            let Some(query) = variable["query"]["query"].as_str() else { continue };
            // label_values(selector, label)
            let inside = query.strip_prefix("label_values(").and_then(|q| q.strip_suffix(')'));
            let (selector, label) =
                inside.and_then(|inside| inside.rsplit_once(", ")).context(query.to_owned())?;
            check(&format!("sum by ({label}) ({})", dashboards::filled(selector, "5m")))?;
        }
    }
    Ok(())
}

#[test]
fn dashboards_are_laid_out_and_described() -> Result<()> {
    let all = dashboards::all()?;
    assert_eq!(
        all.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["fleet", "node", "workload"]
    );
    let known: BTreeSet<&str> = Metric::ALL
        .iter()
        .flat_map(|metric| metric.labels())
        .map(|label| label.name)
        .chain(SCRAPE)
        .chain(RECORDED)
        .collect();
    for (name, dashboard) in &all {
        assert!(dashboard["description"].is_string() && dashboard["uid"].is_string(), "{name}");
        let variables = dashboard["templating"]["list"].as_array().context("no variables")?;
        assert_eq!(variables.first().context("no variable")?["type"], "datasource", "{name}");
        let panels = dashboards::panels(dashboard);
        assert!((1..=12).contains(&panels.len()), "{name}: {} panels", panels.len());
        let mut taken = BTreeSet::new();
        for panel in panels {
            let what = format!("{name}: {}", panel["title"]);
            for field in ["title", "description"] {
                assert!(!panel[field].as_str().unwrap_or_default().is_empty(), "{what}: {field}");
            }
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{what}: unit");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{what}");
            let at = |field: &str| panel["gridPos"][field].as_u64().context(what.clone());
            let (x, y, w, h) = (at("x")?, at("y")?, at("w")?, at("h")?);
            assert!(x + w <= 24 && w > 0 && h > 0, "{what}: leaves the grid");
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(taken.insert(cell), "{what}: overlaps at {cell:?}");
            }
            for target in panel["targets"].as_array().into_iter().flatten() {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{what}");
                let legend = target["legendFormat"].as_str().unwrap_or_default();
                for label in legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
                    assert!(known.contains(label), "{what}: no label {label}");
                }
            }
        }
    }
    Ok(())
}

/// Fails for a name that nobody exports, a label it does not have, or a word that the label never is.
#[test]
fn what_is_not_exported_is_noticed() {
    for (expression, why) in [
        ("sum(egress_pods_total)", "nobody exports egress_pods_total"),
        ("egress_pods{status=\"covered\"}", "egress_pods has no label status"),
        ("egress_pods{state=~\"covered|gone\"}", "state is never gone"),
        ("sum by (source_pod) (egress_workload_bytes_total)", "nothing below has label source_pod"),
        ("egress_registry_propagation_seconds", "nobody exports"),
        ("sum(", "not PromQL"),
    ] {
        let error = check(expression).unwrap_err();
        assert!(format!("{error:#}").contains(why), "{expression}: {error:#}");
    }
    check("sum by (le) (rate(egress_registry_propagation_seconds_bucket[5m]))").unwrap();
}

/// What an expression reads.
#[derive(Default)]
struct Reads {
    selectors: Vec<VectorSelector>,
    grouped: Vec<String>,
}

impl ExprVisitor for Reads {
    type Error = anyhow::Error;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool> {
        match expression {
            Expr::VectorSelector(selector) => self.selectors.push(selector.clone()),
            Expr::MatrixSelector(matrix) => self.selectors.push(matrix.vs.clone()),
            Expr::Aggregate(AggregateExpr { modifier: Some(modifier), .. }) => {
                self.grouped.extend(modifier.labels().labels.iter().cloned());
            }
            Expr::Binary(BinaryExpr { modifier: Some(modifier), .. }) => {
                let on = modifier.matching.iter().flat_map(|on| on.labels().labels.clone());
                self.grouped.extend(on);
            }
            Expr::Aggregate(_)
            | Expr::Binary(_)
            | Expr::Unary(_)
            | Expr::Paren(_)
            | Expr::Subquery(_)
            | Expr::NumberLiteral(_)
            | Expr::StringLiteral(_)
            | Expr::Call(_)
            | Expr::Extension(_) => {}
        }
        Ok(true)
    }
}

fn reads(expression: &str) -> Result<Reads> {
    let parsed =
        parser::parse(expression).map_err(|error| anyhow::anyhow!("not PromQL: {error}"))?;
    let mut reads = Reads::default();
    walk_expr(&mut reads, &parsed)?;
    Ok(reads)
}

/// The names an expression reads.
fn names(expression: &str) -> Result<BTreeSet<String>> {
    Ok(reads(expression)?.selectors.into_iter().filter_map(|selector| selector.name).collect())
}

/// Checks names, labels and closed words of an expression.
fn check(expression: &str) -> Result<()> {
    let reads = reads(expression)?;
    let mut all: BTreeSet<&str> = BTreeSet::new();
    for selector in &reads.selectors {
        let name = selector.name.as_deref().context("a selector without name")?;
        let labels = labels(name)?;
        for matcher in &selector.matchers.matchers {
            let label = matcher.name.as_str();
            ensure!(labels.contains(&label), "{name} has no label {label}");
            let Some(words) = words(name, label) else { continue };
            for word in matcher.value.split('|').filter(|word| *word != ".*") {
                ensure!(words.contains(&word), "{name}: {label} is never {word}");
            }
        }
        all.extend(labels);
    }
    for label in &reads.grouped {
        ensure!(all.contains(label.as_str()), "nothing below has label {label}");
    }
    Ok(())
}

/// The metric behind a name; a histogram's series carry more than its own.
fn metric(name: &str) -> Option<Metric> {
    Metric::ALL.iter().copied().find(|metric| {
        let suffix = name.strip_prefix(metric.name());
        match metric.kind() {
            Kind::Histogram => suffix.is_some_and(|s| ["_bucket", "_sum", "_count"].contains(&s)),
            Kind::Counter | Kind::Gauge => suffix == Some(""),
        }
    })
}

/// Every label a series may have.
fn labels(name: &str) -> Result<Vec<&'static str>> {
    if let Some(metric) = metric(name) {
        let own = metric.labels().iter().map(|label| label.name).chain(SCRAPE);
        return Ok(own.chain(name.ends_with("_bucket").then_some("le")).collect());
    }
    if recordings(Pace::REAL).iter().any(|rule| rule.name == name) {
        return Ok(RECORDED.to_vec());
    }
    match FOREIGN.iter().find(|(foreign, _)| *foreign == name) {
        Some((_, labels)) => Ok([*labels, &["source_namespace"]].concat()),
        None => bail!("nobody exports {name}"),
    }
}

/// The closed words of a label.
fn words(name: &str, label: &str) -> Option<Vec<&'static str>> {
    let label = metric(name)?.labels().iter().find(|known| known.name == label)?;
    match label.values {
        Values::Words(words) => Some(words()),
        Values::Names(_) => None,
    }
}
