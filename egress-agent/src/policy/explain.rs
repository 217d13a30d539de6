//! Why: the decision about one destination, in words.
//!
//! The same [`decide`] as the kernel's, on the tables read back from the kernel; this module only
//! builds the question and names what was found.

mod fix;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use egress_common::Subject;
use egress_common::key::{AddressKey, ExactKey, PodId, PolicyId, RangeKey};
use egress_common::packet::{Hook, Packet, Shape, protocol, tcp};
use egress_common::state::{Capture, Pod, Target, address, range};
use egress_common::{Addr, Lookup, Ruling, decide};
use serde::{Deserialize, Serialize};

use super::tables::At;
use super::{Coverage, Declaration, Desired, Tables};

/// A destination to ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The address.
    pub ip: IpAddr,
    /// The port; 0 for ICMP.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// A text that is no destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no destination; write ADDRESS:PORT or [ADDRESS]:PORT, with /tcp, /udp or /icmp behind it"
)]
pub struct BadDestination(pub String);

impl std::str::FromStr for Question {
    type Err = BadDestination;

    fn from_str(text: &str) -> Result<Self, BadDestination> {
        let bad = || BadDestination(text.to_owned());
        let (place, name) = text.split_once('/').unwrap_or((text, "tcp"));
        if name == "icmp" {
            let ip: IpAddr = place.trim_matches(['[', ']']).parse().map_err(|_| bad())?;
            let protocol = if ip.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
            return Ok(Self { ip, port: 0, protocol });
        }
        let protocol = match name {
            "tcp" => protocol::TCP,
            "udp" => protocol::UDP,
            _ => return Err(bad()),
        };
        let place: SocketAddr = place.parse().map_err(|_| bad())?;
        Ok(Self { ip: place.ip().to_canonical(), port: place.port(), protocol })
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ip, port, protocol } = *self;
        match protocol {
            protocol::TCP => write!(f, "{}/tcp", SocketAddr::new(ip, port)),
            protocol::UDP => write!(f, "{}/udp", SocketAddr::new(ip, port)),
            _ => write!(f, "{ip}/icmp"),
        }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The pod, `namespace/name`.
    pub pod: String,
    /// The destination.
    pub destination: String,
    /// What happens: `allow`, `audit` or `drop`.
    pub verdict: String,
    /// Why: a [`egress_common::Reason`].
    pub reason: String,
    /// The numbered line of the verdict order.
    pub line: u8,
    /// That line, in words.
    pub rule: String,
    /// What the socket hooks tell the application.
    pub socket: String,
    /// The map entry that decided, if one did.
    pub entry: Option<String>,
    /// The object it came from.
    pub origin: Option<String>,
    /// The policy that governs the pod.
    pub policy: Option<String>,
    /// Mode in force.
    pub mode: String,
    /// Generation the kernel runs.
    pub generation: u32,
    /// What to do about it.
    pub fix: String,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let upper = self.verdict.to_uppercase();
        writeln!(f, "{upper}  {} -> {}  {}", self.pod, self.destination, self.reason)?;
        writeln!(f, "  rule    line {}: {}", self.line, self.rule)?;
        writeln!(f, "  socket  {}", self.socket)?;
        if let Some(entry) = &self.entry {
            writeln!(f, "  entry   {entry}")?;
        }
        if let Some(origin) = &self.origin {
            writeln!(f, "  from    {origin}")?;
        }
        let policy = self.policy.as_deref().unwrap_or("none");
        writeln!(f, "  policy  {policy}, mode {}, generation {}", self.mode, self.generation)?;
        write!(f, "  do      {}", self.fix)
    }
}

/// The verdict order as `explain` shows it, by line.
pub const LINES: [&str; 15] = [
    "a pod the agent has not learned reaches loopback and named resolvers only",
    "no policy governs the pod; only the source guard applies",
    "only untagged IPv4, IPv6 and exact ARP leave a pod",
    "malformed packets, options and extension headers are denied, and fragments to the outside",
    "the source must be the pod's own",
    "loopback, own addresses and neighbour discovery are local; multicast, broadcast and link-local are denied",
    "answers on connections that were opened from outside",
    "metadata service, mesh addresses on the wire, tunnels to nodes, Services that end outside",
    "named resolvers on port 53; no other resolver",
    "gateway endpoints, exact in address, protocol and port",
    "named infrastructure, exact in address, protocol and port",
    "in-cluster ranges; node addresses only where listed exactly",
    "an exception that is in force",
    "everything else is denied",
    "the agent's lease has expired and the policy denies new connections then",
];

/// Answers for a pod that the snapshot knows.
pub fn explain(
    desired: &Desired,
    live: &Tables,
    declarations: &[Declaration],
    pod: &Coverage,
    question: &Question,
    now: u64,
) -> Explanation {
    let entry = kernel_entry(live, pod);
    let subject = match entry {
        Some(entry) => Subject::of(entry, live.policies.get(&entry.policy), &live.config, 0),
        None => Subject::unknown(&live.config),
    };
    let packet = first_packet(&subject, question);
    let lookup = At { tables: live, now };
    let ruling = decide(&subject, &packet, &lookup);
    let verdict = subject.verdict(ruling.reason);
    let found = found(desired, live, &subject, &packet, ruling);
    let (entry_text, origin) = match found {
        Some((text, origin)) => (Some(text), origin),
        None => (None, None),
    };
    Explanation {
        pod: pod.pod.to_string(),
        destination: question.to_string(),
        verdict: verdict.name().to_owned(),
        reason: ruling.reason.name().to_owned(),
        line: ruling.line,
        rule: LINES.get(usize::from(ruling.line)).copied().unwrap_or_default().to_owned(),
        socket: socket_answer(pod, verdict, question),
        entry: entry_text,
        origin,
        policy: pod.policy.clone(),
        mode: subject.mode.name().to_owned(),
        generation: live.config.generation,
        fix: fix::fix(desired, live, declarations, &subject, question, ruling.reason),
    }
}

/// What the kernel holds for the pod: the boundary's entry, or the wall's.
fn kernel_entry<'a>(live: &'a Tables, pod: &Coverage) -> Option<&'a Pod> {
    let id = PodId::of(&pod.uid);
    let interface = pod.ifindex.and_then(|index| live.interfaces.get(&index));
    let cgroup = pod.cgroup.and_then(|cgroup| live.pods.get(&cgroup));
    interface.or(cgroup).filter(|entry| entry.id == id)
}

/// The packet that would open the connection, as the boundary sees it.
fn first_packet(subject: &Subject, question: &Question) -> Packet {
    let dst = Addr::from(question.ip);
    let mut packet = Packet::call(Hook::PodEgress, question.protocol, dst, question.port, 0);
    packet.shape = Shape::Ip;
    packet.src_mac = subject.mac;
    packet.src = if question.ip.is_ipv4() { subject.v4 } else { subject.v6 };
    if question.protocol == protocol::TCP {
        packet.tcp_flags = tcp::SYN;
    }
    // The wall judges a pod whose interface is not known, and has no MAC to check.
    if subject.mac == [0; 6] {
        packet.hook = Hook::Wall;
    }
    packet
}

fn socket_answer(pod: &Coverage, verdict: egress_common::Verdict, question: &Question) -> String {
    let denied = verdict == egress_common::Verdict::Drop;
    let call = if question.protocol == protocol::TCP { "connect" } else { "send" };
    match pod.capture {
        Capture::None if denied => format!("{call} fails at once with EPERM"),
        Capture::None => format!("{call} succeeds"),
        Capture::Sidecar if denied => format!(
            "{call} by the application goes to the sidecar; by the proxy's own user it fails with EPERM"
        ),
        Capture::Sidecar => format!("{call} goes to the sidecar first"),
        Capture::Ambient => format!("{call} goes to ztunnel first"),
    }
}

/// The entry a ruling rests on, as text, and where it came from.
fn found(
    desired: &Desired,
    live: &Tables,
    who: &Subject,
    packet: &Packet,
    ruling: Ruling,
) -> Option<(String, Option<String>)> {
    let origins = &desired.origins;
    let policy = policy_name(desired, who.policy);
    let exact = ExactKey::new(who.policy, packet.dst, packet.protocol, packet.dst_port);
    if let Some(entry) = live.exact.get(&exact)
        && matches!(ruling.line, 7..=11)
    {
        let target = Target::from_number(entry.target).map_or("unknown", Target::name);
        let text = format!(
            "EXACT[{policy}, {}, protocol {}, port {}] = {target}{}",
            packet.dst,
            packet.protocol,
            packet.dst_port,
            gateway_name(desired, entry.gateway.0)
        );
        return Some((text, origins.exact.get(&exact).map(ToString::to_string)));
    }
    let whole = AddressKey { policy: who.policy, addr: packet.dst };
    if let Some(bits) = live.addresses.get(&whole)
        && ruling.line == 9
    {
        let word =
            if bits & address::GATEWAY != 0 { "gateway" } else { "another policy's gateway" };
        return Some((format!("ADDRESSES[{policy}, {}] = {word}", packet.dst), None));
    }
    let (key, value) = live.longest(who.policy, packet.dst)?;
    if !matches!(ruling.line, 7 | 11 | 12 | 13) {
        return None;
    }
    let (bits, RangeKey { addr, .. }) = *key;
    let length = if addr.is_v4() && bits >= 128 { bits - 128 } else { bits - 32 };
    let text = format!("RANGES[{policy}, {addr}/{length}] = {}", kinds(value.kinds));
    Some((text, origins.ranges.get(key).map(ToString::to_string)))
}

fn kinds(kinds: u32) -> String {
    let names = [
        (range::CLUSTER, "cluster"),
        (range::NODE, "node"),
        (range::METADATA, "metadata"),
        (range::MESH_VIP, "mesh_vip"),
        (range::INBOUND, "inbound"),
    ];
    let set: Vec<&str> =
        names.iter().filter(|(bit, _)| kinds & bit != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { "exceptions".to_owned() } else { set.join("+") }
}

fn policy_name(desired: &Desired, id: PolicyId) -> String {
    match desired.origins.policies.get(&id) {
        Some(origin) => format!("policy {}", origin.name),
        None => "no policy".to_owned(),
    }
}

fn gateway_name(desired: &Desired, id: u32) -> String {
    let known = desired.gateways.iter().find(|gateway| gateway.id == id && id != 0);
    known.map_or_else(String::new, |gateway| format!(" {}", gateway.name))
}

/// Whether the tables allow it, for callers that need no words.
pub fn allows(live: &impl Lookup, subject: &Subject, question: &Question) -> bool {
    !decide(subject, &first_packet(subject, question), live).reason.denies()
}

#[cfg(test)]
mod tests;
