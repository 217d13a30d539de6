//! What the root suites and the demo stand on: a node, its pods and the internet on one machine.
//!
//! Everything lives in network namespaces and cgroups of its own, under names that carry the
//! process id: the machine's own interfaces, routes and cgroups are never touched, and what a
//! crashed run left behind is swept by the next one. Values own what they made: dropping a
//! [`Lab`](lab::Lab) ends its processes and removes its namespaces, cgroups and mounts.
//!
//! The judge of every claim about traffic is the [`Sniffer`](sniffer::Sniffer) in the internet
//! namespace, never the error a client saw.

pub mod address;
pub mod adversary;
pub mod agent;
pub mod alerting;
pub mod attempt;
pub mod cgroup;
pub mod confine;
pub mod control_plane;
pub mod crowd;
pub mod dashboards;
pub mod dial;
pub mod flood;
pub mod frame;
pub mod guest;
pub mod http;
pub mod kernel;
pub mod kube_lab;
pub mod lab;
pub mod manifests;
pub mod mesh;
pub mod netns;
pub mod process;
pub mod prometheus;
pub mod scenario;
pub mod sniffer;
pub mod sweep;
pub mod wiring;
