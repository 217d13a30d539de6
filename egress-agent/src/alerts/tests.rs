//! The rules that are handed out are those of the code, and each says what it must.

use std::collections::BTreeSet;
use std::path::Path;

use clap::Parser as _;
use egress_common::Reason;

use super::*;
use crate::cli::Cli;
use crate::metrics::Metric;

#[test]
fn the_generated_rules_are_those_of_the_code() {
    crate::generated::same("deploy/alerts/rules.yaml", &plain(Pace::REAL));
    crate::generated::same("deploy/alerts/prometheusrule.yaml", &prometheus_rule(Pace::REAL));
}

#[test]
fn a_pace_divides_and_never_reaches_zero() {
    let pace = Pace::divided(100, 100_000);
    assert_eq!(pace.seconds(900), 9);
    assert_eq!((pace.seconds(60), pace.age(60), pace.rate(1)), (3, 6, 100));
    assert_eq!(pace.seconds(0), 0);
    assert_eq!(pace.seconds(14 * 86_400), 12);
    assert_eq!(Pace::REAL.span(900), "15m");
    assert_eq!(Pace::REAL.span(14 * 86_400), "14d");
    assert_eq!(Pace::REAL.span(90), "90s");
    assert_eq!(pace.span(600), "6s");
}

#[test]
fn every_reason_has_a_class_and_every_denial_is_bypass_or_refused() {
    for reason in Reason::ALL {
        let class = DestinationClass::of(*reason);
        let denied = matches!(class, DestinationClass::Bypass | DestinationClass::Refused);
        assert_eq!(denied, reason.denies(), "{reason}");
    }
    assert_eq!(DestinationClass::Exception.pattern(), "exception");
}

#[test]
fn every_alert_names_what_it_is_about() {
    let mut names = BTreeSet::new();
    for alert in alerts(Pace::REAL) {
        let Alert { name, severity: _, hold: _, expr, summary, description } = alert;
        assert!(names.insert(name), "{name} is there twice");
        assert!(name.starts_with("Egress") && !expr.is_empty(), "{name}");
        // `$value` alone tells nobody where to look.
        assert!(summary.contains("{{ $labels."), "{name}: {summary}");
        assert!(description.contains("{{ $labels.") && description.ends_with('.'), "{name}");
        // In a folded block nothing needs quoting, but a line must not end one.
        assert!(!summary.contains('\n') && !description.contains('\n'), "{name}");
    }
    assert_eq!(names.len(), 13);
}

/// The page of every alert, and no page of an alert that is none.
fn pages() -> Vec<(&'static str, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/runbooks");
    let read = |name| std::fs::read_to_string(directory.join(format!("{name}.md")));
    let pages: Vec<_> = alerts(Pace::REAL)
        .iter()
        .map(|alert| (alert.name, read(alert.name).unwrap_or_else(|_| panic!("{}.md", alert.name))))
        .collect();
    let known: BTreeSet<String> = pages.iter().map(|(name, _)| format!("{name}.md")).collect();
    for entry in std::fs::read_dir(&directory).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        assert!(known.contains(&name), "{name} is no alert's page");
    }
    pages
}

#[test]
fn every_alert_has_a_page_of_the_same_sections() {
    for (name, page) in pages() {
        assert!(page.starts_with(&format!("# {name}\n")), "{name}");
        let sections: Vec<&str> = page.lines().filter_map(|l| l.strip_prefix("## ")).collect();
        let expected = ["Meaning", "First command", "Which cause", "Fix", "When to silence"];
        assert_eq!(sections, expected, "{name}");
    }
}

#[test]
fn every_command_of_a_page_is_one_of_the_agent() {
    for (name, page) in pages() {
        let mut commands = 0;
        for line in code(&page) {
            let inside = line.split_once(" -- ").map_or(line, |(_, inside)| inside);
            if !inside.starts_with("egress-agent ") {
                continue;
            }
            let command = inside.split(['|', '#']).next().unwrap_or_default();
            let parsed = Cli::try_parse_from(command.split_whitespace());
            assert!(parsed.is_ok(), "{name}: `{command}`: {}", parsed.unwrap_err());
            commands += 1;
        }
        assert!(commands > 0, "{name} names no command of the agent");
    }
}

#[test]
fn every_metric_of_a_page_is_in_the_catalogue() {
    let known: BTreeSet<&str> = Metric::ALL.iter().map(|metric| metric.name()).collect();
    for (name, page) in pages() {
        for word in page.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')) {
            let recorded = recordings(Pace::REAL).iter().any(|rule| rule.name == word);
            if word.starts_with("egress_") || word.starts_with("egress:") {
                assert!(known.contains(word) || recorded, "{name}: {word}");
            }
        }
    }
}

#[test]
fn the_documentation_lists_every_alert_and_every_recording() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/alerts.md");
    let text = std::fs::read_to_string(file).unwrap();
    for alert in alerts(Pace::REAL) {
        let row = format!(
            "| [{0}](../deploy/runbooks/{0}.md) | {1} |",
            alert.name,
            alert.severity.name()
        );
        assert!(text.contains(&row), "docs/alerts.md has no row {row}");
    }
    for rule in recordings(Pace::REAL) {
        assert!(text.contains(&format!("`{}`", rule.name)), "docs/alerts.md lacks {}", rule.name);
    }
}

/// Lines of fenced blocks.
fn code(page: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    page.lines().filter(move |line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        inside && !fence
    })
}
