//! What Istio's documentation and source say about scope, one test for each rule.

use super::*;
use crate::policy::Origin;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A Sidecar (`namespace/name`) that imports these hosts.
fn sidecar(full: &str, created: Option<i64>, hosts: &[&str]) -> Sidecar {
    let (namespace, name) = full.split_once('/').unwrap();
    let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    Sidecar {
        name: ObjectName { namespace: namespace.to_owned(), name: name.to_owned() },
        created,
        selector: BTreeMap::new(),
        egress: vec![EgressListener { port: None, hosts }],
        outbound: None,
        origin: Origin { kind: "Sidecar".to_owned(), name: full.to_owned(), file: None },
    }
}

fn client(namespace: &'static str, labels: &'static BTreeMap<String, String>) -> Client<'static> {
    Client { namespace, labels, capture: Capture::Sidecar, gateway: false, revision: "" }
}

static NONE: BTreeMap<String, String> = BTreeMap::new();

fn leaked(pairs: &[(&str, &str)]) -> &'static BTreeMap<String, String> {
    Box::leak(Box::new(labels(pairs)))
}

/// The name of the Sidecar in force.
fn in_force(mesh: &Mesh, client: &Client<'_>) -> Option<String> {
    mesh.sidecar(client).map(|sidecar| sidecar.name.name.clone())
}

#[test]
fn sidecar_precedence_is_selector_then_namespace_then_root_then_none() {
    let web = leaked(&[("app", "web"), ("tier", "front")]);
    let selecting = |full: &str, created, pairs: &[(&str, &str)]| Sidecar {
        selector: labels(pairs),
        ..sidecar(full, created, &[])
    };
    let mut mesh = Mesh {
        sidecars: vec![
            selecting("shop/a-young", Some(20), &[("app", "web")]),
            selecting("shop/b-undated", None, &[("app", "web")]),
            selecting("shop/c-old", Some(10), &[("tier", "front")]),
            selecting("shop/d-other", Some(1), &[("app", "other")]),
            sidecar("shop/e-young", Some(9), &[]),
            sidecar("shop/f-old", Some(8), &[]),
            selecting("istio-system/g-selecting", Some(1), &[("app", "web")]),
            sidecar("istio-system/h-root", Some(5), &[]),
            sidecar("bank/i-theirs", Some(1), &[]),
        ],
        ..Mesh::default()
    };
    for expected in ["c-old", "a-young", "b-undated", "f-old", "e-young", "h-root"] {
        assert_eq!(in_force(&mesh, &client("shop", web)).as_deref(), Some(expected));
        mesh.sidecars.retain(|sidecar| sidecar.name.name != expected);
    }
    assert_eq!(in_force(&mesh, &client("shop", web)), None);
}

#[test]
fn gateways_and_ambient_pods_ignore_sidecars() {
    let mesh = Mesh { sidecars: vec![sidecar("shop/all", None, &["~/*"])], ..Mesh::default() };
    let own = client("shop", &NONE);
    assert!(in_force(&mesh, &own).is_some());
    assert!(in_force(&mesh, &Client { gateway: true, ..own }).is_none());
    assert!(in_force(&mesh, &Client { capture: Capture::Ambient, ..own }).is_none());
    assert!(in_force(&mesh, &Client { capture: Capture::None, ..own }).is_some());
}

#[test]
fn the_root_namespace_is_the_one_the_mesh_names() {
    let mut mesh = Mesh { sidecars: vec![sidecar("roots/all", None, &[])], ..Mesh::default() };
    assert_eq!(in_force(&mesh, &client("shop", &NONE)), None);
    let config = MeshConfig { root_namespace: "roots".to_owned(), ..MeshConfig::default() };
    mesh.configs.insert(String::new(), config);
    assert!(in_force(&mesh, &client("shop", &NONE)).is_some());
}

#[test]
fn an_empty_outbound_traffic_policy_refuses_and_an_absent_one_inherits_from_the_mesh() {
    let mut mesh = Mesh {
        sidecars: vec![sidecar("istio-system/root", None, &[]), sidecar("shop/own", None, &[])],
        ..Mesh::default()
    };
    let own = client("shop", &NONE);
    // Nobody says anything.
    assert_eq!(mesh.outbound(&own).0, OutboundMode::AllowAny);
    // The root namespace's Sidecar is not in force here, and its mode is not inherited.
    mesh.sidecars[0].outbound = Some(OutboundMode::RegistryOnly);
    assert_eq!(mesh.outbound(&own).0, OutboundMode::AllowAny);
    assert_eq!(mesh.outbound(&client("bank", &NONE)).0, OutboundMode::RegistryOnly);
    // The mesh's is, whatever revision asks.
    let refusing =
        MeshConfig { outbound: Some(OutboundMode::RegistryOnly), ..MeshConfig::default() };
    mesh.configs.insert(String::new(), refusing);
    assert_eq!(mesh.outbound(&own), (OutboundMode::RegistryOnly, None));
    let canary = MeshConfig { outbound: Some(OutboundMode::AllowAny), ..MeshConfig::default() };
    mesh.configs.insert("canary".to_owned(), canary);
    assert_eq!(mesh.outbound(&Client { revision: "canary", ..own }).0, OutboundMode::AllowAny);
    assert_eq!(mesh.outbound(&Client { revision: "gone", ..own }).0, OutboundMode::RegistryOnly);
    // The own Sidecar's wins over both.
    mesh.sidecars[1].outbound = Some(OutboundMode::AllowAny);
    let (mode, by) = mesh.outbound(&own);
    assert_eq!((mode, by.unwrap().name.name.as_str()), (OutboundMode::AllowAny, "own"));
    // ztunnel has no mode.
    mesh.sidecars[1].outbound = Some(OutboundMode::RegistryOnly);
    let ambient = Client { capture: Capture::Ambient, ..own };
    assert_eq!(mesh.outbound(&ambient), (OutboundMode::AllowAny, None));
}

#[test]
fn export_to_names_namespaces() {
    let list = |entries: &[&str]| entries.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
    let default = MeshConfig::default();
    for (entries, to, expected) in [
        (&["*"][..], "bank", true),
        (&["."], "shop", true),
        (&["."], "bank", false),
        (&["~"], "shop", false),
        (&["bank", "."], "bank", true),
        (&["bank"], "shop", false),
        // Empty is the mesh's default, which is everybody.
        (&[], "bank", true),
    ] {
        assert_eq!(is_exported(&list(entries), &default, "shop", to), expected, "{entries:?} {to}");
    }
    let own = MeshConfig { default_export_to: list(&["."]), ..default };
    assert!(!is_exported(&[], &own, "shop", "bank"));
    assert!(is_exported(&[], &own, "shop", "shop"));
    assert!(is_exported(&list(&["*"]), &own, "shop", "bank"));
}

#[test]
fn a_sidecars_hosts_import_by_namespace_and_name() {
    for (hosts, from, host, expected) in [
        (&["*/*"][..], "bank", "api.example", true),
        (&["./*"], "shop", "api.example", true),
        (&["./*"], "bank", "api.example", false),
        (&["bank/*"], "bank", "api.example", true),
        (&["bank/api.example"], "bank", "api.example", true),
        (&["bank/api.example"], "bank", "api.example.com", false),
        (&["bank/*.example"], "bank", "api.example", true),
        (&["bank/*.example"], "bank", "*.api.example", true),
        (&["bank/api.example"], "bank", "*.example", false),
        (&["~/*"], "shop", "api.example", false),
        // What is excluded stays out whatever else is imported.
        (&["*/*", "~bank/api.example"], "bank", "api.example", false),
        (&["*/*", "~bank/api.example"], "shop", "api.example", true),
        (&["*/*", "~/api.example"], "shop", "api.example", false),
        // No slash, or two: the entry is ignored.
        (&["api.example"], "shop", "api.example", false),
        (&["*/x/*"], "shop", "api.example", false),
        (&[], "shop", "api.example", false),
    ] {
        let sidecar = sidecar("shop/own", None, hosts);
        assert_eq!(sidecar.imports("shop", from, host, 443), expected, "{hosts:?} {from}/{host}");
    }
    let everything = Sidecar { egress: Vec::new(), ..sidecar("shop/own", None, &[]) };
    assert!(everything.imports("shop", "bank", "api.example", 443));
}

#[test]
fn a_dot_is_the_pods_namespace_and_not_the_sidecars() {
    let root = sidecar("istio-system/root", None, &["./*"]);
    assert!(root.imports("shop", "shop", "api.example", 443));
    assert!(!root.imports("shop", "istio-system", "api.example", 443));
}

#[test]
fn a_listener_with_a_port_speaks_for_that_port_alone() {
    let hosts = |text: &str| vec![text.to_owned()];
    let sidecar = Sidecar {
        egress: vec![
            EgressListener { port: Some(443), hosts: hosts("bank/*") },
            EgressListener { port: None, hosts: hosts("shop/*") },
        ],
        ..sidecar("shop/own", None, &[])
    };
    assert!(sidecar.imports("shop", "bank", "a", 443));
    assert!(!sidecar.imports("shop", "shop", "a", 443));
    assert!(sidecar.imports("shop", "shop", "a", 80));
    assert!(!sidecar.imports("shop", "bank", "a", 80));
    assert!(sidecar.imports_any("shop", "bank", "a"));
    assert!(!sidecar.imports_any("shop", "other", "a"));
}
