//! Which namespaces import a gateway, where the policy narrows.

use egress_common::state::Capture;

use super::fixture::*;
use super::narrow::*;
use crate::policy::GatewayTarget;
use crate::policy::ProblemCode::NarrowingIncomplete;
use crate::policy::mesh::Sidecar;

#[test]
fn a_sidecar_that_does_not_import_the_gateway_forbids_it() {
    for (hosts, expected) in [
        (&["./*"][..], SHOP_ONLY),
        (&["~/*"], SHOP_ONLY),
        (&["./*", "istio-system/*"], BOTH),
        (&["*/*"], BOTH),
        (&["*/*", "~istio-system/*"], SHOP_ONLY),
        (&["istio-system/istio-egressgateway.istio-system.svc.cluster.local"], BOTH),
        (&["istio-system/istio-egressgateway.istio-system.svc.corp.example"], BOTH),
        (&["istio-system/istiod.istio-system.svc.cluster.local"], SHOP_ONLY),
        (&["istio-system/*.svc.cluster.local"], BOTH),
        (&["shop/*"], SHOP_ONLY),
    ] {
        let mut world = world();
        world.snapshot.mesh.sidecars = vec![sidecar("bank/own", hosts)];
        let desired = world.compile();
        assert_eq!(verdicts(&desired), expected, "{hosts:?}");
        assert!(desired.problems.is_empty(), "{hosts:?} {:?}", desired.problems);
    }
    let mut world = world();
    world.snapshot.mesh.sidecars = vec![sidecar("bank/own", &[])];
    world.snapshot.mesh.sidecars[0].egress.clear();
    assert_eq!(verdicts(&world.compile()), BOTH, "no egress imports everything");
    // The root namespace's is for those that have none.
    let mut world = super::narrow::world();
    world.snapshot.mesh.sidecars =
        vec![sidecar("istio-system/root", &["./*"]), sidecar("shop/own", &["*/*"])];
    assert_eq!(verdicts(&world.compile()), SHOP_ONLY);
}

#[test]
fn a_sidecar_with_a_selector_is_finer_than_a_namespace() {
    let selecting = |full: &str, hosts: &[&str]| Sidecar {
        selector: labels(&[("app", "ledger")]),
        ..sidecar(full, hosts)
    };
    // Some pods of a closed namespace are open, or the other way about.
    for sidecars in [
        vec![sidecar("bank/a-own", &["./*"]), selecting("bank/b-some", &["*/*"])],
        vec![sidecar("bank/a-own", &["*/*"]), selecting("bank/b-some", &["./*"])],
        vec![selecting("bank/b-some", &["./*"])],
    ] {
        let mut world = world();
        world.snapshot.mesh.sidecars = sidecars;
        let desired = world.compile();
        assert_eq!(verdicts(&desired), BOTH);
        assert_eq!(problems(&desired), [(NarrowingIncomplete, "bank/b-some")]);
    }
    // Those that agree are one voice.
    let mut world = world();
    world.snapshot.mesh.sidecars =
        vec![sidecar("bank/a-own", &["./*"]), selecting("bank/b-some", &["~/*"])];
    assert_eq!(verdicts(&world.compile()), SHOP_ONLY);
}

#[test]
fn pods_in_ambient_mode_ignore_sidecars_and_not_authorization() {
    let mut world = world();
    world.pod_mut("bank/ledger").capture = Capture::Ambient;
    world.snapshot.mesh.sidecars = vec![sidecar("bank/own", &["./*"])];
    assert_eq!(verdicts(&world.compile()), BOTH);
    world.snapshot.mesh.authorizations = vec![allow(vec![from_namespaces(&["shop"])])];
    let desired = world.compile();
    assert_eq!(verdicts(&desired), SHOP_ONLY);
    assert!(desired.narrowed[0].ambient);
}

#[test]
fn a_gateway_named_by_its_pods_is_imported_by_nobody_and_stays_open() {
    let mut world = world();
    let target =
        GatewayTarget::Pods { labels: labels(&[("istio", "egressgateway")]), ports: vec![8443] };
    world.policy_mut("shop").gateways = vec![gateway(target)];
    world.snapshot.mesh.sidecars = vec![sidecar("bank/own", &["./*"])];
    let desired = world.compile();
    assert_eq!(verdicts(&desired), BOTH);
    assert_eq!(problems(&desired), [(NarrowingIncomplete, "bank/own")]);
}
