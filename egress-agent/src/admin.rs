//! The control socket: root's own view of the agent, and nobody else's.
//!
//! It names pods, so it is a unix socket in a directory of root's that only its owner can open, and
//! whoever comes through all the same is asked who they are; nothing it answers changes anything.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::agent::AgentState;
use crate::clock::boot_clock;
use crate::exposure::Unenforced;
use crate::policy::Coverage;
use crate::policy::explain::{Question, explain};
use crate::supervise::Shutdown;

/// File name of the socket in the run directory.
pub const SOCKET: &str = "admin.sock";

/// A question that was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong.
    pub error: String,
    /// What to do; may be empty.
    pub hint: String,
}

type States = watch::Receiver<Arc<AgentState>>;

/// Binds the socket. The caller holds the agent's lock, so that a socket that is already there
/// is a dead agent's.
///
/// # Errors
/// When the socket cannot be made or protected.
pub fn bind(run_dir: &Path) -> io::Result<UnixListener> {
    protect(run_dir)?;
    let path = run_dir.join(SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Closes the run directory to everybody else, where nothing but the agent's is in it.
fn protect(run_dir: &Path) -> io::Result<()> {
    if fs::metadata(run_dir)?.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    let names: Vec<_> =
        fs::read_dir(run_dir)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    let ours = |name: &OsString| {
        let name = name.to_string_lossy();
        ["agent.", "admin.", "totals."].iter().any(|start| name.starts_with(start))
    };
    if names.iter().all(ours) {
        return fs::set_permissions(run_dir, Permissions::from_mode(0o700));
    }
    let directory = run_dir.display().to_string();
    tracing::warn!(directory, "others' files are in the run directory too: it stays open to them");
    Ok(())
}

/// Gives root's connections on, and closes the others: a socket that was opened to somebody by
/// mistake still tells them nothing.
struct RootOnly(UnixListener);

impl axum::serve::Listener for RootOnly {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = axum::serve::Listener::accept(&mut self.0).await;
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == 0 => return (stream, address),
                Ok(peer) => tracing::warn!(uid = peer.uid(), "refused on the control socket"),
                Err(error) => {
                    tracing::warn!(error = error.to_string(), "refused on the control socket");
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

/// Serves until shutdown.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: UnixListener,
    states: States,
    mut shutdown: Shutdown,
) -> io::Result<()> {
    let router = Router::new()
        .route("/status", get(status))
        .route("/explain", get(answer))
        .with_state(states);
    axum::serve(RootOnly(listener), router)
        .with_graceful_shutdown(async move { shutdown.requested().await })
        .await
}

async fn status(State(states): State<States>) -> Response {
    let state = Arc::clone(&states.borrow());
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": state.node,
        "mode": state.mode().name(),
        "generation": state.tables.config.generation,
        "registry": {
            "source": state.source,
            "revision": state.snapshot.revision,
            "complete": state.snapshot.complete,
            "connected": state.registry.connected,
            "ageSeconds": state.registry.at.elapsed().as_secs(),
        },
        "refused": state.refused,
        "warnings": state.warnings,
        "hooks": state.hooks.as_slice(),
        "pods": pods(&state),
        "unenforced": unenforced(&state),
        "gateways": state.desired.gateways,
        "problems": state.problems(),
    }))
    .into_response()
}

/// Every pod with its account: seconds and packets so far, and why it is not covered now.
fn pods(state: &AgentState) -> Vec<Value> {
    let now = boot_clock();
    let pod = |pod: &Coverage| {
        let mut shown = json!(pod);
        let account = pod.cgroup.and_then(|cgroup| state.exposures.of(cgroup));
        shown["exposure"] = account.map_or(Value::Null, |account| {
            json!({
                "ageSeconds": seconds(now.saturating_sub(account.born)),
                "coveredAfterSeconds":
                    account.covered.map(|at| seconds(at.saturating_sub(account.born))),
                "seconds": seconds(account.so_far.nanoseconds),
                "packets": account.so_far.packets,
                "reason": account.reason.map(Unenforced::name),
            })
        });
        shown
    };
    state.desired.coverage.iter().map(pod).collect()
}

/// The node's sums, by reason.
fn unenforced(state: &AgentState) -> Value {
    let sum = |reason: Unenforced| {
        let total = state.exposures.total(reason);
        let shown = json!({ "seconds": seconds(total.nanoseconds), "packets": total.packets });
        (reason.name().to_owned(), shown)
    };
    Value::Object(Unenforced::ALL.into_iter().map(sum).collect())
}

/// In thousandths.
fn seconds(nanoseconds: u64) -> f64 {
    Duration::from_millis(nanoseconds / 1_000_000).as_secs_f64()
}

#[derive(Deserialize)]
struct Asked {
    pod: String,
    dest: String,
}

async fn answer(State(states): State<States>, Query(asked): Query<Asked>) -> Response {
    let state = Arc::clone(&states.borrow());
    let refuse = |status: StatusCode, error: String, hint: String| {
        (status, Json(Refusal { error, hint })).into_response()
    };
    let question: Question = match asked.dest.parse() {
        Ok(question) => question,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, format!("{error}"), String::new()),
    };
    let pods = &state.desired.coverage;
    let Some(pod) = pods.iter().find(|pod| pod.pod.to_string() == asked.pod) else {
        let names = pods.iter().map(|pod| pod.pod.to_string());
        let hint = nearest(&asked.pod, names);
        let error = format!("this node has no pod `{}`", asked.pod);
        return refuse(StatusCode::NOT_FOUND, error, hint);
    };
    let now = boot_clock();
    Json(explain(&state.desired, &state.tables, &state.snapshot, pod, &question, now))
        .into_response()
}

/// The names most like the one asked for.
fn nearest(asked: &str, names: impl Iterator<Item = String>) -> String {
    let mut near: Vec<(usize, String)> = names.map(|name| (distance(asked, &name), name)).collect();
    near.sort();
    let near: Vec<String> = near.into_iter().take(3).map(|(_, name)| name).collect();
    match near.as_slice() {
        [] => "the registry names no pod of this node; see `egress-agent status`".to_owned(),
        near => format!("the nearest names are {}", near.join(", ")),
    }
}

/// Levenshtein distance, bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, y) in b.bytes().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_pod_gets_the_nearest_names() {
        assert_eq!(distance("kitten", "sitting"), 3);
        let names = ["shop/cart", "shop/checkout", "pay/card", "ops/x"].map(str::to_owned);
        let hint = nearest("shop/crat", names.into_iter());
        assert!(hint.starts_with("the nearest names are shop/cart, "), "{hint}");
        assert!(nearest("x", std::iter::empty()).contains("status"));
    }
}
