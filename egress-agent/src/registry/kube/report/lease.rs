//! Which of all agents speaks for them: the holder of a Lease.
//!
//! Time is this machine's own: a holder is gone when its lease was not renewed for as long as this
//! agent has watched it, so that clocks that disagree elect nobody twice. A holder that cannot
//! renew stops before others may take over.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use kube::api::{Api, PostParams};

use super::super::backoff::jittered;
use super::{LEASE, NAMESPACE, answer, code};

/// How long a holder may be silent before another one takes over.
const DURATION: Duration = Duration::from_secs(60);
/// Between two renewals.
const RENEW: Duration = Duration::from_secs(15);
/// A holder stops writing after so long without a renewal: well before anybody takes over.
const STOP: Duration = Duration::from_secs(40);

/// One agent's view of the lease.
pub(super) struct Election {
    leases: Api<Lease>,
    identity: String,
    /// The version that another holder wrote, and when it was first seen.
    seen: Option<(String, Instant)>,
    /// When the last attempt that succeeded began.
    renewed: Instant,
}

/// What to do about a lease as it was found.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Create,
    Take,
    Wait,
}

impl Election {
    /// In the namespace of the client's credentials: of the pod's account, or of the context.
    pub(super) fn new(client: &Client, node: &str) -> Self {
        // Not the node alone: its next agent is another one.
        let identity = format!("{node}_{}", std::process::id());
        let namespace = match client.default_namespace() {
            // Nobody chose it.
            "default" => NAMESPACE,
            chosen => chosen,
        };
        let leases = Api::namespaced(client.clone(), namespace);
        Self { leases, identity, seen: None, renewed: Instant::now() }
    }

    /// Tries to become the holder, or to stay it; true when this agent is it now.
    ///
    /// # Errors
    /// When the server does not answer, or refuses anything but a change that came first.
    pub(super) async fn attempt(&mut self) -> kube::Result<bool> {
        let asked = Instant::now();
        let found = match answer(self.leases.get(LEASE)).await {
            Ok(lease) => Some(lease),
            Err(error) if code(&error) == 404 => None,
            Err(error) => return Err(error),
        };
        let step = self.step(found.as_ref(), Instant::now());
        let lease = self.held(found.as_ref());
        let post = PostParams::default();
        let written = match step {
            Step::Wait => return Ok(false),
            Step::Create => answer(self.leases.create(&post, &lease)).await,
            Step::Take => answer(self.leases.replace(LEASE, &post, &lease)).await,
        };
        match written {
            Ok(_) => {
                self.seen = None;
                self.renewed = asked;
                Ok(true)
            }
            // Somebody else was first.
            Err(error) if code(&error) == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Renews until that fails for too long or another agent holds the lease; then returns.
    pub(super) async fn hold(&mut self) {
        loop {
            let stop = self.renewed + STOP;
            let renewal = async {
                tokio::time::sleep(jittered(RENEW)).await;
                self.attempt().await
            };
            match tokio::time::timeout_at(stop.into(), renewal).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(error)) => tracing::debug!(error = error.to_string(), "lease not renewed"),
            }
        }
    }

    /// Lets go of it, so that another agent need not wait.
    pub(super) async fn release(&self) {
        let Ok(mut lease) = answer(self.leases.get(LEASE)).await else { return };
        if holder(&lease) == Some(&self.identity)
            && let Some(spec) = &mut lease.spec
        {
            spec.holder_identity = None;
            // Without it the lease expires by itself.
            let _ = answer(self.leases.replace(LEASE, &PostParams::default(), &lease)).await;
        }
    }

    fn step(&mut self, found: Option<&Lease>, now: Instant) -> Step {
        let Some(lease) = found else { return Step::Create };
        match holder(lease) {
            None => Step::Take,
            Some(holder) if *holder == self.identity => Step::Take,
            Some(_) => {
                let version = lease.metadata.resource_version.clone().unwrap_or_default();
                match &self.seen {
                    Some((seen, since)) if *seen == version => {
                        if now.duration_since(*since) >= DURATION { Step::Take } else { Step::Wait }
                    }
                    _ => {
                        self.seen = Some((version, now));
                        Step::Wait
                    }
                }
            }
        }
    }

    /// The lease as this agent's. The version of what was found makes sure that it is unchanged.
    fn held(&self, found: Option<&Lease>) -> Lease {
        let old = found.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let ours = old.holder_identity.as_ref() == Some(&self.identity);
        let now = MicroTime(Timestamp::now());
        let metadata = found.map_or_else(
            || ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() },
            |lease| lease.metadata.clone(),
        );
        let transitions = old.lease_transitions.unwrap_or_default();
        Lease {
            metadata,
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: old.acquire_time.filter(|_| ours).or_else(|| Some(now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(if ours { transitions } else { transitions + 1 }),
                ..old
            }),
        }
    }
}

fn holder(lease: &Lease) -> Option<&String> {
    lease.spec.as_ref()?.holder_identity.as_ref().filter(|holder| !holder.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn election() -> Election {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        Election::new(&Client::try_from(config).unwrap(), "node-a")
    }

    fn lease(holder: &str, version: &str) -> Lease {
        let metadata = ObjectMeta {
            name: Some(LEASE.to_owned()),
            resource_version: Some(version.to_owned()),
            ..ObjectMeta::default()
        };
        let spec = LeaseSpec { holder_identity: Some(holder.to_owned()), ..LeaseSpec::default() };
        Lease { metadata, spec: Some(spec) }
    }

    #[test]
    fn an_absent_or_released_lease_is_taken_at_once() {
        let (mut election, now) = (election(), Instant::now());
        assert_eq!(election.step(None, now), Step::Create);
        assert_eq!(election.step(Some(&lease("", "1")), now), Step::Take);
    }

    #[test]
    fn another_holder_is_gone_only_when_it_was_seen_silent_for_the_whole_duration() {
        let (mut election, start) = (election(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let held = lease("node-b_1", "1");
        assert_eq!(election.step(Some(&held), start), Step::Wait);
        assert_eq!(election.step(Some(&held), after(59)), Step::Wait);
        // It renewed: the watching begins anew, whatever its clock wrote.
        let renewed = lease("node-b_1", "2");
        assert_eq!(election.step(Some(&renewed), after(60)), Step::Wait);
        assert_eq!(election.step(Some(&renewed), after(119)), Step::Wait);
        assert_eq!(election.step(Some(&renewed), after(120)), Step::Take);
    }

    #[test]
    fn a_renewal_keeps_when_it_was_taken_and_a_takeover_counts() {
        let election = election();
        let taken = election.held(Some(&lease("node-b_1", "7"))).spec.unwrap();
        assert_eq!(taken.holder_identity.as_ref(), Some(&election.identity));
        assert_eq!(taken.lease_transitions, Some(1));
        let mut ours = lease("x", "8");
        ours.spec = Some(taken.clone());
        let renewed = election.held(Some(&ours));
        assert_eq!(renewed.metadata.resource_version.as_deref(), Some("8"));
        let renewed = renewed.spec.unwrap();
        assert_eq!(renewed.acquire_time, taken.acquire_time);
        assert_eq!(renewed.lease_transitions, Some(1));
    }

    #[test]
    fn a_holder_stops_before_another_may_take_over() {
        assert!(RENEW * 2 < STOP, "one renewal may fail");
        assert!(STOP + Duration::from_secs(10) < DURATION, "a request that was sent may arrive");
    }
}
