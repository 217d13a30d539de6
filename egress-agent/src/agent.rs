//! The only place that knows everybody: registry in, kernel out, and what is told about it.

mod account;
mod ending;
mod enforcer;
mod inputs;
mod lease;
mod naming;
mod propagation;
mod report;
mod state;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Notify, watch};

use crate::cli::Run;
use crate::clock::BootEpoch;
use crate::config::File;
use crate::datapath::{Loaded, Options};
use crate::doctor::{self, Check, CheckStatus};
use crate::identity::cgroup::Kubepods;
use crate::identity::{cgroup, link};
use crate::lock::Lock;
use crate::metrics::serve::Access;
use crate::policy::Mark;
use crate::registry::Registry;
use crate::supervise::{self, Tasks};
use crate::{admin, events, metrics, names, registry};

use account::Account;
pub use ending::{RunError, causes};
use enforcer::{Enforcer, States};
use inputs::Inputs;
use lease::first_snapshot;
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
    let settings = file.names(&path)?;
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
        names: settings.enabled,
        grace: u64::try_from(settings.grace.as_nanos()).unwrap_or(u64::MAX),
        not_pods: file.not_pods,
        epoch: BootEpoch::now(),
    };
    let read = names::Inputs {
        settings,
        cluster: inputs.cluster.clone(),
        history: arguments.datapath.run_dir.join("names.json"),
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
        let account = Account::open(&run_dir);
        let (mut enforcer, states) = Enforcer::start(inputs, loaded, published, account)?;
        readiness.ready(states.clone(), counting.attached()?, desk.counts());
        let mut tasks = Tasks::default();
        let findings = enforcer.read_names(&mut tasks, &states, read, &until)?;
        let names = states.borrow().names.clone();
        let desk = desk.naming(Arc::new(move |pod, ip| names.host(pod, ip))).finding(findings);
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
