//! The dashboards as files: panels, expressions and variables.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// The repository's directory of dashboards.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/dashboards")
}

/// Every dashboard with its file's name.
///
/// # Errors
/// When one cannot be read.
pub fn all() -> Result<Vec<(String, Value)>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory())
        .context("list deploy/dashboards")?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).context("read a dashboard")?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let dashboard = serde_json::from_str(&text).with_context(|| name.clone())?;
        Ok((name, dashboard))
    };
    files.into_iter().map(read).collect()
}

/// The panels.
pub fn panels(dashboard: &Value) -> &[Value] {
    dashboard["panels"].as_array().map_or(&[], Vec::as_slice)
}

/// The expressions of a panel.
pub fn expressions(panel: &Value) -> impl Iterator<Item = &str> {
    let targets = panel["targets"].as_array().into_iter().flatten();
    targets.filter_map(|target| target["expr"].as_str())
}

/// An expression with the dashboard's variables filled in: every namespace, workload and instance,
/// and this window.
pub fn filled(expression: &str, window: &str) -> String {
    let filled = expression.replace("$__rate_interval", window).replace("$__range", window);
    ["namespace", "workload", "instance"]
        .iter()
        .fold(filled, |text, variable| text.replace(&format!("${variable}"), ".*"))
}
