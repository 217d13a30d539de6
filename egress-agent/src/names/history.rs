//! Where registered hosts were seen: what tells a drift from an ordinary answer.
//!
//! A host's history is the networks it has answered with: /24 and /48, because whoever serves many
//! clients answers with another machine of the same network every time. While a host is learned,
//! everything it answers becomes its history; after that, a network it never answered with is a
//! drift, once, and then part of the history. One that says where it is expected
//! ([`Registration::expected`]) is not learned: whatever lies outside is a drift, every time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::policy::registered::{Registered, Registration};

/// Networks remembered for one host; the oldest make room.
const MOST_NETWORKS: usize = 256;
/// Hosts remembered.
const MOST_HOSTS: usize = 4096;
/// A history larger than this is none of ours, bytes.
const LARGEST: u64 = 64 * 1024 * 1024;

/// Why an address is a drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drift {
    /// Outside of where the ServiceEntries expect it.
    Unexpected,
    /// In a network that the host never answered with.
    NewNetwork,
}

impl Drift {
    /// The word in events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unexpected => "unexpected",
            Self::NewNetwork => "new_network",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Host {
    /// Seconds since the epoch of the first answer.
    since: i64,
    /// Networks with the time of their last answer.
    networks: BTreeMap<IpNet, i64>,
}

/// Histories by host or pattern, as registered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct History {
    hosts: BTreeMap<String, Host>,
    #[serde(skip)]
    pub(super) changed: bool,
}

impl History {
    /// What an address of a registered host is; learns it. `now` is seconds since the epoch, as is
    /// `learning`, for which a host is learned after its first answer.
    pub(super) fn judge(
        &mut self,
        registration: &Registration,
        ip: IpAddr,
        now: i64,
        learning: i64,
    ) -> Option<Drift> {
        if !registration.expected.is_empty() {
            let expected = registration.expected.iter().any(|net| net.contains(&ip));
            return (!expected).then_some(Drift::Unexpected);
        }
        let full = self.hosts.len() >= MOST_HOSTS;
        let host = match self.hosts.get_mut(&registration.pattern) {
            Some(host) => host,
            // Nothing is said of a host that there is no room for.
            None if full => return None,
            None => self
                .hosts
                .entry(registration.pattern.clone())
                .or_insert(Host { since: now, networks: BTreeMap::new() }),
        };
        let known = host.networks.insert(network(ip), now);
        self.changed |= known.is_none_or(|seen| now - seen > 3600);
        if known.is_some() {
            return None;
        }
        if host.networks.len() > MOST_NETWORKS {
            let oldest = host.networks.iter().min_by_key(|(_, seen)| **seen).map(|(net, _)| *net);
            oldest.map(|net| host.networks.remove(&net));
        }
        // The first answer alone is always history.
        (now - host.since > learning).then_some(Drift::NewNetwork)
    }

    /// Forgets hosts that nobody registers any more.
    pub(super) fn retain(&mut self, registered: &Registered) {
        let before = self.hosts.len();
        self.hosts.retain(|pattern, _| registered.has(pattern));
        self.changed |= before != self.hosts.len();
    }

    /// Reads what an earlier agent kept; nothing where there is nothing.
    ///
    /// # Errors
    /// When there is something that cannot be read.
    pub(super) fn load(path: &Path) -> std::io::Result<Self> {
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(error),
            Ok(metadata) if metadata.len() > LARGEST => {
                return Err(std::io::Error::other("larger than any history"));
            }
            Ok(_) => {}
        }
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    /// Keeps it for the next agent; readable for root alone, and never half written.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn save(&mut self, path: &Path) -> std::io::Result<()> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let fresh = path.with_extension("fresh");
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&fresh)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        self.changed = false;
        Ok(())
    }
}

/// The network that an address stands for.
fn network(ip: IpAddr) -> IpNet {
    let bits = if ip.is_ipv4() { 24 } else { 48 };
    IpNet::new(ip, bits).map_or(IpNet::from(ip), |net| net.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn registration(pattern: &str) -> Registration {
        Registration { pattern: pattern.to_owned(), ..Registration::default() }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_new_network_after_the_learning_is_a_drift_once() {
        let mut history = History::default();
        let host = registration("api.example");
        let mut judge = |text: &str, now| history.judge(&host, ip(text), now, 100);
        assert_eq!(judge("203.0.113.1", 1000), None);
        assert_eq!(judge("198.51.100.1", 1100), None);
        assert_eq!(judge("203.0.113.200", 5000), None);
        assert_eq!(judge("192.0.2.1", 5000), Some(Drift::NewNetwork));
        assert_eq!(judge("192.0.2.2", 5001), None);
        assert_eq!(judge("2001:db8:1::1", 5002), Some(Drift::NewNetwork));
        assert_eq!(judge("2001:db8:1:ffff::1", 5003), None);
    }

    #[test]
    fn without_learning_the_first_answer_alone_is_history() {
        let mut history = History::default();
        let host = registration("*.example");
        assert_eq!(history.judge(&host, ip("203.0.113.1"), 7, 0), None);
        assert_eq!(history.judge(&host, ip("203.0.113.2"), 8, 0), None);
        assert_eq!(history.judge(&host, ip("192.0.2.1"), 8, 0), Some(Drift::NewNetwork));
    }

    #[test]
    fn outside_of_what_is_expected_is_a_drift_every_time() {
        let expected = BTreeSet::from(["203.0.113.0/24".parse().unwrap()]);
        let host = Registration { expected, ..registration("api.example") };
        let mut history = History::default();
        for now in 0..2 {
            assert_eq!(history.judge(&host, ip("203.0.113.9"), now, 100), None);
            assert_eq!(history.judge(&host, ip("192.0.2.1"), now, 100), Some(Drift::Unexpected));
        }
        assert!(history.hosts.is_empty());
    }

    #[test]
    fn neither_hosts_nor_networks_grow_without_end() {
        let mut history = History::default();
        for number in 0..1000u32 {
            let network = IpAddr::from(std::net::Ipv4Addr::from(0x0b00_0000 + number * 256));
            history.judge(&registration("api.example"), network, i64::from(number), 0);
        }
        assert_eq!(history.hosts["api.example"].networks.len(), MOST_NETWORKS);
        for number in 0..5000 {
            history.judge(&registration(&format!("{number}.example")), ip("192.0.2.1"), 0, 0);
        }
        assert_eq!(history.hosts.len(), MOST_HOSTS);
        history.retain(&Registered::default());
        assert!(history.hosts.is_empty() && history.changed);
    }

    #[test]
    fn it_outlives_the_agent_and_a_broken_file_is_told() {
        let directory = std::env::temp_dir().join(format!("egress-history-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("names.json");
        assert_eq!(History::load(&path).unwrap(), History::default());
        let mut history = History::default();
        history.judge(&registration("api.example"), ip("203.0.113.1"), 7, 0);
        assert!(history.changed);
        history.save(&path).unwrap();
        assert_eq!(History::load(&path).unwrap(), history);
        std::fs::write(&path, "{\"hosts\":7}").unwrap();
        assert!(History::load(&path).is_err());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
