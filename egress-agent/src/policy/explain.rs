//! Why: the decision about one destination, in words.
//!
//! The same [`decide`] as the kernel's, on the tables read back from the kernel; this module only
//! builds the question and names what was found.

mod entry;
mod fix;
mod mesh;
mod redirect;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use egress_common::key::PodId;
use egress_common::packet::{Hook, Packet, protocol, tcp};
use egress_common::state::{Capture, Pod};
use egress_common::{Addr, Subject, Verdict, decide};
use serde::{Deserialize, Serialize};

use super::tables::At;
use super::{Coverage, Desired, Snapshot, Tables};
use entry::{Asked, Found};
use redirect::Redirection;

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
    /// What the mesh says of a destination outside; nothing of one inside.
    pub mesh: Option<String>,
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
        if let Some(mesh) = &self.mesh {
            writeln!(f, "  mesh    {mesh}")?;
        }
        write!(f, "  do      {}", self.fix)
    }
}

/// The verdict order as `explain` shows it, by line.
pub const LINES: [&str; 18] = [
    "a pod the agent has not learned reaches loopback and named resolvers, and answers what was opened from outside",
    "no policy governs the pod; only the source guard applies",
    "only untagged IPv4, IPv6 and exact ARP leave a pod",
    "malformed packets, options and extension headers are denied, and fragments to the outside",
    "the source must be the pod's own",
    "loopback, own addresses (on the node's network: the node's) and neighbour discovery are local; multicast, broadcast and link-local are denied",
    "answers on connections that were opened from outside",
    "metadata service, mesh addresses on the wire, tunnels to nodes, Services that end outside",
    "named resolvers on port 53; no other resolver",
    "gateway endpoints, exact in address, protocol and port",
    "named infrastructure, exact in address, protocol and port",
    "in-cluster ranges; node addresses only where listed exactly",
    "an exception that is in force",
    "everything else is denied",
    "the agent's lease has expired and the policy denies new connections then",
    "its socket is neither the pod's nor its mesh proxy's",
    "a Service's address must lead to what some policy of the node may reach",
    "what would be denied as not_gateway goes to the gateway, where the policy redirects its port",
];

/// Answers for a pod that the snapshot knows. `now` is the boot clock in nanoseconds.
pub fn explain(
    desired: &Desired,
    live: &Tables,
    snapshot: &Snapshot,
    pod: &Coverage,
    question: &Question,
    now: u64,
) -> Explanation {
    let subject = subject(live, kernel_entry(live, pod));
    let packet = first_packet(&subject, question);
    let mut ruling = decide(&subject, &packet, &At { tables: live, now });
    // The connect hook comes first, and what it rewrites no packet hook sees.
    let caller = wall_entry(live, pod).map(|entry| self::subject(live, Some(entry)));
    let redirection = caller.and_then(|who| redirect::ask(live, &who, question, now));
    let redirection = redirection.as_ref();
    if let Some(Redirection { outcome, in_force: true, .. }) = redirection {
        ruling = outcome.ruling;
    }
    let verdict = subject.verdict(ruling.reason);
    let asked =
        Asked { desired, live, snapshot, pod, who: &subject, packet: &packet, redirection, now };
    let (entry, origin) = match asked.found(ruling) {
        Some(Found { text, origin }) => (Some(text), origin),
        None => (None, None),
    };
    Explanation {
        pod: pod.pod.to_string(),
        destination: question.to_string(),
        verdict: verdict.name().to_owned(),
        reason: ruling.reason.name().to_owned(),
        line: ruling.line,
        rule: LINES.get(usize::from(ruling.line)).copied().unwrap_or_default().to_owned(),
        socket: match redirection {
            Some(to) if to.in_force && to.outcome.to.is_some() => {
                format!("redirected to {}; its peer is told as {question}", to.gateways(desired))
            }
            _ => socket_answer(live, pod, question, now),
        },
        entry,
        origin,
        policy: pod.policy.clone(),
        mode: subject.mode.name().to_owned(),
        generation: live.config.generation,
        mesh: mesh::says(&asked, ruling.reason),
        fix: fix::fix(&asked, ruling.reason),
    }
}

/// What the kernel holds for the pod: the boundary's entry, or the wall's.
fn kernel_entry<'a>(live: &'a Tables, pod: &Coverage) -> Option<&'a Pod> {
    let interface = pod.ifindex.and_then(|index| live.interfaces.get(&index));
    let entry = interface.or_else(|| wall_entry(live, pod));
    entry.filter(|entry| entry.id == PodId::of(&pod.uid))
}

/// What the hooks at the cgroup know the pod by.
fn wall_entry<'a>(live: &'a Tables, pod: &Coverage) -> Option<&'a Pod> {
    pod.cgroup.and_then(|cgroup| live.pods.get(&cgroup))
}

/// Who a decision is about. The agent that answers is alive, so its lease has not expired.
fn subject(live: &Tables, entry: Option<&Pod>) -> Subject {
    match entry {
        Some(entry) => Subject::of(entry, live.policies.get(&entry.policy), &live.config, 0),
        None => Subject::unknown(&live.config),
    }
}

/// The packet that would open the connection, as the boundary sees it.
fn first_packet(subject: &Subject, question: &Question) -> Packet {
    let dst = Addr::from(question.ip);
    let mut packet = Packet::call(Hook::PodEgress, question.protocol, dst, question.port, 0);
    packet.src_mac = subject.mac;
    packet.src = if dst.is_v4() { subject.v4 } else { subject.v6 };
    if question.protocol == protocol::TCP {
        packet.tcp_flags = tcp::SYN;
    }
    // The wall judges a pod whose interface is not known, and has no MAC to check.
    if subject.mac == [0; 6] {
        packet.hook = Hook::Wall;
    }
    packet
}

/// What the socket hooks answer. They deny only what they are certain of: a captured
/// application's call is its proxy's to make.
fn socket_answer(live: &Tables, pod: &Coverage, question: &Question, now: u64) -> String {
    let dst = Addr::from(question.ip);
    let hook = match (question.protocol, dst.is_v4()) {
        (protocol::TCP, true) => Hook::Connect4,
        (protocol::TCP, false) => Hook::Connect6,
        (protocol::UDP, true) => Hook::Sendmsg4,
        (protocol::UDP, false) => Hook::Sendmsg6,
        _ => return "no socket hook sees this protocol; the packet hooks decide".to_owned(),
    };
    let Some(entry) = wall_entry(live, pod) else {
        return format!(
            "{hook} lets it pass: the pod's cgroup is not known; the packet hooks decide"
        );
    };
    let who = subject(live, Some(entry));
    let call = Packet::call(hook, question.protocol, dst, question.port, 0);
    let reason = decide(&who, &call, &At { tables: live, now }).reason;
    let answer = match who.verdict(reason) {
        Verdict::Allow => "lets it pass",
        Verdict::Audit => "reports it and lets it pass",
        Verdict::Drop => "refuses it at once with EPERM",
    };
    match Capture::from_number(entry.capture) {
        Some(Capture::None) => format!("{hook} {answer}"),
        Some(Capture::Sidecar) => format!(
            "{hook} lets the application's call pass, because the sidecar takes it over; for the \
             sidecar's own user it {answer}"
        ),
        Some(Capture::Ambient) | None => {
            format!("{hook} lets it pass, because ztunnel takes it over; the packet hooks decide")
        }
    }
}

#[cfg(test)]
mod tests;
