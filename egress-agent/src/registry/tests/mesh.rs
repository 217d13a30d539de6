//! The mesh's own kinds: what is absent, what is empty, and what nobody has heard of.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::policy::mesh::{
    AccountPattern, Attachment, AuthorizationAction, Location, OutboundMode, Resolution, TlsMode,
};
use crate::registry::kind::Kind;

/// The only Sidecar of a mesh, with this spec.
fn sidecar(spec: &str) -> crate::policy::mesh::Sidecar {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: s, namespace: n}}\n{spec}"
    );
    snapshot(&text).mesh.sidecars.remove(0)
}

/// The mesh's configuration with this text.
fn config(mesh: &str) -> crate::policy::mesh::MeshConfig {
    let body: String = mesh.lines().map(|line| format!("    {line}\n")).collect();
    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |-\n{body}"
    );
    snapshot(&text).mesh.config("")
}

#[test]
fn an_empty_outbound_traffic_policy_is_registry_only_and_an_absent_one_is_not_there() {
    for (spec, outbound) in [
        ("spec: {outboundTrafficPolicy: {}}", Some(OutboundMode::RegistryOnly)),
        ("spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}", Some(OutboundMode::RegistryOnly)),
        ("spec: {outboundTrafficPolicy: {mode: ALLOW_ANY}}", Some(OutboundMode::AllowAny)),
        (
            "spec: {outboundTrafficPolicy: {mode: ALLOW_SOME}}",
            Some(OutboundMode::Other("ALLOW_SOME".to_owned())),
        ),
        ("spec: {outboundTrafficPolicy: null}", None),
        ("spec: {}", None),
        ("", None),
    ] {
        assert_eq!(sidecar(spec).outbound, outbound, "{spec}");
    }
    for (mesh, outbound) in [
        ("outboundTrafficPolicy: {}", Some(OutboundMode::RegistryOnly)),
        ("outboundTrafficPolicy:\n  mode: ALLOW_ANY", Some(OutboundMode::AllowAny)),
        ("accessLogFile: /dev/stdout", None),
        ("outboundTrafficPolicy:", None),
        ("", None),
    ] {
        assert_eq!(config(mesh).outbound, outbound, "{mesh}");
    }
}

#[test]
fn the_mesh_configuration_is_read_from_its_own_config_maps_only() {
    let text = |namespace: &str, name: &str, root: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             data: {{mesh: 'rootNamespace: {root}'}}\n---\n"
        )
    };
    let all = text("istio-system", "istio", "roots")
        + &text("istio-system", "istio-canary", "canaries")
        + &text("istio-system", "settings", "elsewhere")
        + &text("shop", "istio", "tenants")
        + "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio-ca-root-cert, namespace: istio-system}\ndata: {root-cert.pem: x}";
    let mesh = snapshot(&all).mesh;
    assert_eq!(mesh.configs.keys().collect::<Vec<_>>(), ["", "canary"]);
    assert_eq!(mesh.root_namespace(), "roots");
    assert_eq!(mesh.config("canary").root_namespace, "canaries");
    assert_eq!(mesh.config("unheard-of").root_namespace, "roots");
    assert_eq!(snapshot(&text("shop", "istio", "tenants")).mesh.root_namespace(), "istio-system");
    let broken = problems(&text("istio-system", "istio", "[unclosed"));
    assert!(broken[0].contains("ConfigMap istio-system/istio") && broken[0].contains("data.mesh"));
}

#[test]
fn a_sidecar_without_spec_selects_its_namespace_and_imports_everything() {
    let bare = sidecar("");
    assert!(bare.selector.is_empty() && bare.egress.is_empty());
    let full = sidecar(
        "spec:
  workloadSelector: {labels: {app: web}}
  egress:
  - {port: {number: 443, protocol: HTTPS, name: tls}, hosts: [external/api.example]}
  - {hosts: ['./*', istio-system/*], captureMode: LATER}
",
    );
    assert_eq!(full.selector["app"], "web");
    let listeners: Vec<_> = full.egress.iter().map(|one| (one.port, one.hosts.len())).collect();
    assert_eq!(listeners, [(Some(443), 1), (None, 2)]);
}

#[test]
fn service_entry_defaults_are_mesh_external_and_none() {
    let entry = |spec: &str| {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: a}}\nspec: {spec}"
        );
        snapshot(&text).declarations.remove(0)
    };
    let bare = entry("{hosts: [a.example]}");
    assert_eq!((bare.location, bare.resolution), (Location::MeshExternal, Resolution::None));
    assert!(bare.export_to.is_empty() && bare.addresses.is_empty() && bare.ports.is_empty());
    let said = entry("{hosts: [a.example], location: MESH_INTERNAL, resolution: DYNAMIC_DNS}");
    assert_eq!((said.location, said.resolution), (Location::MeshInternal, Resolution::DynamicDns));
    let later = entry("{hosts: [a.example], location: MESH_ORBIT, resolution: PSYCHIC}");
    assert_eq!(later.location, Location::Other("MESH_ORBIT".to_owned()));
    assert_eq!(later.resolution, Resolution::Other("PSYCHIC".to_owned()));
}

#[test]
fn authorization_policies_keep_what_is_about_the_namespace() {
    let text = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: istio-system}
spec:
  selector: {matchLabels: {istio: egressgateway}}
  rules:
  - from:
    - source: {namespaces: [payments]}
    to:
    - operation: {hosts: [api.stripe.com]}
  - from:
    - source:
        principals: ['*', cluster.local/ns/bank/sa/*, cluster.local/ns/shop/sa/web, other/ns/bank/sa/*, '*-suffix']
        serviceAccounts: [web, shop/cart]
    - source: {notNamespaces: [shop], trustDomains: [x]}
    when:
    - {key: source.namespace, values: [a], notValues: [b]}
    - {key: connection.sni, values: [c]}
  - {}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: targets, namespace: istio-system}
spec:
  action: SOMETHING
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: out}]
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: bare, namespace: istio-system}
";
    let mesh = snapshot(text).mesh;
    let [bare, callers, targets] = mesh.authorizations.as_slice() else { panic!("{mesh:?}") };
    assert_eq!(bare.action, AuthorizationAction::Allow);
    assert!(bare.rules.is_empty());
    assert_eq!(bare.attachment, Attachment::Pods(Default::default()));
    assert_eq!(targets.action, AuthorizationAction::Other("SOMETHING".to_owned()));
    let Attachment::Targets(named) = &targets.attachment else { panic!("{targets:?}") };
    assert_eq!((named[0].kind.as_str(), named[0].name.as_str()), ("Gateway", "out"));
    let [hosts, accounts, any] = callers.rules.as_slice() else { panic!("{callers:?}") };
    assert!(hosts.qualified && hosts.from[0].namespace.values == ["payments"]);
    let some = |name: &str| AccountPattern::Some(name.to_owned());
    assert_eq!(
        accounts.from[0].accounts,
        [
            vec![
                AccountPattern::Any,
                AccountPattern::Whole("bank".to_owned()),
                some("shop"),
                some("bank"),
                AccountPattern::Unknown,
            ],
            vec![some("istio-system"), some("shop")],
        ]
    );
    assert!(!accounts.from[0].qualified && accounts.from[1].qualified);
    assert_eq!(accounts.when[0].values, ["a"]);
    assert!(accounts.qualified);
    assert_eq!(*any, Default::default());
}

#[test]
fn destination_rules_say_how_the_gateway_is_talked_to() {
    let mesh = snapshot(STRIPE_RULE).mesh;
    let rule = &mesh.destination_rules[0];
    assert_eq!(rule.host, "istio-egressgateway.istio-system.svc.cluster.local");
    assert_eq!(rule.tls.mode, Some(TlsMode::Simple));
    assert_eq!(rule.subsets["stripe"].ports[&443], TlsMode::IstioMutual);
    assert_eq!(rule.subsets["plain"].mode, Some(TlsMode::Disable));
    assert_eq!(rule.subsets["later"].mode, Some(TlsMode::Other("QUANTUM".to_owned())));
    assert_eq!(rule.subsets["bare"].mode, None);
}

const STRIPE_RULE: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: stripe, namespace: istio-system}
spec:
  host: istio-egressgateway.istio-system.svc.cluster.local
  trafficPolicy: {tls: {mode: SIMPLE}}
  subsets:
  - name: stripe
    trafficPolicy:
      portLevelSettings:
      - port: {number: 443}
        tls: {mode: ISTIO_MUTUAL, sni: api.stripe.com}
  - {name: plain, trafficPolicy: {tls: {}}}
  - {name: later, trafficPolicy: {tls: {mode: QUANTUM}}}
  - {name: bare}
";

#[test]
fn a_gateway_of_the_gateway_api_is_another_kind_than_istios() {
    let text = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: out, namespace: istio-system, uid: u-1}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: out, namespace: istio-system}
spec: {selector: {istio: egressgateway}, servers: [{port: {number: 443, name: tls, protocol: TLS}, hosts: [shop/api.example]}]}
";
    let mesh = snapshot(text).mesh;
    let name =
        crate::policy::ObjectName { namespace: "istio-system".to_owned(), name: "out".to_owned() };
    let api = &mesh.api_gateways[&name];
    assert_eq!((api.uid.as_str(), api.class.as_str()), ("u-1", "istio-waypoint"));
    let server = &mesh.gateways[&name].servers[0];
    assert_eq!(
        (server.port, server.hosts.as_slice()),
        (443, ["api.example".to_owned()].as_slice())
    );
}

/// Whatever JSON can say, to a few levels, with words that mean something here among the keys.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let words = ["REGISTRY_ONLY", "ALLOW", "*", "./*", "10.0.0.1", "300.0.0.0/33", "", "\u{0}é"];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        select(words.to_vec()).prop_map(Into::into),
    ];
    let keys = select(vec![
        "hosts",
        "addresses",
        "ports",
        "number",
        "exportTo",
        "egress",
        "workloadSelector",
        "outboundTrafficPolicy",
        "mode",
        "rules",
        "from",
        "source",
        "namespaces",
        "principals",
        "when",
        "key",
        "values",
        "targetRefs",
        "selector",
        "matchLabels",
        "servers",
        "port",
        "trafficPolicy",
        "tls",
        "mesh",
        "podIPs",
        "ip",
        "conditions",
        "targetPort",
        "labels",
    ]);
    leaf.prop_recursive(4, 48, 4, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Into::into),
            vec((keys.clone(), inner), 0..4)
                .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)))
                .prop_map(|pairs| serde_json::Value::Object(pairs.collect())),
        ]
    })
}

proptest! {
    /// No object of any kind ends the reader, whatever is in it.
    #[test]
    fn whatever_an_object_holds_it_is_read_or_refused(
        kind in select(Kind::ALL.to_vec()),
        parts in [any_json(), any_json(), any_json(), any_json()],
    ) {
        let [spec, status, data, labels] = parts;
        let group = if kind == Kind::ApiGateway { "gateway.networking.k8s.io/v1" } else { "" };
        let groups = [group, "v1", "discovery.k8s.io/v1", "networking.k8s.io/v1",
            "networking.istio.io/v1", "security.istio.io/v1", "egress-enforcer.io/v1alpha1"];
        for version in groups.into_iter().filter(|version| !version.is_empty()) {
            let object = serde_json::json!({
                "apiVersion": version,
                "kind": kind.name(),
                "metadata": {"name": "istio", "namespace": "istio-system", "labels": labels},
                "spec": spec, "status": status, "data": data,
                "endpoints": spec, "ports": status,
            });
            let _ = crate::registry::object::read(object, None);
        }
    }
}
