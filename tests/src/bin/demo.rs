//! The product on one machine: real kernel, real Envoy, no cluster.
//!
//! Seven stages, each with expectations that are checked: what gets out is judged by a sniffer
//! outside, never by what a client says. Ends non-zero when one expectation fails, and always
//! cleans up after itself.

use std::io::{IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use egress_tests::address::{RESOLVER, STRIPE};
use egress_tests::agent::{self, Agent, METRICS};
use egress_tests::attempt::Outcome;
use egress_tests::lab::{Lab, PROXY, Pod};
use egress_tests::manifests;
use egress_tests::mesh::{Mesh, PLAIN_HOST, TLS_HOST, envoy};
use egress_tests::process::{Place, Process};
use serde_json::{Value, json};

/// Shows Egress Enforcer at work in network namespaces of its own.
#[derive(Parser)]
struct Cli {
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Keep everything running until Ctrl-C, and say how to look at it
    #[arg(long)]
    stay: bool,
    /// The agent's binary
    #[arg(long)]
    agent: Option<PathBuf>,
}

/// Asked to end by a signal.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupted(_: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // SAFETY: the handler stores to an atomic and does nothing else.
    unsafe {
        let _ = nix::sys::signal::signal(
            nix::sys::signal::Signal::SIGINT,
            nix::sys::signal::SigHandler::Handler(interrupted),
        );
        let _ = nix::sys::signal::signal(
            nix::sys::signal::Signal::SIGTERM,
            nix::sys::signal::SigHandler::Handler(interrupted),
        );
    }
    let mut show = Show::new(cli.json);
    let outcome = run(&cli, &mut show);
    if let Err(error) = &outcome {
        show.failed.push(format!("{error:#}"));
    }
    show.finish();
    ExitCode::from(u8::from(!show.failed.is_empty()))
}

fn run(cli: &Cli, show: &mut Show) -> Result<()> {
    preflight(show)?;
    let started = Instant::now();
    let lab = Lab::new()?;
    let mesh = Mesh::start(&lab)?;
    show.stage("topology", &format!("up in {:.1} s", started.elapsed().as_secs_f64()));
    show.line("shop/cart (plain) and shop/checkout (Envoy sidecar) - node - internet; gateway: Envoy in istio-system");
    let demo = Demo { lab: &lab };

    show.stage("mesh only", "Istio routes, nothing enforces");
    demo.legitimate(show)?;
    let open = demo.bypasses(show, Expect::Arrives)?;
    demo.print(show, &open);

    manifests::write(&lab.file("registry"), "audit")?;
    let path = cli.agent.clone().map(|path| path.display().to_string());
    ensure!(
        path.as_ref().is_none_or(|path| PathBuf::from(path).is_file()),
        "there is no agent at {}",
        path.unwrap_or_default()
    );
    let mut agent = Agent::start(&lab, &["--events-format=compact"])?;
    show.stage("audit", "the agent reports, nothing breaks");
    let before = agent::samples(&lab)?;
    demo.legitimate(show)?;
    let audited = demo.bypasses(show, Expect::Arrives)?;
    let after = agent::samples(&lab)?;
    let reported = demo.reported(&before, &after, "audit");
    show.expect(reported >= 6.0, "every bypass is reported in audit mode");
    demo.print(show, &audited);
    show.line(&format!("reported: {reported} bypass attempts with verdict audit, none dropped"));

    manifests::policy(&lab.file("registry"), "enforce")?;
    let took = agent::wait_for_mode(&lab, "enforce")?;
    show.stage("enforce", &format!("one edit, in force after {} ms", took.as_millis()));
    demo.legitimate(show)?;
    let closed = demo.bypasses(show, Expect::Dropped)?;
    demo.print(show, &closed);

    demo.evidence(show)?;
    demo.kill(show, &mut agent)?;
    if cli.stay {
        stay(&lab, show);
    }
    drop(agent);
    drop(mesh);
    Ok(())
}

fn preflight(show: &mut Show) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the demo makes network namespaces and loads BPF programs: run it as root \
         (sudo cargo xtask demo)"
    );
    let kernel = nix::sys::utsname::uname().context("ask for the kernel's release")?;
    let envoy = envoy()?;
    let release = kernel.release().to_string_lossy().into_owned();
    let envoy = envoy.file_name().unwrap_or_default().to_string_lossy().into_owned();
    show.stage("preflight", &format!("kernel {release}, root, {envoy} 1.40.0"));
    Ok(())
}

/// What must become of a bypass.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Arrives,
    Dropped,
}

/// One way around the gateway and what became of it.
struct Attempt {
    name: &'static str,
    outcome: Outcome,
    arrived: usize,
}

struct Demo<'a> {
    lab: &'a Lab,
}

impl Demo<'_> {
    /// The ways that must always work: through the sidecar and the gateway, and the resolver.
    fn legitimate(&self, show: &mut Show) -> Result<()> {
        let app = Place { user: Some((1000, 1000)), ..self.lab.checkout.place() };
        let stripe = SocketAddr::from((STRIPE.v4, 443)).to_string();
        let tls = self.lab.attempt(&app, &["tcp", &stripe, "--sni", TLS_HOST])?;
        show.expect(tls.ok && tls.answer == "TLS", "https through sidecar and gateway works");
        let plain = SocketAddr::from((STRIPE.v4, 80)).to_string();
        let http = self.lab.attempt(&app, &["tcp", &plain, "--http", PLAIN_HOST])?;
        show.expect(http.answer.contains("200"), "http with TLS origination at the gateway works");
        let resolver = SocketAddr::from((RESOLVER.v4, 53)).to_string();
        let dns = self.lab.attempt(&self.lab.cart.place(), &["udp", &resolver, "--wait"])?;
        show.expect(dns.ok, "the named resolver answers");
        show.line(&format!(
            "through the gateway   https {}   http -> TLS origination {}   resolver {}",
            tls.words(),
            http.words(),
            dns.words()
        ));
        Ok(())
    }

    /// Six ways around it.
    fn bypasses(&self, show: &mut Show, expect: Expect) -> Result<Vec<Attempt>> {
        let cart = &self.lab.cart;
        let v4 = SocketAddr::from((STRIPE.v4, 443));
        let v6 = SocketAddr::from((STRIPE.v6, 443));
        let tls =
            |to: SocketAddr| vec!["tcp".to_owned(), to.to_string(), format!("--sni={TLS_HOST}")];
        let proxy = Place { user: Some(PROXY), ..self.lab.checkout.place() };
        let ways: [(&'static str, Place<'_>, Vec<String>, IpAddr); 6] = [
            ("pod without sidecar", cart.place(), tls(v4), v4.ip()),
            ("uid 1337", proxy, tls(v4), v4.ip()),
            ("UDP/443", cart.place(), vec!["udp".into(), v4.to_string(), "--wait".into()], v4.ip()),
            ("IPv6", cart.place(), tls(v6), v6.ip()),
            ("raw socket", cart.place(), self.lab.by_hand("raw", cart, v4), v4.ip()),
            ("packet socket", cart.place(), self.lab.by_hand("packet", cart, v4), v4.ip()),
        ];
        let mut attempts = Vec::new();
        for (name, place, arguments, to) in ways {
            let mark = self.lab.sniffer.mark();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let outcome = self.lab.attempt(&place, &arguments)?;
            self.lab.settle();
            let arrived = self.lab.sniffer.escapes_to(mark, to)?.len();
            match expect {
                Expect::Arrives => show.expect(arrived > 0, &format!("{name} gets out")),
                Expect::Dropped => {
                    show.expect(arrived == 0, &format!("{name} is stopped"));
                    let below = matches!(name, "raw socket" | "packet socket");
                    show.expect(below || outcome.refused(), &format!("{name} fails with EPERM"));
                    let others = self.lab.sniffer.escapes(mark)?;
                    let stray = others.iter().find(|frame| !RESOLVER.has(frame.dst));
                    show.expect(stray.is_none(), &format!("nothing else leaves ({stray:?})"));
                }
            }
            attempts.push(Attempt { name, outcome, arrived });
        }
        Ok(attempts)
    }

    fn print(&self, show: &mut Show, attempts: &[Attempt]) {
        for pair in attempts.chunks(2) {
            let words: Vec<String> = pair
                .iter()
                .map(|attempt| {
                    let fate = if attempt.arrived > 0 {
                        format!("GOT OUT ({} frames)", attempt.arrived)
                    } else if attempt.outcome.refused() {
                        format!("stopped, {}", attempt.outcome.words())
                    } else {
                        "stopped, 0 frames outside".to_owned()
                    };
                    format!("{:<20} {fate:<28}", attempt.name)
                })
                .collect();
            show.line(words.join("  ").trim_end());
        }
        let detail = attempts.iter().map(|attempt| {
            json!({
                "bypass": attempt.name,
                "framesOutside": attempt.arrived,
                "outcome": attempt.outcome,
            })
        });
        show.detail("bypasses", Value::Array(detail.collect()));
    }

    /// Connections with this verdict since `before`, over all pods of the policy.
    fn reported(&self, before: &[agent::Sample], after: &[agent::Sample], verdict: &str) -> f64 {
        let verdict = format!("verdict=\"{verdict}\"");
        let (shop, reason) = ("source_namespace=\"shop\"", "reason=\"not_gateway\"");
        let parts = ["egress_pod_connections_total{", shop, reason, &verdict];
        agent::sum(after, &parts) - agent::sum(before, &parts)
    }

    fn evidence(&self, show: &mut Show) -> Result<()> {
        show.stage("evidence", "counters, an event, an explanation");
        let samples = agent::samples(self.lab)?;
        show.line(&format!("{:<16} {:>8} {:>7} {:>6}  REASONS", "POD", "GATEWAY", "AUDIT", "DROP"));
        for pod in [&self.lab.cart, &self.lab.checkout] {
            self.row(show, &samples, pod);
        }
        let events = std::fs::read_to_string(self.lab.file("events")).unwrap_or_default();
        let event =
            events.lines().rev().find(|line| line.contains("DROP") && line.contains("probe["));
        show.expect(event.is_some(), "a drop was told as an event with its process");
        show.line(&format!("event    {}", event.unwrap_or("none")));
        let destination = SocketAddr::from((STRIPE.v4, 443)).to_string();
        let (code, text) = agent::command(self.lab, &["explain", "shop/cart", &destination])?;
        show.expect(code == 0 && text.starts_with("DROP"), "explain says the same");
        for line in
            text.lines().filter(|line| !line.contains("socket ") && !line.contains("policy "))
        {
            show.line(&format!("explain  {}", line.trim()));
        }
        show.line(&format!("metrics  http://{METRICS}/metrics inside the node's namespace"));
        Ok(())
    }

    fn row(&self, show: &mut Show, samples: &[agent::Sample], pod: &Pod) {
        let (_, name) = pod.identity.name.split_once('/').unwrap_or_default();
        let source = format!("source_pod=\"{name}\"");
        let connections = "egress_pod_connections_total{";
        let count = |verdict: &str| agent::sum(samples, &[connections, &source, verdict]);
        let gateway = agent::sum(samples, &[connections, &source, "reason=\"gateway\""]);
        let drops = count("verdict=\"drop\"");
        let reasons: Vec<String> = samples
            .iter()
            .filter(|s| s.series.starts_with(connections) && s.value > 0.0)
            .filter(|s| s.series.contains(&source) && s.series.contains("verdict=\"drop\""))
            .filter_map(|s| {
                let reason = s.series.split("reason=\"").nth(1)?.split('"').next()?;
                Some(format!("{reason} {}", s.value))
            })
            .collect();
        show.expect(drops > 0.0, &format!("{} has drops counted", pod.identity.name));
        show.line(&format!(
            "{:<16} {gateway:>8} {:>7} {drops:>6}  {}",
            pod.identity.name,
            count("verdict=\"audit\""),
            reasons.join(", ")
        ));
    }

    /// SIGKILL in the middle of a flood: what is pinned goes on.
    fn kill(&self, show: &mut Show, agent: &mut Agent) -> Result<()> {
        let to = SocketAddr::from((STRIPE.v4, 443));
        let mark = self.lab.sniffer.mark();
        let mut arguments = self.lab.by_hand("flood", &self.lab.cart, to);
        arguments.push("--milliseconds=4000".to_owned());
        let mut command = self.lab.probe(&self.lab.cart.place())?;
        command.args(&arguments).stdout(Stdio::piped());
        let mut flood = Process::start(command, "flood")?;
        std::thread::sleep(Duration::from_millis(700));
        agent.process.kill();
        let (_, text) = flood.output(Duration::from_secs(15))?;
        let attempts = serde_json::from_str::<Outcome>(&text).context("read the flood")?.attempts;
        *agent = Agent::start(self.lab, &["--events-format=compact"])?;
        self.lab.settle();
        let escaped = self.lab.sniffer.escapes(mark)?;
        show.stage("kill", "the agent is SIGKILLed in a flood and restarted");
        show.expect(escaped.is_empty(), "nothing escapes while the agent is dead");
        show.expect(attempts > 1000, "the flood was one");
        let after = agent::status(self.lab)?;
        show.expect(after["mode"] == "enforce", "the next agent adopts what is in force");
        show.line(&format!(
            "{attempts} attempts, {} frames outside; adopted at generation {}",
            escaped.len(),
            after["generation"]
        ));
        show.detail("attempts", json!(attempts));
        show.detail("framesOutside", json!(escaped.len()));
        Ok(())
    }
}

fn stay(lab: &Lab, show: &mut Show) {
    let node = lab.node.name();
    let run_dir = lab.file("run");
    let binary = agent::binary().unwrap_or_default();
    show.stage("stay", "everything runs until Ctrl-C");
    show.line(&format!("nsenter --net=/run/netns/{node} curl -s http://{METRICS}/metrics"));
    show.line(&format!("{} status --run-dir {}", binary.display(), run_dir.display()));
    let cart = lab.cart.identity.name;
    show.line(&format!(
        "{} explain {cart} {}:443 --run-dir {}",
        binary.display(),
        STRIPE.v4,
        run_dir.display()
    ));
    show.line(&format!("manifests to edit: {}", lab.file("registry").display()));
    while !INTERRUPTED.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What is printed, or gathered for `--json`.
struct Show {
    json: bool,
    colour: bool,
    count: usize,
    stages: Vec<Value>,
    failed: Vec<String>,
}

impl Show {
    fn new(json: bool) -> Self {
        let colour = !json && std::io::stdout().is_terminal();
        Self { json, colour, count: 0, stages: Vec::new(), failed: Vec::new() }
    }

    fn print(&self, text: &str) {
        if !self.json {
            // A reader that has gone away ends nothing.
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    fn stage(&mut self, name: &str, text: &str) {
        self.count += 1;
        let (bold, plain) = if self.colour { ("\u{1b}[1m", "\u{1b}[0m") } else { ("", "") };
        self.print(&format!("{bold}[{}/7] {name:<10}{plain} {text}", self.count));
        self.stages.push(json!({"stage": name, "text": text, "lines": [], "failed": []}));
    }

    fn line(&mut self, text: &str) {
        self.print(&format!("      {text}"));
        self.push("lines", json!(text));
    }

    fn detail(&mut self, key: &str, value: Value) {
        if let Some(stage) = self.stages.last_mut() {
            stage[key] = value;
        }
    }

    fn expect(&mut self, holds: bool, what: &str) {
        if !holds {
            self.print(&format!("      FAILED: {what}"));
            self.push("failed", json!(what));
            self.failed.push(what.to_owned());
        }
    }

    fn push(&mut self, list: &str, value: Value) {
        let list = self.stages.last_mut().and_then(|stage| stage[list].as_array_mut());
        if let Some(list) = list {
            list.push(value);
        }
    }

    fn finish(&self) {
        if self.json {
            let all =
                json!({"ok": self.failed.is_empty(), "failed": self.failed, "stages": self.stages});
            let _ = writeln!(std::io::stdout(), "{all:#}");
        } else if self.failed.is_empty() {
            self.print("every expectation held; cleaned up");
        } else {
            let _ = writeln!(std::io::stderr(), "demo failed: {}", self.failed.join("; "));
        }
    }
}
