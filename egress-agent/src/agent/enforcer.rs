//! The loop that keeps the kernel at what the registry says.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use egress_common::state::Pod as KernelPod;
use tokio::sync::{Notify, mpsc, watch};

use super::account::Account;
use super::inputs::{Inputs, View};
use super::lease::BEAT;
use super::{AgentState, Known, Propagation};
use crate::clock::boot_clock;
use crate::datapath::{Applied, Attached, DatapathError, Loaded};
use crate::identity::uplink;
use crate::policy::{RejectionCount, Resolved, Snapshot};
use crate::registry::{Published, report_changes};
use crate::supervise::{Shutdown, Tasks};
use crate::{admin, events, names};

/// Between two rounds of attaching, for whoever else configures the network.
const BREATH: Duration = Duration::from_millis(100);

/// Holds the datapath, and what is told of it.
pub(super) struct Enforcer {
    pub(super) inputs: Inputs,
    pub(super) attached: Attached,
    pub(super) registry: Published,
    pub(super) publish: watch::Sender<Arc<AgentState>>,
    pub(super) told: BTreeSet<String>,
    /// Addresses for limited gateways, from whoever reads DNS answers.
    pub(super) admit: mpsc::Sender<names::Admission>,
    pub(super) admissions: mpsc::Receiver<names::Admission>,
    pub(super) resolved: Resolved,
    pub(super) account: Account,
    /// Interfaces that are still to be attached.
    pub(super) pending: usize,
}

pub(super) type States = watch::Receiver<Arc<AgentState>>;

impl Enforcer {
    pub(super) fn start(
        inputs: Inputs,
        loaded: Loaded,
        mut registry: Published,
        account: Account,
    ) -> anyhow::Result<(Self, States)> {
        let snapshot = Arc::clone(&registry.snapshots.borrow_and_update());
        let (actual, verified) = (loaded.actual()?, loaded.held());
        let resolved = Resolved::adopt(&actual, boot_clock(), inputs.grace);
        let (known, no_redirect) = (&[], loaded.no_redirect());
        let view = View { held: &actual, known, verified, no_redirect, resolved: &resolved };
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
            let view = View { held: &held, known, verified, no_redirect, resolved: &resolved };
            desired = inputs.compile(&snapshot, view)?;
            applied = attached.apply(&desired.tables, desired.may_remove)?;
        }
        if let Some(why) = attached.no_redirect() {
            tracing::warn!(why, "connections cannot be redirected on this node");
        }
        applied.warnings.extend(attached.link_uplinks(&uplink::uplinks()?)?);
        let pending = applied.pending;
        let tables = attached.actual()?;
        let mut state = AgentState {
            node: inputs.node.clone(),
            source: inputs.source.clone(),
            snapshot,
            desired: Arc::new(desired),
            rejections: RejectionCount::default(),
            hooks: Arc::new(attached.hooks()),
            repairs: Arc::default(),
            usage: Arc::new(attached.usage(&tables)),
            tables: Arc::new(tables),
            applies: if refused.is_some() { (0, 1) } else { (1, 0) },
            refused,
            warnings: applied.warnings.iter().chain(&applied.lost).cloned().collect(),
            registry: Known::of(&registry.health.borrow()),
            propagation: Propagation::default(),
            beat: boot_clock(),
            names: names::Names::default(),
            exposures: Arc::default(),
        };
        state.count_rejections();
        report_changes(&[], &state.compiled_problems());
        let (publish, states) = watch::channel(Arc::new(state));
        let (admit, admissions) = mpsc::channel(1024);
        let told = BTreeSet::new();
        let mut enforcer = Self {
            inputs,
            attached,
            registry,
            publish,
            told,
            admit,
            admissions,
            resolved,
            account,
            pending,
        };
        enforcer.log(&applied);
        enforcer.take_account();
        Ok((enforcer, states))
    }

    /// Starts everything that reports.
    pub(super) fn report(
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

    pub(super) async fn follow(
        mut self,
        wake: Arc<Notify>,
        mut shutdown: Shutdown,
    ) -> anyhow::Result<()> {
        let mut beats = tokio::time::interval(BEAT);
        loop {
            tokio::select! {
                () = shutdown.requested() => return Ok(()),
                changed = self.registry.snapshots.changed() => changed?,
                () = wake.notified() => {}
                Some(admission) = self.admissions.recv() => {
                    self.admit(&admission);
                    continue;
                }
                () = tokio::time::sleep(BREATH), if self.pending > 0 => {
                    self.pending = self.attached.link_pending()?;
                    if self.pending > 0 {
                        continue;
                    }
                }
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
    /// the wall clock was set and ends of exceptions move with it, or something was mended.
    fn beat(&mut self) -> anyhow::Result<bool> {
        self.attached.beat()?;
        let no_redirect = self.attached.no_redirect().map(str::to_owned);
        let repaired = self.attached.repairs().clone();
        let hooks = self.attached.audit();
        let mut changed = false;
        for (hook, times) in self.attached.repairs() {
            if repaired.get(hook) != Some(times) {
                changed = true;
                tracing::warn!(hook, times, "hook was not as this agent had left it; mended");
            }
        }
        for hook in hooks.iter().filter(|hook| !hook.is_verified()) {
            if self.told.insert(format!("{}{}{}", hook.hook, hook.target, hook.detail)) {
                tracing::warn!(
                    hook = hook.hook,
                    target = hook.target,
                    detail = hook.detail,
                    "hook is not attached, or not the first"
                );
            }
        }
        self.publish.send_modify(|state| {
            let state = Arc::make_mut(state);
            state.beat = boot_clock();
            state.hooks = Arc::new(hooks);
            state.repairs = Arc::new(self.attached.repairs().clone());
            state.registry = Known::of(&self.registry.health.borrow());
        });
        self.take_account();
        let moved = self.inputs.epoch.follow();
        if let Some(seconds) = moved {
            tracing::warn!(seconds = seconds as i64, "clock was set; ends of exceptions move");
        }
        let redirects = no_redirect.as_deref() == self.attached.no_redirect();
        let expired = self.resolved.expire(boot_clock());
        // What was attached elsewhere or anew may have other pods below it.
        let attached = changed || !redirects || self.is_bounded_elsewhere();
        Ok(expired || attached || moved.is_some())
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
            resolved: &self.resolved,
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
                self.pending = applied.pending;
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
        self.take_account();
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
        for lost in &applied.lost {
            tracing::warn!(lost, "taken over from another version");
        }
        for warning in &applied.warnings {
            if self.told.insert(warning.clone()) {
                tracing::warn!(warning, "interface not attached");
            }
        }
    }
}
