//! The only place that knows everybody: registry in, kernel out, and what is told about it.

mod ending;
mod inputs;
mod lease;
mod propagation;
mod report;
mod state;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use egress_common::state::Pod as KernelPod;
use tokio::sync::{Notify, watch};

use crate::cli::Run;
use crate::clock::{BootEpoch, boot_clock};
use crate::config::File;
use crate::datapath::{Applied, Attached, DatapathError, Loaded, Options};
use crate::doctor::{self, Check, CheckStatus};
use crate::identity::cgroup::Kubepods;
use crate::identity::{cgroup, link, uplink};
use crate::lock::Lock;
use crate::metrics::serve::Access;
use crate::policy::{Mark, RejectionCount, Snapshot};
use crate::registry::{Published, Registry, report_changes};
use crate::supervise::{self, Shutdown, Tasks};
use crate::{admin, events, metrics, registry};

pub use ending::{RunError, causes};
use inputs::{Inputs, View};
use lease::{BEAT, first_snapshot};
pub use propagation::Propagation;
pub use state::{AgentState, Known};

/// Runs until stopped. Enforcement outlives it.
///
/// # Errors
/// [`RunError`], whose exit code is documented.
pub async fn run(arguments: &Run) -> Result<(), RunError> {
    let path = arguments.config.clone().unwrap_or_else(|| PathBuf::from("(no file)"));
    let file = match &arguments.config {
        Some(path) => File::read(path)?,
        None => File::default(),
    };
    let cluster = file.cluster(&path)?;
    let lease = file.lease(&path)?;
    let most_series = file.max_series(&path)?;
    let mark = file.mark(&path)?;
    let node = arguments.node_name.clone().or_else(|| file.node_name.clone());
    let registry = Registry::open(&arguments.registry, node.as_deref()).await?;
    let _lock = Lock::take(&arguments.datapath.run_dir)?;
    let options = Options {
        bpffs: arguments.datapath.bpffs.clone(),
        kernel_log: arguments.kernel_log,
        capacity: arguments.table_size,
        attach: file.datapath.attach,
    };
    preflight(&options, arguments, mark)?;
    let _pins = Lock::take_pins(&options.bpffs)?;
    let kubepods = Kubepods::find(arguments.cgroup_root.as_deref()).map_err(anyhow::Error::from)?;
    let own = kubepods.own().map_err(anyhow::Error::from)?;
    let mut loaded = Loaded::load(&options).map_err(anyhow::Error::from)?;
    loaded.exempt(own.as_ref()).map_err(anyhow::Error::from)?;
    let (trigger, shutdown) = supervise::pair();
    let mut tasks = Tasks::default();

    let (publish, mut published) = registry::channel();
    let (reporter, reviewer) = (registry.reporter(), registry.reviewer());
    let (report, reports) = watch::channel(report::starting());
    let until = shutdown.clone();
    tasks.start("registry", async move { Ok(registry.follow(publish, until).await?) });
    if let Some(reporter) = reporter {
        let until = shutdown.clone();
        tasks.start("report", async move {
            reporter.run(reports, until).await;
            Ok(())
        });
    }
    let wake = Arc::new(Notify::new());
    let (watched, notify, until) = (kubepods.clone(), Arc::clone(&wake), shutdown.clone());
    tasks.start("cgroups", async move { Ok(cgroup::watch(watched, notify, until).await?) });
    let (notify, until) = (Arc::clone(&wake), shutdown.clone());
    tasks.start("links", async move { Ok(link::watch(notify, until).await?) });

    let served = metrics::serve::bind(&access(arguments, &file), reviewer).await?;
    let probes = metrics::health::bind(arguments.health_address.or(file.health.address)).await?;
    let admin = admin::bind(&arguments.datapath.run_dir)
        .map_err(|error| anyhow::anyhow!("cannot open the admin socket: {error}"))?;
    let outlet = events::Outlet::open(
        arguments.events_output.as_deref().or(file.events.output.as_deref()),
        file.events.rotation(&path)?,
    )
    .map_err(|error| anyhow::anyhow!("cannot open the event output: {error}"))?;
    let format = arguments.events_format.or(file.events.format).unwrap_or_default();
    let desk = events::Desk::new(format, outlet, kubepods.clone());

    let inputs = Inputs {
        node,
        source: arguments.registry.to_string(),
        cluster,
        kubepods,
        own,
        unknown_pod: file.unknown_pod(),
        lease,
        mark,
        not_pods: file.not_pods,
        epoch: BootEpoch::now(),
    };
    // Probes answer from the start; nothing else does before the first snapshot is applied.
    let readiness = metrics::Readiness::default();
    let (ready, until) = (readiness.clone(), shutdown.clone());
    tasks.start("probes", async move { Ok(metrics::health::serve(probes, ready, until).await?) });
    let (ready, until) = (readiness.clone(), shutdown.clone());
    tasks.start("metrics", async move { Ok(metrics::serve::serve(served, ready, until).await?) });
    let until = shutdown.clone();
    let run_dir = arguments.datapath.run_dir.clone();
    let granularity =
        arguments.metrics_granularity.or(file.metrics.granularity).unwrap_or_default();
    let main = async move {
        if !first_snapshot(&mut published, &mut loaded, until.clone()).await? {
            return Ok(());
        }
        let counting = metrics::Counting::open(&options, &run_dir, granularity, most_series)?;
        let (mut enforcer, states) = Enforcer::start(inputs, loaded, published)?;
        readiness.ready(states.clone(), counting.attached()?, desk.counts());
        let mut tasks = Tasks::default();
        enforcer.report(&mut tasks, &states, desk, admin, &until)?;
        tasks.start("counters", metrics::keep(readiness, until.clone()));
        tasks.start("node report", report::keep(states, report, until.clone()));
        tasks.start("enforcer", enforcer.follow(wake, until.clone()));
        tasks.until(until).await
    };
    tasks.start("agent", main);
    tasks.run(trigger).await.map_err(RunError::Failed)
}

/// Makes the checks of the start; what only weakens is logged.
fn preflight(options: &Options, arguments: &Run, mark: Mark) -> Result<(), RunError> {
    let (run_dir, cgroup_root) = (&arguments.datapath.run_dir, arguments.cgroup_root.as_deref());
    let mark = mark.audit | mark.enforce;
    let checks = doctor::preflight(&doctor::Node { options, run_dir, cgroup_root, mark });
    for check in checks.iter().filter(|check| check.status == CheckStatus::Warn) {
        let Check { name, detail, remedy, .. } = check;
        tracing::warn!(check = name, detail, remedy, "this node is weaker than it could be");
    }
    if checks.iter().any(|check| check.status == CheckStatus::Fail) {
        return Err(RunError::Preflight(checks));
    }
    Ok(())
}

/// Who may read metrics, and where.
fn access(arguments: &Run, file: &File) -> Access {
    let metrics = &file.metrics;
    Access {
        address: arguments.metrics_address.or(metrics.address),
        any_address: metrics.any_address,
        authenticate: metrics.authenticate,
        tls: metrics.tls.as_ref().map(|tls| (tls.certificate.clone(), tls.key.clone())),
    }
}

/// The loop that keeps the kernel at what the registry says.
struct Enforcer {
    inputs: Inputs,
    attached: Attached,
    registry: Published,
    publish: watch::Sender<Arc<AgentState>>,
    told: BTreeSet<String>,
}

type States = watch::Receiver<Arc<AgentState>>;

impl Enforcer {
    fn start(
        inputs: Inputs,
        loaded: Loaded,
        mut registry: Published,
    ) -> anyhow::Result<(Self, States)> {
        let snapshot = Arc::clone(&registry.snapshots.borrow_and_update());
        let (actual, verified) = (loaded.actual()?, loaded.held());
        let view = View { held: &actual, known: &[], verified, no_redirect: loaded.no_redirect() };
        let (mut desired, fit) = inputs.fitting(&snapshot, view, loaded.capacities())?;
        let refused = match fit {
            Ok(()) => None,
            // Nothing is there to go on with.
            Err(refused) if actual.config.generation == 0 => {
                return Err(DatapathError::Refused(refused).into());
            }
            Err(refused) => {
                tracing::error!(error = refused.to_string(), "policy refused; the old one stays");
                Some(refused.to_string())
            }
        };
        let path: &Path = &inputs.kubepods.path;
        let can_redirect = loaded.no_redirect().is_none();
        let tables = if refused.is_some() { &actual } else { &desired.tables };
        let (mut attached, mut applied) = loaded.attach(path, tables, desired.may_remove)?;
        if can_redirect && attached.no_redirect().is_some() && refused.is_none() {
            // The hooks it needs were loaded and could not be attached.
            let (held, verified) = (attached.actual()?, attached.verified());
            let known = &desired.coverage;
            let no_redirect = attached.no_redirect();
            let view = View { held: &held, known, verified, no_redirect };
            desired = inputs.compile(&snapshot, view)?;
            applied = attached.apply(&desired.tables, desired.may_remove)?;
        }
        if let Some(why) = attached.no_redirect() {
            tracing::warn!(why, "connections cannot be redirected on this node");
        }
        applied.warnings.extend(attached.link_uplinks(&uplink::uplinks()?)?);
        let tables = attached.actual()?;
        let mut state = AgentState {
            node: inputs.node.clone(),
            source: inputs.source.clone(),
            snapshot,
            desired: Arc::new(desired),
            rejections: RejectionCount::default(),
            hooks: Arc::new(attached.hooks()),
            usage: Arc::new(attached.usage(&tables)),
            tables: Arc::new(tables),
            applies: if refused.is_some() { (0, 1) } else { (1, 0) },
            refused,
            warnings: applied.warnings.clone(),
            registry: Known::of(&registry.health.borrow()),
            propagation: Propagation::default(),
            beat: boot_clock(),
        };
        state.count_rejections();
        report_changes(&[], &state.compiled_problems());
        let (publish, states) = watch::channel(Arc::new(state));
        let mut enforcer = Self { inputs, attached, registry, publish, told: BTreeSet::new() };
        enforcer.log(&applied);
        Ok((enforcer, states))
    }

    /// Starts everything that reports.
    fn report(
        &mut self,
        tasks: &mut Tasks,
        states: &States,
        desk: events::Desk,
        socket: tokio::net::UnixListener,
        shutdown: &Shutdown,
    ) -> anyhow::Result<()> {
        let ring = self.attached.take_events();
        let ring = ring.ok_or_else(|| anyhow::anyhow!("the event ring has a reader already"))?;
        let (seen, until) = (states.clone(), shutdown.clone());
        let mut tally = self.attached.tally()?;
        let left = tally.load()?;
        let keep = move |now| {
            if let Err(error) = tally.save(now) {
                tracing::warn!(error = error.to_string(), "tally of events not kept");
            }
        };
        tasks.start("events", events::run(ring, desk, left, keep, seen, until));
        let (seen, until) = (states.clone(), shutdown.clone());
        tasks.start("admin", async move { Ok(admin::serve(socket, seen, until).await?) });
        if let Some(mut logger) = self.attached.take_logger() {
            let mut until = shutdown.clone();
            tasks.start("kernel log", async move {
                loop {
                    logger.flush();
                    tokio::select! {
                        () = until.requested() => return Ok(()),
                        () = tokio::time::sleep(Duration::from_millis(100)) => {}
                    }
                }
            });
        }
        Ok(())
    }

    async fn follow(mut self, wake: Arc<Notify>, mut shutdown: Shutdown) -> anyhow::Result<()> {
        let mut beats = tokio::time::interval(BEAT);
        loop {
            tokio::select! {
                () = shutdown.requested() => return Ok(()),
                changed = self.registry.snapshots.changed() => changed?,
                () = wake.notified() => {}
                _ = beats.tick() => {
                    if !self.beat()? {
                        continue;
                    }
                }
            }
            let snapshot = Arc::clone(&self.registry.snapshots.borrow_and_update());
            self.apply(Arc::clone(&snapshot))?;
            if self.is_bounded_elsewhere() {
                self.apply(snapshot)?;
            }
        }
    }

    /// The sign of life, with a look at what is attached and at the clocks. True when the policy
    /// must be compiled again: the boundary is attached elsewhere than what the kernel was told, or
    /// the wall clock was set and ends of exceptions move with it.
    fn beat(&mut self) -> anyhow::Result<bool> {
        self.attached.beat()?;
        let hooks = self.attached.hooks();
        for hook in hooks.iter().filter(|hook| !hook.attached) {
            if self.told.insert(format!("{}{}{}", hook.hook, hook.target, hook.detail)) {
                tracing::warn!(
                    hook = hook.hook,
                    target = hook.target,
                    detail = hook.detail,
                    "hook is not attached"
                );
            }
        }
        self.publish.send_modify(|state| {
            let state = Arc::make_mut(state);
            state.beat = boot_clock();
            state.hooks = Arc::new(hooks);
            state.registry = Known::of(&self.registry.health.borrow());
        });
        let moved = self.inputs.epoch.follow();
        if let Some(seconds) = moved {
            tracing::warn!(seconds = seconds as i64, "clock was set; ends of exceptions move");
        }
        Ok(moved.is_some() || self.is_bounded_elsewhere())
    }

    /// Whether the boundary is attached elsewhere than what the kernel was told.
    fn is_bounded_elsewhere(&self) -> bool {
        let verified = self.attached.verified();
        let tables = &self.publish.borrow().tables;
        let told = |pod: &KernelPod| pod.flags & KernelPod::BOUNDARY != 0;
        tables.interfaces.iter().any(|(ifindex, pod)| verified.contains(ifindex) != told(pod))
    }

    /// Compiles and applies. What does not fit leaves everything as it was.
    fn apply(&mut self, snapshot: Arc<Snapshot>) -> anyhow::Result<()> {
        let (held, last) = {
            let state = self.publish.borrow();
            (Arc::clone(&state.tables), Arc::clone(&state.desired))
        };
        let view = View {
            held: &held,
            known: &last.coverage,
            verified: self.attached.verified(),
            no_redirect: self.attached.no_redirect(),
        };
        let desired = match self.inputs.fitting(&snapshot, view, self.attached.capacities()) {
            // What does not fit is refused by the datapath, which says so.
            Ok((desired, _)) => desired,
            // The node could not be read this time: the old policy stays, the next event asks
            // again.
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "node not read; policy unchanged");
                return Ok(());
            }
        };
        let mut outcome = self.attached.apply(&desired.tables, desired.may_remove);
        if let Ok(applied) = &mut outcome {
            applied.warnings.extend(self.attached.link_uplinks(&uplink::uplinks()?)?);
        }
        let refused = match &outcome {
            Ok(applied) => {
                self.log(applied);
                None
            }
            Err(error) => {
                tracing::error!(error = error.to_string(), "policy refused; the old one stays");
                Some(error.to_string())
            }
        };
        if let Err(error) = outcome
            && !matches!(error, DatapathError::Refused(_))
        {
            return Err(error.into());
        }
        let tables = self.attached.actual()?;
        let hooks = self.attached.hooks();
        let usage = self.attached.usage(&tables);
        self.publish.send_modify(|state| {
            let state = Arc::make_mut(state);
            let health = self.registry.health.borrow();
            if refused.is_none() {
                for noticed in health.noticed(state.snapshot.revision, snapshot.revision) {
                    state.propagation.observe(noticed.elapsed());
                }
            }
            state.registry = Known::of(&health);
            let (applied, rejected) = state.applies;
            state.applies =
                if refused.is_some() { (applied, rejected + 1) } else { (applied + 1, rejected) };
            let before = state.compiled_problems();
            state.snapshot = snapshot;
            state.desired = Arc::new(desired);
            state.count_rejections();
            report_changes(&before, &state.compiled_problems());
            state.tables = Arc::new(tables);
            state.hooks = Arc::new(hooks);
            state.usage = Arc::new(usage);
            state.refused = refused;
        });
        Ok(())
    }

    fn log(&mut self, applied: &Applied) {
        if applied.put + applied.removed + applied.attached + applied.detached > 0 {
            tracing::info!(
                generation = applied.generation,
                put = applied.put,
                removed = applied.removed,
                withheld = applied.withheld,
                attached = applied.attached,
                detached = applied.detached,
                "policy applied"
            );
        }
        for warning in &applied.warnings {
            if self.told.insert(warning.clone()) {
                tracing::warn!(warning, "interface not attached");
            }
        }
    }
}
