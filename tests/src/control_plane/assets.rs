//! The API server of `KUBEBUILDER_ASSETS`: a directory with `etcd` and `kube-apiserver`, as
//! developers of controllers have it. Started with the flags of our own program.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::{Cluster, PATIENCE, tail};
use crate::process::{Place, Process, wait_until};

/// The administrator's, in a file that only this user may read.
const TOKEN: &str = "egress-tests-administrator";
const KUBECONFIG: &str = "kubeconfig";
/// The server writes its own certificate with the authority that signed it.
const CERTIFICATE: &str = "apiserver.crt";

/// Both programs. The server goes before its store.
#[derive(Debug)]
pub(super) struct Assets {
    programs: PathBuf,
    directory: PathBuf,
    flags: Vec<String>,
    port: u16,
    server: Process,
    store: Process,
}

impl Assets {
    /// Starts both with their state in `directory`.
    pub(super) fn start(programs: &Path, directory: &Path, flags: &[String]) -> Result<Self> {
        for program in ["etcd", "kube-apiserver"] {
            let path = programs.join(program);
            ensure!(path.is_file(), "KUBEBUILDER_ASSETS has no {}", path.display());
        }
        let directory = super::state(directory);
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let tokens = format!("{TOKEN},admin,admin,system:masters\n");
        secret(&directory.join("tokens.csv"))?
            .write_all(tokens.as_bytes())
            .context("write the token file")?;
        let key = Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(directory.join("service-account.key"))
            .stderr(Stdio::null())
            .status()
            .context("start openssl (Debian package openssl)")?;
        ensure!(key.success(), "openssl genrsa failed");
        let port = free_port()?;
        write_kubeconfig(&directory, port)?;
        let (store, server) = launch(programs, &directory, port, flags)?;
        Ok(Self {
            programs: programs.to_owned(),
            directory,
            flags: flags.to_vec(),
            port,
            server,
            store,
        })
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.directory.join(KUBECONFIG)
    }

    pub(super) fn pid(&self) -> i32 {
        self.server.pid()
    }

    pub(super) fn kill(&mut self) {
        self.server.kill();
        self.store.kill();
    }

    pub(super) fn stop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }

    pub(super) fn restart(&mut self) -> Result<()> {
        (self.store, self.server) =
            launch(&self.programs, &self.directory, self.port, &self.flags)?;
        Ok(())
    }
}

/// The administrator's kubeconfig.
fn write_kubeconfig(directory: &Path, port: u16) -> Result<()> {
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority": directory.join(CERTIFICATE).display().to_string(),
        }}],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "admin"}}],
        "current-context": "tests",
    });
    let mut file = secret(&directory.join(KUBECONFIG))?;
    file.write_all(kubeconfig.to_string().as_bytes()).context("write the kubeconfig")
}

/// A file that only this user may read.
fn secret(path: &Path) -> Result<File> {
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("create {}", path.display()))
}

/// A port that was free a moment ago: these programs cannot be handed a listener.
pub(super) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("find a free port")?;
    Ok(listener.local_addr()?.port())
}

fn launch(
    programs: &Path,
    directory: &Path,
    port: u16,
    flags: &[String],
) -> Result<(Process, Process)> {
    let file = |name: &str| directory.join(name).display().to_string();
    let start = |program: &str, arguments: &[String]| -> Result<Process> {
        let mut command = Place::default().command(programs.join(program))?;
        let log = directory.join(format!("{program}.log"));
        let log = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        command.args(arguments).stdout(log.try_clone()?).stderr(log);
        Process::start(command, program)
    };
    let (clients, peers) = (free_port()?, free_port()?);
    let [clients, peers] = [clients, peers].map(|port| format!("http://127.0.0.1:{port}"));
    let store = start(
        "etcd",
        &[
            format!("--data-dir={}", file("etcd")),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=default={peers}"),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=error".to_owned(),
        ],
    )?;
    let key = file("service-account.key");
    let mut arguments = vec![
        format!("--etcd-servers={clients}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={port}"),
        format!("--cert-dir={}", directory.display()),
        format!("--token-auth-file={}", file("tokens.csv")),
        "--authorization-mode=RBAC".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16,fd00:96::/108".to_owned(),
        "--advertise-address=192.0.2.1".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={key}"),
        format!("--service-account-signing-key-file={key}"),
        "--disable-admission-plugins=ServiceAccount".to_owned(),
    ];
    arguments.extend_from_slice(flags);
    let mut server = start("kube-apiserver", &arguments)?;
    let mut cluster = None;
    let ready = wait_until("kube-apiserver is ready", PATIENCE, || {
        if let Some(status) = server.ended()? {
            bail!("kube-apiserver ended with {status}");
        }
        if cluster.is_none() && directory.join(CERTIFICATE).is_file() {
            cluster = Some(Cluster::connect(&directory.join(KUBECONFIG))?);
        }
        Ok(cluster.as_ref().is_some_and(|cluster| cluster.get_text("/readyz").is_ok()))
    });
    ready.with_context(|| tail(&directory.join("kube-apiserver.log")))?;
    Ok((store, server))
}
