//! Asking a running agent over its socket.

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::admin::{Refusal, SOCKET};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no agent answers at {socket}: {source}; start one with `egress-agent run`, or name its \
         --run-dir", socket = socket.display()
    )]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The connection failed.
    #[error("the agent's answer could not be read: {0}")]
    Broken(String),
    /// The agent refused the question.
    #[error("{}{}", .0.error, if .0.hint.is_empty() { String::new() } else { format!("; {}", .0.hint) })]
    Refused(Refusal),
}

/// Asks one question and returns the JSON answer.
///
/// # Errors
/// When no agent answers, or it refuses.
pub async fn ask(run_dir: &Path, path_and_query: &str) -> Result<Value, ClientError> {
    let socket = run_dir.join(SOCKET);
    let stream = UnixStream::connect(&socket)
        .await
        .map_err(|source| ClientError::Unreachable { socket, source })?;
    let broken = |error: &dyn std::fmt::Display| ClientError::Broken(error.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(&error))?;
    let request = Request::get(path_and_query)
        .header(hyper::header::HOST, "agent")
        .body(Empty::<Bytes>::new())
        .map_err(|error| broken(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
    };
    let (status, body) = tokio::select! {
        answer = exchange => answer.map_err(|error| broken(&error))?,
        ended = connection => return Err(match ended {
            Ok(()) => broken(&"the connection ended"),
            Err(error) => broken(&error),
        }),
    };
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|error| broken(&error));
    }
    match serde_json::from_slice(&body) {
        Ok(refusal) => Err(ClientError::Refused(refusal)),
        Err(_) => Err(broken(&status)),
    }
}

/// Percent-encodes what is not plainly part of a query value.
pub fn encode(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~/:".contains(byte);
    let encode = |byte: u8| {
        if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_value_survives_brackets_and_spaces() {
        assert_eq!(encode("shop/cart"), "shop/cart");
        assert_eq!(encode("[2001:db8::1]:443"), "%5B2001:db8::1%5D:443");
    }

    #[tokio::test]
    async fn a_missing_agent_is_said_to_be_missing() {
        let empty = tempfile::tempdir().unwrap();
        let error = ask(empty.path(), "/status").await.unwrap_err().to_string();
        assert!(error.contains("no agent answers") && error.contains("--run-dir"), "{error}");
    }
}
