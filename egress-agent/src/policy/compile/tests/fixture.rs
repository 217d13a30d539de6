//! A small cluster: one governed pod, one gateway, DNS, API server and istiod.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egress_common::Subject;
use egress_common::key::{Addr, AddressKey, PolicyId};
use egress_common::packet::{Hook, Packet, protocol, tcp};
use egress_common::state::{Capture, DenyResponse, OnAgentLoss};
use egress_common::{Mode, Reason, decide};
use ipnet::IpNet;

use crate::policy::compile::compile;
use crate::policy::mesh::{ApiGateway, Location, Resolution};
use crate::policy::tables::At;
use crate::policy::{
    ClusterConfig, Coverage, CoverageState, Declaration, Desired, EgressException, EgressPolicy,
    ExactAddress, GatewayRef, GatewayTarget, Held, Link, Node, NodeState, ObjectName, Origin,
    OwnPod, Pod, ProblemCode, Selector, Service, ServicePort, Slice, SliceEndpoint, Snapshot,
    Tables,
};

pub(crate) const TCP: u8 = protocol::TCP;
pub(crate) const UDP: u8 = protocol::UDP;
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// An address nobody names.
pub(crate) const OUTSIDE: &str = "203.0.113.10";
pub(crate) const GATEWAY_NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
pub(crate) const GATEWAY: &str = "istio-system/istio-egressgateway";

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A ServiceEntry for hosts outside the mesh, found by DNS and dialled on 443.
pub(crate) fn declaration(full: &str, hosts: &[&str]) -> Declaration {
    Declaration {
        name: name(full),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        addresses: Vec::new(),
        ports: vec![443],
        dialled: BTreeSet::from([443]),
        endpoints: Vec::new(),
        endpoint_hosts: Vec::new(),
        expected: Vec::new(),
        location: Location::MeshExternal,
        resolution: Resolution::Dns,
        export_to: Vec::new(),
        routed_by: Vec::new(),
        origin: origin("ServiceEntry", full),
    }
}

pub(crate) fn origin(kind: &str, name: &str) -> Origin {
    Origin { kind: kind.to_owned(), name: name.to_owned(), file: None }
}

/// A running pod; its UID is its name.
pub(crate) fn pod(full: &str, ips: &[&str]) -> Pod {
    Pod {
        uid: full.to_owned(),
        cgroup_uid: full.to_owned(),
        name: name(full),
        labels: BTreeMap::new(),
        service_account: "default".to_owned(),
        node: Some("here".to_owned()),
        ips: ips.iter().map(|text| ip(text)).collect(),
        running: true,
        ready: true,
        quarantined: false,
        interception: Default::default(),
        containers: BTreeMap::new(),
        finished: false,
        host_network: false,
        capture: Capture::None,
        proxy: None,
        workload: ("Deployment".to_owned(), "web".to_owned()),
        origin: origin("Pod", full),
    }
}

/// A Service with ports as (name, port), TCP.
pub(crate) fn service(full: &str, cluster_ips: &[&str], ports: &[(&str, u16)]) -> Service {
    Service {
        name: name(full),
        labels: BTreeMap::new(),
        selector: BTreeMap::new(),
        cluster_ips: cluster_ips.iter().map(|text| ip(text)).collect(),
        external_ips: Vec::new(),
        ports: service_ports(ports),
        gateway_owners: Vec::new(),
        origin: origin("Service", full),
    }
}

fn service_ports(ports: &[(&str, u16)]) -> Vec<ServicePort> {
    let port = |(name, port): &(&str, u16)| ServicePort {
        name: (*name).to_owned(),
        port: *port,
        protocol: TCP,
        target: None,
    };
    ports.iter().map(port).collect()
}

/// A slice of a Service, serving, without target references.
pub(crate) fn slice(full: &str, service: &str, ips: &[&str], ports: &[(&str, u16)]) -> Slice {
    let endpoint =
        |text: &&str| SliceEndpoint { addresses: vec![ip(text)], serving: true, pod_uid: None };
    Slice {
        name: name(full),
        service: service.to_owned(),
        endpoints: ips.iter().map(endpoint).collect(),
        ports: service_ports(ports),
        origin: origin("EndpointSlice", full),
    }
}

/// An enforcing policy for the pods of some namespaces, without gateways.
pub(crate) fn policy(name: &str, namespaces: &[&str]) -> EgressPolicy {
    EgressPolicy {
        name: name.to_owned(),
        selector: in_namespaces(namespaces),
        priority: 0,
        created: None,
        mode: Mode::Enforce,
        gateways: Vec::new(),
        narrow: false,
        cluster_ranges: None,
        resolvers: None,
        api_server: true,
        istiod: true,
        infrastructure: Vec::new(),
        nodes: Vec::new(),
        inbound_ranges: Vec::new(),
        redirect: Vec::new(),
        gateway_egress: Mode::Off,
        pod_rate: None,
        namespace_rate: None,
        deny_response: DenyResponse::Reset,
        host_network: false,
        on_agent_loss: OnAgentLoss::Hold,
        origin: origin("EgressPolicy", name),
    }
}

pub(crate) fn in_namespaces(namespaces: &[&str]) -> Selector {
    let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
    Selector { namespaces, ..Selector::default() }
}

/// Any port of a destination for the pods of some namespaces, for ever.
pub(crate) fn exception(name: &str, namespaces: &[&str], cidr: &str) -> EgressException {
    EgressException {
        name: name.to_owned(),
        scope: in_namespaces(namespaces),
        cidr: net(cidr),
        ports: Vec::new(),
        expires_at: 4_000_000_000,
        reason: "incident".to_owned(),
        requester: "sre".to_owned(),
        origin: origin("EgressException", name),
    }
}

pub(crate) fn gateway(target: GatewayTarget) -> GatewayRef {
    GatewayRef {
        namespace: "istio-system".to_owned(),
        target,
        service_account: "egress".to_owned(),
    }
}

pub(crate) fn exact_address(text: &str, protocol: u8, port: u16) -> ExactAddress {
    ExactAddress { ip: ip(text), protocol, port }
}

/// What `compile` is given.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) snapshot: Snapshot,
    pub(crate) cluster: ClusterConfig,
    pub(crate) node: NodeState,
}

impl World {
    /// `shop/web` under policy `shop`, which names the egress gateway.
    pub(crate) fn new() -> Self {
        let mut world = Self {
            snapshot: Snapshot { complete: true, ..Snapshot::default() },
            cluster: ClusterConfig {
                ranges: vec![net("10.0.0.0/8"), net("fd00:10::/32")],
                metadata_addresses: vec![ip("169.254.169.254"), ip("fd00:ec2::254")],
                mesh_vip_ranges: vec![net("240.240.0.0/16"), net("2001:2::/48")],
                exempt_namespaces: vec!["kube-system".to_owned()],
                ..ClusterConfig::default()
            },
            node: NodeState {
                name: Some("here".to_owned()),
                kubepods_level: 1,
                unknown_pod: Mode::Audit,
                lease: 30,
                ..NodeState::default()
            },
        };
        world.namespace("shop", &[("team", "shop")]);
        world.run(pod("shop/web", &["10.1.0.2", "fd00:10::1:2"]), 100, 7);
        let node = Node {
            name: "here".to_owned(),
            addresses: vec![ip("192.168.0.1")],
            pod_ranges: Vec::new(),
        };
        world.snapshot.nodes.insert("here".to_owned(), node);
        world.gateway_pod("gw-0", &["10.1.9.1", "fd00:10::9:1"]);
        let ports = [("https", 443), ("http2", 80)];
        let mut egress = service(GATEWAY, &["10.96.0.20", "fd00:10::96:20"], &ports);
        egress.selector = labels(&[("istio", "egressgateway")]);
        world.service(egress);
        let ports = [("https", 8443), ("http2", 8080), ("status-port", 15021)];
        world.slice(slice("istio-system/egress-v4", "istio-egressgateway", &["10.1.9.1"], &ports));
        let ips = &["fd00:10::9:1"];
        world.slice(slice("istio-system/egress-v6", "istio-egressgateway", ips, &ports));
        let mut shop = policy("shop", &["shop"]);
        let target = GatewayTarget::Service("istio-egressgateway".to_owned());
        shop.gateways.push(gateway(target));
        world.policy(shop);
        world
    }

    pub(crate) fn namespace(&mut self, name: &str, pairs: &[(&str, &str)]) {
        self.snapshot.namespaces.insert(name.to_owned(), labels(pairs));
    }

    /// What the kernel holds after compiling, with what is said of it.
    pub(crate) fn hold(&mut self) {
        let Desired { tables, coverage, .. } = self.compile();
        let Tables { pods, interfaces, policies, .. } = tables;
        self.node.held = Held { pods, interfaces, policies, coverage };
    }

    /// An interface that was once seen to be this pod's.
    pub(crate) fn bind(&mut self, ifindex: u32, uid: &str) {
        let entry = OwnPod { uid: uid.to_owned(), cgroup: 0 }.entry();
        self.node.held.interfaces.insert(ifindex, entry);
    }

    /// A pod that exists, somewhere.
    pub(crate) fn pod(&mut self, pod: Pod) {
        self.snapshot.pods.insert(pod.uid.clone(), pod);
    }

    /// A pod of this node with a cgroup and an interface that carries its addresses.
    pub(crate) fn run(&mut self, pod: Pod, cgroup: u64, ifindex: u32) {
        self.node.cgroups.insert(pod.cgroup_uid.clone(), cgroup);
        self.link(ifindex, &pod.ips);
        self.pod(pod);
    }

    pub(crate) fn link(&mut self, ifindex: u32, ips: &[IpAddr]) {
        let name = format!("veth{ifindex}");
        self.node.links.push(Link {
            ifindex,
            peer: ifindex + 100,
            name,
            ips: ips.to_vec(),
            mac: MAC,
            netns: ifindex,
            pair: true,
            own_ips: Vec::new(),
            bridge: None,
        });
    }

    /// A gateway's pod, on another node.
    pub(crate) fn gateway_pod(&mut self, name: &str, ips: &[&str]) {
        let mut pod = pod(&format!("istio-system/{name}"), ips);
        pod.labels = labels(&[("istio", "egressgateway")]);
        pod.service_account = "egress".to_owned();
        pod.node = Some("elsewhere".to_owned());
        self.pod(pod);
    }

    pub(crate) fn service(&mut self, service: Service) {
        self.snapshot.services.insert(service.name.clone(), service);
    }

    /// The egress gateway's Service as one that Istio made for the Gateway `out` of the Gateway
    /// API, which the policy `shop` names.
    pub(crate) fn gateway_api(&mut self) {
        let owner = ApiGateway {
            uid: "u-out".to_owned(),
            class: "istio".to_owned(),
            origin: origin("Gateway", "istio-system/out"),
        };
        self.snapshot.mesh.api_gateways.insert(name("istio-system/out"), owner);
        let service = self.service_mut(GATEWAY);
        service.labels = labels(&[(GATEWAY_NAME_LABEL, "out")]);
        service.gateway_owners = vec!["u-out".to_owned()];
        self.policy_mut("shop").gateways = vec![gateway(GatewayTarget::Gateway("out".to_owned()))];
    }

    pub(crate) fn slice(&mut self, slice: Slice) {
        self.snapshot.slices.push(slice);
    }

    pub(crate) fn policy(&mut self, policy: EgressPolicy) {
        self.snapshot.policies.insert(policy.name.clone(), policy);
    }

    pub(crate) fn exception(&mut self, exception: EgressException) {
        self.snapshot.exceptions.insert(exception.name.clone(), exception);
    }

    pub(crate) fn pod_mut(&mut self, uid: &str) -> &mut Pod {
        self.snapshot.pods.get_mut(uid).unwrap()
    }

    pub(crate) fn policy_mut(&mut self, name: &str) -> &mut EgressPolicy {
        self.snapshot.policies.get_mut(name).unwrap()
    }

    pub(crate) fn service_mut(&mut self, full: &str) -> &mut Service {
        self.snapshot.services.get_mut(&name(full)).unwrap()
    }

    pub(crate) fn compile(&self) -> Desired {
        compile(&self.snapshot, &self.cluster, &self.node)
    }

    /// What the boundary says to a first packet of `shop/web`.
    pub(crate) fn ask(&self, dst: &str, protocol: u8, port: u16) -> Reason {
        ask(&self.compile(), "shop/web", dst, protocol, port)
    }
}

pub(crate) fn covered<'a>(desired: &'a Desired, uid: &str) -> &'a Coverage {
    desired.coverage.iter().find(|coverage| coverage.uid == uid).unwrap()
}

pub(crate) fn state(desired: &Desired, uid: &str) -> CoverageState {
    covered(desired, uid).state
}

/// The number of the tables a pod is judged by.
pub(crate) fn tables_of(desired: &Desired, uid: &str) -> PolicyId {
    desired.tables.interfaces[&covered(desired, uid).ifindex.unwrap()].policy
}

/// What the boundary says to a pod's first packet.
pub(crate) fn ask(desired: &Desired, uid: &str, dst: &str, protocol: u8, port: u16) -> Reason {
    ask_at(desired, uid, dst, protocol, port, 1)
}

/// The same at a moment of the boot clock.
pub(crate) fn ask_at(
    desired: &Desired,
    uid: &str,
    dst: &str,
    protocol: u8,
    port: u16,
    now: u64,
) -> Reason {
    let tables = &desired.tables;
    let entry = &tables.interfaces[&covered(desired, uid).ifindex.unwrap()];
    let who = Subject::of(entry, tables.policies.get(&entry.policy), &tables.config, 0);
    let dst = Addr::from(ip(dst));
    let mut packet = Packet::call(Hook::PodEgress, protocol, dst, port, 40_000);
    packet.src_mac = entry.mac;
    packet.src = if dst.is_v4() { entry.v4 } else { entry.v6 };
    packet.tcp_flags = if protocol == TCP { tcp::SYN } else { 0 };
    decide(&who, &packet, &At { tables, now }).reason
}

/// What is known of a whole address under `shop`.
pub(crate) fn bits(desired: &Desired, dst: &str) -> u32 {
    let key = AddressKey { policy: PolicyId::of("shop"), addr: Addr::from(ip(dst)) };
    desired.tables.addresses.get(&key).copied().unwrap_or(0)
}

/// Codes and objects of the problems.
pub(crate) fn problems(desired: &Desired) -> Vec<(ProblemCode, &str)> {
    let problems = desired.problems.iter();
    problems.map(|problem| (problem.code, problem.origin.name.as_str())).collect()
}
