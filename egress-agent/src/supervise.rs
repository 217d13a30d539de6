//! Tasks and their end.

use tokio::sync::watch;

/// Asks every holder of a [`Shutdown`] to end.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

impl ShutdownTrigger {
    /// Asks.
    pub fn request(&self) {
        self.0.send_replace(true);
    }
}

/// Resolves when the agent is asked to end.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Waits until the end is requested, or until nobody is left to request it.
    pub async fn requested(&mut self) {
        let _ = self.0.wait_for(|requested| *requested).await;
    }
}

/// A trigger and what it triggers.
pub fn pair() -> (ShutdownTrigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (ShutdownTrigger(sender), Shutdown(receiver))
}
