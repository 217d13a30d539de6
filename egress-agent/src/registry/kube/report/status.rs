//! The statuses of policies and exceptions, written by whichever agent holds the lease.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::discovery::ApiResource;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::super::backoff::jittered;
use super::super::resource::resource;
use super::lease::Election;
use super::verdict::{Key, due};
use super::{Complaint, NodeReport, SHARE, answer, backoff, code};
use crate::registry::object::Kind;
use crate::registry::policy_object::VERSION;
use crate::supervise::Shutdown;

/// Whose fields the statuses are.
const MANAGER: &str = "egress-agent";
/// Between two looks at the lease, at least. The more nodes there are the longer each waits, so
/// that all of them together look ten times a second at most.
const LOOK: Duration = Duration::from_secs(30);
/// Changes so close together are judged together.
const SETTLE: Duration = Duration::from_millis(200);
/// Time for letting go of the lease at the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// Writes statuses while this agent holds the lease, and waits for it while it does not.
pub(super) async fn lead(
    client: &Client,
    node: &str,
    reports: watch::Receiver<NodeReport>,
    mut shutdown: Shutdown,
) {
    let mut election = Election::new(client, node);
    let mut leading = false;
    tokio::select! {
        () = shutdown.requested() => {}
        () = campaign(client, &mut election, &reports, &mut leading) => {}
    }
    if leading {
        let _ = tokio::time::timeout(FAREWELL, election.release()).await;
    }
}

async fn campaign(
    client: &Client,
    election: &mut Election,
    reports: &watch::Receiver<NodeReport>,
    leading: &mut bool,
) {
    let mut complaint = Complaint::of(
        "hold the Lease egress-agent, so that this agent never writes the status of a policy",
        "apiGroups [coordination.k8s.io], resources [leases], verbs [get, create, update]",
    );
    let mut backoff = backoff();
    loop {
        let pause = match election.attempt().await {
            Ok(true) => {
                complaint.clear();
                backoff.reset();
                *leading = true;
                tracing::info!("this agent writes the statuses of policies");
                tokio::select! {
                    () = election.hold() => {}
                    () = write(client) => {}
                }
                *leading = false;
                tracing::info!("another agent may write the statuses of policies now");
                Duration::ZERO
            }
            Ok(false) => {
                backoff.reset();
                let nodes = u32::try_from(reports.borrow().nodes).unwrap_or(u32::MAX);
                LOOK.max(SHARE.saturating_mul(nodes))
            }
            Err(error) => {
                complaint.about(&error);
                if code(&error) == 403 {
                    // Another agent may have the right; this one has done without so far.
                    return std::future::pending().await;
                }
                backoff.next()
            }
        };
        tokio::time::sleep(jittered(pause)).await;
    }
}

/// Keeps every status at what it should say, for ever.
async fn write(client: &Client) {
    let mut complaint = Complaint::of(
        "write the statuses of policies",
        "apiGroups [egress-enforcer.io], resources [egresspolicies/status, \
         egressexceptions/status], verbs [patch]",
    );
    let mut objects: BTreeMap<Key, Value> = BTreeMap::new();
    let mut events = futures_util::stream::select_all(OWN.map(|kind| {
        let api = api(client, kind);
        let stream = watcher(api, watcher::Config::default()).default_backoff();
        stream.map(move |event| (kind, event)).boxed()
    }));
    let mut listed: BTreeMap<Kind, BTreeMap<Key, Value>> = BTreeMap::new();
    let mut backoff = backoff();
    let mut wait: Option<Duration> = None;
    loop {
        let settled = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some((kind, event)) = events.next() => {
                take(kind, event, &mut objects, &mut listed);
                wait = Some(SETTLE);
            }
            () = settled => {
                wait = match all(client, &objects).await {
                    Ok(()) => {
                        complaint.clear();
                        backoff.reset();
                        None
                    }
                    Err(error) => {
                        complaint.about(&error);
                        Some(backoff.next())
                    }
                };
            }
        }
    }
}

/// The kinds whose statuses are written.
const OWN: [Kind; 2] = [Kind::EgressPolicy, Kind::EgressException];

fn served(kind: Kind) -> ApiResource {
    resource(kind).api(kind, VERSION)
}

fn api(client: &Client, kind: Kind) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &served(kind))
}

fn take(
    kind: Kind,
    event: watcher::Result<Event<DynamicObject>>,
    objects: &mut BTreeMap<Key, Value>,
    listed: &mut BTreeMap<Kind, BTreeMap<Key, Value>>,
) {
    let pair = |object: DynamicObject| {
        let name = object.metadata.name.clone().unwrap_or_default();
        serde_json::to_value(object).ok().map(|value| ((kind, name), value))
    };
    match event {
        Ok(Event::Apply(object)) => objects.extend(pair(object)),
        Ok(Event::Delete(object)) => {
            objects.remove(&(kind, object.metadata.name.unwrap_or_default()));
        }
        Ok(Event::Init) => {
            listed.insert(kind, BTreeMap::new());
        }
        Ok(Event::InitApply(object)) => listed.entry(kind).or_default().extend(pair(object)),
        Ok(Event::InitDone) => {
            objects.retain(|(held, _), _| *held != kind);
            objects.extend(listed.remove(&kind).unwrap_or_default());
        }
        Err(error) => tracing::debug!(error = error.to_string(), "watch of statuses interrupted"),
    }
}

/// Writes whatever is due. One object that cannot be written keeps none of the others waiting.
async fn all(client: &Client, objects: &BTreeMap<Key, Value>) -> kube::Result<()> {
    let mut failed = Ok(());
    for ((kind, name), status) in due(objects, Timestamp::now()) {
        let resource = served(kind);
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "name": name },
            "status": status,
        });
        let parameters = PatchParams::apply(MANAGER).force();
        let (api, patch) = (api(client, kind), Patch::Apply(&patch));
        match answer(api.patch_status(&name, &parameters, &patch)).await {
            Ok(_) => tracing::info!(kind = kind.name(), name, "status written"),
            // It has gone meanwhile.
            Err(error) if code(&error) == 404 => {}
            Err(error) => failed = Err(error),
        }
    }
    failed
}
