//! What the watches have told: one store for each, and what may be said of them together.
//!
//! A synchronous state machine without a client and without a clock. Whatever a watch goes
//! through — a restart, a gap, a server that is gone — its store keeps what it last knew until
//! the next list is complete, and only then is compared with it.
//!
//! Invariants: nothing is said before everything that was asked for is listed. A policy whose
//! gateways are not listed yet is what it was before; what is missing for any other reason makes
//! the snapshot incomplete, which forbids removals.

use std::collections::{BTreeMap, BTreeSet};

use super::demand::{Watch, needs, standing};
use super::trouble::Trouble;
use crate::policy::{EgressPolicy, Problem, Service, Snapshot};
use crate::registry::assemble::{Kept, assemble};
use crate::registry::object::{Entry, Item, Key, Kind};

/// An object as the server has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Held {
    /// `metadata.uid`.
    pub(super) uid: String,
    /// `metadata.resourceVersion`, which grows with every change of anything; 0 where it is not a
    /// number.
    pub(super) version: u64,
    /// What it says.
    pub(super) entry: Entry,
}

/// What happens to one watch.
#[derive(Debug)]
pub(super) enum Input {
    /// A list begins.
    Init,
    /// It has this object.
    Listed(Box<Held>),
    /// The list is complete.
    InitDone,
    /// An object appeared or changed.
    Applied(Box<Held>),
    /// An object of this UID is not selected any more.
    Deleted(Key, String),
    /// Something came that is no object; what it is, and why.
    Unreadable(String),
    /// Changes are being followed from where the list ended.
    Opened,
    /// The list or the watch failed and will be tried again.
    Failed(Trouble),
}

/// One watch's objects.
#[derive(Debug, Default)]
struct Store {
    objects: BTreeMap<Key, Held>,
    /// The list that is being received.
    listing: Option<BTreeMap<Key, Held>>,
    /// A list was complete at least once.
    listed: bool,
    /// Changes are being followed.
    open: bool,
    trouble: Option<Trouble>,
    /// What was no object.
    unreadable: BTreeSet<String>,
}

/// Every watch's store.
#[derive(Debug)]
pub(super) struct Stores {
    server: String,
    standing: BTreeSet<Watch>,
    /// Exactly the watches that are wanted.
    stores: BTreeMap<Watch, Store>,
    /// Kinds the server has; `None` before it was asked.
    served: Option<BTreeSet<Kind>>,
    /// Why it did not say so when it was last asked.
    undiscovered: Option<Trouble>,
    /// Policies as they are in force: the last version whose needs were all listed.
    in_force: BTreeMap<String, EgressPolicy>,
    kept: Kept,
}

impl Stores {
    /// Nothing known yet. `server` is the API server's address, for messages.
    pub(super) fn new(node: &str, server: &str) -> Self {
        let standing = standing(node);
        Self {
            server: server.to_owned(),
            stores: standing.iter().map(|watch| (watch.clone(), Store::default())).collect(),
            standing,
            served: None,
            undiscovered: None,
            in_force: BTreeMap::new(),
            kept: Kept::new(),
        }
    }

    /// The watches that should run: of kinds the server has.
    pub(super) fn wanted(&self) -> impl Iterator<Item = &Watch> {
        self.stores.keys().filter(|watch| self.is_served(watch.kind))
    }

    /// Takes note of the kinds the server has. Objects of a kind that went away only classify, and
    /// go with it; those that decide stay as they were last known.
    pub(super) fn serve(&mut self, kinds: BTreeSet<Kind>) -> bool {
        let healed = self.undiscovered.take().is_some();
        if self.served.as_ref() == Some(&kinds) {
            return healed;
        }
        for (watch, store) in
            self.stores.iter_mut().filter(|(watch, _)| !kinds.contains(&watch.kind))
        {
            let last = std::mem::take(store);
            if watch.kind.decides() {
                *store = Store { objects: last.objects, listed: last.listed, ..Store::default() };
            }
        }
        self.served = Some(kinds);
        self.settle();
        true
    }

    /// Takes note that the server did not say which kinds it has. Those it had stay.
    pub(super) fn undiscovered(&mut self, why: Trouble) -> bool {
        let before = self.undiscovered.replace(why);
        before != self.undiscovered
    }

    /// Kinds the server does not have.
    pub(super) fn absent(&self) -> impl Iterator<Item = Kind> {
        Kind::ALL.iter().copied().filter(|kind| !self.is_served(*kind))
    }

    /// Takes what happened to one watch; whether a snapshot may now say anything else. A watch
    /// that is not wanted any more may still have something to say, which is not heard.
    pub(super) fn input(&mut self, watch: &Watch, input: Input) -> bool {
        let Some(store) = self.stores.get_mut(watch) else { return false };
        // Pods and slices come and go all the time and ask for nothing.
        let asks = match &input {
            Input::Applied(_) | Input::Deleted(..) => {
                matches!(watch.kind, Kind::EgressPolicy | Kind::Service)
            }
            Input::Init | Input::Listed(_) | Input::Unreadable(_) => false,
            Input::InitDone | Input::Opened | Input::Failed(_) => true,
        };
        let mut gone = Vec::new();
        let changed = store.input(input, &mut gone);
        // Of a pod that is gone, nothing may be left, whichever of the watches hears of it first:
        // its address is the next pod's.
        if watch.kind == Kind::Pod && watch.only_loses_deleted() {
            let others = self.stores.iter_mut().filter(|(other, _)| other.kind == Kind::Pod);
            for (_, store) in others {
                for (key, uid) in &gone {
                    store.forget(key, uid);
                }
            }
        }
        if changed && asks {
            self.settle();
        }
        changed
    }

    /// Whether some watch gets no answer from the server.
    pub(super) fn is_lost(&self) -> bool {
        let mut troubles = self.stores.values().filter_map(|store| store.trouble.as_ref());
        troubles.any(|trouble| !trouble.is_refusal())
    }

    /// Whether everything was listed, so that a snapshot may be made.
    pub(super) fn is_ready(&self) -> bool {
        self.served.is_some() && self.stores.keys().all(|watch| self.is_listed(watch))
    }

    /// Whether everything that decides is known to be as the server has it.
    pub(super) fn is_in_step(&self) -> bool {
        self.is_ready()
            && self.stores.iter().all(|(watch, store)| {
                store.open || !self.is_served(watch.kind) || self.is_passed_over(watch, store)
            })
    }

    /// The snapshot of what is known; its revision is the publisher's to set.
    pub(super) fn snapshot(&mut self) -> Snapshot {
        let substitutes = self.substitutes();
        let mut newest: BTreeMap<&Key, &Held> = BTreeMap::new();
        for held in self.stores.values().flat_map(|store| store.objects.values()) {
            let known = newest.entry(&held.entry.key).or_insert(held);
            if held.version > known.version {
                *known = held;
            }
        }
        let entries = newest.values().filter_map(|held| match substitutes.get(&held.entry.key) {
            Some(substitute) => substitute.as_ref(),
            None => Some(&held.entry),
        });
        let complete = self.is_complete();
        let kept = std::mem::take(&mut self.kept);
        let (snapshot, kept) = assemble(entries, self.problems(), complete, kept);
        self.kept = kept;
        snapshot
    }

    /// What is wrong with the watches.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let undiscovered = self.undiscovered.iter();
        let mut problems: Vec<Problem> =
            undiscovered.map(|trouble| trouble.undiscovered(&self.server)).collect();
        for (watch, store) in &self.stores {
            let trouble = store.trouble.iter();
            problems.extend(trouble.map(|trouble| trouble.problem(watch, &self.server)));
            problems.extend(store.unreadable.iter().map(|what| Trouble::unreadable(watch, what)));
            if !self.is_served(watch.kind) && self.served.is_some() && watch.kind.is_own() {
                problems.push(Trouble::not_installed(watch.kind));
            }
        }
        for policy in self.latest() {
            let failing = self.needs(policy).into_iter().find(|watch| {
                !self.is_listed(watch)
                    && self.stores.get(watch).is_some_and(|store| store.trouble.is_some())
            });
            let in_force = self.in_force.contains_key(&policy.name);
            let held_back = failing.map(|watch| Trouble::held_back(policy, &watch, in_force));
            problems.extend(held_back.filter(|_| self.in_force.get(&policy.name) != Some(policy)));
        }
        problems.sort();
        problems.dedup();
        problems
    }

    /// Nothing is missing that a snapshot would be taken to have.
    fn is_complete(&self) -> bool {
        let needed = self.in_force.values().flat_map(|policy| self.needs(policy));
        let needed: BTreeSet<Watch> = needed.chain(self.standing.iter().cloned()).collect();
        needed.iter().all(|watch| {
            self.is_listed(watch) && (self.is_served(watch.kind) || !watch.kind.is_own())
        })
    }

    fn is_served(&self, kind: Kind) -> bool {
        self.served.as_ref().is_some_and(|kinds| kinds.contains(&kind))
    }

    /// A watch the snapshot need not wait for.
    fn is_listed(&self, watch: &Watch) -> bool {
        self.stores.get(watch).is_some_and(|store| {
            store.listed
                || (self.served.is_some() && !self.is_served(watch.kind))
                || self.is_passed_over(watch, store)
        })
    }

    /// Refused by the server, and of a kind that only classifies for these policies.
    fn is_passed_over(&self, watch: &Watch, store: &Store) -> bool {
        let narrows = || {
            let policies = || self.latest().chain(self.in_force.values());
            watch.kind.narrows() && policies().any(|policy| policy.narrow)
        };
        let refused = store.trouble.as_ref().is_some_and(Trouble::is_refusal);
        refused && !watch.kind.decides() && !narrows()
    }

    /// Puts policies in force whose needs are listed, and asks for what is wanted now.
    fn settle(&mut self) {
        let listed: Vec<EgressPolicy> = self
            .latest()
            .filter(|policy| self.in_force.get(&policy.name) != Some(policy))
            .filter(|policy| self.needs(policy).iter().all(|watch| self.is_listed(watch)))
            .cloned()
            .collect();
        let names = self.of_kind(Kind::EgressPolicy).map(|held| held.entry.key.name.name.clone());
        let names: BTreeSet<String> = names.collect();
        self.in_force.retain(|name, _| names.contains(name));
        self.in_force.extend(listed.into_iter().map(|policy| (policy.name.clone(), policy)));
        let policies = self.latest().chain(self.in_force.values());
        let mut wanted: BTreeSet<Watch> = policies.flat_map(|policy| self.needs(policy)).collect();
        wanted.extend(self.standing.iter().cloned());
        self.stores.retain(|watch, _| wanted.contains(watch));
        for watch in wanted {
            self.stores.entry(watch).or_default();
        }
    }

    /// Policies that are not in force as the server has them, with what stands in their place.
    fn substitutes(&self) -> BTreeMap<Key, Option<Entry>> {
        let mut substitutes = BTreeMap::new();
        for held in self.of_kind(Kind::EgressPolicy) {
            let Ok(Item::Policy(policy)) = &held.entry.item else { continue };
            let in_force = self.in_force.get(&policy.name);
            if in_force == Some(policy) {
                continue;
            }
            let substitute = in_force.map(|policy| Entry {
                item: Ok(Item::Policy(Box::new(policy.clone()))),
                ..held.entry.clone()
            });
            substitutes.insert(held.entry.key.clone(), substitute);
        }
        substitutes
    }

    fn needs(&self, policy: &EgressPolicy) -> BTreeSet<Watch> {
        needs(policy, self.services())
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Held> + Clone {
        let stores = self.stores.iter().filter(move |(watch, _)| watch.kind == kind);
        stores.flat_map(|(_, store)| store.objects.values())
    }

    /// Valid policies as the server has them.
    fn latest(&self) -> impl Iterator<Item = &EgressPolicy> {
        self.of_kind(Kind::EgressPolicy).filter_map(|held| match &held.entry.item {
            Ok(Item::Policy(policy)) => Some(policy.as_ref()),
            Ok(_) | Err(_) => None,
        })
    }

    /// Services, each as a snapshot would have it.
    fn services(&self) -> impl Iterator<Item = &Service> + Clone {
        self.of_kind(Kind::Service).filter_map(|held| {
            let good = held.entry.item.as_ref().ok().or_else(|| self.kept.get(&held.entry.key));
            match good {
                Some(Item::Service(service)) => Some(service.as_ref()),
                Some(_) | None => None,
            }
        })
    }
}

impl Store {
    /// `gone` takes the objects that are not selected any more.
    fn input(&mut self, input: Input, gone: &mut Vec<(Key, String)>) -> bool {
        match input {
            Input::Init => {
                self.listing = Some(BTreeMap::new());
                self.open = false;
                false
            }
            Input::Listed(held) => {
                if let Some(listing) = &mut self.listing {
                    listing.insert(held.entry.key.clone(), *held);
                }
                false
            }
            Input::InitDone => {
                let Some(listing) = self.listing.take() else { return false };
                let before = std::mem::replace(&mut self.objects, listing);
                let healed = self.trouble.take().is_some();
                let listed = std::mem::replace(&mut self.listed, true);
                let same = before.len() == self.objects.len()
                    && before.iter().all(|(key, old)| {
                        self.objects.get(key).is_some_and(|new| new.entry == old.entry)
                    });
                let left = before.into_iter().filter(|(key, old)| {
                    self.objects.get(key).is_none_or(|new| new.uid != old.uid)
                });
                gone.extend(left.map(|(key, old)| (key, old.uid)));
                !same || healed || !listed
            }
            Input::Applied(held) => {
                let key = held.entry.key.clone();
                let before = self.objects.insert(key.clone(), *held);
                let now = self.objects.get(&key);
                match (before, now) {
                    (Some(before), Some(now)) => {
                        let replaced = before.uid != now.uid;
                        let same = before.entry == now.entry;
                        gone.extend(replaced.then_some((key, before.uid)));
                        !same
                    }
                    _ => true,
                }
            }
            Input::Deleted(key, uid) => {
                let changed = self.forget(&key, &uid);
                gone.push((key, uid));
                changed
            }
            Input::Unreadable(what) => self.unreadable.insert(what),
            Input::Opened => {
                self.open = true;
                self.trouble.take().is_some()
            }
            Input::Failed(trouble) => {
                self.open = false;
                let before = self.trouble.replace(trouble);
                before != self.trouble
            }
        }
    }

    /// Removes an object, unless the name is another's by now.
    fn forget(&mut self, key: &Key, uid: &str) -> bool {
        let its = self.objects.get(key).is_some_and(|held| held.uid == uid);
        if its {
            self.objects.remove(key);
        }
        its
    }
}

#[cfg(test)]
#[path = "stores_tests.rs"]
mod tests;
