//! What redirection makes of a connection that is denied.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use egress_common::packet::{Hook, Packet};
use egress_common::redirect::{RedirectKey, RedirectTo, Redirected, redirect};
use egress_common::{Mode, Subject, decide};

use super::Question;
use crate::policy::tables::At;
use crate::policy::{Desired, Tables};

/// What is said of a connection, and of what it may go to.
pub(super) struct Redirection {
    pub(super) outcome: Redirected,
    /// It is done: the policy enforces. Otherwise it is what enforcing would do.
    pub(super) in_force: bool,
    /// The endpoints it is spread over.
    pub(super) endpoints: Vec<RedirectTo>,
}

/// Asks the rule, as the connect hook does, whether or not the policy enforces yet.
pub(super) fn ask(
    live: &Tables,
    who: &Subject,
    question: &Question,
    now: u64,
) -> Option<Redirection> {
    let in_force = who.mode == Mode::Enforce;
    let who = Subject { mode: Mode::Enforce, ..*who };
    let hook = if question.ip.is_ipv4() { Hook::Connect4 } else { Hook::Connect6 };
    let call = Packet::call(hook, question.protocol, question.ip.into(), question.port, 0);
    let tables = At { tables: live, now };
    let outcome = redirect(&who, &call, decide(&who, &call, &tables), 0, &tables)?;
    let key = |place| RedirectKey::new(who.policy, question.port, question.ip.is_ipv4(), place);
    let places = live.redirects.get(&key(0)).map_or(0, |first| u32::from(first.places));
    let endpoints = (0..places).filter_map(|place| live.redirects.get(&key(place)).copied());
    Some(Redirection { outcome, in_force, endpoints: endpoints.collect() })
}

impl Redirection {
    /// `gateway NAME via port PORT`, for each gateway and port.
    pub(super) fn gateways(&self, desired: &Desired) -> String {
        let name = |to: &RedirectTo| {
            let known = desired.gateways.iter().find(|gateway| gateway.id == to.gateway.0);
            let name = known.map_or_else(|| "unknown".to_owned(), |known| known.name.to_string());
            format!("gateway {name} via port {}", to.port())
        };
        let names: BTreeSet<String> = self.endpoints.iter().map(name).collect();
        Vec::from_iter(names).join(" or ")
    }

    /// The endpoints themselves.
    pub(super) fn addresses(&self) -> String {
        let address = |to: &RedirectTo| SocketAddr::new(to.addr.ip(), to.port()).to_string();
        let addresses: Vec<String> = self.endpoints.iter().map(address).collect();
        if addresses.is_empty() { "no endpoint".to_owned() } else { addresses.join(", ") }
    }
}
