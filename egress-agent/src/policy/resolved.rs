//! Addresses that DNS gave to the pods of limited gateways, for hosts that are registered.
//!
//! One counts for as long as its answer says and the grace after it; then nothing new is opened to
//! it, and what is open goes on for a day. Nothing here is taken from the tables of an agent that is
//! gone but what it had put there, so that a restart cuts nothing off.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egress_common::Addr;
use egress_common::key::{ExactKey, PolicyId};
use egress_common::packet::protocol::TCP;
use egress_common::state::{Exact, Target};

use super::Tables;
use super::registered::Registered;

/// Addresses held on a node.
const MOST: usize = 4096;
/// Ports of one address.
const MOST_PORTS: usize = 16;
/// How long what is open may go on, nanoseconds.
const OPEN: u64 = 86_400_000_000_000;

/// An address of a limited gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The host or pattern as registered; `None` for one that an earlier agent left.
    pub pattern: Option<String>,
    /// TCP ports.
    pub ports: BTreeSet<u16>,
    /// Boot clock nanoseconds until when connections may be opened to it.
    pub expires: u64,
    /// Nothing more is opened to it.
    pub earlier: bool,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    held: BTreeMap<(PolicyId, IpAddr), Held>,
}

/// There is no room for another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Resolved {
    /// What an earlier agent put into the tables: good for another `grace` nanoseconds.
    pub fn adopt(tables: &Tables, now: u64, grace: u64) -> Self {
        let mut adopted = Self::default();
        for (key, entry) in &tables.exact {
            let earlier = match Target::from_number(entry.target) {
                Some(Target::Resolved) => false,
                Some(Target::Earlier) => true,
                _ => continue,
            };
            let expires = if earlier { now } else { now + grace };
            let held = adopted.held.entry((key.policy(), key.addr().ip()));
            let held = held.or_insert_with(|| Held {
                pattern: None,
                ports: BTreeSet::new(),
                expires,
                earlier,
            });
            held.ports.insert(key.port());
        }
        adopted
    }

    /// Takes an address in, or prolongs it; gives the entries that the kernel must know now.
    ///
    /// # Errors
    /// [`Full`] when there is no room for it.
    pub fn admit(
        &mut self,
        policy: PolicyId,
        ip: IpAddr,
        pattern: &str,
        ports: &BTreeSet<u16>,
        expires: u64,
    ) -> Result<Vec<(ExactKey, Exact)>, Full> {
        let key = (policy, ip);
        if !self.held.contains_key(&key) && self.held.len() >= MOST {
            let spent = self.held.iter().filter(|(_, held)| held.earlier);
            let oldest = spent.min_by_key(|(_, held)| held.expires).map(|(key, _)| *key);
            self.held.remove(&oldest.ok_or(Full)?);
        }
        let ports: BTreeSet<u16> = ports.iter().copied().take(MOST_PORTS).collect();
        let fresh = Held { pattern: Some(pattern.to_owned()), ports, expires, earlier: false };
        let (news, held) = match self.held.get_mut(&key) {
            Some(held) => {
                let news = held.earlier || !held.ports.is_superset(&fresh.ports);
                let expires = held.expires.max(expires);
                *held = Held { expires, ..fresh };
                (news, &*held)
            }
            None => (true, &*self.held.entry(key).or_insert(fresh)),
        };
        Ok(if news { entries(key, held).collect() } else { Vec::new() })
    }

    /// Ends what has expired; whether the tables must change.
    pub fn expire(&mut self, now: u64) -> bool {
        let mut changed = false;
        self.held.retain(|_, held| {
            if !held.earlier && now >= held.expires {
                held.earlier = true;
                changed = true;
            }
            let keep = now < held.expires.saturating_add(OPEN);
            changed |= !keep;
            keep
        });
        changed
    }

    /// The entries of a policy. A host that is registered no more opens nothing more.
    pub fn of(
        &self,
        policy: PolicyId,
        registered: &Registered,
    ) -> impl Iterator<Item = (ExactKey, Exact, &Held)> {
        let of = self.held.iter().filter(move |((of, _), _)| *of == policy);
        of.flat_map(move |(key, held)| {
            let gone = held.pattern.as_ref().is_some_and(|pattern| !registered.has(pattern));
            let entry = move |(key, entry): (ExactKey, Exact)| {
                let entry = if gone { Exact::plain(Target::Earlier) } else { entry };
                (key, entry, held)
            };
            entries(*key, held).map(entry)
        })
    }
}

fn entries(
    (policy, ip): (PolicyId, IpAddr),
    held: &Held,
) -> impl Iterator<Item = (ExactKey, Exact)> {
    let target = if held.earlier { Target::Earlier } else { Target::Resolved };
    let key = move |port: &u16| ExactKey::new(policy, Addr::from(ip), TCP, *port);
    held.ports.iter().map(move |port| (key(port), Exact::plain(target)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: PolicyId = PolicyId(7);

    fn ip(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(number).into()
    }

    fn ports(ports: &[u16]) -> BTreeSet<u16> {
        ports.iter().copied().collect()
    }

    fn targets(resolved: &Resolved, registered: &Registered) -> Vec<(u16, u8)> {
        let all = resolved.of(POLICY, registered);
        all.map(|(key, entry, _)| (key.port(), entry.target)).collect()
    }

    const NEW: u8 = Target::Resolved.number();
    const OLD: u8 = Target::Earlier.number();

    #[test]
    fn an_address_opens_until_it_expires_and_is_gone_a_day_later() {
        let mut resolved = Resolved::adopt(&Tables::default(), 0, 0);
        let all = ports(&[80, 443]);
        let news = resolved.admit(POLICY, ip(1), "*", &all, 100).unwrap();
        assert_eq!(news.len(), 2);
        // Once more, and with less: nothing is new, and no time is lost.
        assert_eq!(resolved.admit(POLICY, ip(1), "*", &all, 90), Ok(Vec::new()));
        assert!(!resolved.expire(99) && resolved.expire(100) && !resolved.expire(101));
        assert!(resolved.held[&(POLICY, ip(1))].earlier);
        assert_eq!(resolved.admit(POLICY, ip(1), "*", &all, 200).unwrap().len(), 2);
        resolved.expire(200);
        assert!(resolved.expire(200 + OPEN) && resolved.held.is_empty());
    }

    #[test]
    fn a_host_that_is_registered_no_more_opens_nothing_more() {
        let mut resolved = Resolved::default();
        resolved.admit(POLICY, ip(1), "a.example", &ports(&[443]), 100).unwrap();
        resolved.admit(PolicyId(8), ip(1), "a.example", &ports(&[443]), 100).unwrap();
        assert_eq!(targets(&resolved, &Registered::default()), [(443, OLD)]);
    }

    #[test]
    fn what_an_earlier_agent_held_goes_on() {
        let mut tables = Tables::default();
        let key = |port| ExactKey::new(POLICY, Addr::from(ip(1)), TCP, port);
        tables.exact.insert(key(443), Exact::plain(Target::Resolved));
        tables.exact.insert(key(80), Exact::plain(Target::Infrastructure));
        let other = ExactKey::new(POLICY, Addr::from(ip(2)), TCP, 443);
        tables.exact.insert(other, Exact::plain(Target::Earlier));
        let mut resolved = Resolved::adopt(&tables, 1000, 50);
        assert_eq!(targets(&resolved, &Registered::default()), [(443, NEW), (443, OLD)]);
        assert!(resolved.expire(1050));
        assert_eq!(targets(&resolved, &Registered::default()), [(443, OLD), (443, OLD)]);
    }

    #[test]
    fn there_is_room_for_so_many_and_the_spent_ones_make_it() {
        let mut resolved = Resolved::default();
        for number in 0..4096 {
            let expires = if number == 7 { 10 } else { 1000 };
            resolved.admit(POLICY, ip(number), "*", &ports(&[443]), expires).unwrap();
        }
        assert_eq!(resolved.admit(POLICY, ip(5000), "*", &ports(&[443]), 1000), Err(Full));
        resolved.expire(10);
        assert!(resolved.admit(POLICY, ip(5000), "*", &ports(&[443]), 1000).is_ok());
        assert!(!resolved.held.contains_key(&(POLICY, ip(7))));
        let many: Vec<u16> = (1..=100).collect();
        assert_eq!(
            resolved.admit(POLICY, ip(1), "*", &ports(&many), 1000).unwrap().len(),
            MOST_PORTS
        );
    }
}
