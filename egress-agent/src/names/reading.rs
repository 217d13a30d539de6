//! From a record to what it says: the whole path of an answer, without the ring, the clock of the
//! wall or anything else that waits.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use egress_common::dns::{BadRecord, Head};
use egress_common::key::PodId;
use egress_common::packet::protocol;
use jiff::Timestamp;

use super::book::Book;
use super::counts::{Counts, Lost};
use super::finding::{Finding, Kind};
use super::history::{Drift, History};
use super::message::{self, Address, Answer, Outcome};
use super::name::Name;
use super::stream::{Message, Streams};
use super::view::{Client, Trust, View, workload};
use super::{Admission, Settings};

/// The same finding is told again only after this time, nanoseconds.
const QUIET: u64 = 600_000_000_000;
/// Findings that are kept apart; beyond them nothing new is told until one grows old.
const MOST_TOLD: usize = 4096;
/// Least time for which an address of a limited gateway counts, seconds: an answer may say zero.
const LEAST: u32 = 5;
/// Most of what an answer says, seconds: a day.
const LONGEST: u32 = 86_400;

/// What a record led to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    pub(super) findings: Vec<Finding>,
    pub(super) admissions: Vec<Admission>,
}

/// When a finding was told last, and how often it was not since.
#[derive(Debug)]
struct Told {
    last: u64,
    untold: u64,
}

/// What is remembered between two records.
#[derive(Debug)]
pub(super) struct Reading {
    settings: Settings,
    streams: Streams,
    history: History,
    told: BTreeMap<(Kind, PodId, Name, IpAddr), Told>,
}

impl Reading {
    pub(super) fn new(settings: Settings, history: History) -> Self {
        Self { settings, history, streams: Streams::default(), told: BTreeMap::new() }
    }

    pub(super) const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Forgets hosts that are registered no more.
    pub(super) fn retain(&mut self, view: &View) {
        self.history.retain(&view.registered);
    }

    /// Keeps the history, where it has changed.
    pub(super) fn keep(&mut self, path: &Path) -> std::io::Result<()> {
        if self.history.changed { self.history.save(path) } else { Ok(()) }
    }

    /// Reads one record.
    pub(super) fn take(
        &mut self,
        sample: Result<(Head, &[u8]), BadRecord>,
        view: &View,
        book: &mut Book,
        counts: &Counts,
    ) -> Found {
        let mut found = Found::default();
        let Ok((head, payload)) = sample else {
            counts.lost(Lost::Decode);
            return found;
        };
        // A pod that was gone before its answer was read.
        let Some(client) = view.client(head.pod) else {
            return found;
        };
        let trust = view.trust(client, head.resolver);
        if trust == Trust::Foreign {
            counts.outcome(Outcome::ForeignResolver);
            return found;
        }
        let messages = if head.protocol == protocol::UDP {
            vec![Message { bytes: payload.to_vec(), cut: payload.len() < head.whole as usize }]
        } else {
            let Ok(messages) = self.streams.add(&head, payload) else {
                counts.outcome(Outcome::OutOfOrder);
                return found;
            };
            messages
        };
        for Message { bytes, cut } in messages {
            match message::read(&bytes, cut) {
                Ok((outcome, answer)) => {
                    counts.outcome(outcome);
                    let grace = nanos(self.settings.grace.as_secs());
                    book.learn(head.pod, &answer, head.time, grace);
                    let heard = Heard { head: &head, client, trust, answer: &answer };
                    self.judge(&heard, view, counts, &mut found);
                }
                Err(outcome) => counts.outcome(outcome),
            }
        }
        found
    }
}

/// An answer with whom it went to.
struct Heard<'a> {
    head: &'a Head,
    client: &'a Client,
    trust: Trust,
    answer: &'a Answer,
}

impl Reading {
    fn judge(&mut self, heard: &Heard<'_>, view: &View, counts: &Counts, found: &mut Found) {
        let host = &heard.answer.host;
        if self.may_lead_inside(host) {
            return;
        }
        let registration = view.registered.find(host.as_str());
        let now = Timestamp::now().as_second();
        let learning = i64::try_from(self.settings.learning.as_secs()).unwrap_or(i64::MAX);
        let mut counted = Vec::new();
        for address in &heard.answer.addresses {
            let place = view.places.of_address(address.ip);
            let kind = match (place, registration) {
                (Some(place), _) => Some(Kind::Rebinding(place)),
                (None, Some(registration)) => {
                    self.history.judge(registration, address.ip, now, learning).map(Kind::Drift)
                }
                (None, None) => None,
            };
            if let Some(kind) = kind {
                // An answer counts once, however many addresses it has.
                if !counted.contains(&kind.class()) {
                    counted.push(kind.class());
                    counts.finding(workload(&heard.client.pod), kind.class());
                }
                let declared_by = registration.and_then(|one| one.by.clone());
                found.findings.extend(self.told(heard, kind, address, declared_by));
            }
            // Neither inside, nor where the host's own ServiceEntry does not expect it.
            let may_open = match kind {
                None | Some(Kind::Drift(Drift::NewNetwork)) => heard.trust == Trust::Named,
                Some(Kind::Rebinding(_) | Kind::Drift(Drift::Unexpected)) => false,
            };
            if let (Some(policy), Some(registration), true) =
                (heard.client.limited, registration, may_open)
            {
                let ttl = u64::from(address.ttl.clamp(LEAST, LONGEST));
                let expires = heard.head.time + nanos(ttl + self.settings.grace.as_secs());
                found.admissions.push(Admission {
                    policy,
                    ip: address.ip,
                    pattern: registration.pattern.clone(),
                    ports: registration.ports.clone(),
                    answered: heard.head.time,
                    expires,
                });
            }
        }
    }

    /// Names of the cluster itself, and of domains that the operator calls internal.
    fn may_lead_inside(&self, host: &Name) -> bool {
        host.is_under("localhost")
            || self.settings.internal_domains.iter().any(|domain| host.is_under(domain))
    }

    /// The finding, unless it was told a short while ago.
    fn told(
        &mut self,
        heard: &Heard<'_>,
        kind: Kind,
        address: &Address,
        declared_by: Option<crate::policy::ObjectName>,
    ) -> Option<Finding> {
        let now = heard.head.time;
        let key = (kind, heard.head.pod, heard.answer.host.clone(), address.ip);
        if self.told.len() >= MOST_TOLD && !self.told.contains_key(&key) {
            self.told.retain(|_, told| now.saturating_sub(told.last) < QUIET);
            if self.told.len() >= MOST_TOLD {
                return None;
            }
        }
        let untold = match self.told.get_mut(&key) {
            Some(told) if now.saturating_sub(told.last) < QUIET => {
                told.untold += 1;
                return None;
            }
            Some(told) => told.untold,
            None => 0,
        };
        self.told.insert(key, Told { last: now, untold: 0 });
        Some(Finding {
            time: now,
            kind,
            pod: heard.client.pod.clone(),
            host: heard.answer.host.clone(),
            ip: address.ip,
            ttl: address.ttl,
            resolver: heard.head.resolver.ip(),
            protocol: heard.head.protocol,
            declared_by,
            untold,
        })
    }
}

const fn nanos(seconds: u64) -> u64 {
    seconds.saturating_mul(1_000_000_000)
}

#[cfg(test)]
#[path = "reading_tests.rs"]
mod tests;
