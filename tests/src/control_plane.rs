//! A real API server for the suites, and whatever else of Kubernetes they need.
//!
//! It is etcd and kube-apiserver on loopback, in one program of ours that `cargo xtask setup`
//! builds; with `KUBEBUILDER_ASSETS` set, the `etcd` and `kube-apiserver` of that directory; with
//! `KUBECONFIG` set, a cluster that is there already. [`Cluster`] writes objects to it, and a
//! [`Relay`] leads to it from a lab.
//!
//! The suites of one program share one: [`shared`]. What a test leaves in it, the next one finds,
//! unless it calls [`ControlPlane::clear`].

mod assets;
mod cluster;
mod crds;
mod deployed;
mod istiod;
mod relay;
mod workload;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use kube::config::Kubeconfig;
use nix::sys::signal::Signal;

pub use cluster::{Cluster, Reference, documents};
pub use deployed::NAMESPACE;
pub use istiod::Istiod;
pub use relay::{Relay, Traffic};
pub use workload::{EGRESS_GATEWAY, Member, Pod, Replicas, uid};

use crate::lab::Lab;
use crate::process::{self, Process, wait_until};
use crate::sweep;

/// How long a start may take; two cores shared with compilers take their time.
const PATIENCE: Duration = Duration::from_secs(90);
/// Set by whoever points the suites at a cluster that has nodes.
const CONSENT: &str = "EGRESS_TESTS_MAY_CHANGE_CLUSTER";

/// What runs.
#[derive(Debug)]
enum Server {
    /// Our own program.
    Ours { process: Process, port: u16, flags: Vec<String> },
    /// The programs of `KUBEBUILDER_ASSETS`.
    Assets(assets::Assets),
    /// Somebody else's.
    Foreign,
}

/// An API server and a client with an administrator's rights.
#[derive(Debug)]
pub struct ControlPlane {
    /// Talks to it.
    pub cluster: Cluster,
    server: Server,
    kubeconfig: PathBuf,
    directory: PathBuf,
}

/// The one of this program, started by whoever asks first.
///
/// # Errors
/// When it does not start.
pub fn shared() -> Result<MutexGuard<'static, ControlPlane>> {
    static SHARED: OnceLock<Result<Mutex<ControlPlane>, String>> = OnceLock::new();
    let shared = SHARED.get_or_init(|| {
        // Processes of a lab die with the thread that started them, and tests are threads.
        let (sender, started) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = sender.send(ControlPlane::start());
            loop {
                std::thread::park();
            }
        });
        let started = started.recv().context("the thread of the control plane ended");
        started.flatten().map(Mutex::new).map_err(|error| format!("{error:#}"))
    });
    match shared {
        // A failed test leaves objects behind, not a broken API server.
        Ok(plane) => Ok(plane.lock().unwrap_or_else(PoisonError::into_inner)),
        Err(error) => Err(anyhow!("{error}")),
    }
}

impl ControlPlane {
    /// Starts one and waits until it serves.
    ///
    /// # Errors
    /// When it does not; its log is quoted.
    pub fn start() -> Result<Self> {
        Self::with(&[])
    }

    /// The same with more flags for kube-apiserver.
    ///
    /// # Errors
    /// As [`start`](Self::start), and where the API server is not started by us.
    pub fn with(flags: &[String]) -> Result<Self> {
        sweep::sweep();
        let directory = sweep::directory(&sweep::fresh_name());
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let (server, kubeconfig) = if let Some(kubeconfig) = set("KUBECONFIG") {
            ensure!(flags.is_empty(), "unset KUBECONFIG: this suite chooses the server's flags");
            (Server::Foreign, PathBuf::from(kubeconfig))
        } else if let Some(assets) = set("KUBEBUILDER_ASSETS") {
            let assets = assets::Assets::start(Path::new(&assets), &directory, flags)?;
            let kubeconfig = assets.kubeconfig();
            (Server::Assets(assets), kubeconfig)
        } else {
            let (process, server) = launch(&directory, 0, flags)?;
            let port = server.rsplit(':').next().and_then(|port| port.parse().ok());
            let port = port.with_context(|| format!("no port in {server}"))?;
            let kubeconfig = state(&directory).join("kubeconfig");
            (Server::Ours { process, port, flags: flags.to_vec() }, kubeconfig)
        };
        let cluster = Cluster::connect(&kubeconfig)?;
        let plane = Self { cluster, server, kubeconfig, directory };
        if matches!(plane.server, Server::Foreign) {
            plane.ask_for_consent()?;
        }
        plane.await_own_endpoint()?;
        Ok(plane)
    }

    /// The server writes its own endpoint seconds after it is ready; every agent hears of it.
    fn await_own_endpoint(&self) -> Result<()> {
        wait_until("the API server's own EndpointSlice", Duration::from_secs(30), || {
            let slices = self.cluster.list("discovery.k8s.io/v1", "EndpointSlice")?;
            Ok(slices.iter().any(|slice| {
                slice["metadata"]["name"] == "kubernetes" && slice["endpoints"].is_array()
            }))
        })?;
        Ok(())
    }

    /// Nobody's production shall get the objects of a test because a variable was set.
    fn ask_for_consent(&self) -> Result<()> {
        let nodes = self.cluster.list("v1", "Node")?;
        let foreign = nodes.iter().filter(|node| node["metadata"]["labels"][MARK] != "true");
        ensure!(
            foreign.count() == 0 || std::env::var_os(CONSENT).is_some(),
            "KUBECONFIG names a cluster that has nodes: unset it, or set {CONSENT}=1 if its pods, \
             policies and Istio objects may be deleted"
        );
        Ok(())
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A file of its own that lives as long as it does.
    pub fn file(&self, name: &str) -> PathBuf {
        state(&self.directory).join(name)
    }

    /// Process id of the API server, for measurements.
    ///
    /// # Errors
    /// When it was not started by us.
    pub fn pid(&self) -> Result<i32> {
        match &self.server {
            Server::Ours { process, .. } => Ok(process.pid()),
            Server::Assets(assets) => Ok(assets.pid()),
            Server::Foreign => bail!("unset KUBECONFIG: this suite looks into the API server"),
        }
    }

    /// Kills the API server and its store with SIGKILL; what was written stays.
    ///
    /// # Errors
    /// When it was not started by us.
    pub fn kill(&mut self) -> Result<()> {
        match &mut self.server {
            Server::Ours { process, .. } => process.kill(),
            Server::Assets(assets) => assets.kill(),
            Server::Foreign => bail!("unset KUBECONFIG: this suite kills the API server"),
        }
        Ok(())
    }

    /// Starts what was killed on the same port with the same data, and waits until it serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn restart(&mut self) -> Result<()> {
        match &mut self.server {
            Server::Ours { process, port, flags } => {
                (*process, _) = launch(&self.directory, *port, flags)?;
                Ok(())
            }
            Server::Assets(assets) => assets.restart(),
            Server::Foreign => bail!("unset KUBECONFIG: this suite restarts the API server"),
        }
    }

    /// Deletes every object a test may have made, except namespaces, which only a controller can
    /// remove, and definitions of custom resources.
    ///
    /// # Errors
    /// When the API server refuses to.
    pub fn clear(&self) -> Result<()> {
        for (api_version, kind) in CLEARED {
            self.cluster.delete_all(api_version, kind)?;
        }
        Ok(())
    }

    /// A relay from the lab's node to the API server, and a kubeconfig in the lab that leads
    /// through it with these credentials: the administrator's, or those of a bearer token
    /// in the agents' namespace.
    ///
    /// # Errors
    /// When the kubeconfig names no server that can be dialled.
    pub fn relay(&self, lab: &Lab, token: Option<&str>) -> Result<(Relay, PathBuf)> {
        let mut file = Kubeconfig::read_from(&self.kubeconfig).context("read the kubeconfig")?;
        let current = file.current_context.clone().context("the kubeconfig has no context")?;
        let context = file.contexts.iter().find(|context| context.name == current);
        let context = context.and_then(|context| context.context.clone());
        let context = context.with_context(|| format!("no context {current}"))?;
        let cluster = file.clusters.iter_mut().find(|cluster| cluster.name == context.cluster);
        let cluster = cluster.and_then(|cluster| cluster.cluster.as_mut());
        let cluster = cluster.with_context(|| format!("no cluster {}", context.cluster))?;
        let server = cluster.server.clone().context("the cluster has no server")?;
        let uri: http::Uri = server.parse().with_context(|| format!("read {server}"))?;
        let host = uri.host().with_context(|| format!("no host in {server}"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let target = (host, uri.port_u16().unwrap_or(443)).to_socket_addrs();
        let target: SocketAddr = target
            .ok()
            .and_then(|mut addresses| addresses.next())
            .with_context(|| format!("cannot resolve {host}"))?;
        let relay = Relay::start(&lab.node, target)?;
        cluster.server = Some(format!("https://{}", relay.address()));
        cluster.tls_server_name.get_or_insert_with(|| host.to_owned());
        if let Some(token) = token {
            for user in &mut file.auth_infos {
                let bearer = serde_json::json!({ "token": token });
                user.auth_info = Some(serde_json::from_value(bearer)?);
            }
            for context in file.contexts.iter_mut().filter_map(|named| named.context.as_mut()) {
                context.namespace = Some(NAMESPACE.to_owned());
            }
        }
        let path = lab.file("kubeconfig");
        // JSON is YAML.
        fs::write(&path, serde_json::to_vec(&file)?)
            .with_context(|| format!("write {}", path.display()))?;
        Ok((relay, path))
    }
}

impl ControlPlane {
    /// Ends it in order; it removes its state. Nothing of a cluster that is not ours.
    pub fn stop(&mut self) {
        match &mut self.server {
            Server::Ours { process, .. } => {
                // One that has ended already is what was wanted.
                let _ = process.signal(Signal::SIGTERM);
                let _ = process.wait(Duration::from_secs(5));
            }
            Server::Assets(assets) => assets.stop(),
            Server::Foreign => {}
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Label of the Nodes that tests make.
pub const MARK: &str = "egress-enforcer.io/test";

/// What [`ControlPlane::clear`] deletes.
const CLEARED: [(&str, &str); 17] = [
    ("egress-enforcer.io/v1alpha1", "EgressPolicy"),
    ("egress-enforcer.io/v1alpha1", "EgressException"),
    ("networking.istio.io/v1", "ServiceEntry"),
    ("networking.istio.io/v1", "Gateway"),
    ("networking.istio.io/v1", "VirtualService"),
    ("networking.istio.io/v1", "DestinationRule"),
    ("networking.istio.io/v1", "Sidecar"),
    ("networking.istio.io/v1", "WorkloadEntry"),
    ("security.istio.io/v1", "AuthorizationPolicy"),
    ("security.istio.io/v1", "PeerAuthentication"),
    ("telemetry.istio.io/v1", "Telemetry"),
    ("gateway.networking.k8s.io/v1", "Gateway"),
    ("v1", "Pod"),
    ("v1", "Service"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("v1", "ConfigMap"),
    ("v1", "Node"),
];

/// Where the server keeps its state; ours removes it when it ends by request.
fn state(directory: &Path) -> PathBuf {
    directory.join("control-plane")
}

/// Starts our program and gives it with the server's address.
fn launch(directory: &Path, port: u16, flags: &[String]) -> Result<(Process, String)> {
    let program = process::built("control-plane", "EGRESS_CONTROL_PLANE")
        .context("build the control plane with `cargo xtask setup`, which keeps it")?;
    let log = directory.join("control-plane.log");
    let mut command = Command::new(&program);
    command.arg("-directory").arg(directory).arg("-port").arg(port.to_string());
    command.arg("--").args(flags);
    let file = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
    // It watches for our end by itself, and cleans up then: no signal with our thread's death.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut process = Process::start(command, &format!("{}", program.display()))?;
    match ready(&mut process) {
        Ok(server) => Ok((process, server)),
        Err(error) => Err(error.context(format!("control plane: {}", tail(&log)))),
    }
}

/// Reads the line with which it says that it serves; gives the server's address.
fn ready(process: &mut Process) -> Result<String> {
    let stdout = process.child().stdout.take().context("the control plane has no output")?;
    let (sender, lines): (_, Receiver<String>) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let line = lines.recv_timeout(PATIENCE).context("it never said that it is ready")?;
    let server = line
        .strip_prefix("ready ")
        .and_then(|fields| fields.split(' ').find_map(|field| field.strip_prefix("server=")));
    Ok(server.with_context(|| format!("it said {line:?}"))?.to_owned())
}

/// The end of a log, for an error.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
