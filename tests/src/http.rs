//! One GET over a connection of its own, as a scraper or a person with curl makes it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// Status and body of one GET from the caller's namespace.
///
/// # Errors
/// When nobody answers within some seconds.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    get_with(address, path, "")
}

/// The same with further header lines, each with its line end.
///
/// # Errors
/// As [`get`].
pub fn get_with(address: SocketAddr, path: &str, headers: &str) -> Result<(u16, String)> {
    let what = || format!("get http://{address}{path}");
    let mut stream =
        TcpStream::connect_timeout(&address, Duration::from_secs(2)).with_context(what)?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).with_context(what)?;
    // Version 1.0, so that the body comes whole and ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).with_context(what)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(what)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(what)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.with_context(what)?, body.to_owned()))
}
