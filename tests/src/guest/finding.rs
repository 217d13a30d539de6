//! One finding a line, on standard output, in a form that kernel messages cannot be taken for.

use std::io::Write;

use serde_json::{Value, json};

/// What every line begins with.
pub const MARK: &str = "egress-matrix ";

/// Says that something holds on this kernel, or why it does not.
pub fn tell(name: &str, outcome: &anyhow::Result<String>) {
    say(&match outcome {
        Ok(detail) => json!({"name": name, "holds": true, "detail": detail}),
        Err(error) => json!({"name": name, "holds": false, "detail": format!("{error:#}")}),
    });
}

/// Says that the proof itself could not go on.
pub fn broke(error: &anyhow::Error) {
    say(&json!({"broke": format!("{error:#}")}));
}

/// Says anything.
pub fn say(value: &Value) {
    // A kernel message may have left the console in the middle of a line.
    let line = format!("\n{MARK}{value}\n");
    let mut out = std::io::stdout().lock();
    // Nobody is left to be told that the console is gone.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}
