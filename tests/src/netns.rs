//! Network namespaces: made, entered and removed.
//!
//! They are entered with `setns` on a thread or in a child before `exec`; `ip netns exec` would
//! mount another `/sys` and hide cgroups and bpffs.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// Where iproute2 keeps its handles.
pub const DIRECTORY: &str = "/run/netns";

/// A network namespace; dropping it removes it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
}

impl Netns {
    /// Makes a namespace with loopback up and duplicate address detection off: an address is
    /// usable the moment it is set.
    pub fn create(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let netns = Self { name: name.to_owned(), path: Path::new(DIRECTORY).join(name) };
        netns.run(|| {
            for scope in ["all", "default"] {
                sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
                sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
            }
            sysctl("net/ipv4/ping_group_range", "0 2147483647")
        })?;
        netns.batch("link set lo up\n")?;
        Ok(netns)
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its handle, for `nsenter --net=`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An open handle.
    pub fn open(&self) -> Result<File> {
        File::open(&self.path)
            .with_context(|| format!("open network namespace {}", self.path.display()))
    }

    /// Runs `work` on a thread inside the namespace and gives what it returns.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let handle = self.open()?;
        let run = move || {
            setns(&handle, CloneFlags::CLONE_NEWNET).context("setns: enter network namespace")?;
            work()
        };
        match std::thread::scope(|scope| scope.spawn(run).join()) {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs lines of `ip` commands inside the namespace, in one process.
    pub fn batch(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ip (Debian package iproute2)")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(lines.as_bytes()).context("write to ip -batch")?;
        }
        let output = child.wait_with_output().context("wait for ip -batch")?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            bail!("ip -n {} -batch: {}\nin:\n{lines}", self.name, message.trim());
        }
        Ok(())
    }
}

impl Netns {
    /// Waits until the device has its own link-local address: the kernel reports carriers at most
    /// once a second, and until then the device neither asks nor answers for neighbours.
    pub fn await_ipv6(&self, device: &str) -> Result<()> {
        const LINK_LOCAL: &str = "20";
        let deadline = Instant::now() + Duration::from_secs(5);
        self.run(|| {
            loop {
                let table = std::fs::read_to_string("/proc/thread-self/net/if_inet6")
                    .context("read /proc/thread-self/net/if_inet6")?;
                let generated = |line: &str| {
                    let fields: Vec<&str> = line.split_whitespace().collect();
                    matches!(fields.as_slice(), [address, _, _, scope, _, name]
                        if *name == device && *scope == LINK_LOCAL && !address.ends_with("0001"))
                };
                if table.lines().any(generated) {
                    return Ok(());
                }
                ensure!(Instant::now() < deadline, "{device} has no link-local address after 5 s");
                std::thread::sleep(Duration::from_millis(5));
            }
        })
        .with_context(|| format!("wait for IPv6 in {}", self.name))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // A namespace that cannot be removed now is swept by the next run.
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

/// Runs `ip` with these arguments in the namespace of the caller.
pub fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("start ip (Debian package iproute2)")?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), message.trim());
    }
    Ok(())
}

/// Writes a sysctl of the namespace of the calling thread; `name` with slashes.
pub fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    std::fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))
}
