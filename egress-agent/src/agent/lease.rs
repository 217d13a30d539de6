//! Signs of life, and the ones before there is anything to do.

use std::time::Duration;

use crate::datapath::Loaded;
use crate::registry::Published;
use crate::supervise::Shutdown;

/// Time between two signs of life.
pub(super) const BEAT: Duration = Duration::from_secs(1);

/// Waits for the first snapshot; false when shutdown is asked for instead.
///
/// Meanwhile the lease of what an earlier agent left is kept up: an agent that waits for its
/// registry is as alive as one that has lost it. Its first sign of life comes a second after its
/// start, so that agents which die before they have done anything leave the lease to run out.
pub(super) async fn first_snapshot(
    registry: &mut Published,
    loaded: &mut Loaded,
    mut shutdown: Shutdown,
) -> anyhow::Result<bool> {
    let mut beats = tokio::time::interval_at(tokio::time::Instant::now() + BEAT, BEAT);
    loop {
        tokio::select! {
            () = shutdown.requested() => return Ok(false),
            first = registry.snapshots.wait_for(|known| known.revision > 0) => {
                first?;
                return Ok(true);
            }
            _ = beats.tick() => loaded.beat()?,
        }
    }
}
