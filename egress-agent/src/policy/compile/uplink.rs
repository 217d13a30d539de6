//! The tables of the uplink: what any policy of this node may reach.
//!
//! At the uplink nothing tells whose packet it is, and its address is what Service translation
//! left. Each pod's own policy was asked at the boundary; here a translated address must be one
//! that somebody on this node may reach, so that no Service leads anywhere else.

use egress_common::key::{ExactKey, PolicyId, RangeKey};
use egress_common::state::{Exact, Range, Target, range};

use crate::policy::Tables;
use crate::policy::tables::{Origins, masked};

/// What of a prefix matters at the uplink.
const KINDS: u32 = range::CLUSTER | range::NODE | range::METADATA;

/// Adds them, from the tables of all policies, each entry with the origin of one it stands for.
pub(super) fn add(tables: &mut Tables, origins: &mut Origins) {
    let exact: Vec<(ExactKey, Exact)> = tables
        .exact
        .iter()
        .filter(|(key, entry)| key.policy() != PolicyId::NONE && leads_somewhere(entry))
        .map(|(key, entry)| (*key, *entry))
        .collect();
    for (key, entry) in exact {
        let own = ExactKey::new(PolicyId::UPLINK, key.addr(), key.protocol(), key.port());
        tables.exact.insert(own, entry);
        if let Some(origin) = origins.exact.get(&key).cloned() {
            origins.exact.insert(own, origin);
        }
    }

    // Sorted by address and then by length, so that whatever covers a prefix comes before it.
    let mut prefixes: Vec<Prefix> = tables
        .ranges
        .iter()
        .map(|(key, value)| Prefix {
            octets: key.1.addr.octets(),
            len: key.0 - 32,
            kinds: value.kinds & KINDS,
            of: *key,
        })
        .filter(|prefix| prefix.kinds != 0)
        .collect();
    prefixes.sort_unstable_by_key(|prefix| (prefix.octets, prefix.len));
    let mut covering: Vec<Prefix> = Vec::new();
    for mut prefix in prefixes {
        covering.retain(|wide| masked(prefix.octets, wide.len).octets() == wide.octets);
        prefix.kinds |= covering.iter().fold(0, |kinds, wide| kinds | wide.kinds);
        // A Service's address differs from what covers it in nothing that matters here.
        if covering.last().is_some_and(|wide| wide.kinds == prefix.kinds) {
            continue;
        }
        let addr = masked(prefix.octets, prefix.len);
        let own = (prefix.len + 32, RangeKey { policy: PolicyId::UPLINK, addr });
        tables.ranges.insert(own, Range { kinds: prefix.kinds, exceptions: 0 });
        if let Some(origin) = origins.ranges.get(&prefix.of).cloned() {
            origins.ranges.insert(own, origin);
        }
        covering.push(prefix);
    }
}

/// A prefix of one policy.
struct Prefix {
    octets: [u8; 16],
    len: u32,
    kinds: u32,
    of: (u32, RangeKey),
}

/// Whether the entry is for something to be reached.
fn leads_somewhere(entry: &Exact) -> bool {
    match Target::from_number(entry.target) {
        Some(
            Target::Resolver
            | Target::Gateway
            | Target::Draining
            | Target::Infrastructure
            | Target::Node,
        ) => true,
        Some(Target::HiddenExternal | Target::Resolved | Target::Earlier) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egress_common::Addr;
    use egress_common::key::GatewayId;

    fn range_of(tables: &Tables, addr: [u8; 4]) -> u32 {
        let longest = tables.longest(PolicyId::UPLINK, Addr::v4(addr));
        longest.map_or(0, |(_, range)| range.kinds)
    }

    #[test]
    fn what_any_policy_may_reach_and_nothing_else() {
        let mut tables = Tables::default();
        let net = |policy, addr: [u8; 4], len: u8| {
            (RangeKey::bits(true, len), RangeKey { policy: PolicyId(policy), addr: Addr::v4(addr) })
        };
        for (policy, addr, len, kinds) in [
            (1, [10, 0, 0, 0], 8, range::CLUSTER | range::INBOUND),
            (1, [192, 0, 2, 1], 32, range::INBOUND),
            // The second policy's node lies in the first one's range.
            (2, [10, 9, 0, 1], 32, range::NODE),
            (2, [172, 16, 0, 0], 12, range::CLUSTER),
        ] {
            tables.ranges.insert(net(policy, addr, len), Range { kinds, exceptions: 5 });
        }
        let key = |policy, port| ExactKey::new(policy, Addr::v4([192, 0, 2, 7]), 6, port);
        tables.exact.insert(key(PolicyId(1), 443), Exact::gateway(GatewayId(4), false));
        tables.exact.insert(key(PolicyId(1), 80), Exact::plain(Target::HiddenExternal));
        tables.exact.insert(key(PolicyId::NONE, 53), Exact::plain(Target::Resolver));
        add(&mut tables, &mut Origins::default());
        assert_eq!(range_of(&tables, [10, 1, 1, 1]), range::CLUSTER);
        assert_eq!(range_of(&tables, [10, 9, 0, 1]), range::CLUSTER | range::NODE);
        assert_eq!(range_of(&tables, [172, 16, 0, 1]), range::CLUSTER);
        assert_eq!(range_of(&tables, [192, 0, 2, 1]), 0);
        let reached = |port| tables.exact.contains_key(&key(PolicyId::UPLINK, port));
        assert_eq!([443, 80, 53].map(reached), [true, false, false]);
        let excepted = tables
            .ranges
            .iter()
            .filter(|((_, key), range)| key.policy == PolicyId::UPLINK && range.exceptions != 0);
        assert_eq!(excepted.count(), 0);
    }
}
