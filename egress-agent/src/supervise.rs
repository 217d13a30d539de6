//! Tasks that somebody watches: named, in one set, ended together.
//!
//! A task that ends before shutdown was asked for ends the agent; shutdown is a parameter every
//! task carries, it is bounded in time, and a second signal aborts. Nothing else in the agent
//! spawns.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Asks for shutdown; dropping it asks too.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

/// Carried by every task.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// A trigger and what it triggers.
pub fn pair() -> (ShutdownTrigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (ShutdownTrigger(sender), Shutdown(receiver))
}

impl ShutdownTrigger {
    /// Asks every task to end.
    pub fn request(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Returns once shutdown is asked for.
    pub async fn requested(&mut self) {
        // An error means that the trigger is gone, which asks as well.
        let _ = self.0.wait_for(|asked| *asked).await;
    }
}

/// How a task ended.
type Ending = (&'static str, anyhow::Result<()>);

/// The agent's tasks.
#[derive(Default)]
pub struct Tasks {
    set: JoinSet<Ending>,
}

/// Time for tasks to end by themselves.
const DRAIN: Duration = Duration::from_secs(5);

impl Tasks {
    /// Starts a task.
    pub fn start(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.set.spawn(async move { (name, task.await) });
    }

    /// Runs until a signal or the first task's end, then ends the others.
    ///
    /// # Errors
    /// When a task ended by itself, failed or panicked, or did not end in time.
    pub async fn run(mut self, trigger: ShutdownTrigger) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let first = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            ended = self.set.join_next() => ended,
        };
        let outcome = match first {
            None => {
                tracing::info!("shutting down; enforcement stays");
                Ok(())
            }
            Some(ended) => ending(ended),
        };
        trigger.request();
        let drained = async { while self.set.join_next().await.is_some() {} };
        tokio::select! {
            ended = tokio::time::timeout(DRAIN, drained) => {
                if ended.is_err() {
                    tracing::warn!(seconds = DRAIN.as_secs(), "tasks did not end in time");
                }
            }
            _ = terminate.recv() => tracing::warn!("second signal: aborting"),
            _ = interrupt.recv() => tracing::warn!("second signal: aborting"),
        }
        outcome
    }
}

impl Tasks {
    /// Runs as part of another set: until shutdown is asked for, or the first task's end.
    ///
    /// # Errors
    /// When a task ended by itself, failed or panicked.
    pub async fn until(mut self, mut shutdown: Shutdown) -> anyhow::Result<()> {
        tokio::select! {
            // First: a task that ends because it was asked to must not end the others unfinished.
            biased;
            () = shutdown.requested() => {
                while self.set.join_next().await.is_some() {}
                Ok(())
            }
            ended = self.set.join_next() => ended.map_or(Ok(()), ending),
        }
    }
}

/// Runs work that blocks, such as reading maps, beside the tasks and waits for it.
///
/// # Errors
/// When it panicked.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|error| anyhow::anyhow!("blocking work panicked: {error}"))
}

/// An end nobody asked for, as an error.
fn ending(ended: Result<Ending, tokio::task::JoinError>) -> anyhow::Result<()> {
    match ended {
        Ok((name, Ok(()))) => Err(anyhow::anyhow!("task {name} ended unexpectedly")),
        Ok((name, Err(error))) => Err(error.context(format!("task {name} failed"))),
        Err(error) => Err(anyhow::anyhow!("a task panicked: {error}")),
    }
}
