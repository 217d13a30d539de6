//! Which name a pod resolved an address by: for people who read its events.
//!
//! Each pod has a page of its own. What one pod asked for is never told of another, and a pod that
//! asks for too much loses its own oldest names.

use std::collections::BTreeMap;
use std::net::IpAddr;

use egress_common::key::PodId;

use super::message::Answer;
use super::name::Name;

/// Addresses remembered for one pod, and for the whole node.
const MOST_OF_POD: usize = 512;
const MOST: usize = 32_768;
/// Addresses of one answer that are remembered.
const MOST_OF_ANSWER: usize = 32;

#[derive(Debug)]
struct Known {
    host: Name,
    /// Boot clock nanoseconds of the last answer, and until when it counts.
    learned: u64,
    expires: u64,
}

/// The names of this node's pods.
#[derive(Debug, Default)]
pub(super) struct Book {
    pages: BTreeMap<PodId, BTreeMap<IpAddr, Known>>,
    held: usize,
}

impl Book {
    /// Learns an answer. Each address counts for as long as the answer says, and `grace` nanoseconds
    /// longer: clients go on with an address that they have.
    pub(super) fn learn(&mut self, pod: PodId, answer: &Answer, now: u64, grace: u64) {
        let page = self.pages.entry(pod).or_default();
        let before = page.len();
        for address in answer.addresses.iter().take(MOST_OF_ANSWER) {
            let expires = now + u64::from(address.ttl) * 1_000_000_000 + grace;
            let known = Known { host: answer.host.clone(), learned: now, expires };
            page.insert(address.ip, known);
        }
        while page.len() > MOST_OF_POD {
            remove_oldest(page);
        }
        self.held = self.held + page.len() - before;
        while self.held > MOST {
            let fullest = self.pages.iter_mut().max_by_key(|(_, page)| page.len());
            let Some((_, page)) = fullest else { return };
            remove_oldest(page);
            self.held -= 1;
        }
    }

    /// The name by which the pod got the address last.
    pub(super) fn host(&self, pod: PodId, ip: IpAddr, now: u64) -> Option<&Name> {
        let known = self.pages.get(&pod)?.get(&ip.to_canonical())?;
        (now < known.expires).then_some(&known.host)
    }

    /// Forgets pods that are gone.
    pub(super) fn retain(&mut self, lives: impl Fn(PodId) -> bool) {
        self.pages.retain(|pod, _| lives(*pod));
        self.held = self.pages.values().map(BTreeMap::len).sum();
    }
}

fn remove_oldest(page: &mut BTreeMap<IpAddr, Known>) {
    let oldest = page.iter().min_by_key(|(_, known)| known.learned).map(|(ip, _)| *ip);
    if let Some(ip) = oldest {
        page.remove(&ip);
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Address;
    use super::*;

    const POD: PodId = PodId(1);

    fn answer(host: &str, ips: impl Iterator<Item = u32>, ttl: u32) -> Answer {
        let address = |ip: u32| Address { ip: std::net::Ipv4Addr::from(ip).into(), ttl };
        Answer { host: Name::of(host), addresses: ips.map(address).collect() }
    }

    fn ip(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(number).into()
    }

    fn host(book: &Book, pod: PodId, number: u32, now: u64) -> Option<&str> {
        book.host(pod, ip(number), now).map(Name::as_str)
    }

    #[test]
    fn a_name_is_the_pods_own_and_ends_with_its_time() {
        let mut book = Book::default();
        book.learn(POD, &answer("a.example", 7..8, 10), 100, 50);
        let end = 100 + 10_000_000_000 + 50;
        assert_eq!(host(&book, POD, 7, end - 1), Some("a.example"));
        assert_eq!(host(&book, POD, 7, end), None);
        assert_eq!(host(&book, PodId(2), 7, 100), None);
        // The last answer names it, also in the mapped form.
        book.learn(POD, &answer("b.example", 7..8, 10), 200, 0);
        let mapped = std::net::Ipv4Addr::from(7).to_ipv6_mapped().into();
        assert_eq!(book.host(POD, mapped, 300).map(Name::as_str), Some("b.example"));
        book.retain(|_| false);
        assert_eq!((host(&book, POD, 7, 300), book.held), (None, 0));
    }

    #[test]
    fn who_asks_for_too_much_loses_its_own_oldest() {
        let mut book = Book::default();
        book.learn(PodId(2), &answer("quiet.example", 1..2, 60), 0, 0);
        for at in 0..100u32 {
            let ips = at * 32..(at + 1) * 32;
            book.learn(POD, &answer("loud.example", ips, 60), u64::from(at), 0);
        }
        assert_eq!(book.held, MOST_OF_POD + 1);
        assert_eq!(host(&book, PodId(2), 1, 1), Some("quiet.example"));
        assert_eq!(host(&book, POD, 0, 1), None);
        assert_eq!(host(&book, POD, 3199, 1), Some("loud.example"));
    }

    #[test]
    fn a_node_full_of_names_takes_them_from_whoever_has_most() {
        let mut book = Book::default();
        for pod in 0..80u64 {
            for at in 0..16u32 {
                let ips = at * 32..(at + 1) * 32;
                book.learn(PodId(pod), &answer("x.example", ips, 60), u64::from(at), 0);
            }
        }
        book.learn(PodId(1000), &answer("y.example", 0..2, 60), 99, 0);
        assert_eq!(book.held, MOST);
        assert_eq!(host(&book, PodId(1000), 1, 99), Some("y.example"));
    }
}
