//! A real DNS server in a pod, and the C library's resolver in another.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::lab::{Lab, Pod};
use crate::process::{Place, Process, wait_until};

/// Seconds that its answers count.
const TTL: u32 = 5;

/// dnsmasq, answering from a file of hosts.
#[derive(Debug)]
pub struct Resolver {
    server: Process,
    hosts: PathBuf,
    log: PathBuf,
}

impl Resolver {
    /// Starts it on all addresses of a pod and waits until it answers.
    ///
    /// # Errors
    /// When dnsmasq is not installed or does not come up.
    pub fn start(lab: &Lab, pod: &Pod) -> Result<Self> {
        let hosts = lab.file("hosts");
        let log = lab.file("log").join("dnsmasq");
        fs::write(&hosts, "")?;
        let mut command = pod.place().command("dnsmasq").context("Debian package dnsmasq-base")?;
        command
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"])
            .args(["--user=root", "--no-daemon", "--log-queries", "--cache-size=0"])
            .arg("--local=//")
            .arg(format!("--pid-file={}", lab.file("dnsmasq.pid").display()))
            .arg(format!("--addn-hosts={}", hosts.display()))
            .arg(format!("--local-ttl={TTL}"))
            .stdout(Stdio::null())
            .stderr(lab.log("dnsmasq")?);
        let server = Process::start(command, "dnsmasq")?;
        let resolver = Self { server, hosts, log };
        resolver.until_read(0)?;
        Ok(resolver)
    }

    /// Says which addresses its names have from now on.
    ///
    /// # Errors
    /// When the server does not read them.
    pub fn hosts(&self, _: &Lab, hosts: &[(&str, &[IpAddr])]) -> Result<()> {
        let mut text = String::new();
        for (name, ips) in hosts {
            for ip in *ips {
                writeln!(text, "{ip} {name}")?;
            }
        }
        let before = self.reads()?;
        fs::write(&self.hosts, text)?;
        self.server.signal(Signal::SIGHUP)?;
        self.until_read(before)
    }

    /// How often it has read its hosts.
    fn reads(&self) -> Result<usize> {
        let file = self.hosts.display().to_string();
        let read = |line: &&str| line.contains("read ") && line.contains(&file);
        Ok(fs::read_to_string(&self.log)?.lines().filter(read).count())
    }

    fn until_read(&self, before: usize) -> Result<()> {
        wait_until(
            "dnsmasq reads its hosts",
            Duration::from_secs(5),
            || Ok(self.reads()? > before),
        )
        .with_context(|| fs::read_to_string(&self.log).unwrap_or_default())?;
        Ok(())
    }

    /// Resolves a name at a place with `getaddrinfo`, through this server at one of its addresses;
    /// `options` are those of resolv.conf.
    ///
    /// # Errors
    /// When the client cannot be started or finds nothing.
    pub fn resolve(
        &self,
        lab: &Lab,
        place: &Place<'_>,
        server: &str,
        options: &str,
        host: &str,
    ) -> Result<Vec<IpAddr>> {
        let file = lab.file("resolv.conf");
        let options = if options.is_empty() { "timeout:2" } else { options };
        fs::write(&file, format!("nameserver {server}\noptions {options}\n"))?;
        // A mount namespace of its own, in which the file is the system's.
        let script = format!(
            "mount --bind {} /etc/resolv.conf && exec getent ahosts \"$1\"",
            file.display()
        );
        let mut command = place.command("unshare")?;
        command.args(["--mount", "--propagation=private", "sh", "-c", &script, "sh", host]);
        command.stdout(Stdio::piped());
        let mut client = Process::start(command, "getent")?;
        let (status, text) = client.output(Duration::from_secs(10))?;
        ensure!(status.success(), "getent found no {host} over {server} {options}: {text}");
        let first = |line: &str| line.split_whitespace().next()?.parse::<IpAddr>().ok();
        let found: BTreeSet<IpAddr> = text.lines().filter_map(first).collect();
        Ok(found.into_iter().collect())
    }
}
