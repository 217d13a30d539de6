//! A client that waits: objects as JSON or YAML, written to and read from an API server.
//!
//! Nothing controls this cluster and no kubelet runs in it. What they would write, statuses above
//! all, is written with the object: [`Cluster::apply`] sends the `status` it finds to the
//! subresource.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::discovery::{Scope, pinned_kind};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Who fields belong to that the tests write.
const MANAGER: &str = "egress-tests";
/// Requests under way at once in the calls that make many.
const PARALLEL: usize = 16;

/// A kind as this cluster serves it, and whether its objects live in namespaces.
type Served = (ApiResource, bool);

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `apps/v1`, `v1`.
    pub api_version: String,
    /// `Pod`.
    pub kind: String,
    /// Absent for objects of the cluster.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl Reference {
    /// Of an object in a namespace.
    pub fn new(api_version: &str, kind: &str, namespace: &str, name: &str) -> Self {
        let namespace = Some(namespace.to_owned());
        Self { namespace, ..Self::of_cluster(api_version, kind, name) }
    }

    /// Of an object of the cluster.
    pub fn of_cluster(api_version: &str, kind: &str, name: &str) -> Self {
        Self {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: None,
            name: name.to_owned(),
        }
    }

    /// Of this object.
    ///
    /// # Errors
    /// When it has no `apiVersion`, `kind` or `metadata.name`.
    pub fn to(object: &Value) -> Result<Self> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let need = |pointer: &str| {
            text(pointer).map(str::to_owned).with_context(|| format!("no {pointer} in {object}"))
        };
        Ok(Self {
            api_version: need("/apiVersion")?,
            kind: need("/kind")?,
            namespace: text("/metadata/namespace").map(str::to_owned),
            name: need("/metadata/name")?,
        })
    }
}

/// A connection to an API server with the rights of one kubeconfig.
pub struct Cluster {
    client: Client,
    kinds: Mutex<BTreeMap<(String, String), Served>>,
    /// Last: the client's tasks run on it.
    runtime: Runtime,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

impl Cluster {
    /// Connects with a kubeconfig's current context.
    ///
    /// # Errors
    /// When the file cannot be read; whether the server answers is seen at the first request.
    pub fn connect(kubeconfig: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("start a runtime for the Kubernetes client")?;
        let what = || format!("connect with {}", kubeconfig.display());
        let file = Kubeconfig::read_from(kubeconfig).with_context(what)?;
        let client = runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let mut config = Config::from_custom_kubeconfig(file, &options).await?;
            config.connect_timeout = Some(Duration::from_secs(5));
            config.read_timeout = Some(Duration::from_secs(60));
            anyhow::Ok(Client::try_from(config)?)
        });
        Ok(Self { client: client.with_context(what)?, kinds: Mutex::default(), runtime })
    }

    /// Creates or replaces an object, with its status where it has one; gives what is stored.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        self.runtime.block_on(self.apply_one(object))
    }

    /// Every document of a YAML text, in order.
    ///
    /// # Errors
    /// When the text cannot be read, or the API server refuses an object of it.
    pub fn apply_yaml(&self, text: &str) -> Result<Vec<Value>> {
        documents(text)?.iter().map(|object| self.apply(object)).collect()
    }

    /// Many objects, in no order, some at a time; gives what is stored in the order of `objects`.
    ///
    /// # Errors
    /// When the API server refuses one of them.
    pub fn apply_all(&self, objects: &[Value]) -> Result<Vec<Value>> {
        let applied = stream::iter(objects).map(|object| self.apply_one(object));
        self.runtime.block_on(applied.buffered(PARALLEL).try_collect())
    }

    async fn apply_one(&self, object: &Value) -> Result<Value> {
        let reference = Reference::to(object)?;
        let what = || format!("apply {reference:?}");
        let api = self.api(&reference).await?;
        let parameters = PatchParams::apply(MANAGER).force();
        // The server ignores the status here, and refuses some: a node's addresses are keyed by
        // their type, of which there are two.
        let mut body = object.clone();
        if let Some(fields) = body.as_object_mut() {
            fields.remove("status");
        }
        let stored = api.patch(&reference.name, &parameters, &Patch::Apply(&body)).await;
        let mut stored = stored.with_context(what)?;
        if let Some(status) = object.get("status") {
            let status = json!({ "status": status });
            let parameters = PatchParams::default();
            stored = api
                .patch_status(&reference.name, &parameters, &Patch::Merge(&status))
                .await
                .with_context(what)?;
        }
        serde_json::to_value(stored).with_context(what)
    }

    /// Creates those of the objects that are not there, some at a time, and changes none.
    ///
    /// # Errors
    /// When the API server refuses one of them for another reason.
    pub fn create_absent(&self, objects: &[Value]) -> Result<()> {
        let created = stream::iter(objects).map(|object| async move {
            let reference = Reference::to(object)?;
            let api = self.api(&reference).await?;
            let typed = serde_json::from_value(object.clone())?;
            match api.create(&PostParams::default(), &typed).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                Err(error) => Err(error).with_context(|| format!("create {reference:?}")),
            }
        });
        self.runtime.block_on(created.buffer_unordered(PARALLEL).try_collect())
    }

    /// Merges `change` into an object.
    ///
    /// # Errors
    /// When there is none, or the API server refuses the change.
    pub fn patch(&self, reference: &Reference, change: &Value) -> Result<Value> {
        self.runtime.block_on(async {
            let api = self.api(reference).await?;
            let parameters = PatchParams::default();
            let patched = api.patch(&reference.name, &parameters, &Patch::Merge(change)).await;
            let patched = patched.with_context(|| format!("patch {reference:?}"))?;
            Ok(serde_json::to_value(patched)?)
        })
    }

    /// Merges `status` into an object's status.
    ///
    /// # Errors
    /// As [`patch`](Self::patch).
    pub fn patch_status(&self, reference: &Reference, status: &Value) -> Result<Value> {
        self.runtime.block_on(async {
            let api = self.api(reference).await?;
            let (parameters, change) = (PatchParams::default(), json!({ "status": status }));
            let patched =
                api.patch_status(&reference.name, &parameters, &Patch::Merge(&change)).await;
            let patched = patched.with_context(|| format!("patch the status of {reference:?}"))?;
            Ok(serde_json::to_value(patched)?)
        })
    }

    /// Creates an object in a subresource, such as the `token` of a ServiceAccount.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn create_subresource(
        &self,
        reference: &Reference,
        subresource: &str,
        object: &Value,
    ) -> Result<Value> {
        self.runtime.block_on(async {
            let api = self.api(reference).await?;
            let parameters = PostParams::default();
            let created = api.create_subresource(subresource, &reference.name, &parameters, object);
            created.await.with_context(|| format!("create {subresource} of {reference:?}"))
        })
    }

    /// Deletes an object at once, as a kubelet does when the last container has ended.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete(&self, reference: &Reference) -> Result<()> {
        self.delete_within(reference, 0)
    }

    /// Deletes an object; a pod stays, marked, until it is deleted with a grace of 0.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete_within(&self, reference: &Reference, grace_seconds: u32) -> Result<()> {
        self.runtime.block_on(async {
            let api = self.api(reference).await?;
            let parameters = DeleteParams::default().grace_period(grace_seconds);
            let deleted = api.delete(&reference.name, &parameters).await;
            deleted.map(drop).with_context(|| format!("delete {reference:?}"))
        })
    }

    /// Deletes every object of a kind, in all namespaces; nothing where the kind is not served. What
    /// the API server writes for itself stays: it would come back, but up to ten seconds late.
    ///
    /// # Errors
    /// When the API server refuses to.
    pub fn delete_all(&self, api_version: &str, kind: &str) -> Result<()> {
        let objects = match self.list(api_version, kind) {
            Ok(objects) => objects,
            Err(error) if is_not_served(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let own = |object: &&Value| {
            let metadata = &object["metadata"];
            metadata["namespace"] == "default" && metadata["name"] == "kubernetes"
        };
        let references = objects.iter().filter(|object| !own(object)).map(|object| {
            let mut object = object.clone();
            object["apiVersion"] = api_version.into();
            object["kind"] = kind.into();
            Reference::to(&object)
        });
        let references: Vec<Reference> = references.collect::<Result<_>>()?;
        let deletions = stream::iter(&references).map(|reference| async move {
            let api = self.api(reference).await?;
            match api.delete(&reference.name, &DeleteParams::default().grace_period(0)).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                Err(error) => Err(error).with_context(|| format!("delete {reference:?}")),
            }
        });
        self.runtime.block_on(deletions.buffer_unordered(PARALLEL).try_collect())
    }

    /// One object.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, reference: &Reference) -> Result<Value> {
        self.runtime.block_on(async {
            let object = self.api(reference).await?.get(&reference.name).await;
            Ok(serde_json::to_value(object.with_context(|| format!("get {reference:?}"))?)?)
        })
    }

    /// All objects of a kind, in all namespaces.
    ///
    /// # Errors
    /// When the kind is not served.
    pub fn list(&self, api_version: &str, kind: &str) -> Result<Vec<Value>> {
        self.runtime.block_on(async {
            let (resource, _) = self.served(api_version, kind).await?;
            let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
            let list = api.list(&ListParams::default()).await;
            let list = list.with_context(|| format!("list {api_version} {kind}"))?;
            list.items.into_iter().map(|item| Ok(serde_json::to_value(item)?)).collect()
        })
    }

    /// A path that is no object, such as `/metrics`.
    ///
    /// # Errors
    /// When the answer is not a good one.
    pub fn get_text(&self, path: &str) -> Result<String> {
        let request = http::Request::get(path).body(Vec::new()).context("build a request")?;
        let text = self.runtime.block_on(self.client.request_text(request));
        text.with_context(|| format!("get {path}"))
    }

    /// Waits until a kind is served, as after its definition was applied.
    ///
    /// # Errors
    /// When it is not within ten seconds.
    pub fn await_kind(&self, api_version: &str, kind: &str) -> Result<()> {
        let what = format!("{api_version} {kind} is served");
        crate::process::wait_until(&what, Duration::from_secs(10), || {
            Ok(self.list(api_version, kind).is_ok())
        })?;
        Ok(())
    }

    async fn api(&self, reference: &Reference) -> Result<Api<DynamicObject>> {
        let Reference { api_version, kind, namespace, .. } = reference;
        let (resource, namespaced) = self.served(api_version, kind).await?;
        let client = self.client.clone();
        Ok(match (namespaced, namespace) {
            (true, Some(namespace)) => Api::namespaced_with(client, namespace, &resource),
            (false, None) => Api::all_with(client, &resource),
            (true, None) => bail!("{kind} lives in a namespace, and {reference:?} names none"),
            (false, Some(_)) => bail!("{kind} lives in no namespace, and {reference:?} names one"),
        })
    }

    /// How the kind is served; asked once, and again for as long as it is not.
    async fn served(&self, api_version: &str, kind: &str) -> Result<Served> {
        let key = (api_version.to_owned(), kind.to_owned());
        if let Some(known) = self.kinds.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(known.clone());
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let found = pinned_kind(&self.client, &GroupVersionKind::gvk(group, version, kind)).await;
        let (resource, abilities) =
            found.with_context(|| format!("{api_version} {kind} is not served"))?;
        let served = (resource, abilities.scope == Scope::Namespaced);
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(kinds.entry(key).or_insert(served).clone())
    }
}

/// Whether a kind was asked for that has no definition in this cluster.
fn is_not_served(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| match cause.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => status.code == 404,
        Some(kube::Error::Discovery(_)) => true,
        Some(_) | None => false,
    })
}

/// The documents of a YAML text.
///
/// # Errors
/// When one of them cannot be read, or is empty.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let mut documents = Vec::new();
    for part in text.split("\n---") {
        let is_empty = |line: &str| line.trim().is_empty() || line.starts_with(['#', '-']);
        if part.lines().all(is_empty) {
            continue;
        }
        let object: Value = serde_saphyr::from_str(part)
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(|| format!("read the document\n{part}"))?;
        ensure!(object.is_object(), "not an object: {part}");
        documents.push(object);
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_separated_and_empty_ones_left_out() {
        let text = "# first\n---\na: 1\n---\n# nothing\n---\nb: |\n  --- no separator\n";
        let read = documents(text).unwrap();
        assert_eq!(read, [json!({"a": 1}), json!({"b": "--- no separator\n"})]);
        assert!(documents("a: [1").is_err());
        assert!(documents("just text").is_err());
    }

    #[test]
    fn a_reference_needs_a_name() {
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
        assert_eq!(Reference::to(&object).unwrap(), Reference::of_cluster("v1", "Node", "n"));
        assert!(Reference::to(&json!({"apiVersion": "v1", "kind": "Node"})).is_err());
    }
}
