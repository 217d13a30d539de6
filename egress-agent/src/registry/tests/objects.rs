//! Each kind, and the ways its objects come.

use egress_common::state::Capture;

use super::*;
use crate::policy::{ObjectName, ServicePort};

fn name(namespace: &str, name: &str) -> ObjectName {
    ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn pod(meta: &str, rest: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  namespace: n\n  uid: u\n{meta}\n{rest}"
    )
}

#[test]
fn pods_own_their_addresses_until_they_finish() {
    for (status, ips, running, finished) in [
        (
            "{phase: Running, podIPs: [{ip: 10.0.0.5}, {ip: 'fd00::5'}]}",
            vec!["10.0.0.5", "fd00::5"],
            true,
            false,
        ),
        ("{phase: Running, podIP: 10.0.0.5}", vec!["10.0.0.5"], true, false),
        ("{phase: Running, podIP: null}", vec![], true, false),
        ("{phase: Pending}", vec![], false, false),
        ("{phase: Tomorrow, podIP: 10.0.0.5}", vec!["10.0.0.5"], false, false),
        ("{phase: Succeeded, podIP: 10.0.0.5}", vec![], false, true),
        ("{phase: Failed, podIP: 10.0.0.5}", vec![], false, true),
        ("{}", vec![], false, false),
    ] {
        let read = snapshot(&pod(
            "  deletionTimestamp: '2026-11-24T00:00:00Z'",
            &format!("status: {status}"),
        ));
        let pod = &read.pods["u"];
        let found: Vec<String> = pod.ips.iter().map(ToString::to_string).collect();
        assert_eq!(
            (found, pod.running, pod.finished),
            (ips.iter().map(ToString::to_string).collect(), running, finished),
            "{status}"
        );
    }
}

#[test]
fn capture_is_what_status_and_containers_say() {
    for (meta, spec, capture, proxy) in [
        ("", "{}", Capture::None, None),
        (
            "  annotations: {sidecar.istio.io/status: '{}'}",
            "{}",
            Capture::Sidecar,
            Some((1337, 1337)),
        ),
        (
            "",
            "{containers: [{name: app}, {name: istio-proxy, securityContext: {runAsUser: 7, runAsGroup: 8}}]}",
            Capture::Sidecar,
            Some((7, 8)),
        ),
        (
            "",
            "{initContainers: [{name: istio-proxy, restartPolicy: Always}]}",
            Capture::Sidecar,
            Some((1337, 1337)),
        ),
        ("  annotations: {ambient.istio.io/redirection: enabled}", "{}", Capture::Ambient, None),
        ("  annotations: {ambient.istio.io/redirection: pending}", "{}", Capture::None, None),
        ("  annotations: {sidecar.istio.io/inject: 'true'}", "{}", Capture::None, None),
    ] {
        let read = snapshot(&pod(meta, &format!("spec: {spec}")));
        let pod = &read.pods["u"];
        assert_eq!((pod.capture, pod.proxy), (capture, proxy), "{meta} {spec}");
    }
}

#[test]
fn pods_name_their_workload_account_and_node() {
    for (meta, workload) in [
        ("", ("Pod", "p")),
        (
            "  labels: {pod-template-hash: abc}\n  ownerReferences: [{kind: ReplicaSet, name: web-abc, controller: true}]",
            ("Deployment", "web"),
        ),
        (
            "  ownerReferences: [{kind: ReplicaSet, name: web-abc, controller: true}]",
            ("ReplicaSet", "web-abc"),
        ),
        (
            "  ownerReferences: [{kind: X, name: x}, {kind: Job, name: nightly-1, controller: true}]",
            ("Job", "nightly-1"),
        ),
        ("  ownerReferences: [{kind: Node, name: node-1, controller: true}]", ("Pod", "p")),
    ] {
        let read = snapshot(&pod(meta, "spec: {nodeName: node-1, hostNetwork: true}"));
        let pod = &read.pods["u"];
        assert_eq!((pod.workload.0.as_str(), pod.workload.1.as_str()), workload);
        assert_eq!(
            (pod.service_account.as_str(), pod.node.as_deref()),
            ("default", Some("node-1"))
        );
        assert!(pod.host_network);
    }
}

#[test]
fn only_a_mirror_pod_is_in_another_cgroup() {
    for (annotation, cgroup) in
        [("kubernetes.io/config.mirror: hash", "hash"), ("kubernetes.io/config.hash: hash", "u")]
    {
        let read = snapshot(&pod(&format!("  annotations: {{{annotation}}}"), ""));
        assert_eq!(read.pods["u"].cgroup_uid, cgroup);
    }
    let thief = pod("  annotations: {kubernetes.io/config.mirror: victim}", "");
    let victim = "apiVersion: v1\nkind: Pod\nmetadata: {name: v, uid: victim}";
    let read = read(directory(&[("a.yaml", &thief), ("b.yaml", victim)]).path());
    assert_eq!(read.pods["u"].cgroup_uid, "u");
    assert_eq!(read.pods["victim"].cgroup_uid, "victim");
    assert!(read.problems[0].message.contains("belongs to the pod with UID victim"));
}

#[test]
fn a_broken_pod_is_named_and_forbids_removals() {
    let read = read(directory(&[("a.yaml", &pod("", "status: {podIPs: [{ip: nowhere}]}"))]).path());
    assert!(!read.complete);
    assert_eq!(
        describe(&read.problems[0]),
        "invalid Pod n/p (a.yaml:1): status.podIPs[0].ip: `nowhere` is not an IP address; it has \
         no good version, so nothing is removed from the kernel until it has one"
    );
    let unnamed = problems("apiVersion: v1\nkind: Pod\nmetadata: {name: p}");
    assert!(unnamed[0].contains("metadata.uid: required"), "{unnamed:?}");
    let typed = problems(&pod("  labels: {version: 1.10}", ""));
    assert!(typed[0].contains("metadata.labels.version: invalid type"), "{typed:?}");
}

#[test]
fn services_and_slices() {
    let read = snapshot(
        "apiVersion: v1
kind: Service
metadata:
  name: gw
  namespace: istio-system
  labels: {a: b}
  ownerReferences:
  - {apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, name: out, uid: u-1}
  - {apiVersion: networking.istio.io/v1, kind: Gateway, name: out, uid: u-2}
  - {apiVersion: apps/v1, kind: Deployment, name: out, uid: u-3}
spec:
  clusterIP: 10.96.0.9
  clusterIPs: [10.96.0.9, 'fd00::9']
  externalIPs: [203.0.113.5]
  selector: {istio: egressgateway}
  ports: [{name: tls, port: 443, targetPort: 8443}, {port: 53, protocol: UDP}, {name: web, port: 80, targetPort: http}, {port: 9, protocol: QUIC}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None}
---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: example.com, externalIPs: [203.0.113.9]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: gw-b, namespace: istio-system, labels: {kubernetes.io/service-name: gw}}
addressType: IPv4
endpoints:
- addresses: [10.0.0.7]
  conditions: {ready: false, serving: true, terminating: true}
  targetRef: {kind: Pod, name: gw-1, uid: u7}
- addresses: [10.0.0.8]
  conditions: {ready: false}
- addresses: [10.0.0.9]
ports: [{name: tls, port: 8443, protocol: TCP}, {name: any, port: null}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: names, labels: {kubernetes.io/service-name: gw}}
addressType: FQDN
endpoints: [{addresses: [example.com]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: imported, labels: {kubernetes.io/service-name: gw, multicluster.kubernetes.io/service-name: gw}}
addressType: IPv4
endpoints: [{addresses: [198.51.100.1]}]
",
    );
    let gateway = &read.services[&name("istio-system", "gw")];
    assert_eq!(gateway.cluster_ips.len(), 2);
    assert_eq!(gateway.external_ips.len(), 1);
    let port = |name: &str, port, protocol, target| ServicePort {
        name: name.to_owned(),
        port,
        protocol,
        target,
    };
    assert_eq!(
        gateway.ports,
        [port("tls", 443, 6, Some(8443)), port("", 53, 17, Some(53)), port("web", 80, 6, None)]
    );
    assert_eq!(gateway.gateway_owners, ["u-1"]);
    for alone in ["headless", "alias"] {
        let service = &read.services[&name("default", alone)];
        assert!(service.cluster_ips.is_empty() && service.external_ips.is_empty(), "{alone}");
    }
    let [slice] = read.slices.as_slice() else { panic!("{:?}", read.slices) };
    assert_eq!((slice.service.as_str(), &slice.ports), ("gw", &vec![port("tls", 8443, 6, None)]));
    let serving: Vec<bool> = slice.endpoints.iter().map(|endpoint| endpoint.serving).collect();
    assert_eq!(serving, [true, false, true]);
    assert_eq!(slice.endpoints[0].pod_uid.as_deref(), Some("u7"));
}

#[test]
fn cluster_facts() {
    let read = snapshot(
        "apiVersion: v1
kind: Node
metadata: {name: node-1}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, 'fd00:1::/64']}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: Hostname, address: node-1}]}
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16]}
---
apiVersion: v1
kind: Namespace
metadata: {name: payments, labels: {team: pay, kubernetes.io/metadata.name: forged}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: unlabelled, uid: u}
",
    );
    let node = &read.nodes["node-1"];
    assert_eq!((node.addresses.len(), node.pod_ranges.len()), (1, 2));
    assert_eq!(read.service_ranges, ["10.96.0.0/16".parse().unwrap()]);
    assert_eq!(read.namespaces["payments"]["kubernetes.io/metadata.name"], "payments");
    assert_eq!(read.namespaces["payments"]["team"], "pay");
    assert_eq!(read.namespaces["unlabelled"]["kubernetes.io/metadata.name"], "unlabelled");
}

const STRIPE: &str = include_str!("stripe.yaml");

#[test]
fn the_article_s_stripe_example_is_declared_and_routed() {
    let read = snapshot(STRIPE);
    let [external, stripe] = read.declarations.as_slice() else { panic!("{read:?}") };
    assert_eq!(external.name, name("default", "external-api"));
    assert_eq!((external.ports.as_slice(), external.routed_by.len()), ([80, 443].as_slice(), 0));
    assert_eq!(stripe.hosts, ["api.stripe.com"]);
    assert_eq!(stripe.export_to, [""; 0], "the mesh's default");
    assert_eq!(stripe.routed_by, [name("payments", "route-stripe-via-egressgateway")]);
    assert_eq!(stripe.origin.file.as_deref(), Some("a.yaml:2"));
}

#[test]
fn a_route_counts_only_for_sidecars_and_through_a_gateway() {
    let routed = |from: &str, to: &str| {
        let text = STRIPE.replacen(from, to, 1);
        assert_ne!(text, STRIPE, "{from}");
        !snapshot(&text).declarations[1].routed_by.is_empty()
    };
    assert!(routed(
        "    - port: 443\n",
        "    - port: 443\n      gateways: [mesh, istio-system/x]\n"
    ));
    assert!(!routed("    - port: 443\n", "    - port: 443\n      gateways: [istio-system/x]\n"));
    assert!(!routed("        host: istio-egressgateway.", "        host: another."));
    assert!(!routed("    istio: egressgateway\n  servers", "    istio: other\n  servers"));
}

#[test]
fn service_entries_carry_the_addresses_istiod_allocated() {
    let read = snapshot(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a}
spec: {hosts: [a.example], addresses: [192.0.2.1, 198.51.100.0/24], exportTo: ['.'], resolution: LATER}
status: {addresses: [{value: 240.240.0.1, host: a.example}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: b}
",
    );
    let found: Vec<String> =
        read.declarations[0].addresses.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["192.0.2.1/32", "198.51.100.0/24", "240.240.0.1/32"]);
    assert_eq!(read.declarations[0].export_to, ["."]);
}

#[test]
fn a_broken_istio_object_is_reported_and_does_not_matter() {
    let text = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: {hosts: no list}";
    let read = read(directory(&[("a.yaml", text)]).path());
    assert!(read.complete && read.declarations.is_empty());
    assert!(describe(&read.problems[0]).contains("spec.hosts: invalid type"), "{read:?}");
}

#[test]
fn a_kubectl_dump_is_read_with_the_line_of_every_item() {
    let dump = "apiVersion: v1
items:
- apiVersion: v1
  kind: Pod
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {\"apiVersion\":\"v1\",
        ---
        \"kind\":\"Pod\"}
    creationTimestamp: \"2026-11-24T08:00:00Z\"
    managedFields:
    - apiVersion: v1
      fieldsType: FieldsV1
      fieldsV1:
        f:metadata:
          f:labels: {}
    name: api-1
    namespace: payments
    uid: 6d1b
  spec:
    nodeName: node-1
  status:
    phase: Running
    podIP: 10.0.0.5
- apiVersion: v1
  kind: Namespace
  metadata:
    name: payments
kind: List
metadata:
  resourceVersion: \"\"
";
    let read = snapshot(&dump.replace("        ---\n", ""));
    assert_eq!(read.pods["6d1b"].origin.file.as_deref(), Some("a.yaml:3"));
    assert!(read.namespaces.contains_key("payments"));
    let raw = r#"{"kind": "PodList", "apiVersion": "v1", "items": [
        {"metadata": {"name": "p", "uid": "u1"}},
        {"metadata": {"name": "q", "uid": "u2"}}]}"#;
    let read = super::read(directory(&[("a.json", raw)]).path());
    assert_eq!(read.problems, []);
    assert_eq!(read.pods["u2"].origin.file.as_deref(), Some("a.json:3"));
}

#[test]
fn files_and_directories_are_found_in_order() {
    let pod =
        |uid: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {uid}, uid: {uid}}}");
    let root = directory(&[
        ("b/deep/er.yml", &pod("deep")),
        ("a.yaml", &format!("# first\n---\n\n{}\n---\n# nothing\n---\n{}", pod("one"), pod("two"))),
        (".hidden.yaml", &pod("hidden")),
        ("..data/a.yaml", &pod("behind")),
        ("notes.txt", "not a manifest"),
    ]);
    std::os::unix::fs::symlink(root.path(), root.path().join("b/loop")).unwrap();
    let read = read(root.path());
    assert_eq!(read.problems, []);
    let found: Vec<(&str, &str)> = read
        .pods
        .values()
        .map(|pod| (pod.uid.as_str(), pod.origin.file.as_deref().unwrap()))
        .collect();
    assert_eq!(found, [("deep", "b/deep/er.yml:1"), ("one", "a.yaml:4"), ("two", "a.yaml:10")]);
}

#[test]
fn what_does_not_parse_is_named_with_line_and_column() {
    for (name, text, place, expected) in [
        (
            "a.yaml",
            "---\nkind: A\n---\na: [1,\nb: 2\n",
            "a.yaml:4",
            "line 4, column 4: unclosed bracket",
        ),
        ("a.yaml", "apiVersion: v1\nkind: Pod\nkind: Pod\n", "a.yaml:3", "line 3, column 1"),
        ("a.yaml", "hello\n", "a.yaml:1", "a Kubernetes object was expected"),
        ("a.yaml", "a: b\n", "a.yaml:1", "`kind` is missing"),
        (
            "a.yaml",
            "---\nkind: Pod\napiVersion: v1\nmetadata:\n",
            "a.yaml:2",
            "metadata.name is missing",
        ),
        ("a.yaml", "", "a.yaml:1", "the file is empty"),
        ("a.json", "{\n  \"kind\": \n", "a.json:", "line 3"),
    ] {
        let read = read(directory(&[(name, text)]).path());
        assert!(!read.complete, "{text}");
        let found = describe(&read.problems[0]);
        println!("{found}");
        assert!(
            found.starts_with("unreadable File")
                && found.contains(place)
                && found.contains(expected),
            "{found}"
        );
    }
}

#[test]
fn an_object_defined_twice_is_the_first_one() {
    let text = |mode: &str| POLICY.replace("enforce", mode);
    let root = directory(&[("b.yaml", &text("audit")), ("a.yaml", &text("enforce"))]);
    let read = read(root.path());
    assert_eq!(read.policies["payments"].mode, egress_common::Mode::Enforce);
    assert!(read.complete);
    assert_eq!(
        read.problems.iter().map(describe).collect::<Vec<_>>(),
        ["invalid EgressPolicy payments (b.yaml:1): defined twice: the one in a.yaml:1 is used, \
          this one is not; remove one of them"]
    );
}

#[test]
fn sources_are_named() {
    assert_eq!("dir:/x".parse::<Source>().unwrap(), Source::Dir("/x".into()));
    assert_eq!("kube".parse::<Source>().unwrap(), Source::Kube(None));
    assert_eq!("kube:/x".parse::<Source>().unwrap(), Source::Kube(Some("/x".into())));
    for text in ["dir:/x", "kube", "kube:/x"] {
        assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
    }
    for text in ["dir:", "kube:", "x:y", "/x"] {
        let error = text.parse::<Source>().unwrap_err().to_string();
        assert!(error.contains("is not known; write dir:PATH"), "{error}");
    }
    let error = read_directory(Path::new("/nowhere/at/all")).unwrap_err().to_string();
    assert!(error.contains("/nowhere/at/all") && error.contains("create it"), "{error}");
}

#[test]
fn the_api_server_is_watched_for_a_node_that_has_a_name() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for node in [None, Some("")] {
        let opened = runtime.block_on(Registry::open(&Source::Kube(None), node));
        let Err(error) = opened else { panic!("opened without a name") };
        assert!(error.to_string().contains("EGRESS_NODE_NAME from spec.nodeName"), "{error}");
    }
}
