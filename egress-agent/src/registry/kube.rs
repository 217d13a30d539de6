//! The `kube` registry: the API server's objects, watched by demand.
//!
//! [`stores`] decides what is watched and what may be said; `stream` speaks to the server; this
//! file moves inputs from one to the other, in one task that owns every watch, and decides when
//! to publish. Losing the server changes nothing that was published but for the problem that says
//! so.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::time::Instant;

use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::{FuturesUnordered, SelectAll};
use futures_util::{FutureExt, Stream, StreamExt};
use kube::Client;
use kube::discovery::ApiResource;
use tokio::sync::watch;
use tokio::time::{Duration, sleep_until, timeout};

use crate::supervise::Shutdown;

mod backoff;
mod client;
mod demand;
mod pace;
pub(super) mod report;
mod resource;
pub(super) mod review;
pub(super) mod role;
mod stores;
mod stream;
mod trouble;

use super::object::Kind;
use super::publish::Publisher;
use backoff::{Backoff, jittered};
pub use client::ClientError;
use demand::Watch;
use pace::Pace;
use report::Reporter;
use resource::{Known, Served, discover};
use review::Reviewer;
use stores::{Input, Stores};
use trouble::Trouble;

/// Before the first question: agents of a whole cluster may start together.
const START: Duration = Duration::from_millis(250);
/// Between two questions whether the server still answers, while nothing else is asked.
const PROBE: Duration = Duration::from_secs(10);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// Between two looks for kinds that the server does not have: soon after the start and after one
/// came or went, since they come together, and then at most this often.
const LOOK: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// The same while one of them is our own.
const LOOK_OWN: Duration = Duration::from_secs(5);
/// Before a kind that was there is looked for a second time.
const DOUBT: Duration = Duration::from_secs(10);
/// Inputs that are taken before anything else is looked at.
const BATCH: usize = 512;

/// A cluster whose registry is to be followed for one node.
pub(super) struct Cluster {
    client: Client,
    node: String,
    stores: Stores,
}

impl Cluster {
    /// Finds the credentials; the server is not asked yet.
    pub(super) async fn connect(
        kubeconfig: Option<&Path>,
        node: &str,
    ) -> Result<Self, ClientError> {
        let (client, server) = client::connect(kubeconfig).await?;
        tracing::info!(server, node, "registry is the API server");
        Ok(Self { client, node: node.to_owned(), stores: Stores::new(node, &server) })
    }

    /// Who writes to the same server.
    pub(super) fn reporter(&self) -> Reporter {
        Reporter::new(self.client.clone(), &self.node)
    }

    /// Who asks the same server about tokens.
    pub(super) fn reviewer(&self) -> Reviewer {
        Reviewer::new(self.client.clone())
    }

    /// Publishes a snapshot once everything that is asked for was listed, and another after every
    /// change, until shutdown.
    pub(super) async fn follow(self, publish: Publisher, mut shutdown: Shutdown) {
        let mut follower = Follower {
            client: self.client,
            stores: self.stores,
            publish,
            known: Known::default(),
            running: BTreeMap::new(),
            inputs: SelectAll::new(),
            questions: FuturesUnordered::new(),
            asking: Asking {
                tries: Backoff::of_tries(),
                looks: Backoff::new(LOOK.0, LOOK.1),
                pending: false,
            },
            pace: Pace::default(),
            revived: watch::Sender::new(0),
        };
        follower.ask(Question::Served, jittered(START));
        follower.ask(Question::Probe, PROBE);
        tokio::select! {
            () = shutdown.requested() => {}
            () = follower.run() => {}
        }
    }
}

/// What the server is asked beside the watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    /// Which kinds it has.
    Served,
    /// Whether it answers at all.
    Probe,
}

enum Answer {
    Served(Result<Served, kube::Error>),
    /// Any answer will do, a refusal included.
    Probe(bool),
}

/// How often the server is asked for its kinds.
struct Asking {
    /// Pauses after no answer.
    tries: Backoff,
    /// Pauses while some are absent.
    looks: Backoff,
    /// They are being asked for, or soon will be.
    pending: bool,
}

type Tagged = Pin<Box<dyn Stream<Item = (Watch, Input)> + Send>>;
type Asked = Pin<Box<dyn Future<Output = Answer> + Send>>;

struct Follower {
    client: Client,
    stores: Stores,
    publish: Publisher,
    known: Known,
    /// The watches that run, each with the resource it asks for.
    running: BTreeMap<Watch, (ApiResource, AbortHandle)>,
    inputs: SelectAll<Tagged>,
    questions: FuturesUnordered<Asked>,
    asking: Asking,
    pace: Pace,
    /// Changes when a server that gave no answer gives one.
    revived: watch::Sender<u64>,
}

impl Follower {
    async fn run(&mut self) {
        loop {
            let due = self.pace.due();
            let publish = async {
                match due {
                    Some(due) => sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = publish => self.tell(),
                Some(answer) = self.questions.next() => self.hear(answer),
                Some((watch, input)) = self.inputs.next() => {
                    self.take(&watch, input);
                    // Whatever else is there already: a list is thousands of inputs.
                    for _ in 0..BATCH {
                        let Some(Some((watch, input))) = self.inputs.next().now_or_never() else {
                            break;
                        };
                        self.take(&watch, input);
                    }
                    self.adjust();
                }
            }
        }
    }

    fn take(&mut self, watch: &Watch, input: Input) {
        if let Input::Failed(trouble) = &input
            && trouble.is_missing()
        {
            self.ask(Question::Served, jittered(Duration::from_secs(1)));
        }
        let answer = matches!(input, Input::Opened | Input::InitDone);
        if answer && self.stores.is_lost() {
            self.revived.send_modify(|times| *times += 1);
        }
        if self.stores.input(watch, input) {
            self.pace.note(Instant::now());
        }
    }

    /// Opens and drops watches as they are wanted now.
    fn adjust(&mut self) {
        let wanted: BTreeMap<Watch, ApiResource> = self
            .stores
            .wanted()
            .filter_map(|watch| Some((watch.clone(), self.known.get(watch.kind)?.clone())))
            .collect();
        self.running.retain(|watch, (resource, handle)| {
            let stays = wanted.get(watch) == Some(resource);
            if !stays {
                tracing::debug!(kind = watch.kind.name(), watch = %watch, "watch dropped");
                handle.abort();
            }
            stays
        });
        for (watch, resource) in wanted {
            if self.running.contains_key(&watch) {
                continue;
            }
            tracing::debug!(kind = watch.kind.name(), watch = %watch, "watch opened");
            let (handle, registration) = AbortHandle::new_pair();
            let inputs = stream::open(&self.client, &watch, &resource, self.revived.subscribe());
            let tag = watch.clone();
            let tagged = inputs.map(move |input| (tag.clone(), input));
            self.inputs.push(Box::pin(Abortable::new(tagged, registration)));
            self.running.insert(watch, (resource, handle));
        }
        self.publish.set_in_step(self.stores.is_in_step());
    }

    /// Publishes what is known, or says what it waits for.
    fn tell(&mut self) {
        let Some(noticed) = self.pace.take() else { return };
        if self.stores.is_ready() || self.publish.has_published() {
            self.publish.update(self.stores.snapshot(), noticed);
            self.pace.published(Instant::now());
        } else {
            self.publish.waits_for(&self.stores.problems());
        }
    }

    /// Asks the server something after a while.
    fn ask(&mut self, question: Question, after: Duration) {
        if question == Question::Served && std::mem::replace(&mut self.asking.pending, true) {
            return;
        }
        let client = self.client.clone();
        self.questions.push(Box::pin(async move {
            tokio::time::sleep(after).await;
            match question {
                Question::Served => Answer::Served(discover(&client).await),
                Question::Probe => {
                    let answer = timeout(ANSWER, client.apiserver_version()).await;
                    Answer::Probe(matches!(answer, Ok(Ok(_) | Err(kube::Error::Api(_)))))
                }
            }
        }));
    }

    fn hear(&mut self, answer: Answer) {
        match answer {
            Answer::Probe(answered) => {
                self.publish.set_in_step(answered && self.stores.is_in_step());
                self.ask(Question::Probe, jittered(PROBE));
            }
            Answer::Served(Ok(served)) => {
                self.asking.pending = false;
                self.asking.tries.reset();
                if self.known.take(served) {
                    self.asking.looks.reset();
                }
                if self.stores.serve(self.known.kinds()) {
                    self.pace.note(Instant::now());
                }
                self.adjust();
                let pause = self.asking.looks.next();
                if self.known.is_in_doubt() {
                    self.ask(Question::Served, jittered(DOUBT));
                } else if self.stores.absent().any(Kind::is_own) {
                    self.ask(Question::Served, pause.min(jittered(LOOK_OWN)));
                } else if self.stores.absent().next().is_some() {
                    self.ask(Question::Served, pause);
                }
            }
            Answer::Served(Err(error)) => {
                self.asking.pending = false;
                if self.stores.undiscovered(Trouble::of("list", &error)) {
                    self.pace.note(Instant::now());
                }
                let pause = self.asking.tries.next();
                self.ask(Question::Served, pause);
            }
        }
    }
}
