//! The demo is the README's promise: it runs to the end and every expectation holds.

use std::process::Command;

use anyhow::{Context, Result};
use egress_tests::process::built;

#[test]
fn every_stage_of_the_demo_holds() -> Result<()> {
    let output = Command::new(built("demo", "EGRESS_DEMO")?).arg("--json").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let told: serde_json::Value = serde_json::from_str(&text)
        .with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))?;
    assert_eq!(told["failed"], serde_json::json!([]), "{text}");
    assert_eq!(told["ok"], true);
    assert_eq!(output.status.code(), Some(0));
    let stages: Vec<&str> = told["stages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|stage| stage["stage"].as_str())
        .collect();
    let expected = ["preflight", "topology", "mesh only", "audit", "enforce", "evidence", "kill"];
    assert_eq!(stages, expected);
    Ok(())
}
