//! What the probe says of one attempt, and the lab's way of making one.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::address::{NODE_MAC, mac_text, pod_mac};
use crate::lab::{Lab, Pod};
use crate::process::{Place, Process};

/// What became of an attempt, as its sender saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// It succeeded.
    pub ok: bool,
    /// `EPERM` and the like, or `timeout`; empty where it succeeded.
    pub error: String,
    /// What was answered.
    pub answer: String,
    /// Time until the outcome, microseconds.
    pub micros: u64,
    /// How many were sent.
    pub attempts: u64,
    /// The other end of a TCP connection, as the kernel tells its owner.
    #[serde(default)]
    pub peer: Option<SocketAddr>,
}

impl Outcome {
    /// From the probe's own result.
    pub fn new(result: std::io::Result<String>, took: Duration, attempts: u64) -> Self {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        match result {
            Ok(answer) => {
                Self { ok: true, error: String::new(), answer, micros, attempts, peer: None }
            }
            Err(error) => {
                let error = match error.raw_os_error() {
                    Some(number) => format!("{:?}", Errno::from_raw(number)),
                    None => format!("{:?}", error.kind()),
                };
                Self { ok: false, error, answer: String::new(), micros, attempts, peer: None }
            }
        }
    }

    /// Refused by a socket hook: at once, with `EPERM`.
    pub fn refused(&self) -> bool {
        !self.ok && self.error == "EPERM"
    }

    /// One word or two for people.
    pub fn words(&self) -> String {
        let time = Duration::from_micros(self.micros);
        if self.ok {
            format!("{} in {:.1} ms", self.answer, time.as_secs_f64() * 1e3)
        } else if self.refused() {
            format!("EPERM in {:.1} ms", time.as_secs_f64() * 1e3)
        } else {
            "no answer".to_owned()
        }
    }
}

impl Lab {
    /// Runs the probe at `place` and reads its outcome.
    ///
    /// # Errors
    /// When the probe cannot be started or says nothing.
    pub fn attempt(&self, place: &Place<'_>, arguments: &[&str]) -> Result<Outcome> {
        let what = format!("probe {}", arguments.join(" "));
        let mut command = self.probe(place)?;
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut probe = Process::start(command, &what)?;
        let (_, text) = probe.output(Duration::from_secs(20))?;
        serde_json::from_str(&text).with_context(|| format!("{what} said {text:?}"))
    }

    /// The probe's arguments for what must be built by hand: addresses and MACs of a pod.
    pub fn by_hand(&self, kind: &str, pod: &Pod, to: SocketAddr) -> Vec<String> {
        let source =
            if to.is_ipv4() { IpAddr::V4(pod.address().v4) } else { IpAddr::V6(pod.address().v6) };
        let mut arguments = vec![kind.to_owned(), to.to_string(), format!("--source={source}")];
        if kind != "raw" {
            arguments.push("--interface=eth0".to_owned());
            arguments.push(format!("--from={}", mac_text(pod_mac(pod.identity.host))));
            arguments.push(format!("--to={}", mac_text(NODE_MAC)));
        }
        arguments
    }
}

/// A TLS 1.2 hello for a server name: enough for a real server to answer.
pub fn client_hello(name: &str) -> Vec<u8> {
    fn sized(width: usize, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u64).to_be_bytes();
        let mut all = length.get(8 - width..).unwrap_or_default().to_vec();
        all.extend(body);
        all
    }
    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &sized(2, body)].concat()
    }
    let host = [&[0][..], &sized(2, name.as_bytes())].concat();
    let extensions = [
        extension(0, &sized(2, &host)),
        // x25519 and secp256r1; uncompressed points; RSA and ECDSA with SHA-256.
        extension(10, &sized(2, &[0, 29, 0, 23])),
        extension(11, &sized(1, &[0])),
        extension(13, &sized(2, &[8, 4, 4, 1, 4, 3])),
    ]
    .concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &sized(1, &[]),
        // ECDHE with AES-128-GCM, for both kinds of key.
        &sized(2, &[0xc0, 0x2f, 0xc0, 0x2b]),
        &sized(1, &[0]),
        &sized(2, &extensions),
    ]
    .concat();
    let handshake = [&[1][..], &sized(3, &body)].concat();
    [&[22, 3, 1][..], &sized(2, &handshake)].concat()
}
