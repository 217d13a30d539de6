//! What the kernel does while no agent gives a sign of life, and when one does again.
//!
//! Three pods, one for each answer to the loss of the agent. What they may do is asked by fresh
//! connections, and by ones that were open all the time.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use egress_tests::address::{STRIPE, pod};
use egress_tests::agent::{self, Agent, binary};
use egress_tests::attempt::Outcome;
use egress_tests::lab::{GATEWAY, Identity, Lab, Pod};
use egress_tests::manifests;
use egress_tests::process::{Place, Process, wait_until};
use egress_tests::scenario::{Scenario, to};
use nix::sys::signal::Signal;

/// The shortest there is.
const LEASE: Duration = Duration::from_secs(3);
/// The last sign of life may have been that long ago when an agent falls silent.
const BEAT: Duration = Duration::from_secs(1);
/// Its pods are audited once the lease is over.
const VAULT: Identity = Identity {
    short: "vault",
    name: "vault/vault",
    uid: "5f0c1a52-0c4b-4c1e-9d53-000000000081",
    host: 81,
};
const OUTSIDE: u16 = 9000;
const OPEN: u16 = 8443;

/// What a pod may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct May {
    /// Open a connection to the gateway.
    gateway: bool,
    /// Open one to the outside.
    outside: bool,
}

const FRESH: May = May { gateway: true, outside: false };
const CLOSED: May = May { gateway: false, outside: false };
const AUDITED: May = May { gateway: true, outside: true };

/// `shop` holds, `bank` refuses what is new, `vault` is audited.
struct Loss {
    scenario: Scenario,
    vault: Pod,
    _gateway: Process,
}

impl Loss {
    fn new(lease: &str) -> Result<Self> {
        let lab = Lab::new()?;
        let vault = lab.add_pod(VAULT)?;
        vault.netns.await_ipv6("eth0")?;
        manifests::config(&lab.file("agent.yaml"), &format!("lease: \"{lease}\"\n"))?;
        let registry = lab.file("registry");
        manifests::policy(&registry, "enforce")?;
        let shop = std::fs::read_to_string(registry.join("policy.yaml"))?;
        for (namespace, on_loss) in [("bank", "denyNew"), ("vault", "audit")] {
            let policy = shop
                .replace("name: shop", &format!("name: {namespace}"))
                .replace("namespaces: [shop]", &format!("namespaces: [{namespace}]"))
                .replace("  mode:", &format!("  onAgentLoss: {on_loss}\n  mode:"));
            manifests::replace(&registry.join(format!("{namespace}.yaml")), &policy)?;
        }
        let mut vaults =
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: vault}\n---\n".to_owned();
        vaults.push_str(&manifests::pod(VAULT, vault.address(), ""));
        manifests::replace(&registry.join("vaults.yaml"), &vaults)?;
        let scenario = Scenario::on(lab, "enforce", &[])?;
        scenario.until("three policies govern", |status| {
            let pods = status["pods"].as_array().into_iter().flatten();
            pods.filter(|pod| pod["state"] == "covered" && pod["mode"] == "enforce").count() == 4
        })?;
        let gateway = scenario.server(&scenario.lab.gateway.place(), "tcp", OPEN)?;
        Ok(Self { scenario, vault, _gateway: gateway })
    }

    fn pods(&self) -> [(&'static str, &Pod); 3] {
        let lab = &self.scenario.lab;
        [("hold", &lab.cart), ("denyNew", &lab.ledger), ("audit", &self.vault)]
    }

    /// What a pod may do, over each family; and that what it may not did not arrive outside.
    fn may(&self, pod: &Pod) -> Result<[May; 2]> {
        let outside = STRIPE.both();
        let ask = |family: usize| {
            let arguments = ["tcp", &to(outside[family], OUTSIDE), "--patience", "800"];
            let (outside, arrived) = self.scenario.judged(&pod.place(), &arguments)?;
            ensure!(outside.ok == (arrived > 0), "{arrived} frames outside for {outside:?}");
            Ok(May { gateway: self.reaches_gateway(pod, family)?, outside: outside.ok })
        };
        Ok([ask(0)?, ask(1)?])
    }

    fn reaches_gateway(&self, pod: &Pod, family: usize) -> Result<bool> {
        let gateway = to(self::pod(GATEWAY.host).both()[family], OPEN);
        let dialled = self.scenario.lab.attempt(&pod.place(), &["tcp", &gateway])?;
        ensure!(dialled.ok || dialled.refused(), "neither let through nor refused: {dialled:?}");
        Ok(dialled.ok)
    }

    /// Whether the pod that is refused new connections after the lease is not, before it is over.
    fn is_within(&self, since: Instant) -> Result<()> {
        let open = self.reaches_gateway(&self.scenario.lab.ledger, 1)?;
        let elapsed = since.elapsed();
        ensure!(elapsed < LEASE - BEAT, "the machine is too slow for this test: {elapsed:?}");
        ensure!(open, "refused {elapsed:?} after the last sign of life");
        Ok(())
    }

    fn expect(&self, when: &str, expected: [May; 3]) -> Result<()> {
        for ((name, pod), expected) in self.pods().into_iter().zip(expected) {
            let found = self.may(pod)?;
            ensure!(found == [expected; 2], "{when}: {name} may {found:?}, not {expected:?}");
        }
        Ok(())
    }

    /// One connection of each pod to the gateway that is never quiet.
    fn talks(&self, span: Duration) -> Result<Vec<(&'static str, Process)>> {
        let talk = |(name, pod): (&'static str, &Pod)| {
            let span = span.as_millis().to_string();
            let gateway = to(self::pod(GATEWAY.host).v6, OPEN);
            let mut command = self.scenario.lab.probe(&pod.place())?;
            command.args(["hold", &gateway, "--milliseconds", &span, "--patience", "3000"]);
            Ok((name, Process::start(command_piped(command), "an open connection")?))
        };
        self.pods().into_iter().map(talk).collect()
    }

    /// An agent whose API server does not answer.
    fn start_without_registry(&self) -> Result<Process> {
        let lab = &self.scenario.lab;
        let kubeconfig = lab.file("kubeconfig");
        std::fs::write(&kubeconfig, KUBECONFIG)?;
        let registry = format!("kube:{}", kubeconfig.display());
        let place = Place { netns: Some(&lab.node), ..Place::default() };
        let mut command = place.command(binary()?)?;
        command.args(Agent::arguments_on(lab, &registry));
        command.stdout(Stdio::null()).stderr(lab.log("alone")?);
        Process::start(command, "agent without a registry")
    }
}

const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
    contexts: [{name: lab, context: {cluster: lab, user: agent}}]\n\
    clusters: [{name: lab, cluster: {server: \"https://127.0.0.1:1\", insecure-skip-tls-verify: true}}]\n\
    users: [{name: agent, user: {token: secret}}]\n";

fn command_piped(mut command: std::process::Command) -> std::process::Command {
    command.stdout(Stdio::piped());
    command
}

fn ended(talks: Vec<(&'static str, Process)>) -> Result<()> {
    for (name, mut talk) in talks {
        let (_, text) = talk.output(Duration::from_secs(30))?;
        let outcome: Outcome = serde_json::from_str(&text).context("read the talk")?;
        ensure!(outcome.ok, "the open connection of {name} was cut: {outcome:?}");
    }
    Ok(())
}

fn wait(until: Instant) {
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
}

/// Long enough for the lease to be over, for whoever stamped last.
const OVER: Duration = Duration::from_millis(3_300);

#[test]
fn a_silent_agent_costs_what_the_policy_says_and_its_return_brings_it_back() -> Result<()> {
    let mut loss = Loss::new("3s")?;
    loss.expect("with an agent", [FRESH; 3])?;
    let talks = loss.talks(Duration::from_secs(5))?;

    // Stopped, and alive as far as anybody else can tell.
    let stopped = Instant::now();
    loss.scenario.agent.process.signal(Signal::SIGSTOP)?;
    loss.is_within(stopped)?;
    wait(stopped + OVER);
    loss.expect("after the lease", [FRESH, CLOSED, AUDITED])?;
    let before = Instant::now();
    loss.scenario.agent.process.signal(Signal::SIGCONT)?;
    wait_until("a sign of life", Duration::from_secs(5), || {
        Ok(loss.may(&loss.scenario.lab.ledger)? == [FRESH; 2])
    })?;
    println!("a woken agent is believed after {:?}", before.elapsed());
    loss.expect("after its return", [FRESH; 3])?;
    let stale = ["egress_node_drops_total", "reason=\"policy_stale\""];
    let counted = agent::sum(&loss.scenario.samples()?, &stale);
    ensure!(counted >= 2.0, "what the lease refused is counted under its reason: {counted}");

    ended(talks)?;

    // Killed. Agents that come and die at once change nothing, nor do they keep the lease up.
    let talks = loss.talks(Duration::from_secs(9))?;
    let killed = Instant::now();
    loss.scenario.agent.process.kill();
    // The last two live long enough to have loaded everything.
    let lives = [200; 20].into_iter().chain([900; 2]).map(Duration::from_millis);
    let mut end = killed;
    for (round, life) in lives.enumerate() {
        let mut agent = loss.start_without_registry()?;
        end += life;
        wait(end);
        ensure!(agent.ended()?.is_none(), "the agent ended before it was killed");
        agent.kill();
        if round == 2 {
            loss.is_within(killed)?;
        }
    }
    loss.expect("after agents that died", [FRESH, CLOSED, AUDITED])?;

    // One that lives keeps it up, with the API server away: the policy is held.
    let alone = loss.start_without_registry()?;
    wait_until("a sign of life", Duration::from_secs(10), || {
        Ok(loss.may(&loss.scenario.lab.ledger)? == [FRESH; 2])
    })?;
    loss.expect("with an agent that has no registry", [FRESH; 3])?;
    drop(alone);

    // Back for good.
    loss.scenario.agent = Agent::start(&loss.scenario.lab, &[])?;
    loss.expect("with a new agent", [FRESH; 3])?;
    ended(talks)
}

#[test]
fn without_a_lease_nothing_ever_expires_but_break_glass_does() -> Result<()> {
    let mut loss = Loss::new("0")?;
    let lab = &loss.scenario.lab;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let ends = moment(now + 6)?;
    let exception = format!(
        "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressException\n\
         metadata: {{name: outage-4711}}\nspec:\n  scope: {{namespaces: [shop]}}\n  \
         destination: {{cidr: {}/32, ports: [{{port: {OUTSIDE}, protocol: TCP}}]}}\n  \
         expiresAt: \"{ends}\"\n  reason: gateway outage\n  requester: oncall@example.com\n",
        STRIPE.v4
    );
    manifests::replace(&lab.file("registry").join("exception.yaml"), &exception)?;
    let excepted = to(STRIPE.v4, OUTSIDE);
    let call = |loss: &Loss| {
        let place = loss.scenario.lab.cart.place();
        loss.scenario.judged(&place, &["tcp", &excepted, "--patience", "500"])
    };
    wait_until("the exception is in force", Duration::from_secs(4), || Ok(call(&loss)?.0.ok))?;
    let mut command = lab.probe(&lab.cart.place())?;
    command.args(["hold", &excepted, "--milliseconds", "20000", "--patience", "1000"]);
    let mut open = Process::start(command_piped(command), "an excepted connection")?;

    loss.scenario.agent.process.kill();
    ensure!(call(&loss)?.0.ok, "an exception does not need the agent");
    let end = std::time::UNIX_EPOCH + Duration::from_secs(now + 6);
    std::thread::sleep(end.duration_since(std::time::SystemTime::now()).unwrap_or_default());
    let mark = loss.scenario.lab.sniffer.mark();
    let (refused, arrived) = call(&loss)?;
    ensure!(refused.refused() && arrived == 0, "{arrived} frames after its end: {refused:?}");
    let (_, text) = open.output(Duration::from_secs(10))?;
    let outcome: Outcome = serde_json::from_str(&text).context("read the excepted connection")?;
    ensure!(!outcome.ok, "what the exception opened outlives it: {outcome:?}");
    loss.scenario.lab.settle();
    let late = loss.scenario.lab.sniffer.escapes(mark)?;
    ensure!(late.is_empty(), "frames of an open connection after its exception: {late:?}");

    loss.expect("without a lease", [FRESH; 3])
}

/// A moment as manifests have it.
fn moment(seconds: u64) -> Result<String> {
    Ok(k8s_openapi::jiff::Timestamp::from_second(i64::try_from(seconds)?)?.to_string())
}
