//! Declared, and for whom.

use std::collections::BTreeMap;

use super::*;
use crate::policy::compile::tests::fixture::{World, ip, name, net, origin};
use crate::policy::mesh::{EgressListener, Location, MeshConfig, Resolution};

/// A ServiceEntry (`namespace/name`) with these hosts and addresses, for every port.
fn entry(full: &str, hosts: &[&str], addresses: &[&str]) -> Declaration {
    Declaration {
        name: name(full),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        addresses: addresses.iter().map(|text| net(text)).collect(),
        ports: Vec::new(),
        dialled: Default::default(),
        endpoints: Vec::new(),
        endpoint_hosts: Vec::new(),
        expected: Vec::new(),
        location: Location::MeshExternal,
        resolution: Resolution::None,
        export_to: Vec::new(),
        routed_by: Vec::new(),
        origin: origin("ServiceEntry", full),
    }
}

fn exported(to: &str, declaration: Declaration) -> Declaration {
    Declaration { export_to: vec![to.to_owned()], ..declaration }
}

fn mesh(declarations: Vec<Declaration>) -> Snapshot {
    Snapshot { declarations, ..World::new().snapshot }
}

static NONE: BTreeMap<String, String> = BTreeMap::new();

const SHOP: Client<'static> = Client {
    namespace: "shop",
    labels: &NONE,
    capture: Capture::Sidecar,
    gateway: false,
    revision: "",
};

fn address(text: &str, port: u16) -> Destination<'static> {
    Destination { host: None, ip: Some(ip(text)), port }
}

fn host(host: &str, port: u16) -> Destination<'_> {
    Destination { host: Some(host), ip: None, port }
}

/// Class and declaring ServiceEntry.
fn said(snapshot: &Snapshot, client: Client<'_>, to: Destination<'_>) -> (Class, String) {
    let Classified { class, declaration, hidden_by: _ } = classify(snapshot, &client, &to);
    (class, declaration.map(|one| one.name.to_string()).unwrap_or_default())
}

#[test]
fn a_destination_is_declared_by_host_address_or_range_and_port() {
    let mut api = entry("shop/api", &["api.example", "*.wild.example"], &["203.0.113.10/32"]);
    api.ports = vec![443, 8443];
    let ranges = entry("shop/ranges", &["partner"], &["198.51.100.0/24", "2001:db8:7::/48"]);
    let snapshot = mesh(vec![api, ranges]);
    for (to, expected) in [
        (address("203.0.113.10", 443), Some("shop/api")),
        (address("203.0.113.10", 8443), Some("shop/api")),
        (address("203.0.113.10", 80), None),
        (address("203.0.113.11", 443), None),
        (address("198.51.100.77", 1), Some("shop/ranges")),
        (address("2001:db8:7::1", 443), Some("shop/ranges")),
        (address("2001:db8:8::1", 443), None),
        (host("api.example", 443), Some("shop/api")),
        (host("API.EXAMPLE", 443), Some("shop/api")),
        (host("api.example", 80), None),
        (host("a.b.wild.example", 443), Some("shop/api")),
        (host("wild.example", 443), None),
        (host("other.example", 443), None),
        // The address may be shared, the name is what was asked for.
        (Destination { ip: Some(ip("192.0.2.1")), ..host("api.example", 443) }, Some("shop/api")),
    ] {
        let class = if expected.is_some() { Class::Declared } else { Class::Undeclared };
        let found = said(&snapshot, SHOP, to);
        assert_eq!(found, (class, expected.unwrap_or_default().to_owned()), "{to:?}");
    }
}

#[test]
fn addresses_that_istiod_allocated_declare_too() {
    // Reading puts `status.addresses` beside those of the spec.
    let snapshot = mesh(vec![entry("shop/api", &["api.example"], &["240.240.0.1/32"])]);
    assert_eq!(said(&snapshot, SHOP, address("240.240.0.1", 443)).0, Class::Declared);
}

#[test]
fn what_is_not_exported_to_the_namespace_is_another_namespaces() {
    let there =
        |to: &str| mesh(vec![exported(to, entry("bank/api", &["a"], &["203.0.113.10/32"]))]);
    let to = address("203.0.113.10", 443);
    for (export_to, class) in [
        ("*", Class::Declared),
        ("shop", Class::Declared),
        (".", Class::OtherNamespace),
        ("~", Class::OtherNamespace),
        ("elsewhere", Class::OtherNamespace),
    ] {
        assert_eq!(
            said(&there(export_to), SHOP, to),
            (class, "bank/api".to_owned()),
            "{export_to}"
        );
    }
    // Ambient mode ignores it.
    let ambient = Client { capture: Capture::Ambient, ..SHOP };
    assert_eq!(said(&there("."), ambient, to).0, Class::Declared);
    // The mesh's default holds where nothing is said.
    let mut quiet = mesh(vec![entry("bank/api", &["a"], &["203.0.113.10/32"])]);
    assert_eq!(said(&quiet, SHOP, to).0, Class::Declared);
    let own = MeshConfig { default_export_to: vec![".".to_owned()], ..MeshConfig::default() };
    quiet.mesh.configs.insert(String::new(), own);
    assert_eq!(said(&quiet, SHOP, to).0, Class::OtherNamespace);
}

#[test]
fn what_the_sidecar_does_not_import_is_another_namespaces() {
    let mut snapshot = mesh(vec![
        entry("external/api", &["api.example"], &["203.0.113.10/32"]),
        entry("external/two", &["one.example", "two.example"], &["203.0.113.20/32"]),
    ]);
    snapshot.mesh.sidecars = vec![Sidecar {
        name: name("shop/own"),
        created: None,
        selector: BTreeMap::new(),
        egress: vec![EgressListener {
            port: None,
            hosts: vec!["./*".to_owned(), "external/two.example".to_owned()],
        }],
        outbound: None,
        origin: origin("Sidecar", "shop/own"),
    }];
    let to = address("203.0.113.10", 443);
    let found = classify(&snapshot, &SHOP, &to);
    assert_eq!(found.class, Class::OtherNamespace);
    assert_eq!(found.hidden_by.unwrap().name, name("shop/own"));
    assert_eq!(said(&snapshot, Client { gateway: true, ..SHOP }, to).0, Class::Declared);
    assert_eq!(said(&snapshot, Client { namespace: "bank", ..SHOP }, to).0, Class::Declared);
    // Of several names it depends on which one is meant, where that is known.
    assert_eq!(said(&snapshot, SHOP, address("203.0.113.20", 443)).0, Class::Declared);
    assert_eq!(said(&snapshot, SHOP, host("two.example", 443)).0, Class::Declared);
    assert_eq!(said(&snapshot, SHOP, host("one.example", 443)).0, Class::OtherNamespace);
}

#[test]
fn of_several_the_visible_then_the_own_then_the_nearest_is_named() {
    let mut snapshot = mesh(vec![
        exported(".", entry("bank/exact", &["a"], &["203.0.113.10/32"])),
        entry("bank/wide", &["a"], &["203.0.113.0/24"]),
        entry("bank/narrow", &["a"], &["203.0.113.0/28"]),
        entry("shop/all", &["a"], &["0.0.0.0/0"]),
    ]);
    let to = address("203.0.113.10", 443);
    assert_eq!(said(&snapshot, SHOP, to).1, "shop/all");
    let other = Client { namespace: "other", ..SHOP };
    assert_eq!(said(&snapshot, other, to).1, "bank/narrow");
    let bank = Client { namespace: "bank", ..SHOP };
    assert_eq!(said(&snapshot, bank, to).1, "bank/exact");
    // The order the objects come in does not matter.
    snapshot.declarations.reverse();
    assert_eq!(said(&snapshot, other, to).1, "bank/narrow");
}

#[test]
fn nobody_declares_an_address_of_the_cluster() {
    let snapshot = mesh(vec![entry("shop/mine", &["a"], &["10.1.9.1/32", "10.96.0.20/32"])]);
    for inside in ["10.1.9.1", "10.96.0.20"] {
        assert_eq!(said(&snapshot, SHOP, address(inside, 443)).0, Class::Undeclared, "{inside}");
    }
}

#[test]
fn no_declaration_changes_what_a_pod_may_reach() {
    let plain = World::new();
    let mut declared = World::new();
    declared.snapshot.declarations = vec![
        entry("shop/everything", &["*.example"], &["0.0.0.0/0", "::/0"]),
        entry("shop/one", &["api.example"], &["203.0.113.10/32"]),
    ];
    declared.snapshot.mesh.sidecars = vec![Sidecar {
        name: name("shop/own"),
        created: None,
        selector: BTreeMap::new(),
        egress: vec![EgressListener { port: None, hosts: vec!["~/*".to_owned()] }],
        outbound: None,
        origin: origin("Sidecar", "shop/own"),
    }];
    assert_eq!(plain.compile().tables, declared.compile().tables);
}
