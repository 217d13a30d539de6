//! One watch, from the server's events to the stores' inputs.
//!
//! Objects are taken as they come: whatever their metadata or their fields are, a list is never
//! lost for one of them. Each becomes its small entry at once, so that no whole object stays.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use http::Request;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, DynamicObject, Resource};
use kube::client::Body;
use kube::core::DynamicResourceScope;
use kube::discovery::ApiResource;
use kube::runtime::watcher::{self, Event, watcher};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::{Duration, Instant, sleep};

use super::backoff::{Backoff, jittered};
use super::demand::Watch;
use super::stores::{Held, Input};
use super::trouble::{self, Trouble};
use crate::registry::object::{self, Kind};

/// Objects of one page of a list: whole objects stand in memory this many at a time.
const PAGE: u32 = 250;

/// A watch that was open for so long and breaks is resumed before anything is said of it.
const STEADY: Duration = Duration::from_secs(30);

/// How long after the server's revival the watches of one node are taken up again.
const REVIVAL: Duration = Duration::from_secs(1);

/// Inputs of one watch, without end. A failure is followed by a pause and another try; events go
/// on where they were, or from a new list where the server does not remember.
pub(super) type Inputs = Pin<Box<dyn Stream<Item = Input> + Send>>;

struct Running {
    kind: Kind,
    resource: ApiResource,
    events: Pin<Box<dyn Stream<Item = watcher::Result<Event<Raw>>> + Send>>,
    opened: Arc<Notify>,
    since: Option<Instant>,
    backoff: Backoff,
    pause: Option<Pause>,
    /// The last answer was that the server cannot answer now.
    busy: bool,
    revived: watch::Receiver<u64>,
}

/// A wait before another try.
struct Pause {
    time: Duration,
    /// It is over early when the server is heard of elsewhere.
    until_revived: bool,
}

/// Opens a watch. `revived` changes when a server that gave no answer gives one.
pub(super) fn open(
    client: &Client,
    watch: &Watch,
    resource: &ApiResource,
    revived: watch::Receiver<u64>,
) -> Inputs {
    let opened = Arc::new(Notify::new());
    let client = observed(client, Arc::clone(&opened));
    let api: Api<Raw> = match &watch.namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, resource),
        None => Api::all_with(client, resource),
    };
    let mut config = watcher::Config::default().page_size(PAGE);
    let (fields, labels) = (watch.fields(), watch.labels());
    config.field_selector = (!fields.is_empty()).then_some(fields);
    config.label_selector = (!labels.is_empty()).then_some(labels);
    let running = Running {
        kind: watch.kind,
        resource: resource.clone(),
        events: watcher(api, config).boxed(),
        opened,
        since: None,
        backoff: Backoff::of_tries(),
        pause: None,
        busy: false,
        revived,
    };
    stream::unfold(running, |mut running| async {
        let input = running.next().await?;
        Some((input, running))
    })
    .boxed()
}

impl Running {
    async fn next(&mut self) -> Option<Input> {
        loop {
            if let Some(Pause { time, until_revived }) = self.pause.take() {
                tokio::select! {
                    () = sleep(time) => {}
                    Ok(()) = self.revived.changed(), if until_revived => {
                        sleep(jittered(REVIVAL)).await;
                    }
                }
            }
            let event = tokio::select! {
                biased;
                () = self.opened.notified() => {
                    self.since = Some(Instant::now());
                    return Some(Input::Opened);
                }
                event = self.events.next() => event?,
            };
            let error = match event {
                Ok(event) => match self.read(event) {
                    Some(input) => return Some(input),
                    None => continue,
                },
                Err(error) => error,
            };
            let steady = self.since.take().is_some_and(|since| since.elapsed() >= STEADY);
            // One that has only begun is soon done with it, however long it was away.
            let busy = is_busy(&error);
            if steady || (busy && !self.busy) {
                self.backoff.reset();
            }
            self.busy = busy;
            let broken = matches!(error, watcher::Error::WatchFailed(_));
            let trouble = trouble(&error);
            let until_revived = !trouble.is_refusal();
            if until_revived {
                self.revived.mark_unchanged();
            }
            // A server that says so is well, and has much to list for everybody.
            let time = if trouble.is_gone() { jittered(REVIVAL) } else { self.backoff.next() };
            self.pause = Some(Pause { time, until_revived });
            if trouble.is_gone() || (steady && broken && !trouble.is_refusal()) {
                // The server does not remember where the watch was, and lists again; or the
                // connection fell silent or broke, and the watch goes on where it was.
                tracing::debug!(kind = self.kind.name(), %error, "watch begins anew");
                continue;
            }
            return Some(Input::Failed(trouble));
        }
    }

    /// `None` for an object that does not matter here.
    fn read(&self, event: Event<Raw>) -> Option<Input> {
        let held = |raw: Raw, input: fn(Held) -> Input| match raw.read(self.kind, &self.resource) {
            Ok(held) => held.map(input),
            Err(what) => Some(Input::Unreadable(what)),
        };
        match event {
            Event::Init => Some(Input::Init),
            Event::InitDone => Some(Input::InitDone),
            Event::InitApply(raw) => held(raw, |held| Input::Listed(Box::new(held))),
            Event::Apply(raw) => held(raw, |held| Input::Applied(Box::new(held))),
            Event::Delete(raw) => held(raw, |held| Input::Deleted(held.entry.key, held.uid)),
        }
    }
}

/// A client that tells when a watch was opened: the watcher itself says nothing when it resumes
/// one.
fn observed(client: &Client, opened: Arc<Notify>) -> Client {
    let (client, namespace) = (client.clone(), client.default_namespace().to_owned());
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, opened) = (client.clone(), Arc::clone(&opened));
        async move {
            let query = request.uri().query().unwrap_or_default();
            let watches = query.split('&').any(|pair| pair == "watch=true");
            let response = client.send(request).await?;
            if watches && response.status().is_success() {
                opened.notify_one();
            }
            Ok::<_, kube::Error>(response)
        }
    });
    Client::new(service, namespace)
}

fn is_busy(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => trouble::is_busy(status),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => false,
    }
}

fn trouble(error: &watcher::Error) -> Trouble {
    match error {
        watcher::Error::InitialListFailed(error) => Trouble::of("list", error),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
            Trouble::of("watch", error)
        }
        watcher::Error::WatchError(status) => Trouble::refused("watch", status),
        watcher::Error::NoResourceVersion => Trouble::Unreachable(error.to_string()),
    }
}

/// An object of which nothing is required.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    /// What the watcher itself looks at.
    meta: ObjectMeta,
    value: Value,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(input)?;
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            // Often half of an object, and nothing reads it.
            metadata.remove("managedFields");
        }
        let text = |name: &str| {
            let field = value.get("metadata").and_then(|metadata| metadata.get(name));
            field.and_then(Value::as_str).map(str::to_owned)
        };
        let meta = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self { meta, value })
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> std::borrow::Cow<'_, str> {
        DynamicObject::kind(resource)
    }

    fn group(resource: &ApiResource) -> std::borrow::Cow<'_, str> {
        DynamicObject::group(resource)
    }

    fn version(resource: &ApiResource) -> std::borrow::Cow<'_, str> {
        DynamicObject::version(resource)
    }

    fn plural(resource: &ApiResource) -> std::borrow::Cow<'_, str> {
        DynamicObject::plural(resource)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

impl Raw {
    /// The small entry of it, or why it is none; `Ok(None)` for one that does not matter.
    fn read(self, kind: Kind, resource: &ApiResource) -> Result<Option<Held>, String> {
        let Self { meta, mut value } = self;
        if let Some(map) = value.as_object_mut() {
            // Items of a list do not repeat them.
            map.insert("apiVersion".to_owned(), Value::from(resource.api_version.as_str()));
            map.insert("kind".to_owned(), Value::from(kind.name()));
        }
        let name = meta.name.unwrap_or_default();
        let entry = object::read(value, None).map_err(|error| format!("`{name}`: {error}"))?;
        let version = meta.resource_version.and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(entry.map(|entry| Held { uid: meta.uid.unwrap_or_default(), version, entry }))
    }
}
