//! Hosts that ServiceEntries register outside the mesh, found by name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::mesh::{Location, Resolution};
use super::{Declaration, ObjectName, Snapshot};

/// What is registered for one host or pattern. Several ServiceEntries for it add up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registration {
    /// The host or pattern, lower case.
    pub pattern: String,
    /// The first ServiceEntry that has it, by name.
    pub by: Option<ObjectName>,
    /// TCP ports it is reached on.
    pub ports: BTreeSet<u16>,
    /// Where it is expected; empty where nothing is said.
    pub expected: BTreeSet<IpNet>,
}

/// The hosts of all ServiceEntries whose location is outside the mesh.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registered {
    exact: BTreeMap<String, Registration>,
    /// By suffix, the dot in front included; empty for `*`.
    suffixes: BTreeMap<String, Registration>,
}

impl Registered {
    /// Of a snapshot.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut found = Self::default();
        let mut outside: Vec<&Declaration> = snapshot
            .declarations
            .iter()
            .filter(|one| one.location == Location::MeshExternal)
            .collect();
        outside.sort_by_key(|declaration| &declaration.name);
        for declaration in outside {
            for host in declaration.hosts.iter().chain(&declaration.endpoint_hosts) {
                found.add(host, declaration);
            }
        }
        found
    }

    fn add(&mut self, host: &str, declaration: &Declaration) {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let entry = match host.strip_prefix('*') {
            Some(suffix) => self.suffixes.entry(suffix.to_owned()),
            None => self.exact.entry(host.clone()),
        };
        let registration = entry.or_default();
        registration.pattern = host;
        registration.by.get_or_insert_with(|| declaration.name.clone());
        registration.ports.extend(&declaration.dialled);
        registration.expected.extend(expected(declaration));
    }

    /// The registration of a name (lower case): its own, or that of the longest pattern.
    pub fn find(&self, host: &str) -> Option<&Registration> {
        if let Some(found) = self.exact.get(host) {
            return Some(found);
        }
        let starts = host.char_indices().filter(|(at, letter)| *letter == '.' && *at > 0);
        let suffixes = starts.map(|(at, _)| &host[at..]).chain([""]);
        suffixes.filter_map(|suffix| self.suffixes.get(suffix)).next()
    }

    /// Whether anything is registered under this pattern.
    pub fn has(&self, pattern: &str) -> bool {
        match pattern.strip_prefix('*') {
            Some(suffix) => self.suffixes.contains_key(suffix),
            None => self.exact.contains_key(pattern),
        }
    }
}

/// Where a ServiceEntry says that its hosts are. The addresses of one that is resolved are its
/// Services' own, and nobody's out there.
fn expected(declaration: &Declaration) -> impl Iterator<Item = IpNet> {
    let endpoints = declaration.endpoints.iter().map(|ip| IpNet::from(ip.to_canonical()));
    let own = match declaration.resolution {
        Resolution::None => &declaration.addresses[..],
        Resolution::Static
        | Resolution::Dns
        | Resolution::DnsRoundRobin
        | Resolution::DynamicDns
        | Resolution::Other(_) => &[],
    };
    endpoints.chain(own.iter().copied()).chain(declaration.expected.iter().copied())
}

/// The addresses that ServiceEntries name themselves, with the ports they are reached on: what needs
/// no answer.
pub fn named(snapshot: &Snapshot) -> impl Iterator<Item = (&Declaration, IpAddr)> {
    let outside = snapshot.declarations.iter().filter(|one| one.location == Location::MeshExternal);
    outside.flat_map(|declaration| {
        let single = declaration.addresses.iter().filter(|net| {
            declaration.resolution == Resolution::None && net.prefix_len() == net.max_prefix_len()
        });
        let ips = declaration.endpoints.iter().copied().chain(single.map(IpNet::addr));
        ips.map(move |ip| (declaration, ip.to_canonical()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::compile::tests::fixture::{World, declaration, ip, name, net};

    fn registered(declarations: Vec<Declaration>) -> Registered {
        let mut world = World::new();
        world.snapshot.declarations = declarations;
        Registered::of(&world.snapshot)
    }

    #[test]
    fn a_name_finds_itself_then_the_longest_pattern() {
        let found = registered(vec![
            declaration("a/one", &["API.example.com.", "*.example.com"]),
            declaration("b/two", &["*.eu.example.com", "*.org"]),
        ]);
        let pattern = |host: &str| found.find(host).map(|one| one.pattern.clone());
        for (host, expected) in [
            ("api.example.com", Some("api.example.com")),
            ("www.example.com", Some("*.example.com")),
            ("x.eu.example.com", Some("*.eu.example.com")),
            ("eu.example.com", Some("*.example.com")),
            ("example.com", None),
            ("badexample.com", None),
            ("x.org", Some("*.org")),
            ("org", None),
        ] {
            assert_eq!(pattern(host).as_deref(), expected, "{host}");
        }
        assert!(found.has("*.org") && !found.has("org"));
    }

    #[test]
    fn what_several_entries_say_of_a_host_adds_up() {
        let found = registered(vec![
            Declaration {
                expected: vec![net("203.0.113.0/24")],
                ..declaration("b/two", &["a.example"])
            },
            Declaration { dialled: BTreeSet::from([80]), ..declaration("a/one", &["a.example"]) },
            Declaration {
                location: Location::MeshInternal,
                ..declaration("c/three", &["b.example"])
            },
        ]);
        let one = found.find("a.example").unwrap();
        assert_eq!(one.by, Some(name("a/one")));
        assert_eq!(one.ports, BTreeSet::from([80, 443]));
        assert_eq!(one.expected, BTreeSet::from([net("203.0.113.0/24")]));
        assert_eq!(found.find("b.example"), None);
    }

    #[test]
    fn addresses_of_a_resolved_service_entry_are_nobodys_out_there() {
        let virtual_address = vec![net("240.240.0.1/32")];
        let dns =
            Declaration { addresses: virtual_address, ..declaration("a/dns", &["a.example"]) };
        let fixed = Declaration {
            endpoints: vec![ip("198.51.100.1")],
            resolution: Resolution::Static,
            ..dns.clone()
        };
        let none = Declaration {
            addresses: vec![net("198.51.100.2/32"), net("198.51.100.64/26")],
            resolution: Resolution::None,
            ..dns.clone()
        };
        let mut world = World::new();
        world.snapshot.declarations = vec![dns, fixed, none];
        let named: Vec<IpAddr> = named(&world.snapshot).map(|(_, ip)| ip).collect();
        assert_eq!(named, [ip("198.51.100.1"), ip("198.51.100.2")]);
        let registered = Registered::of(&world.snapshot);
        let expected = &registered.find("a.example").unwrap().expected;
        assert!(!expected.contains(&net("240.240.0.1/32")) && expected.len() == 3);
    }
}
