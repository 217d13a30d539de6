//! Sequences of what watches tell, and what may be said after each.

use serde_json::json;

use super::*;
use crate::policy::ProblemCode;
use crate::registry::kube::demand::Select;
use crate::registry::object;

const SERVER: &str = "https://api.example:6443";

/// Every store with a version that grows, as the server's does.
struct World {
    stores: Stores,
    version: u64,
}

impl World {
    /// The server has every kind; nothing is listed yet.
    fn new() -> Self {
        let mut stores = Stores::new("node-a", SERVER);
        stores.serve(Kind::ALL.iter().copied().collect());
        Self { stores, version: 0 }
    }

    /// Everything standing is listed and open, with these objects.
    fn listed(objects: &[serde_json::Value]) -> Self {
        let mut world = Self::new();
        loop {
            let next = world.stores.stores.iter().find(|(_, store)| !store.listed);
            let Some(watch) = next.map(|(watch, _)| watch.clone()) else { return world };
            let its: Vec<_> = objects.iter().filter(|object| selects(&watch, object)).collect();
            world.list(&watch, &its);
            world.stores.input(&watch, Input::Opened);
        }
    }

    fn held(&mut self, object: &serde_json::Value) -> Box<Held> {
        self.version += 1;
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let entry = object::read(object.clone(), None).unwrap().unwrap();
        Box::new(Held { uid, version: self.version, entry })
    }

    fn list(&mut self, watch: &Watch, objects: &[&serde_json::Value]) -> bool {
        let mut changed = self.stores.input(watch, Input::Init);
        for object in objects {
            let held = self.held(object);
            changed |= self.stores.input(watch, Input::Listed(held));
        }
        assert!(!changed, "a list said something before it was complete");
        self.stores.input(watch, Input::InitDone)
    }

    fn apply(&mut self, watch: &Watch, object: &serde_json::Value) -> bool {
        let held = self.held(object);
        self.stores.input(watch, Input::Applied(held))
    }

    fn delete(&mut self, watch: &Watch, object: &serde_json::Value) -> bool {
        let held = self.held(object);
        self.stores.input(watch, Input::Deleted(held.entry.key, held.uid))
    }

    fn fail(&mut self, watch: &Watch, code: u16) -> bool {
        let message = format!("because of {code}");
        self.stores.input(watch, Input::Failed(Trouble::Refused { verb: "list", code, message }))
    }

    fn watch(&self, kind: Kind, part: &str) -> Watch {
        let mut found = self
            .stores
            .stores
            .keys()
            .filter(|watch| watch.kind == kind && watch.to_string().contains(part));
        let first = found.next().unwrap_or_else(|| panic!("no watch of {kind:?} {part}"));
        assert_eq!(found.next(), None, "{kind:?} {part} is ambiguous");
        first.clone()
    }

    fn watches(&self) -> Vec<String> {
        let told = |watch: &Watch| format!("{} {watch}", watch.kind.name());
        self.stores.wanted().map(told).collect()
    }
}

/// What the server would select.
fn selects(watch: &Watch, object: &serde_json::Value) -> bool {
    let meta = &object["metadata"];
    watch.kind.name() == object["kind"]
        && watch.namespace.as_ref().is_none_or(|namespace| meta["namespace"] == **namespace)
        && match &watch.select {
            Select::All => true,
            Select::Name(name) => meta["name"] == **name,
            Select::Node(node) => object["spec"]["nodeName"] == **node,
            Select::Account(account) => object["spec"]["serviceAccountName"] == **account,
            Select::Labels(labels) => {
                labels.iter().all(|(key, value)| meta["labels"][key] == **value)
            }
        }
}

fn pod(namespace: &str, name: &str, uid: &str, node: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "uid": uid},
        "spec": {"nodeName": node, "serviceAccountName": "egw"},
        "status": {"phase": "Running", "podIP": "10.0.0.9"},
    })
}

/// A policy that needs nothing but its gateway.
fn policy(gateway_namespace: &str) -> serde_json::Value {
    json!({
        "apiVersion": "egress-enforcer.io/v1alpha1", "kind": "EgressPolicy",
        "metadata": {"name": "shop"},
        "spec": {
            "selector": {"namespaces": ["shop"]},
            "mode": "enforce",
            "gateways": [{"namespace": gateway_namespace, "service": "egw", "serviceAccount": "egw"}],
            "resolvers": [],
            "infrastructure": {"apiServer": false, "istiod": false},
        },
    })
}

fn gateway_of(snapshot: &Snapshot) -> &str {
    &snapshot.policies["shop"].gateways[0].namespace
}

fn messages(stores: &mut Stores) -> Vec<String> {
    let told = |problem: &Problem| {
        assert_eq!(problem.code, ProblemCode::Unreadable);
        format!("{}: {}", problem.origin, problem.message)
    };
    stores.snapshot().problems.iter().map(told).collect()
}

#[test]
fn nothing_is_said_before_everything_is_listed() {
    let mut world = World::new();
    let watches: Vec<Watch> = world.stores.wanted().cloned().collect();
    assert!(watches.len() > 8);
    for watch in watches {
        assert!(!world.stores.is_ready(), "ready without {watch}");
        world.stores.input(&watch, Input::Init);
        assert!(!world.stores.is_ready(), "ready while {watch} is being listed");
        world.stores.input(&watch, Input::InitDone);
    }
    assert!(world.stores.is_ready() && world.stores.snapshot().complete);
    assert!(!world.stores.is_in_step(), "in step with watches that are not open");
}

#[test]
fn nothing_is_said_before_the_server_says_which_kinds_it_has() {
    let mut stores = Stores::new("node-a", SERVER);
    assert_eq!(stores.wanted().count(), 0);
    assert!(!stores.is_ready());
    assert!(stores.undiscovered(Trouble::Unreachable("refused".to_owned())));
    assert!(!stores.undiscovered(Trouble::Unreachable("refused".to_owned())), "said twice");
    assert!(stores.problems()[0].message.contains("gives no good answer (refused)"));
    assert!(stores.serve(Kind::ALL.iter().copied().collect()));
    assert!(stores.problems().is_empty());
}

#[test]
fn a_policy_asks_for_its_gateways_and_waits_for_them_at_start() {
    let mut world = World::new();
    let standing: Vec<Watch> = world.stores.wanted().cloned().collect();
    for watch in &standing {
        let policy = policy("mesh");
        let objects: &[_] = if watch.kind == Kind::EgressPolicy { &[&policy] } else { &[] };
        world.list(watch, objects);
    }
    assert!(!world.stores.is_ready());
    let more: Vec<String> =
        world.watches().into_iter().filter(|watch| watch.contains("mesh")).collect();
    assert_eq!(
        more,
        [
            "Pod namespace mesh, spec.serviceAccountName=egw",
            "Service namespace mesh, metadata.name=egw",
            "EndpointSlice namespace mesh, kubernetes.io/service-name=egw",
        ]
    );
    for kind in [Kind::Pod, Kind::Service, Kind::EndpointSlice] {
        assert!(!world.stores.is_ready());
        let watch = world.watch(kind, "mesh");
        world.list(&watch, &[]);
    }
    assert!(world.stores.is_ready());
    assert_eq!(gateway_of(&world.stores.snapshot()), "mesh");
}

#[test]
fn a_restarted_watch_is_no_deletion_until_its_list_is_complete() {
    let pods = [pod("shop", "a", "1", "node-a"), pod("shop", "b", "2", "node-a")];
    let mut world = World::listed(&pods);
    let watch = world.watch(Kind::Pod, "spec.nodeName");
    let before = world.stores.snapshot();
    assert_eq!(before.pods.len(), 2);
    // Lost, listed in part, lost again, and then in full.
    world.stores.input(&watch, Input::Failed(Trouble::Unreachable("reset".to_owned())));
    world.stores.input(&watch, Input::Init);
    assert_eq!(world.stores.snapshot().pods, before.pods);
    let held = world.held(&pods[0]);
    world.stores.input(&watch, Input::Listed(held));
    assert_eq!(world.stores.snapshot().pods, before.pods);
    world.stores.input(&watch, Input::Init);
    world.stores.input(&watch, Input::Failed(Trouble::Unreachable("reset".to_owned())));
    assert_eq!(world.stores.snapshot().pods, before.pods);
    assert!(world.stores.snapshot().complete, "removals of others stop for one lost watch");
    world.list(&watch, &[&pods[1]]);
    let after = world.stores.snapshot();
    assert_eq!(after.pods.keys().collect::<Vec<_>>(), ["2"]);
    assert!(after.problems.is_empty() && after.complete);
}

#[test]
fn the_same_list_again_says_nothing_new() {
    let pods = [pod("shop", "a", "1", "node-a")];
    let mut world = World::listed(&pods);
    let watch = world.watch(Kind::Pod, "spec.nodeName");
    assert!(!world.list(&watch, &[&pods[0]]));
    assert!(!world.apply(&watch, &pods[0]), "a version alone is no change");
    let mut moved = pods[0].clone();
    moved["status"]["podIP"] = json!("10.0.0.10");
    assert!(world.apply(&watch, &moved));
}

#[test]
fn a_new_gateway_is_in_force_only_when_it_is_listed() {
    let mut world = World::listed(&[policy("old"), pod("old", "gw", "1", "node-b")]);
    let watch = world.watch(Kind::EgressPolicy, "cluster");
    world.apply(&watch, &policy("new"));
    let now = world.stores.snapshot();
    assert_eq!(gateway_of(&now), "old");
    assert!(now.complete && now.problems.is_empty() && now.pods.contains_key("1"));
    for kind in [Kind::Service, Kind::EndpointSlice] {
        let watch = world.watch(kind, "namespace new");
        world.list(&watch, &[]);
        assert_eq!(gateway_of(&world.stores.snapshot()), "old");
    }
    let watch = world.watch(Kind::Pod, "namespace new");
    world.list(&watch, &[&pod("new", "gw", "2", "node-b")]);
    let now = world.stores.snapshot();
    assert_eq!(gateway_of(&now), "new");
    assert_eq!(now.pods.keys().collect::<Vec<_>>(), ["2"]);
    assert!(!world.watches().iter().any(|watch| watch.contains("namespace old")));
}

#[test]
fn a_gateway_that_may_not_be_listed_holds_its_policy_back_and_nothing_else() {
    let mut world = World::listed(&[policy("old"), pod("shop", "a", "1", "node-a")]);
    let policies = world.watch(Kind::EgressPolicy, "cluster");
    world.apply(&policies, &policy("new"));
    let watch = world.watch(Kind::Pod, "namespace new");
    world.fail(&watch, 403);
    let own = world.watch(Kind::Pod, "spec.nodeName");
    world.delete(&own, &pod("shop", "a", "1", "node-a"));
    let now = world.stores.snapshot();
    assert_eq!(gateway_of(&now), "old");
    assert!(now.complete && now.pods.is_empty(), "a deleted pod stays for another policy's sake");
    let told = messages(&mut world.stores);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("its last version stays in force"), "{told:?}");
    assert!(told[1].ends_with("{apiGroups: [\"\"], resources: [pods], verbs: [list]}"), "{told:?}");
    // One that was never in force is left out, and says so.
    let mut other = policy("new");
    other["metadata"]["name"] = json!("other");
    world.apply(&policies, &other);
    let now = world.stores.snapshot();
    assert!(!now.policies.contains_key("other"));
    assert!(messages(&mut world.stores).iter().any(|told| told.contains("it is not in force")));
}

#[test]
fn a_policy_that_becomes_invalid_keeps_what_it_asked_for() {
    let mut world = World::listed(&[policy("mesh"), pod("mesh", "gw", "1", "node-b")]);
    world.stores.snapshot();
    let mut broken = policy("mesh");
    broken["spec"]["mode"] = json!("sometimes");
    let watch = world.watch(Kind::EgressPolicy, "cluster");
    world.apply(&watch, &broken);
    let now = world.stores.snapshot();
    assert_eq!(gateway_of(&now), "mesh");
    assert!(now.pods.contains_key("1") && now.complete);
    assert_eq!(now.problems[0].code, ProblemCode::Invalid);
    // Deleted, it asks for nothing.
    world.delete(&watch, &broken);
    let now = world.stores.snapshot();
    assert!(now.policies.is_empty() && now.pods.is_empty() && now.problems.is_empty());
}

#[test]
fn a_deleted_pod_is_gone_whichever_watch_hears_of_it_first() {
    let gone = pod("mesh", "gw", "1", "node-a");
    let mut world = World::listed(&[policy("mesh"), gone.clone()]);
    let (own, gateways) =
        (world.watch(Kind::Pod, "spec.nodeName"), world.watch(Kind::Pod, "namespace mesh"));
    world.delete(&gateways, &gone);
    assert!(world.stores.snapshot().pods.is_empty());
    // The other watch's word for it changes nothing, nor does it remove the successor.
    let successor = pod("mesh", "gw", "2", "node-a");
    world.apply(&gateways, &successor);
    world.delete(&own, &gone);
    assert_eq!(world.stores.snapshot().pods.keys().collect::<Vec<_>>(), ["2"]);
    // A list that lacks it says the same.
    world.apply(&own, &successor);
    world.list(&own, &[]);
    assert!(world.stores.snapshot().pods.is_empty());
}

#[test]
fn of_two_watches_the_one_that_knows_the_later_version_is_believed() {
    let mut world = World::listed(&[policy("mesh"), pod("mesh", "gw", "1", "node-a")]);
    let (own, gateways) =
        (world.watch(Kind::Pod, "spec.nodeName"), world.watch(Kind::Pod, "namespace mesh"));
    for watch in [&own, &gateways] {
        let mut moved = pod("mesh", "gw", "1", "node-a");
        moved["status"]["podIP"] = json!(format!("10.0.1.{}", world.version));
        world.apply(watch, &moved);
        let ips = world.stores.snapshot().pods["1"].ips.clone();
        assert_eq!(ips[0].to_string(), moved["status"]["podIP"]);
    }
}

#[test]
fn a_kind_that_only_classifies_may_be_absent_come_late_and_go() {
    let entry = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"namespace": "shop", "name": "stripe"},
        "spec": {"hosts": ["api.stripe.com"], "ports": [{"number": 443, "name": "tls"}]},
    });
    let mut world = World::listed(std::slice::from_ref(&entry));
    assert_eq!(world.stores.snapshot().declarations.len(), 1);
    let all: BTreeSet<Kind> = Kind::ALL.iter().copied().collect();
    let without: BTreeSet<Kind> =
        all.iter().copied().filter(|kind| *kind != Kind::ServiceEntry).collect();
    assert!(world.stores.serve(without.clone()));
    let now = world.stores.snapshot();
    assert!(now.declarations.is_empty() && now.complete && now.problems.is_empty());
    assert!(world.stores.is_in_step());
    assert!(!world.watches().iter().any(|watch| watch.starts_with("ServiceEntry")));
    assert!(!world.stores.serve(without));
    // It comes late: what is known stays said until it is listed.
    assert!(world.stores.serve(all));
    assert!(!world.stores.is_in_step());
    let watch = world.watch(Kind::ServiceEntry, "cluster");
    world.list(&watch, &[&entry]);
    assert_eq!(world.stores.snapshot().declarations.len(), 1);
}

#[test]
fn without_our_own_kinds_nothing_is_removed() {
    let mut world = World::listed(&[policy("mesh")]);
    let without = Kind::ALL.iter().copied().filter(|kind| !kind.is_own()).collect();
    world.stores.serve(without);
    let now = world.stores.snapshot();
    assert!(!now.complete);
    assert_eq!(gateway_of(&now), "mesh", "what was last known of it stays");
    let told = messages(&mut world.stores);
    assert!(told[1].contains("install the CustomResourceDefinition"), "{told:?}");
    // At start likewise: a snapshot says so, and forbids removals.
    let mut stores = Stores::new("node-a", SERVER);
    stores.serve(Kind::ALL.iter().copied().filter(|kind| !kind.is_own()).collect());
    let watches: Vec<Watch> = stores.wanted().cloned().collect();
    for watch in watches {
        stores.input(&watch, Input::Init);
        stores.input(&watch, Input::InitDone);
    }
    assert!(stores.is_ready() && !stores.snapshot().complete);
}

#[test]
fn a_refused_kind_is_waited_for_only_if_it_decides() {
    for (kind, waits) in [(Kind::ServiceEntry, false), (Kind::Node, true)] {
        let mut world = World::new();
        let watches: Vec<Watch> = world.stores.wanted().cloned().collect();
        for watch in watches {
            if watch.kind == kind {
                assert!(world.fail(&watch, 403));
                assert!(!world.fail(&watch, 403), "said twice");
            } else {
                world.list(&watch, &[]);
            }
        }
        assert_eq!(world.stores.is_ready(), !waits, "{kind:?}");
        assert_eq!(world.stores.problems().len(), 1);
        // A server that gives no answer is waited for, whatever the kind.
        let watch = world.watch(kind, "cluster");
        world.stores.input(&watch, Input::Failed(Trouble::Unreachable("timed out".to_owned())));
        assert!(!world.stores.is_ready());
    }
}

#[test]
fn what_narrows_a_gateway_is_waited_for_while_a_policy_asks_for_it() {
    for narrow in [false, true] {
        let mut policy = policy("mesh");
        policy["spec"]["narrow"] = json!(narrow);
        let mut world = World::new();
        while let Some(watch) = {
            let mut stores = world.stores.stores.iter();
            let next = stores.find(|(_, store)| !store.listed && store.trouble.is_none());
            next.map(|(watch, _)| watch.clone())
        } {
            if watch.kind == Kind::AuthorizationPolicy {
                world.fail(&watch, 403);
            } else {
                let objects: Vec<_> =
                    [&policy].into_iter().filter(|object| selects(&watch, object)).collect();
                world.list(&watch, &objects);
            }
        }
        assert_eq!(world.stores.is_ready(), !narrow);
        let watch = world.watch(Kind::AuthorizationPolicy, "cluster");
        world.list(&watch, &[]);
        assert!(world.stores.is_ready());
    }
}

#[test]
fn a_lost_server_is_one_problem_and_changes_nothing_else() {
    let mut world = World::listed(&[policy("mesh"), pod("shop", "a", "1", "node-a")]);
    let before = world.stores.snapshot();
    assert!(world.stores.is_in_step());
    let watches: Vec<Watch> = world.stores.wanted().cloned().collect();
    for watch in &watches {
        let why = Trouble::Unreachable("connection refused".to_owned());
        assert!(world.stores.input(watch, Input::Failed(why)));
    }
    assert!(!world.stores.is_in_step());
    let now = world.stores.snapshot();
    let [problem] = now.problems.as_slice() else { panic!("{:?}", now.problems) };
    assert_eq!(problem.origin.name, SERVER);
    assert_eq!(Snapshot { problems: Vec::new(), ..now }, before);
    // Resumed where they were: no list, and the problem clears.
    for watch in &watches {
        world.stores.input(watch, Input::Opened);
    }
    assert!(world.stores.is_in_step());
    assert_eq!(world.stores.snapshot(), before);
}

#[test]
fn a_service_that_leads_to_more_makes_the_snapshot_incomplete_until_that_is_listed() {
    let mut dns = policy("mesh");
    dns["spec"]["resolvers"] = json!("auto");
    let service = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "namespace": "kube-system", "name": name, "labels": {"k8s-app": "kube-dns"},
            },
            "spec": {"clusterIP": "10.96.0.10", "selector": {"k8s-app": name}},
        })
    };
    let mut world = World::listed(&[dns, service("kube-dns")]);
    assert!(world.stores.snapshot().complete);
    assert!(world.watches().contains(&"Pod namespace kube-system, k8s-app=kube-dns".to_owned()));
    let services = world.watch(Kind::Service, "namespace kube-system");
    world.apply(&services, &service("second"));
    assert!(!world.stores.snapshot().complete);
    for (kind, part) in
        [(Kind::EndpointSlice, "kubernetes.io/service-name=second"), (Kind::Pod, "k8s-app=second")]
    {
        let watch = world.watch(kind, part);
        world.list(&watch, &[]);
    }
    assert!(world.stores.snapshot().complete);
    // Its pods lose a label and stay pods of the node.
    let own = world.watch(Kind::Pod, "spec.nodeName");
    let labelled = world.watch(Kind::Pod, "k8s-app=second");
    let pod = pod("kube-system", "dns", "7", "node-a");
    world.apply(&own, &pod);
    world.apply(&labelled, &pod);
    world.delete(&labelled, &pod);
    assert!(world.stores.snapshot().pods.contains_key("7"));
}

#[test]
fn what_is_no_object_is_told_and_left_out() {
    let mut world = World::listed(&[]);
    let watch = world.watch(Kind::Node, "cluster");
    let what = "Node: metadata.name is missing".to_owned();
    assert!(world.stores.input(&watch, Input::Unreadable(what.clone())));
    assert!(!world.stores.input(&watch, Input::Unreadable(what)), "said twice");
    let told = messages(&mut world.stores);
    assert!(told[0].ends_with("metadata.name is missing; it is left out"), "{told:?}");
}

#[test]
fn a_watch_nobody_wants_is_not_heard() {
    let mut world = World::listed(&[policy("mesh")]);
    let watch = world.watch(Kind::Pod, "namespace mesh");
    let policies = world.watch(Kind::EgressPolicy, "cluster");
    world.delete(&policies, &policy("mesh"));
    assert!(!world.apply(&watch, &pod("mesh", "gw", "1", "node-b")));
    assert!(world.stores.snapshot().pods.is_empty());
}
