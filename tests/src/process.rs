//! Processes inside the lab: in a namespace, a cgroup and a user id of choice.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::libc;

use crate::netns::Netns;

/// Where and as whom a process runs.
#[derive(Debug, Default)]
pub struct Place<'a> {
    /// Network namespace; the caller's where absent.
    pub netns: Option<&'a Netns>,
    /// Cgroup directory; the caller's where absent.
    pub cgroup: Option<&'a Path>,
    /// User and group id; the caller's where absent.
    pub user: Option<(u32, u32)>,
}

impl Place<'_> {
    /// A command for `program` at this place. It dies with the thread that starts it, and sits in
    /// a process group of its own: Ctrl-C reaches the lab's owner, who then cleans up in order.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let program = find(program.as_ref())?;
        let binary =
            File::open(&program).with_context(|| format!("open program {}", program.display()))?;
        // Another user may not be allowed to walk the path, which leads through the home directory
        // of whoever built the program: then it is started through the descriptor.
        let mut command = match self.user {
            Some(_) => Command::new(format!("/proc/self/fd/{}", binary.as_raw_fd())),
            None => Command::new(&program),
        };
        command.arg0(&program).stdin(Stdio::null()).process_group(0);
        let netns = self.netns.map(Netns::open).transpose()?;
        let cgroup = match self.cgroup {
            Some(path) => {
                let path = path.join("cgroup.procs");
                let procs = File::options().write(true).open(&path);
                Some(procs.with_context(|| format!("open {}", path.display()))?)
            }
            None => None,
        };
        let user = self.user;
        let enter = move || {
            let _keep_open = &binary;
            if let Some(netns) = &netns {
                check(sys::setns(netns.as_raw_fd()))?;
            }
            if let Some(cgroup) = &cgroup {
                check(sys::write_zero(cgroup.as_raw_fd()))?;
            }
            if let Some((uid, gid)) = user {
                check(sys::become_user(uid, gid))?;
            }
            check(sys::die_with_parent())
        };
        // SAFETY: between fork and exec the closure only makes system calls on descriptors that
        // were opened before; it takes no lock and allocates nothing.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }
}

fn check(returned: i64) -> std::io::Result<()> {
    if returned < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// System calls that may be made between fork and exec.
mod sys {
    use super::libc;

    pub(super) fn setns(fd: i32) -> i64 {
        // SAFETY: takes integers only.
        i64::from(unsafe { libc::setns(fd, libc::CLONE_NEWNET) })
    }

    /// Writes `0`, which cgroup.procs takes for the writer.
    pub(super) fn write_zero(fd: i32) -> i64 {
        // SAFETY: the buffer is a static byte and the length is its own.
        unsafe { libc::write(fd, b"0".as_ptr().cast(), 1) as i64 }
    }

    /// Gives up every group and capability for the user's own. The raw calls act on the calling
    /// thread alone, which is the only one after a fork.
    pub(super) fn become_user(uid: u32, gid: u32) -> i64 {
        // SAFETY: integers, and a null pointer with a length of zero.
        unsafe {
            let groups = libc::syscall(libc::SYS_setgroups, 0, core::ptr::null::<u32>());
            let group = libc::syscall(libc::SYS_setresgid, gid, gid, gid);
            let user = libc::syscall(libc::SYS_setresuid, uid, uid, uid);
            groups.min(group).min(user)
        }
    }

    pub(super) fn die_with_parent() -> i64 {
        // SAFETY: takes integers only.
        i64::from(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })
    }
}

/// The path of a program: itself if it has a slash, else the first in `PATH` and the `sbin`
/// directories that `su` leaves out.
pub fn find(program: &OsStr) -> Result<PathBuf> {
    let path = Path::new(program);
    if path.components().count() > 1 {
        return Ok(path.to_owned());
    }
    let mut directories = std::env::var_os("PATH").unwrap_or_default();
    directories.push(":/usr/sbin:/sbin");
    std::env::split_paths(&directories)
        .map(|directory| directory.join(path))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{} is not installed", path.display()))
}

/// A program that cargo built: beside the running one, or where `variable` points.
pub fn built(program: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(PathBuf::from(path));
    }
    let running = std::env::current_exe().context("find the running program")?;
    for directory in running.ancestors().skip(1).take(2) {
        let candidate = directory.join(program);
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    bail!(
        "{program} is not built beside {}: run `cargo build -p egress-agent -p egress-tests`, or \
         set {variable}",
        running.display()
    )
}

/// A process that is killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    what: String,
}

impl Process {
    /// Starts `command`; `what` names it in errors.
    pub fn start(mut command: Command, what: &str) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("start {what}"))?;
        Ok(Self { child, what: what.to_owned() })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The handle, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal)
            .with_context(|| format!("send {signal} to {}", self.what))
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("wait for {}", self.what))
    }

    /// Waits for its end, at most `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience * slowness();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} did not end within {patience:?}", self.what);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end and gives what it wrote to a piped standard output.
    pub fn output(&mut self, patience: Duration) -> Result<(ExitStatus, String)> {
        let mut stdout = self.child.stdout.take().context("standard output is not a pipe")?;
        let mut text = String::new();
        // The pipe ends with the process; a process that hangs is ended by the guard below.
        let status = std::thread::scope(|scope| {
            let reader = scope.spawn(|| stdout.read_to_string(&mut text));
            let status = self.wait(patience);
            if status.is_err() {
                self.kill();
            }
            let _ = reader.join();
            status
        })?;
        Ok((status, text))
    }

    /// Kills it now and reaps it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `exit code 3` or `signal 9`.
pub fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

/// Polls `done` until it says yes, or fails with `what` after `patience`.
pub fn wait_until(
    what: &str,
    patience: Duration,
    mut done: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let start = Instant::now();
    let patience = patience * slowness();
    let mut last = None;
    while start.elapsed() < patience {
        match done() {
            Ok(true) => return Ok(start.elapsed()),
            Ok(false) => {}
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    match last {
        Some(error) => Err(error.context(format!("not within {patience:?}: {what}"))),
        None => bail!("not within {patience:?}: {what}"),
    }
}

/// By how much this machine is slower than one the patience was chosen for: `EGRESS_PATIENCE`, which
/// the kernel matrix sets under emulation.
fn slowness() -> u32 {
    let set = std::env::var("EGRESS_PATIENCE").ok().and_then(|text| text.parse().ok());
    set.unwrap_or(1)
}

/// Feeds rules to `nft` at a place.
///
/// # Errors
/// When `nft` is missing or refuses them.
pub fn nft(place: &Place<'_>, rules: &str) -> Result<()> {
    let mut nft = place.command("nft")?;
    nft.arg("-f").arg("-").stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = nft.spawn().context("start nft (Debian package nftables)")?;
    if let Some(mut stdin) = child.stdin.take() {
        std::io::Write::write_all(&mut stdin, rules.as_bytes()).context("write to nft")?;
    }
    let output = child.wait_with_output().context("wait for nft")?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
