//! Arguments, by component, and what the short-lived commands print.

pub mod client;
pub mod show;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{EventFormat, Granularity};
use crate::registry::Source;

/// Exit codes, stable.
pub mod exit {
    /// Done.
    pub const OK: u8 = 0;
    /// Failed at run time; the message says why.
    pub const FAILED: u8 = 1;
    /// This node cannot enforce; the message names each remedy.
    pub const CANNOT_ENFORCE: u8 = 2;
    /// Another agent runs on this node.
    pub const LOCKED: u8 = 3;
    /// Wrong arguments or configuration.
    pub const USAGE: u8 = 64;
}

const EXIT_CODES: &str = "Exit codes:
  0   done
  1   failed at run time
  2   this node cannot enforce; each remedy is printed
  3   another agent holds the lock
  64  wrong arguments or configuration";

const DOCTOR_CODES: &str = "Exit codes:
  0   every check is OK
  1   at least one WARN: something is weaker than it could be
  2   at least one FAIL: this node cannot enforce
  64  wrong arguments or configuration";

/// Node-level egress enforcer: makes the route through the egress gateway compulsory.
#[derive(Debug, Parser)]
#[command(name = "egress-agent", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Follow the registry and enforce until stopped; enforcement stays on afterwards
    #[command(after_help = EXIT_CODES)]
    Run(Box<Run>),
    /// Say what happens to a pod's traffic toward a destination, and why
    Explain(Explain),
    /// Show mode, generation, hooks, pods, gateways and problems
    Status(Query),
    /// Check whether this node can enforce, with a remedy for whatever is missing
    #[command(after_help = DOCTOR_CODES)]
    Doctor(Doctor),
    /// Remove everything this agent ever pinned: traffic flows freely afterwards
    Uninstall(Datapath),
    /// Print the definitions of EgressPolicy and EgressException, for `kubectl apply -f -`
    Crd(Written),
    /// Print the rights the agent needs in a cluster: its account, roles and bindings
    Rbac(Rights),
    /// Print the reference of all metrics, as in docs/metrics.md
    MetricsDoc,
}

/// Where the datapath lives.
#[derive(Args, Clone, Debug)]
pub struct Datapath {
    /// The agent's own directory in a bpffs
    #[arg(long, env = "EGRESS_BPFFS", default_value = "/sys/fs/bpf/egress-enforcer")]
    pub bpffs: PathBuf,
    /// Directory of the lock and the admin socket
    #[arg(long, env = "EGRESS_RUN_DIR", default_value = "/run/egress-enforcer")]
    pub run_dir: PathBuf,
}

/// `run`.
#[derive(Args, Debug)]
pub struct Run {
    /// Where the cluster's objects come from: kube (the API server), kube:KUBECONFIG or dir:PATH
    #[arg(long, env = "EGRESS_REGISTRY", value_name = "SOURCE")]
    pub registry: Source,
    /// Configuration file; flags override it
    #[arg(long, env = "EGRESS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of this node, as in spec.nodeName; registry kube needs it
    #[arg(long, env = "EGRESS_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Cgroup v2 directory that holds kubepods; found where the hierarchy is mounted by default
    #[arg(long, env = "EGRESS_CGROUP_ROOT", value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
    /// Where the datapath lives.
    #[command(flatten)]
    pub datapath: Datapath,
    /// Size of the exact, address, range and redirect tables, entries; fixed for as long as they are pinned
    #[arg(long, env = "EGRESS_TABLE_SIZE", value_name = "N")]
    pub table_size: Option<u32>,
    /// Listener of /metrics [default: 127.0.0.1:9464]
    #[arg(long, env = "EGRESS_METRICS_ADDRESS", value_name = "IP:PORT")]
    pub metrics_address: Option<SocketAddr>,
    /// Listener of /livez and /readyz [default: 127.0.0.1:9465]
    #[arg(long, env = "EGRESS_HEALTH_ADDRESS", value_name = "IP:PORT")]
    pub health_address: Option<SocketAddr>,
    /// What has series of its own in /metrics [default: pod]
    #[arg(long, env = "EGRESS_METRICS_GRANULARITY", value_enum)]
    pub metrics_granularity: Option<Granularity>,
    /// How events are written [default: ocsf]
    #[arg(long, env = "EGRESS_EVENTS_FORMAT", value_enum)]
    pub events_format: Option<EventFormat>,
    /// Where events are written: stdout or a file [default: stdout]
    #[arg(long, env = "EGRESS_EVENTS_OUTPUT", value_name = "FILE")]
    pub events_output: Option<PathBuf>,
    /// Load the kernel programs with their debug lines
    #[arg(long, env = "EGRESS_KERNEL_LOG")]
    pub kernel_log: bool,
    /// How logs are written, to standard error
    #[arg(long, env = "EGRESS_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What a question is asked with.
#[derive(Args, Debug)]
pub struct Query {
    /// Directory of the agent's admin socket
    #[arg(long, env = "EGRESS_RUN_DIR", default_value = "/run/egress-enforcer")]
    pub run_dir: PathBuf,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// The whole answer.
    Json,
}

/// `explain`.
#[derive(Args, Debug)]
pub struct Explain {
    /// The pod, as namespace/name
    pub pod: String,
    /// The destination: ADDRESS:PORT or [ADDRESS]:PORT, with /tcp (default), /udp or /icmp
    pub destination: String,
    /// How to ask.
    #[command(flatten)]
    pub query: Query,
}

/// `doctor`.
#[derive(Args, Debug)]
pub struct Doctor {
    /// Configuration file of the agent, for the bits of the packet mark
    #[arg(long, env = "EGRESS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Size of the agent's tables, where it is given one
    #[arg(long, env = "EGRESS_TABLE_SIZE", value_name = "N")]
    pub table_size: Option<u32>,
    /// Where the datapath would live.
    #[command(flatten)]
    pub datapath: Datapath,
    /// Cgroup v2 directory that holds kubepods
    #[arg(long, env = "EGRESS_CGROUP_ROOT", value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `rbac`.
#[derive(Args, Debug)]
pub struct Rights {
    /// Also what metrics.authenticate needs, and a role for those who are to read metrics
    #[arg(long)]
    pub metrics_authentication: bool,
    /// How they are written.
    #[command(flatten)]
    pub written: Written,
}

/// `crd` and `rbac`.
#[derive(Args, Debug)]
pub struct Written {
    /// How they are written
    #[arg(short, long, value_enum, default_value_t = Manifest::Yaml)]
    pub output: Manifest,
}

/// How objects for the API server are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Manifest {
    /// One document for each object.
    Yaml,
    /// One list of all objects.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_registry_is_named_by_its_kind() {
        let cli =
            Cli::try_parse_from(["egress-agent", "run", "--registry", "dir:/etc/mesh"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.registry, Source::Dir("/etc/mesh".into()));
        let error = Cli::try_parse_from(["egress-agent", "run", "--registry", "/etc/mesh"]);
        assert!(error.unwrap_err().to_string().contains("dir:PATH"));
    }
}
