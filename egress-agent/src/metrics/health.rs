//! Probes, on a listener of their own that names nobody: whoever reaches it learns whether the
//! agent works, and nothing of pods. They do not ask the API server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::Readiness;
use crate::clock::boot_clock;
use crate::supervise::Shutdown;

/// Where probes are answered unless configured otherwise.
const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9465);
/// A heartbeat older than this means that the loop hangs.
const ALIVE_NS: u64 = 10_000_000_000;

/// Opens the listener.
///
/// # Errors
/// When the address cannot be had; the message names it.
pub async fn bind(address: Option<SocketAddr>) -> anyhow::Result<TcpListener> {
    let address = address.unwrap_or(DEFAULT_ADDRESS);
    TcpListener::bind(address).await.map_err(|error| {
        anyhow::anyhow!("cannot answer probes on {address}: {error}; choose --health-address")
    })
}

/// Answers until shutdown.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    mut shutdown: Shutdown,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(readiness);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { shutdown.requested().await })
        .await
}

/// The loop beats. Before the first snapshot there is no loop, and waiting is no fault.
pub(super) async fn livez(State(readiness): State<Readiness>) -> Response {
    let beat = readiness.sources.get().map(|sources| sources.states.borrow().beat);
    match beat {
        Some(beat) if boot_clock().saturating_sub(beat) > ALIVE_NS => {
            (StatusCode::SERVICE_UNAVAILABLE, "the agent's loop does not beat\n").into_response()
        }
        _ => "ok\n".into_response(),
    }
}

/// Attached, and the first snapshot applied. It stays so when the registry is lost: what is in
/// force stays in force, and an agent that was restarted for it would know less.
pub(super) async fn readyz(State(readiness): State<Readiness>) -> Response {
    let wait = |why: String| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    let Some(sources) = readiness.sources.get() else {
        // What it waits for has names, which are for the log.
        return wait(
            "waiting for the first snapshot of the registry; the log says why\n".to_owned(),
        );
    };
    let state = std::sync::Arc::clone(&sources.states.borrow());
    let missing = || state.hooks.iter().filter(|hook| hook.needed && !hook.attached);
    match missing().next() {
        Some(first) => wait(format!(
            "{} of the kernel's hooks are not attached, the first is {}; see egress-agent status\n",
            missing().count(),
            first.hook
        )),
        None => "ok\n".into_response(),
    }
}
