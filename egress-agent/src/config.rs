//! The agent's configuration file: what a node's operator knows and the registry does not say.
//!
//! Unknown keys are refused with their line and column: a misspelt limit must not pass for one
//! that is in force. Flags and environment variables override the file.

mod datapath;
mod events;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use egress_common::Mode;
use ipnet::IpNet;
use serde::Deserialize;

use crate::names::Settings;
use crate::policy::{ClusterConfig, Mark};
use crate::registry::allowed_range;
pub use datapath::Datapath;
pub use events::{EventFormat, Events};

/// The file, every key optional.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct File {
    /// Name of this node, as in `spec.nodeName`. Without it every pod of a directory is local; the
    /// registry `kube` needs it.
    pub node_name: Option<String>,
    /// What happens to pods the agent has not learned: `audit` (default) or `deny`.
    pub unknown_pod: UnknownPod,
    /// Interfaces of the node, or bridges whose ports they are, that lead to no pods, by name; `*` at
    /// the end stands for any rest. What is behind them is never taken for a pod that is not learned.
    pub not_pods: Vec<String>,
    /// How long a silent agent's policy counts as fresh (`30s`); 0 for ever. Default 30s.
    pub lease: Option<String>,
    /// Facts of the cluster.
    pub cluster: Cluster,
    /// How the programs get to where they judge.
    pub datapath: Datapath,
    /// Where Service addresses are judged after their translation.
    pub uplink: Uplink,
    /// Metrics: where, to whom, and how fine.
    pub metrics: Metrics,
    /// Where probes are answered.
    pub health: HealthProbes,
    /// Events.
    pub events: Events,
    /// What DNS tells the pods.
    pub names: Names,
}

/// What DNS tells the pods.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Names {
    /// Whether answers are read; true by default.
    pub enabled: bool,
    /// How long a registered host is learned after its first answer, before it can drift; `24h` by
    /// default. With `0` its first answer is all there is to learn.
    pub learning: Option<String>,
    /// How long an address counts beyond its TTL; `5m` by default.
    pub grace: Option<String>,
    /// Domains whose names may lead inside the cluster; `cluster.local` by default.
    pub internal_domains: Vec<String>,
    /// Ranges where no name of the outside may lead, beside those of cluster and nodes.
    pub internal_ranges: Vec<IpNet>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            enabled: true,
            learning: None,
            grace: None,
            internal_domains: vec!["cluster.local".to_owned()],
            internal_ranges: Vec::new(),
        }
    }
}

/// Verdict for pods the agent has not learned.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum UnknownPod {
    /// Let through and reported.
    #[default]
    Audit,
    /// Dropped, but for loopback, named resolvers and answers to what was opened from outside.
    Deny,
}

/// Facts of the cluster.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Cluster {
    /// Pod and service ranges, added to what Nodes and ServiceCIDRs say.
    pub ranges: Vec<String>,
    /// Node addresses or ranges of them, added to what Nodes say.
    pub node_addresses: Vec<String>,
    /// Metadata service addresses.
    pub metadata_addresses: Vec<IpAddr>,
    /// Ranges of the mesh's virtual addresses.
    pub mesh_vip_ranges: Vec<IpNet>,
    /// Remotes outside the cluster whose connections toward pods may be answered.
    pub inbound_ranges: Vec<String>,
    /// Namespaces whose pods no policy governs.
    pub exempt_namespaces: Vec<String>,
}

impl Default for Cluster {
    fn default() -> Self {
        let v6 = |a, b, c, h| IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, h));
        let net = |ip, len| IpNet::new(ip, len).unwrap_or_else(|_| IpNet::from(ip));
        Self {
            ranges: Vec::new(),
            node_addresses: Vec::new(),
            metadata_addresses: vec![
                IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
                v6(0xfd00, 0x0ec2, 0, 0x254),
            ],
            mesh_vip_ranges: vec![
                net(IpAddr::V4(Ipv4Addr::new(240, 240, 0, 0)), 16),
                net(v6(0x2001, 2, 0, 0), 48),
            ],
            inbound_ranges: Vec::new(),
            exempt_namespaces: vec!["kube-system".to_owned(), "istio-system".to_owned()],
        }
    }
}

/// The node's uplinks.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Uplink {
    /// Two bits of the packet mark, as `0x3000` (the default); `0` leaves packets unmarked, and
    /// Service addresses that end outside to the registry's knowledge alone.
    pub mark_mask: Option<String>,
}

/// Bits of the packet mark that others use: a bit of theirs on our packets would change how the
/// node treats them, and one of ours on theirs would have their packets judged.
const FOREIGN_MARKS: [(&str, u32); 4] = [
    ("kube-proxy", 0x0000_c000),
    ("Cilium", 0x0000_0f00),
    ("Istio", 0x0000_0539),
    ("Calico", 0xffff_0000),
];
const MARK_MASK: u32 = 0x3000;

/// Metrics: where, to whom, and how fine.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Metrics {
    /// Address and port; 127.0.0.1:9464 by default.
    pub address: Option<SocketAddr>,
    /// Serve on every interface (0.0.0.0 or [::]) though nobody is asked who they are.
    pub any_address: bool,
    /// Ask callers for a bearer token and the API server whether its owner may `get` the
    /// nonResourceURL `/metrics`. Needs registry kube and the rights of
    /// `egress-agent rbac --metrics-authentication`.
    pub authenticate: bool,
    /// Serve over TLS.
    pub tls: Option<Tls>,
    /// What has series of its own: `pod` (default), `workload` or `namespace`.
    pub granularity: Option<Granularity>,
    /// Series of pods and workloads, at most; what finds no room counts as `_overflow`. 20000 by
    /// default, at least 100.
    pub max_series: Option<u32>,
}

/// Files of a certificate, read again when they change.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// The chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Probes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HealthProbes {
    /// Address and port of /livez and /readyz; 127.0.0.1:9465 by default. They name nobody.
    pub address: Option<SocketAddr>,
}

/// What has series of its own.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum Granularity {
    /// Every pod, and every workload.
    #[default]
    Pod,
    /// Every workload.
    Workload,
    /// Every namespace: `source_workload` is empty.
    Namespace,
}

/// Why the configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read configuration {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no configuration.
    #[error("configuration {path}{place}: {message}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// `:line:column`, where known.
        place: String,
        /// What was expected.
        message: String,
    },
    /// A value cannot be meant.
    #[error("configuration {path}: {message}", path = path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key and what is wrong with it.
        message: String,
    },
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or is no configuration; line and column are named.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(text).map_err(|error| {
            let place = error.location();
            let place = place.map(|at| format!(":{}:{}", at.line(), at.column()));
            let message = error.to_string();
            let first = message.lines().next().unwrap_or_default();
            // The library says the place again, in words.
            let first = first.strip_prefix("error: ").unwrap_or(first);
            let first = match first.split_once(": ") {
                Some((words, rest)) if words.starts_with("line ") => rest,
                _ => first,
            };
            ConfigError::Parse {
                path: path.to_owned(),
                place: place.unwrap_or_default(),
                message: first.to_owned(),
            }
        })
    }

    /// The cluster's facts, checked.
    ///
    /// # Errors
    /// When a range cannot be meant.
    pub fn cluster(&self, path: &Path) -> Result<ClusterConfig, ConfigError> {
        let wrong = |message| ConfigError::Value { path: path.to_owned(), message };
        let ranges = |key: &str, texts: &[String]| -> Result<Vec<IpNet>, ConfigError> {
            let read = |(index, text): (usize, &String)| {
                let field = format!("cluster.{key}[{index}]");
                // A single address is a range of one.
                match text.parse::<IpAddr>() {
                    Ok(ip) => Ok(IpNet::from(ip)),
                    Err(_) => allowed_range(&field, text),
                }
            };
            texts.iter().enumerate().map(read).collect::<Result<_, _>>().map_err(wrong)
        };
        Ok(ClusterConfig {
            ranges: ranges("ranges", &self.cluster.ranges)?,
            node_addresses: ranges("nodeAddresses", &self.cluster.node_addresses)?,
            metadata_addresses: self.cluster.metadata_addresses.clone(),
            mesh_vip_ranges: self.cluster.mesh_vip_ranges.clone(),
            inbound_ranges: ranges("inboundRanges", &self.cluster.inbound_ranges)?,
            exempt_namespaces: self.cluster.exempt_namespaces.clone(),
        })
    }

    /// The lease; zero for none.
    ///
    /// # Errors
    /// When it is no span of time, or shorter than three heartbeats.
    pub fn lease(&self, path: &Path) -> Result<Duration, ConfigError> {
        let wrong = |message| ConfigError::Value { path: path.to_owned(), message };
        let Some(text) = &self.lease else {
            return Ok(Duration::from_secs(30));
        };
        match span(text) {
            Ok(span) if span.is_zero() || span >= Duration::from_secs(3) => Ok(span),
            Ok(_) => Err(wrong(format!(
                "lease: {text} is shorter than three heartbeats of one second; write 3s or more, \
                 or 0 for none"
            ))),
            Err(error) => {
                Err(wrong(format!("lease: `{text}` is no span of time like 30s: {error}")))
            }
        }
    }

    /// What the operator says of names.
    ///
    /// # Errors
    /// When a span of time is none, or a domain is no name.
    pub fn names(&self, path: &Path) -> Result<Settings, ConfigError> {
        let wrong = |message| ConfigError::Value { path: path.to_owned(), message };
        let read = |key: &str, text: &Option<String>, default: Duration| match text {
            None => Ok(default),
            Some(text) => span(text).map_err(|error| {
                wrong(format!("names.{key}: `{text}` is no span of time like 5m: {error}"))
            }),
        };
        let Names { enabled, learning, grace, internal_domains, internal_ranges } = &self.names;
        let domain = |(i, text): (usize, &String)| {
            let domain = text.trim_matches('.').to_ascii_lowercase();
            if domain.is_empty() || domain.contains(['*', '/', ' ']) {
                return Err(wrong(format!(
                    "names.internalDomains[{i}]: `{text}` is no domain; write corp.example, which \
                     stands for itself and every name below it"
                )));
            }
            Ok(domain)
        };
        Ok(Settings {
            enabled: *enabled,
            learning: read("learning", learning, Duration::from_secs(24 * 3600))?,
            grace: read("grace", grace, Duration::from_secs(300))?,
            internal_domains: internal_domains
                .iter()
                .enumerate()
                .map(domain)
                .collect::<Result<_, _>>()?,
            internal_ranges: internal_ranges.clone(),
        })
    }

    /// The bits that packets are marked with.
    ///
    /// # Errors
    /// When the mask is no number, not two bits, or another program's.
    pub fn mark(&self, path: &Path) -> Result<Mark, ConfigError> {
        let wrong = |message: String| ConfigError::Value {
            path: path.to_owned(),
            message: format!("uplink.markMask: {message}"),
        };
        let mask = match self.uplink.mark_mask.as_deref() {
            None => MARK_MASK,
            Some(text) => {
                let digits = text.strip_prefix("0x").unwrap_or(text);
                let parsed = u32::from_str_radix(digits, if digits == text { 10 } else { 16 });
                parsed.map_err(|_| wrong(format!("`{text}` is no number like 0x3000")))?
            }
        };
        if mask == 0 {
            return Ok(Mark::default());
        }
        if mask.count_ones() != 2 {
            return Err(wrong(format!("{mask:#x} has not exactly two bits; write 0x3000, or 0")));
        }
        if let Some((owner, bits)) = FOREIGN_MARKS.iter().find(|(_, bits)| mask & bits != 0) {
            return Err(wrong(format!(
                "{mask:#x} has bits that {owner} uses ({bits:#x}); choose others, such as 0x3000"
            )));
        }
        let audit = 1 << mask.trailing_zeros();
        Ok(Mark { audit, enforce: mask & !audit })
    }

    /// Series of pods and workloads, at most.
    ///
    /// # Errors
    /// When so few cannot be meant.
    pub fn max_series(&self, path: &Path) -> Result<usize, ConfigError> {
        match self.metrics.max_series {
            None => Ok(20_000),
            Some(most) if most >= 100 => Ok(most as usize),
            Some(most) => Err(ConfigError::Value {
                path: path.to_owned(),
                message: format!(
                    "metrics.maxSeries: {most} leaves no room for one node's pods; write 100 or \
                     more, or metrics.granularity: namespace"
                ),
            }),
        }
    }

    /// The mode of pods the agent has not learned.
    pub const fn unknown_pod(&self) -> Mode {
        match self.unknown_pod {
            UnknownPod::Audit => Mode::Audit,
            UnknownPod::Deny => Mode::Enforce,
        }
    }
}

/// A span of time such as `30s`; `0` for none.
fn span(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let span = text.parse::<jiff::SignedDuration>().map_err(|error| error.to_string())?;
    Duration::try_from(span).map_err(|error| error.to_string())
}
