//! `/metrics` over HTTP: to whom, how, and one collection at a time.
//!
//! What is served names pods of every tenant of the node. So the listener is on the loopback
//! interface unless it is told otherwise, on every interface only where callers have to say who
//! they are or somebody has said that it is meant, and whatever cannot be checked is refused.

mod gate;
mod tls;

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::net::TcpListener;

use super::collect;
use super::{Readiness, Sources};
use crate::registry::Reviewer;
use crate::supervise::{self, Shutdown};
use gate::Gate;
use tls::{Certificate, TlsListener};

/// Where metrics are served unless configured otherwise.
const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);
/// A second scrape within this time gets the first one's answer.
pub(super) const FRESH: Duration = Duration::from_secs(1);

/// Who may read metrics, and how.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Address and port; 127.0.0.1:9464 by default.
    pub address: Option<SocketAddr>,
    /// Every interface is meant, though nobody has to say who they are.
    pub any_address: bool,
    /// Certificate chain and key, PEM.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// A bearer token is asked for, and the API server asked about it.
    pub authenticate: bool,
}

/// Why metrics cannot be served as asked.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Every interface, and nobody is asked who they are.
    #[error(
        "metrics on {0} would tell every pod of the cluster what others call: name one address \
         with --metrics-address, or set metrics.authenticate: true, or metrics.anyAddress: true \
         where something else keeps others away"
    )]
    AnyAddress(SocketAddr),
    /// Tokens are asked about at the API server.
    #[error("metrics.authenticate asks the API server about tokens: it needs --registry kube")]
    NoServer,
    /// A token would be there for everybody on the way to read.
    #[error(
        "metrics.authenticate without metrics.tls would send tokens in the clear to {0}: set \
         metrics.tls, or bind an address of the loopback interface"
    )]
    TokensInTheClear(SocketAddr),
    /// Certificate or key.
    #[error("metrics.tls: {0}")]
    Tls(String),
    /// The address cannot be had.
    #[error("cannot serve metrics on {address}: {source}; choose --metrics-address")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A listener that is open, and who may use it.
pub struct Served {
    listener: TcpListener,
    certificate: Option<Arc<Certificate>>,
    gate: Option<Arc<Gate>>,
}

/// Opens the listener.
///
/// # Errors
/// [`AccessError`]; each says what to change.
pub async fn bind(access: &Access, reviewer: Option<Reviewer>) -> Result<Served, AccessError> {
    let address = access.address.unwrap_or(DEFAULT_ADDRESS);
    if address.ip().is_unspecified() && !access.authenticate && !access.any_address {
        return Err(AccessError::AnyAddress(address));
    }
    if access.authenticate && access.tls.is_none() && !address.ip().is_loopback() {
        return Err(AccessError::TokensInTheClear(address));
    }
    if !access.authenticate && !address.ip().is_loopback() {
        tracing::warn!(%address, "whoever reaches this address reads metrics, which name pods");
    }
    let gate = match (access.authenticate, reviewer) {
        (false, _) => None,
        (true, Some(reviewer)) => Some(Arc::new(Gate::new(reviewer))),
        (true, None) => return Err(AccessError::NoServer),
    };
    let certificate = match &access.tls {
        Some((chain, key)) => {
            Some(Arc::new(Certificate::load(chain, key).map_err(AccessError::Tls)?))
        }
        None => None,
    };
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|source| AccessError::Bind { address, source })?;
    Ok(Served { listener, certificate, gate })
}

/// Serves until shutdown.
///
/// # Errors
/// When the listener fails.
pub async fn serve(served: Served, readiness: Readiness, mut shutdown: Shutdown) -> io::Result<()> {
    let Served { listener, certificate, gate } = served;
    let router =
        Router::new().route("/metrics", get(answer)).with_state(Endpoint { readiness, gate });
    let ended = async move { shutdown.requested().await };
    match certificate {
        None => axum::serve(listener, router).with_graceful_shutdown(ended).await,
        Some(certificate) => {
            let listener = TlsListener::new(listener, certificate)?;
            axum::serve(listener, router).with_graceful_shutdown(ended).await
        }
    }
}

#[derive(Clone)]
struct Endpoint {
    readiness: Readiness,
    gate: Option<Arc<Gate>>,
}

async fn answer(State(endpoint): State<Endpoint>, headers: HeaderMap) -> Response {
    if let Some(gate) = &endpoint.gate
        && let Err(refused) = gate.admit(&headers).await
    {
        return refused;
    }
    match scrape(&endpoint.readiness).await {
        Ok(taken) => taken.response(accepts_gzip(&headers)),
        Err(error) => {
            tracing::warn!(error, "scrape failed");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
        }
    }
}

/// One exposition, as often as it is asked for while it is fresh.
#[derive(Clone)]
pub(super) struct Taken {
    at: Instant,
    text: Bytes,
    compressed: Bytes,
}

/// One collection at a time: whoever waits here gets the result of the one before.
pub(super) async fn scrape(readiness: &Readiness) -> Result<Taken, String> {
    let mut cached = readiness.cached.lock().await;
    if let Some(taken) = cached.as_ref().filter(|taken| taken.at.elapsed() < FRESH) {
        return Ok(taken.clone());
    }
    let sources = Arc::clone(&readiness.sources);
    let taken = supervise::blocking(move || {
        let text = sources.get().map_or_else(collect::before_ready, Sources::scrape);
        let text = text.map_err(|error| error.to_string())?;
        let compressed = compress(&text).map_err(|error| error.to_string())?;
        Ok::<_, String>(Taken {
            at: Instant::now(),
            text: text.into(),
            compressed: compressed.into(),
        })
    });
    let taken = taken.await.map_err(|error| error.to_string())??;
    *cached = Some(taken.clone());
    Ok(taken)
}

fn compress(text: &str) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes())?;
    encoder.finish()
}

/// Whether gzip is among the encodings that a client takes.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let encodings = headers.get_all(header::ACCEPT_ENCODING).into_iter();
    let mut encodings =
        encodings.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    encodings.any(|encoding| {
        let mut parts = encoding.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let refused = parts.any(|part| {
            part.strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q == 0.0))
        });
        named && !refused
    })
}

impl Taken {
    fn response(self, gzip: bool) -> Response {
        let kind = (header::CONTENT_TYPE, prometheus::TEXT_FORMAT);
        let vary = (header::VARY, "accept-encoding");
        if gzip {
            let encoding = (header::CONTENT_ENCODING, "gzip");
            return ([kind, vary, encoding], self.compressed).into_response();
        }
        ([kind, vary], self.text).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_to_whoever_takes_it() {
        let accepts = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
            accepts_gzip(&headers)
        };
        assert!(accepts("gzip") && accepts("deflate, GZIP;q=0.5"));
        assert!(!accepts("identity") && !accepts("gzip;q=0") && !accepts("xgzip"));
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn every_interface_is_only_taken_where_it_is_meant() {
        let refused = |access: Access| async move {
            bind(&access, None).await.err().map(|error| error.to_string())
        };
        let any: SocketAddr = "0.0.0.0:0".parse().unwrap();
        let access = |address, any_address, authenticate| Access {
            address: Some(address),
            any_address,
            authenticate,
            tls: None,
        };
        for address in [any, "[::]:0".parse().unwrap()] {
            let error = refused(access(address, false, false)).await.unwrap();
            assert!(error.contains("metrics.anyAddress: true"), "{error}");
        }
        assert_eq!(refused(access(any, true, false)).await, None);
        let error = refused(access(any, false, true)).await.unwrap();
        assert!(error.contains("in the clear"), "{error}");
        let error = refused(access("127.0.0.1:0".parse().unwrap(), false, true)).await.unwrap();
        assert!(error.contains("--registry kube"), "{error}");
    }
}
