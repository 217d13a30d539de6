//! The registry `kube` against a real API server, without a kernel: what it publishes, and when.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use egress_agent::policy::compile::compile;
use egress_agent::policy::{ClusterConfig, NodeState, ProblemCode, Snapshot};
use egress_agent::registry::{Health, Published, Registry, Source, channel, read_directory};
use egress_agent::supervise::{self, ShutdownTrigger};
use egress_tests::control_plane::{self, Cluster, ControlPlane, Reference, Relay, documents};
use egress_tests::netns::Netns;
use egress_tests::sweep;
use kube::config::Kubeconfig;
use nix::sched::CloneFlags;
use serde_json::{Value, json};

const NODE: &str = "node-a";

/// The registry of [`NODE`], followed on a thread of its own; every snapshot is kept.
struct Followed {
    published: Published,
    seen: Arc<Mutex<Vec<Arc<Snapshot>>>>,
    end: Option<ShutdownTrigger>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Followed {
    fn start(kubeconfig: &Path) -> Self {
        Self::within(kubeconfig, None)
    }

    /// In another network namespace.
    fn within(kubeconfig: &Path, netns: Option<File>) -> Self {
        let source = Source::Kube(Some(kubeconfig.to_owned()));
        let (publish, published) = channel();
        let (end, shutdown) = supervise::pair();
        let seen: Arc<Mutex<Vec<Arc<Snapshot>>>> = Arc::default();
        let (mut snapshots, kept) = (published.snapshots.clone(), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            if let Some(netns) = netns {
                nix::sched::setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let registry = Registry::open(&source, Some(NODE)).await?;
                let keep = async {
                    while snapshots.changed().await.is_ok() {
                        let snapshot = Arc::clone(&snapshots.borrow_and_update());
                        kept.lock().unwrap_or_else(PoisonError::into_inner).push(snapshot);
                    }
                };
                let (ended, ()) = tokio::join!(registry.follow(publish, shutdown), keep);
                Ok(ended?)
            })
        });
        Self { published, seen, end: Some(end), thread: Some(thread) }
    }

    fn now(&self) -> Arc<Snapshot> {
        Arc::clone(&self.published.snapshots.borrow())
    }

    fn health(&self) -> Health {
        self.published.health.borrow().clone()
    }

    /// Waits for a snapshot that is as described.
    fn until(&self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        self.within_time(what, Duration::from_secs(20), || {
            let now = self.now();
            (now.revision > 0 && wanted(&now)).then_some(now)
        })
    }

    fn within_time<T>(&self, what: &str, time: Duration, ready: impl Fn() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = ready() {
                eprintln!("{what}: after {:?}", began.elapsed());
                return found;
            }
            let (health, now) = (self.health(), self.now());
            assert!(began.elapsed() < time, "not within {time:?}: {what}\n{health:?}\n{now:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Snapshots since the last call.
    fn take(&self) -> Vec<Arc<Snapshot>> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        drop(self.end.take());
        let ended = self.thread.take().map(JoinHandle::join);
        let clean = matches!(ended, Some(Ok(Ok(()))));
        assert!(clean || std::thread::panicking(), "the registry ended with {ended:?}");
    }
}

fn has_pod(snapshot: &Snapshot, name: &str) -> bool {
    snapshot.pods.values().any(|pod| pod.name.to_string() == name)
}

fn messages(snapshot: &Snapshot) -> String {
    let all = snapshot.problems.iter();
    all.map(|problem| format!("{} {}\n", problem.origin, problem.message)).collect()
}

fn pod(namespace: &str, name: &str, node: &str, account: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": account}},
        "spec": {
            "nodeName": node, "serviceAccountName": account,
            "containers": [{"name": "app", "image": "registry.example/app"}],
        },
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// A gateway's Service in a namespace, with a slice of these pods.
fn gateway(namespace: &str, pods: &[(&Value, &str)]) -> [Value; 2] {
    let endpoint = |(pod, ip): &(&Value, &str)| {
        let meta = &pod["metadata"];
        json!({
            "addresses": [ip],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {
                "kind": "Pod", "namespace": namespace, "name": meta["name"], "uid": meta["uid"],
            },
        })
    };
    let endpoints: Vec<Value> = pods.iter().map(endpoint).collect();
    [
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": namespace, "name": "egw"},
            "spec": {
                "selector": {"app": "egw"},
                "ports": [{"name": "tls", "port": 443, "targetPort": 8443}],
            },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": namespace, "name": "egw-1",
                "labels": {"kubernetes.io/service-name": "egw"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "tls", "port": 8443, "protocol": "TCP"}],
            "endpoints": endpoints,
        }),
    ]
}

fn policy(name: &str, gateway_namespace: &str) -> Value {
    json!({
        "apiVersion": "egress-enforcer.io/v1alpha1", "kind": "EgressPolicy",
        "metadata": {"name": name},
        "spec": {
            "selector": {"namespaces": ["shop"]},
            "mode": "enforce",
            "gateways": [
                {"namespace": gateway_namespace, "service": "egw", "serviceAccount": "egw"},
            ],
        },
    })
}

/// A gateway with one pod.
fn install_gateway(cluster: &Cluster, namespace: &str, ip: &str) -> Result<()> {
    cluster.apply(&self::namespace(namespace))?;
    let stored = cluster.apply(&pod(namespace, "egw-0", "node-b", "egw", ip))?;
    for object in gateway(namespace, &[(&stored, ip)]) {
        cluster.apply(&object)?;
    }
    Ok(())
}

/// Every definition, a namespace `shop`, and one gateway in `mesh`.
fn furnish(plane: &ControlPlane) -> Result<()> {
    plane.cluster.install_own()?;
    plane.cluster.install_lenient()?;
    plane.cluster.apply(&namespace("shop"))?;
    install_gateway(&plane.cluster, "mesh", "10.1.0.1")?;
    plane.cluster.apply(&policy("shop", "mesh"))?;
    Ok(())
}

/// The API server that tests share which neither stop it nor choose its flags.
fn shared() -> Result<MutexGuard<'static, ControlPlane>> {
    let plane = control_plane::shared()?;
    plane.clear()?;
    furnish(&plane)?;
    Ok(plane)
}

/// One of its own, with these flags.
fn alone(flags: &[&str]) -> Result<ControlPlane> {
    let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let plane = ControlPlane::with(&flags)?;
    furnish(&plane)?;
    Ok(plane)
}

/// Every kind that is read.
const KINDS: [(&str, &str); 16] = [
    ("v1", "Pod"),
    ("v1", "Namespace"),
    ("v1", "Service"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("v1", "Node"),
    ("networking.k8s.io/v1", "ServiceCIDR"),
    ("networking.istio.io/v1", "ServiceEntry"),
    ("networking.istio.io/v1", "Gateway"),
    ("networking.istio.io/v1", "VirtualService"),
    ("networking.istio.io/v1", "DestinationRule"),
    ("networking.istio.io/v1", "Sidecar"),
    ("security.istio.io/v1", "AuthorizationPolicy"),
    ("gateway.networking.k8s.io/v1", "Gateway"),
    ("v1", "ConfigMap"),
    ("egress-enforcer.io/v1alpha1", "EgressPolicy"),
    ("egress-enforcer.io/v1alpha1", "EgressException"),
];

/// What a directory says that holds everything the API server has.
fn dumped(cluster: &Cluster) -> Result<Snapshot> {
    let directory = tempfile::tempdir()?;
    for (index, (version, kind)) in KINDS.iter().enumerate() {
        let mut items = cluster.list(version, kind)?;
        for item in &mut items {
            item["apiVersion"] = (*version).into();
            item["kind"] = (*kind).into();
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        std::fs::write(directory.path().join(format!("{index}.json")), list.to_string())?;
    }
    Ok(read_directory(directory.path())?)
}

/// A snapshot without what only its source knows: revision and file.
fn comparable(snapshot: &Snapshot) -> String {
    let text = format!("{:#?}", Snapshot { revision: 0, ..snapshot.clone() });
    let mut lines = text.lines();
    let mut kept = String::new();
    while let Some(line) = lines.next() {
        if line.trim() == "file: Some(" {
            lines.by_ref().take(2).for_each(drop);
        } else if line.trim() != "file: None," {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// Objects of every kind, all of which matter to the node.
const OBJECTS: &str = include_str!("kube_registry/objects.yaml");

#[test]
fn the_same_objects_give_the_same_snapshot_as_files_and_from_the_api_server() -> Result<()> {
    let plane = shared()?;
    let cluster = &plane.cluster;
    let owner = cluster.apply_yaml(OBJECTS)?;
    let owner = owner
        .iter()
        .find(|object| object["kind"] == "Gateway" && object["metadata"]["name"] == "waypoint");
    let owner = owner.context("no waypoint")?;
    // Of a Service only the owner's UID tells whose it is.
    let mut owned = documents(include_str!("kube_registry/owned.yaml"))?;
    for object in &mut owned {
        object["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": "waypoint",
            "uid": owner["metadata"]["uid"],
        }]);
        cluster.apply(object)?;
    }
    let registry = Followed::start(plane.kubeconfig());
    let watched = registry.until("everything is there", |now| has_pod(now, "mesh/waypoint-0"));
    let files = dumped(cluster)?;
    assert!(watched.complete);
    assert!(watched.declarations.len() >= 2 && watched.exceptions.len() == 1, "{watched:#?}");
    assert_eq!(watched.mesh.api_gateways.len(), 1);
    assert_eq!(watched.mesh.configs.len(), 1);
    assert!(watched.services.len() >= 5, "{:#?}", watched.services);
    let refused: BTreeSet<ProblemCode> = watched.problems.iter().map(|p| p.code).collect();
    assert!(refused.contains(&ProblemCode::Invalid), "{}", messages(&watched));
    let (files, watched) = (comparable(&files), comparable(&watched));
    for (line, (file, watched)) in files.lines().zip(watched.lines()).enumerate() {
        assert_eq!(file, watched, "line {line} of {files}");
    }
    assert_eq!(files, watched);

    // Whatever else is in the cluster is not watched, and makes no difference to the node.
    let stranger = cluster.apply(&pod("shop", "far", "node-b", "default", "10.1.0.77"))?;
    let [mut service, mut slice] = gateway("shop", &[(&stranger, "10.1.0.77")]);
    for object in [&mut service, &mut slice] {
        object["metadata"]["name"] = json!("backend");
        object["metadata"]["labels"]["kubernetes.io/service-name"] = json!("backend");
        cluster.apply(object)?;
    }
    cluster.apply(&pod("shop", "last", NODE, "default", "10.1.0.78"))?;
    let watched = registry.until("the last pod", |now| has_pod(now, "shop/last"));
    let files = dumped(cluster)?;
    assert!(has_pod(&files, "shop/far") && !has_pod(&watched, "shop/far"));
    assert!(!watched.services.keys().any(|name| name.name == "backend"));
    let node = NodeState { name: Some(NODE.to_owned()), ..NodeState::default() };
    let config = ClusterConfig {
        exempt_namespaces: vec!["kube-system".to_owned()],
        ..ClusterConfig::default()
    };
    let compiled = |snapshot| compile(snapshot, &config, &node);
    let (from_files, from_watches) = (compiled(&files), compiled(&watched));
    assert!(from_files.tables.exact.len() > 10, "{:#?}", from_files.tables.exact);
    assert_eq!(from_files.tables, from_watches.tables);
    assert_eq!(from_files.gateways, from_watches.gateways);
    Ok(())
}

#[test]
fn definitions_may_come_late_and_go() -> Result<()> {
    let plane = ControlPlane::start()?;
    let cluster = &plane.cluster;
    cluster.apply(&namespace("shop"))?;
    let registry = Followed::start(plane.kubeconfig());
    let now = registry.until("a snapshot without any definition", |_| true);
    assert!(!now.complete, "without our own kinds something was to be removed");
    assert!(messages(&now).contains("install the CustomResourceDefinition egresspolicies"));
    cluster.install_own()?;
    registry.until("our own definitions", |now| now.complete && now.problems.is_empty());
    install_gateway(cluster, "mesh", "10.1.0.1")?;
    cluster.apply(&policy("shop", "mesh"))?;
    registry.until("a policy", |now| now.policies.contains_key("shop"));
    cluster.install_lenient()?;
    let entry = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"namespace": "shop", "name": "stripe"},
        "spec": {"hosts": ["api.stripe.com"], "ports": [{"number": 443, "name": "tls"}]},
    });
    cluster.apply(&entry)?;
    registry.within_time("a late kind of Istio's", Duration::from_secs(40), || {
        (registry.now().declarations.len() == 1).then_some(())
    });
    registry.take();
    let definition = "serviceentries.networking.istio.io";
    let crd =
        Reference::of_cluster("apiextensions.k8s.io/v1", "CustomResourceDefinition", definition);
    cluster.delete(&crd)?;
    registry.until("it is gone", |now| now.declarations.is_empty());
    // Its watch ends a little later, and then the server is asked twice whether it still has it.
    std::thread::sleep(Duration::from_secs(3));
    registry.within_time("all is well again", Duration::from_secs(30), || {
        (registry.health().connected && registry.now().problems.is_empty()).then_some(())
    });
    let now = registry.now();
    assert!(now.complete && now.policies.contains_key("shop"), "{now:#?}");
    assert_eq!(messages(&now), "");
    assert!(registry.take().iter().all(|seen| seen.policies.contains_key("shop")));
    Ok(())
}

#[test]
fn a_policy_moves_to_another_gateway_without_a_moment_between() -> Result<()> {
    let plane = shared()?;
    let cluster = &plane.cluster;
    install_gateway(cluster, "other", "10.1.0.2")?;
    let registry = Followed::start(plane.kubeconfig());
    registry.until("the first gateway", |now| has_pod(now, "mesh/egw-0"));
    assert!(!has_pod(&registry.now(), "other/egw-0"), "watched without need");
    registry.take();
    for to in ["other", "mesh", "other"] {
        cluster.apply(&policy("shop", to))?;
        registry.until(to, |now| now.policies["shop"].gateways[0].namespace == to);
    }
    registry.until("the old one is let go", |now| !has_pod(now, "mesh/egw-0"));
    let config = ClusterConfig::default();
    let node = NodeState { name: Some(NODE.to_owned()), ..NodeState::default() };
    let seen = registry.take();
    assert!(seen.len() >= 3);
    for snapshot in seen {
        let desired = compile(&snapshot, &config, &node);
        assert!(snapshot.complete);
        assert!(!desired.gateways[0].endpoints.is_empty(), "{:#?}", desired.problems);
    }
    // Without any pod the gateway is empty, and that is said.
    let gone = Reference::new("v1", "Pod", "other", "egw-0");
    cluster.delete(&gone)?;
    let now = registry.until("its pod is gone", |now| !has_pod(now, "other/egw-0"));
    let desired = compile(&now, &config, &node);
    assert!(desired.gateways[0].endpoints.is_empty(), "the slice alone keeps an address");
    assert!(desired.problems.iter().any(|problem| problem.code == ProblemCode::GatewayEmpty));
    Ok(())
}

#[test]
fn a_server_that_is_killed_takes_nothing_with_it() -> Result<()> {
    let mut plane = alone(&[])?;
    plane.cluster.apply(&pod("shop", "cart", NODE, "default", "10.1.0.9"))?;
    let registry = Followed::start(plane.kubeconfig());
    let before = registry.until("a pod", |now| has_pod(now, "shop/cart"));
    registry.within_time("in step", Duration::from_secs(10), || {
        registry.health().connected.then_some(())
    });
    // It moves although nothing changes.
    let first = registry.health().in_step.unwrap_or((Instant::now(), 0.0)).1;
    registry.within_time("still in step", Duration::from_secs(15), || {
        (registry.health().in_step.unwrap_or((Instant::now(), 0.0)).1 > first).then_some(())
    });
    assert_eq!(registry.now().revision, before.revision);

    plane.kill()?;
    let lost = registry.until("the loss is told", |now| !now.problems.is_empty());
    assert!(!registry.health().connected);
    assert_eq!(lost.problems.len(), 1, "{}", messages(&lost));
    assert!(messages(&lost).starts_with("ApiServer https://127.0.0.1:"), "{}", messages(&lost));
    let still = registry.health().in_step.unwrap_or((Instant::now(), 0.0)).1;
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(
        registry.health().in_step.unwrap_or((Instant::now(), 0.0)).1,
        still,
        "in step with nobody"
    );
    assert!(registry.now().complete);

    plane.restart()?;
    plane.cluster.apply(&pod("shop", "checkout", NODE, "default", "10.1.0.10"))?;
    plane.cluster.delete(&Reference::new("v1", "Pod", "shop", "cart"))?;
    let now = registry.until("it is back", |now| has_pod(now, "shop/checkout"));
    assert!(!has_pod(&now, "shop/cart"));
    registry.within_time("in step again", Duration::from_secs(20), || {
        (registry.health().connected && registry.now().problems.is_empty()).then_some(())
    });
    for seen in registry.take() {
        assert!(has_pod(&seen, "shop/cart") || has_pod(&seen, "shop/checkout"));
        assert!(has_pod(&seen, "mesh/egw-0") && seen.policies.contains_key("shop"));
    }
    Ok(())
}

/// A network namespace from which the API server is reached by a relay.
struct Far {
    relay: Relay,
    netns: Netns,
    kubeconfig: PathBuf,
    directory: tempfile::TempDir,
}

impl Far {
    fn from(plane: &ControlPlane) -> Result<Self> {
        let netns = Netns::create(&sweep::fresh_name())?;
        netns.batch("link set lo up")?;
        let mut file = Kubeconfig::read_from(plane.kubeconfig())?;
        let cluster = file.clusters.iter_mut().find_map(|named| named.cluster.as_mut());
        let cluster = cluster.context("no cluster")?;
        let server = cluster.server.clone().unwrap_or_default();
        let target = server.strip_prefix("https://").context("no address")?.parse()?;
        let relay = Relay::start(&netns, target)?;
        cluster.server = Some(format!("https://{}", relay.address()));
        cluster.tls_server_name = Some("127.0.0.1".to_owned());
        let directory = tempfile::tempdir()?;
        let kubeconfig = directory.path().join("kubeconfig");
        std::fs::write(&kubeconfig, serde_json::to_vec(&file)?)?;
        Ok(Self { relay, netns, kubeconfig, directory })
    }
}

#[test]
fn a_watch_too_old_to_resume_lists_again_and_deletes_only_what_is_gone() -> Result<()> {
    // Without its cache the server answers from the store, which forgets every second.
    let plane = alone(&["--watch-cache=false", "--etcd-compaction-interval=1s"])?;
    let cluster = &plane.cluster;
    for (name, ip) in [("stays", "10.1.0.3"), ("goes", "10.1.0.4")] {
        cluster.apply(&pod("shop", name, NODE, "default", ip))?;
    }
    let far = Far::from(&plane)?;
    let registry = Followed::within(&far.kubeconfig, Some(far.netns.open()?));
    let before = registry.until("both pods", |now| has_pod(now, "shop/goes"));
    let version = cluster.get(&Reference::new("v1", "Pod", "shop", "goes"))?;
    let version = version["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    far.relay.cut();
    registry.until("the cut is told", |now| !now.problems.is_empty());
    cluster.delete(&Reference::new("v1", "Pod", "shop", "goes"))?;
    cluster.apply(&pod("shop", "comes", NODE, "default", "10.1.0.5"))?;
    let began = Instant::now();
    loop {
        let path = format!("/api/v1/pods?watch=1&timeoutSeconds=1&resourceVersion={version}");
        let answer = cluster.get_text(&path);
        let gone = |text: &str| text.contains("410") || text.contains("too old");
        if answer.as_deref().map_or_else(|error| gone(&format!("{error:?}")), gone) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "still remembered: {answer:?}");
        cluster.apply(&namespace("shop"))?;
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(has_pod(&registry.now(), "shop/goes"), "removed without knowing");
    registry.take();
    far.relay.mend();
    registry.until("the new list", |now| {
        has_pod(now, "shop/comes") && !has_pod(now, "shop/goes") && now.problems.is_empty()
    });
    for seen in registry.take() {
        assert!(has_pod(&seen, "shop/stays") && has_pod(&seen, "mesh/egw-0"));
        assert_eq!(seen.policies, before.policies);
    }
    drop(registry);
    drop(far.directory);
    Ok(())
}

/// A kubeconfig of a service account that may do nothing yet.
fn powerless(plane: &ControlPlane, directory: &Path) -> Result<PathBuf> {
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"namespace": "shop", "name": "agent"},
    });
    plane.cluster.apply(&account)?;
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {},
    });
    let reference = Reference::to(&account)?;
    let token = plane.cluster.create_subresource(&reference, "token", &request)?;
    let mut file = Kubeconfig::read_from(plane.kubeconfig())?;
    for user in &mut file.auth_infos {
        let bearer = json!({"token": token["status"]["token"]});
        user.auth_info = Some(serde_json::from_value(bearer)?);
    }
    let path = directory.join("kubeconfig");
    std::fs::write(&path, serde_json::to_vec(&file)?)?;
    Ok(path)
}

fn grant(cluster: &Cluster, rules: &Value) -> Result<()> {
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "agent"}, "rules": rules,
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "agent"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "agent"},
        "subjects": [{"kind": "ServiceAccount", "namespace": "shop", "name": "agent"}],
    });
    cluster.apply(&role)?;
    cluster.apply(&binding)?;
    Ok(())
}

#[test]
fn what_rbac_forbids_is_named_with_the_rule_to_add() -> Result<()> {
    let plane = shared()?;
    let directory = tempfile::tempdir()?;
    let registry = Followed::start(&powerless(&plane, directory.path())?);
    let waiting = registry.within_time("told what is missing", Duration::from_secs(20), || {
        let waiting = registry.health().waiting?;
        ["pods", "nodes", "egresspolicies"].iter().all(|it| waiting.contains(it)).then_some(waiting)
    });
    for rule in [
        "{apiGroups: [\"\"], resources: [pods], verbs: [list]}",
        "{apiGroups: [\"egress-enforcer.io\"], resources: [egresspolicies], verbs: [list]}",
    ] {
        assert!(waiting.contains(rule), "{waiting}");
    }
    assert_eq!(registry.now().revision, 0, "published without being allowed to know");
    let verbs = json!(["list", "watch"]);
    let mut rules = json!([
        {"apiGroups": [""], "resources": ["namespaces", "nodes", "pods", "services"], "verbs": verbs},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": verbs},
        {"apiGroups": ["networking.k8s.io"], "resources": ["servicecidrs"], "verbs": verbs},
        {
            "apiGroups": ["egress-enforcer.io"],
            "resources": ["egresspolicies", "egressexceptions"], "verbs": ["list"],
        },
    ]);
    grant(&plane.cluster, &rules)?;
    // What only classifies is not waited for.
    let now = registry.within_time("published", Duration::from_secs(40), || {
        let now = registry.now();
        (now.revision > 0).then_some(now)
    });
    assert!(now.policies.contains_key("shop") && now.complete, "{now:#?}");
    let rule =
        "{apiGroups: [\"security.istio.io\"], resources: [authorizationpolicies], verbs: [list]}";
    assert!(messages(&now).contains(rule), "{}", messages(&now));
    let watch =
        "{apiGroups: [\"egress-enforcer.io\"], resources: [egresspolicies], verbs: [watch]}";
    registry.until("told that it may not be followed", |now| messages(now).contains(watch));
    assert!(!registry.health().connected);
    rules[3]["verbs"] = verbs.clone();
    for (group, resource) in
        [("networking.istio.io", "*"), ("security.istio.io", "*"), ("", "configmaps")]
    {
        let rule = json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
        rules.as_array_mut().context("a list")?.push(rule);
    }
    grant(&plane.cluster, &rules)?;
    registry.within_time("all is well", Duration::from_secs(40), || {
        (registry.now().problems.is_empty() && registry.health().connected).then_some(())
    });
    Ok(())
}
