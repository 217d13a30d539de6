//! The kernel's tables as ordered values: what a policy compiles to, what is read back from the
//! kernel, and what the difference is made of. They answer [`Lookup`] with the same bytes the
//! kernel programs read, so `explain` and the tests decide exactly as the kernel does.

use std::collections::BTreeMap;

use egress_common::key::{
    Addr, AddressKey, ExactKey, ExceptionKey, GatewayId, PolicyId, RangeKey, ReplyKey,
};
use egress_common::redirect::{RedirectKey, RedirectTo};
use egress_common::state::{Config, Exact, Exception, Pod, Policy, Range};
use egress_common::{Endpoints, Lookup, Subject};

use super::Origin;

/// Everything the agent writes into the kernel, except counters and the heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// The one configuration entry; `generation` is the applier's to set.
    pub config: Config,
    /// What all pods of a policy share.
    pub policies: BTreeMap<PolicyId, Policy>,
    /// Pods by cgroup id.
    pub pods: BTreeMap<u64, Pod>,
    /// Pods by the index of their host-side interface.
    pub interfaces: BTreeMap<u32, Pod>,
    /// Exact entries.
    pub exact: BTreeMap<ExactKey, Exact>,
    /// What is known of whole addresses: bits of [`egress_common::state::address`].
    pub addresses: BTreeMap<AddressKey, u32>,
    /// Prefixes: trie prefix length in bits (32 of the policy first), then the data.
    pub ranges: BTreeMap<(u32, RangeKey), Range>,
    /// Exceptions in force.
    pub exceptions: BTreeMap<ExceptionKey, Exception>,
    /// Where denied connections go, for policies that redirect.
    pub redirects: BTreeMap<RedirectKey, RedirectTo>,
}

/// Where entries came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    /// Of exact entries.
    pub exact: BTreeMap<ExactKey, Origin>,
    /// Of prefixes.
    pub ranges: BTreeMap<(u32, RangeKey), Origin>,
    /// Of exceptions.
    pub exceptions: BTreeMap<ExceptionKey, Origin>,
    /// Of policies.
    pub policies: BTreeMap<PolicyId, Origin>,
}

impl Tables {
    /// The longest prefix of the policy that covers the address, with its length in bits.
    pub fn longest(&self, policy: PolicyId, addr: Addr) -> Option<(&(u32, RangeKey), &Range)> {
        self.covering(policy, addr).next_back()
    }

    /// Every prefix of the policy that covers the address, widest first.
    pub fn covering(
        &self,
        policy: PolicyId,
        addr: Addr,
    ) -> impl DoubleEndedIterator<Item = (&(u32, RangeKey), &Range)> {
        let octets = addr.octets();
        (0..=128u32).filter_map(move |len| {
            let key = RangeKey { policy, addr: masked(octets, len) };
            self.ranges.get_key_value(&(32 + len, key))
        })
    }
}

/// The first `len` bits of an address, the rest zero.
pub fn masked(octets: [u8; 16], len: u32) -> Addr {
    let bits = u128::from_be_bytes(octets);
    let mask = if len == 0 { 0 } else { u128::MAX << (128 - len) };
    Addr::new((bits & mask).to_be_bytes())
}

/// Tables together with the moment they are asked at.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// The tables.
    pub tables: &'a Tables,
    /// Boot clock, nanoseconds.
    pub now: u64,
}

impl Lookup for At<'_> {
    fn exact(&self, key: &ExactKey) -> Option<Exact> {
        self.tables.exact.get(key).copied()
    }

    fn address(&self, key: &AddressKey) -> u32 {
        self.tables.addresses.get(key).copied().unwrap_or(0)
    }

    fn range(&self, key: &RangeKey) -> Range {
        let longest = self.tables.longest(key.policy, key.addr);
        longest.map(|(_, range)| *range).unwrap_or_default()
    }

    fn exception(&self, key: &ExceptionKey) -> Option<Exception> {
        self.tables.exceptions.get(key).copied()
    }

    fn reply(&self, _: &ReplyKey) -> bool {
        // A question about a new connection has no flow behind it.
        false
    }

    fn over_rate(&self, _: &Subject, _: GatewayId) -> bool {
        // Nor does it say how many came before it.
        false
    }

    fn foreign_socket(&self, _: &Subject) -> bool {
        // It is the pod's own question.
        false
    }

    fn now(&self) -> u64 {
        self.now
    }
}

impl Endpoints for At<'_> {
    fn endpoint(&self, key: &RedirectKey) -> Option<RedirectTo> {
        self.tables.redirects.get(key).copied()
    }
}
