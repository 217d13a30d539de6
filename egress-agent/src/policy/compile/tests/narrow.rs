//! Which namespaces may use which gateway.

use egress_common::Reason;
use egress_common::redirect::RedirectKey;

use super::fixture::*;
use crate::policy::ProblemCode::NarrowingIncomplete;
use crate::policy::mesh::{
    Attachment, Authorization, AuthorizationAction, AuthorizationRule, AuthorizationSource,
    EgressListener, NamespaceCondition, PolicyTarget, Sidecar,
};
use crate::policy::{Desired, GatewayTarget, RedirectPort};

/// `shop/web` and `bank/ledger` under one policy that narrows.
pub(super) fn world() -> World {
    let mut world = World::new();
    world.namespace("bank", &[]);
    world.run(pod("bank/ledger", &["10.1.0.3", "fd00:10::1:3"]), 101, 8);
    let shop = world.policy_mut("shop");
    shop.selector = in_namespaces(&["shop", "bank"]);
    shop.narrow = true;
    world
}

pub(super) fn from_namespaces(names: &[&str]) -> AuthorizationRule {
    let values = names.iter().map(|name| (*name).to_owned()).collect();
    let namespace = NamespaceCondition { values, not_values: Vec::new() };
    let source = AuthorizationSource { namespace, ..Default::default() };
    AuthorizationRule { from: vec![source], ..Default::default() }
}

/// An AuthorizationPolicy on the egress gateway's pods.
fn authorization(
    full: &str,
    action: AuthorizationAction,
    rules: Vec<AuthorizationRule>,
) -> Authorization {
    Authorization {
        name: name(full),
        action,
        attachment: Attachment::Pods(labels(&[("istio", "egressgateway")])),
        rules,
        origin: origin("AuthorizationPolicy", full),
    }
}

pub(super) fn allow(rules: Vec<AuthorizationRule>) -> Authorization {
    authorization("istio-system/callers", AuthorizationAction::Allow, rules)
}

pub(super) fn sidecar(full: &str, hosts: &[&str]) -> Sidecar {
    let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    Sidecar {
        name: name(full),
        created: None,
        selector: labels(&[]),
        egress: vec![EgressListener { port: None, hosts }],
        outbound: None,
        origin: origin("Sidecar", full),
    }
}

/// What the boundary says to `shop/web` and `bank/ledger` at the gateway's pod.
pub(super) fn verdicts(desired: &Desired) -> [Reason; 2] {
    ["shop/web", "bank/ledger"].map(|uid| ask(desired, uid, "10.1.9.1", TCP, 8443))
}

pub(super) const BOTH: [Reason; 2] = [Reason::Gateway, Reason::Gateway];
pub(super) const SHOP_ONLY: [Reason; 2] = [Reason::Gateway, Reason::GatewayForbidden];
const NOBODY: [Reason; 2] = [Reason::GatewayForbidden, Reason::GatewayForbidden];

#[test]
fn a_namespace_that_no_allow_can_mean_is_forbidden() {
    let mut world = world();
    assert_eq!(verdicts(&world.compile()), BOTH);
    world.snapshot.mesh.authorizations = vec![allow(vec![from_namespaces(&["shop"])])];
    let desired = world.compile();
    assert_eq!(verdicts(&desired), SHOP_ONLY);
    assert!(desired.problems.is_empty(), "{:?}", desired.problems);
    // Every address and port of the gateway, the Service's among them.
    for (dst, port) in
        [("10.1.9.1", 8443), ("fd00:10::9:1", 8080), ("10.96.0.20", 443), ("10.1.9.1", 22)]
    {
        let told = ask(&desired, "bank/ledger", dst, TCP, port);
        assert_eq!(told, Reason::GatewayForbidden, "{dst} {port}");
    }
    let [narrowed] = desired.narrowed.as_slice() else { panic!("{:?}", desired.narrowed) };
    assert_eq!(
        (narrowed.namespace.as_str(), narrowed.by.kind.as_str()),
        ("bank", "AuthorizationPolicy")
    );
    // Rules of several policies add up.
    let more = authorization(
        "istio-system/more",
        AuthorizationAction::Allow,
        vec![from_namespaces(&["bank"])],
    );
    world.snapshot.mesh.authorizations.push(more);
    assert_eq!(verdicts(&world.compile()), BOTH);
}

#[test]
fn without_narrow_nothing_changes() {
    let mut world = world();
    let before = world.compile();
    world.policy_mut("shop").narrow = false;
    assert_eq!(world.compile(), before);
    world.snapshot.mesh.authorizations = vec![allow(Vec::new())];
    world.snapshot.mesh.sidecars = vec![sidecar("bank/none", &["~/*"])];
    assert_eq!(world.compile(), before);
}

#[test]
fn narrowing_never_allows_what_was_denied() {
    let mut world = world();
    let open = world.compile();
    world.snapshot.mesh.authorizations = vec![
        allow(vec![from_namespaces(&["shop"])]),
        authorization("istio-system/all", AuthorizationAction::Allow, vec![Default::default()]),
    ];
    world.snapshot.mesh.sidecars =
        vec![sidecar("shop/all", &["*/*"]), sidecar("bank/own", &["./*"])];
    let narrowed = world.compile();
    let destinations = [
        ("10.1.9.1", 8443),
        ("10.1.9.1", 22),
        ("10.96.0.20", 443),
        (OUTSIDE, 443),
        ("10.1.0.2", 80),
        ("169.254.169.254", 80),
        ("240.240.0.1", 443),
        ("192.168.0.1", 10250),
    ];
    for uid in ["shop/web", "bank/ledger"] {
        for (dst, port) in destinations {
            let before = ask(&open, uid, dst, TCP, port);
            let after = ask(&narrowed, uid, dst, TCP, port);
            assert!(after.denies() || before == after, "{uid} {dst} {port}");
        }
    }
    assert_eq!(verdicts(&narrowed), SHOP_ONLY);
}

#[test]
fn an_allow_without_rules_lets_nobody_in_and_an_empty_rule_everybody() {
    let mut world = world();
    world.snapshot.mesh.authorizations = vec![allow(Vec::new())];
    assert_eq!(verdicts(&world.compile()), NOBODY);
    world.snapshot.mesh.authorizations = vec![allow(vec![AuthorizationRule::default()])];
    assert_eq!(verdicts(&world.compile()), BOTH);
}

#[test]
fn a_deny_that_means_the_whole_namespace_forbids_it() {
    let mut world = world();
    let deny = |rules| authorization("istio-system/no", AuthorizationAction::Deny, rules);
    world.snapshot.mesh.authorizations = vec![deny(vec![from_namespaces(&["bank"])])];
    assert_eq!(verdicts(&world.compile()), SHOP_ONLY);
    // Without rules it never matches.
    world.snapshot.mesh.authorizations = vec![deny(Vec::new())];
    assert_eq!(verdicts(&world.compile()), BOTH);
    // It is asked before any ALLOW.
    world.snapshot.mesh.authorizations = vec![
        deny(vec![from_namespaces(&["bank"])]),
        allow(vec![from_namespaces(&["bank", "shop"])]),
    ];
    assert_eq!(verdicts(&world.compile()), SHOP_ONLY);
}

#[test]
fn custom_and_unknown_actions_stay_open_and_are_told_and_audit_says_nothing() {
    for (action, told) in [
        (AuthorizationAction::Custom, true),
        (AuthorizationAction::Other("LATER".to_owned()), true),
        (AuthorizationAction::Audit, false),
    ] {
        let mut world = world();
        world.snapshot.mesh.authorizations =
            vec![authorization("istio-system/x", action.clone(), vec![from_namespaces(&["bank"])])];
        let desired = world.compile();
        assert_eq!(verdicts(&desired), BOTH, "{action:?}");
        let expected: &[_] = if told { &[(NarrowingIncomplete, "istio-system/x")] } else { &[] };
        assert_eq!(problems(&desired), expected, "{action:?}");
    }
}

#[test]
fn what_is_finer_than_a_namespace_stays_open_and_is_told_once() {
    let mut world = world();
    // The article's: two namespaces, each for hosts of its own.
    let hosts = |name| AuthorizationRule { qualified: true, ..from_namespaces(&[name]) };
    world.namespace("auth", &[]);
    world.run(pod("auth/login", &["10.1.0.4"]), 102, 9);
    world.run(pod("auth/logout", &["10.1.0.5"]), 103, 10);
    world.policy_mut("shop").selector = in_namespaces(&["shop", "bank", "auth"]);
    world.snapshot.mesh.authorizations = vec![allow(vec![hosts("shop"), hosts("auth")])];
    let desired = world.compile();
    assert_eq!(verdicts(&desired), SHOP_ONLY);
    assert_eq!(ask(&desired, "auth/login", "10.1.9.1", TCP, 8443), Reason::Gateway);
    assert_eq!(problems(&desired), [(NarrowingIncomplete, "istio-system/callers")]);
    let message = &desired.problems[0].message;
    assert!(message.contains("namespaces auth, shop") && message.contains(GATEWAY), "{message}");
}

#[test]
fn an_authorization_policy_is_for_the_gateways_pods_and_namespace() {
    type Change = fn(&mut World, &mut Authorization);
    let cases: [(&str, Change, [Reason; 2], bool); 6] = [
        (
            "other labels",
            |_, one| {
                one.attachment = Attachment::Pods(labels(&[("istio", "ingressgateway")]));
            },
            BOTH,
            false,
        ),
        (
            "every pod of the namespace",
            |_, one| {
                one.attachment = Attachment::Pods(labels(&[]));
            },
            SHOP_ONLY,
            false,
        ),
        ("another namespace", |_, one| one.name = name("shop/callers"), BOTH, false),
        (
            "targets, at a gateway that is none of the Gateway API",
            |_, one| {
                one.attachment = Attachment::Targets(vec![target("Gateway", "out")]);
            },
            BOTH,
            false,
        ),
        (
            "some of the pods",
            |world, one| {
                world.gateway_pod("gw-1", &["10.1.9.2"]);
                world.pod_mut("istio-system/gw-0").labels =
                    labels(&[("istio", "egressgateway"), ("v", "1")]);
                one.attachment = Attachment::Pods(labels(&[("v", "1")]));
            },
            BOTH,
            true,
        ),
        (
            "all but one in quarantine",
            |world, one| {
                world.gateway_pod("gw-1", &["10.1.9.2"]);
                world.pod_mut("istio-system/gw-1").quarantined = true;
                world.pod_mut("istio-system/gw-0").labels =
                    labels(&[("istio", "egressgateway"), ("v", "1")]);
                one.attachment = Attachment::Pods(labels(&[("v", "1")]));
            },
            SHOP_ONLY,
            false,
        ),
    ];
    for (case, change, expected, told) in cases {
        let mut world = world();
        let mut policy = allow(vec![from_namespaces(&["shop"])]);
        change(&mut world, &mut policy);
        world.snapshot.mesh.authorizations = vec![policy];
        let desired = world.compile();
        assert_eq!(verdicts(&desired), expected, "{case}");
        let incomplete = desired.problems.iter().any(|one| one.code == NarrowingIncomplete);
        assert_eq!(incomplete, told, "{case}");
    }
}

fn target(kind: &str, name: &str) -> PolicyTarget {
    PolicyTarget {
        group: "gateway.networking.k8s.io".to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
    }
}

#[test]
fn the_root_namespaces_policies_are_for_every_gateway() {
    let mut world = world();
    let config = crate::policy::mesh::MeshConfig {
        root_namespace: "roots".to_owned(),
        ..Default::default()
    };
    world.snapshot.mesh.configs.insert(String::new(), config);
    let mut policy = allow(vec![from_namespaces(&["shop"])]);
    policy.name = name("roots/callers");
    world.snapshot.mesh.authorizations = vec![policy];
    assert_eq!(verdicts(&world.compile()), SHOP_ONLY);
}

#[test]
fn a_gateway_of_the_gateway_api_takes_targets_and_a_waypoint_nothing_else() {
    let by_target = |one: PolicyTarget| {
        let mut policy = allow(vec![from_namespaces(&["shop"])]);
        policy.attachment = Attachment::Targets(vec![one]);
        policy
    };
    let verdict = |class: &str, policy: Authorization| {
        let mut world = world();
        world.gateway_api();
        for gateway in world.snapshot.mesh.api_gateways.values_mut() {
            gateway.class = class.to_owned();
        }
        world.snapshot.mesh.authorizations = vec![policy];
        verdicts(&world.compile())
    };
    assert_eq!(verdict("istio", by_target(target("Gateway", "out"))), SHOP_ONLY);
    assert_eq!(verdict("istio", by_target(target("Gateway", "in"))), BOTH);
    assert_eq!(verdict("istio", by_target(target("GatewayClass", "istio"))), SHOP_ONLY);
    assert_eq!(verdict("istio", by_target(target("Service", "out"))), BOTH);
    assert_eq!(verdict("istio", allow(vec![from_namespaces(&["shop"])])), SHOP_ONLY);
    assert_eq!(verdict("istio-waypoint", allow(vec![from_namespaces(&["shop"])])), BOTH);
    assert_eq!(verdict("istio-waypoint", by_target(target("Gateway", "out"))), SHOP_ONLY);
    let core = PolicyTarget { group: String::new(), ..target("Gateway", "out") };
    assert_eq!(verdict("istio", by_target(core)), BOTH);
}

#[test]
fn a_policy_for_a_gateway_that_is_named_by_its_service_stays_open_and_is_told() {
    let mut world = world();
    let by_service = world.policy_mut("shop").gateways.clone();
    world.gateway_api();
    world.policy_mut("shop").gateways = by_service;
    let mut policy = allow(vec![from_namespaces(&["shop"])]);
    policy.attachment = Attachment::Targets(vec![target("Gateway", "out")]);
    world.snapshot.mesh.authorizations = vec![policy];
    let desired = world.compile();
    assert_eq!(verdicts(&desired), BOTH);
    assert_eq!(problems(&desired), [(NarrowingIncomplete, "istio-system/callers")]);
}

#[test]
fn a_deny_for_some_of_the_gateways_pods_is_finer_than_the_gateway() {
    let mut world = world();
    world.gateway_pod("gw-1", &["10.1.9.2"]);
    world.pod_mut("istio-system/gw-1").labels = labels(&[("istio", "egressgateway"), ("v", "2")]);
    let mut deny = authorization(
        "istio-system/no",
        AuthorizationAction::Deny,
        vec![from_namespaces(&["bank"])],
    );
    deny.attachment = Attachment::Pods(labels(&[("v", "2")]));
    world.snapshot.mesh.authorizations = vec![deny];
    let desired = world.compile();
    assert_eq!(verdicts(&desired), BOTH);
    assert_eq!(problems(&desired), [(NarrowingIncomplete, "istio-system/no")]);
}

#[test]
fn the_number_of_a_pods_tables_does_not_depend_on_other_pods() {
    let mut world = world();
    world.snapshot.mesh.authorizations = vec![allow(Vec::new())];
    world.namespace("auth", &[]);
    world.run(pod("auth/login", &["10.1.0.4"]), 102, 9);
    let mut second = gateway(GatewayTarget::Service("other".to_owned()));
    second.namespace = "egress".to_owned();
    let policy = world.policy_mut("shop");
    policy.selector = in_namespaces(&["shop", "bank", "auth"]);
    policy.gateways.push(second);
    world.service(service("egress/other", &["10.96.0.70"], &[("https", 443)]));
    // One gateway is nobody's, the other not bank's: the pods before it get another number.
    let sidecars = vec![sidecar("bank/own", &["istio-system/*"])];
    world.snapshot.mesh.sidecars = sidecars;
    let number = tables_of(&world.compile(), "bank/ledger");
    assert_ne!(number, tables_of(&world.compile(), "shop/web"));
    world.snapshot.pods.remove("auth/login");
    world.snapshot.pods.remove("shop/web");
    assert_eq!(tables_of(&world.compile(), "bank/ledger"), number);
}

#[test]
fn one_gateway_may_be_forbidden_and_another_stay() {
    let mut world = world();
    let mut second = pod("egress/gw", &["10.1.7.1"]);
    second.service_account = "egress".to_owned();
    world.pod(second);
    let mut other = service("egress/out", &["10.96.0.70"], &[("https", 443)]);
    other.selector.clear();
    world.service(other);
    world.slice(slice("egress/out-1", "out", &["10.1.7.1"], &[("https", 8443)]));
    let mut reference = gateway(GatewayTarget::Service("out".to_owned()));
    reference.namespace = "egress".to_owned();
    world.policy_mut("shop").gateways.push(reference);
    world.snapshot.mesh.authorizations = vec![allow(vec![from_namespaces(&["shop"])])];
    let desired = world.compile();
    assert_eq!(verdicts(&desired), SHOP_ONLY);
    for uid in ["shop/web", "bank/ledger"] {
        assert_eq!(ask(&desired, uid, "10.1.7.1", TCP, 8443), Reason::Gateway, "{uid}");
    }
}

#[test]
fn narrowing_and_exceptions_are_in_force_together() {
    let mut world = world();
    world.snapshot.mesh.authorizations = vec![allow(vec![from_namespaces(&["shop"])])];
    world.exception(exception("vendor", &["bank"], "198.51.100.0/24"));
    let desired = world.compile();
    assert_eq!(verdicts(&desired), SHOP_ONLY);
    assert_eq!(ask(&desired, "bank/ledger", "198.51.100.7", TCP, 443), Reason::Exception);
    assert_eq!(ask(&desired, "shop/web", "198.51.100.7", TCP, 443), Reason::NotGateway);
    assert_ne!(tables_of(&desired, "shop/web"), tables_of(&desired, "bank/ledger"));
}

#[test]
fn nothing_is_redirected_to_a_gateway_that_is_not_the_pods() {
    let mut world = world();
    world.policy_mut("shop").redirect = vec![RedirectPort { port: 443, gateway_port: None }];
    world.snapshot.mesh.authorizations.push(allow(vec![from_namespaces(&["bank"])]));
    let desired = world.compile();
    let places = |uid: &str| {
        let cgroup = covered(&desired, uid).cgroup.unwrap();
        let key = RedirectKey::new(desired.tables.pods[&cgroup].policy, 443, true, 0);
        desired.tables.redirects[&key].places
    };
    assert_eq!((places("shop/web"), places("bank/ledger")), (0, 1));
    assert!(desired.problems.is_empty(), "{:?}", desired.problems);
}
