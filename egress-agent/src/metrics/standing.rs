//! How things stand: what the agent's own state says of pods, policies, gateways, registry and
//! kernel.

use std::collections::BTreeMap;

use egress_common::Mode;

use super::Metric;
use super::family::{Family, number};
use crate::agent::AgentState;
use crate::clock::boot_clock;
use crate::exposure::Unenforced;
use crate::policy::{CoverageState, ProblemCode, RejectReason};

/// Everything the state says, and entries and room of the pods' counters.
pub(super) fn standing(state: &AgentState, counters: (usize, u32)) -> Vec<Family> {
    let mut families = Vec::from(coverage(state));
    families.extend(unenforced(state));
    families.extend(exceptions(state));
    families.extend(gateways(state));
    families.extend(registry(state));
    families.extend(kernel(state, counters));
    let mut lease = Family::new(Metric::LeaseAge);
    lease.add(&[], number(boot_clock().saturating_sub(state.beat)) / 1e9);
    families.push(lease);
    families
}

/// Pods and what governs them.
fn coverage(state: &AgentState) -> [Family; 3] {
    let pods_there = &state.desired.coverage;
    let mut pods = Family::new(Metric::Pods);
    for coverage in CoverageState::ALL {
        let count = pods_there.iter().filter(|pod| pod.state == *coverage).count();
        pods.add(&[coverage.name()], number(count as u64));
    }
    let mut governed = Family::new(Metric::PolicyPods);
    for policy in state.snapshot.policies.keys() {
        let own = || pods_there.iter().filter(|pod| pod.policy.as_ref() == Some(policy));
        for mode in Mode::ALL {
            let count = own().filter(|pod| pod.mode == *mode).count();
            governed.add(&[policy, mode.name()], number(count as u64));
        }
    }
    let mut mode = Family::new(Metric::EnforcementMode);
    for word in Mode::ALL {
        mode.add(&[word.name()], f64::from(u8::from(state.mode() == *word)));
    }
    [pods, governed, mode]
}

/// Who was not wholly covered.
fn unenforced(state: &AgentState) -> [Family; 2] {
    let mut seconds = Family::new(Metric::UnenforcedSeconds);
    let mut packets = Family::new(Metric::UnenforcedPackets);
    for reason in Unenforced::ALL {
        let total = state.exposures.total(reason);
        seconds.add(&[reason.name()], number(total.nanoseconds) / 1e9);
        packets.add(&[reason.name()], number(total.packets));
    }
    [seconds, packets]
}

/// What is let through until a time.
fn exceptions(state: &AgentState) -> [Family; 2] {
    let now = jiff::Timestamp::now().as_second();
    let in_force = || state.snapshot.exceptions.values().filter(|one| one.expires_at > now);
    let mut count = Family::new(Metric::ExceptionsInForce);
    count.add(&[], number(in_force().count() as u64));
    let mut expiry = Family::new(Metric::ExceptionExpiry);
    for exception in in_force() {
        #[expect(clippy::cast_precision_loss, reason = "seconds of any sensible year are exact")]
        expiry.add(&[&exception.name], exception.expires_at as f64);
    }
    [count, expiry]
}

fn gateways(state: &AgentState) -> [Family; 2] {
    let mut endpoints = Family::new(Metric::GatewayEndpoints);
    for gateway in &state.desired.gateways {
        let draining = gateway.endpoints.iter().filter(|endpoint| endpoint.draining).count();
        let name = gateway.name.to_string();
        let serving = gateway.endpoints.len() - draining;
        for (word, count) in [("serving", serving), ("draining", draining)] {
            endpoints.add(&[&name, word], number(count as u64));
        }
    }
    let mut rejected = Family::new(Metric::RejectedEndpoints);
    for reason in RejectReason::ALL {
        let total = state.rejections.total(*reason);
        rejected.add(&[reason.name()], number(total));
    }
    [endpoints, rejected]
}

fn registry(state: &AgentState) -> [Family; 4] {
    let mut connected = Family::new(Metric::RegistryConnected);
    connected.add(&[], f64::from(u8::from(state.registry.connected)));
    let mut synced = Family::new(Metric::RegistryLastSync);
    synced.add(&[], state.registry.at_epoch);
    let mut problems = Family::new(Metric::RegistryProblems);
    let reported = state.problems();
    for code in ProblemCode::ALL {
        let count = reported.iter().filter(|problem| problem.code == *code).count();
        problems.add(&[code.name()], number(count as u64));
    }
    let mut propagation = Family::new(Metric::RegistryPropagation);
    let (changes, seconds) = state.propagation.total();
    propagation.add_classes(state.propagation.classes(), changes, seconds);
    [connected, synced, problems, propagation]
}

fn kernel(state: &AgentState, counters: (usize, u32)) -> [Family; 5] {
    let mut attached = Family::new(Metric::ProgramAttached);
    let mut hooks: BTreeMap<&str, u64> = BTreeMap::new();
    for hook in state.hooks.iter() {
        *hooks.entry(hook.hook).or_default() += u64::from(hook.attached);
    }
    for (hook, count) in hooks {
        attached.add(&[hook], number(count));
    }
    let mut entries = Family::new(Metric::MapEntries);
    let mut capacity = Family::new(Metric::MapCapacity);
    let counters = ("COUNTERS", counters.0, counters.1 as usize);
    for (map, held, room) in state.usage.iter().chain([&counters]) {
        entries.add(&[map], number(*held as u64));
        capacity.add(&[map], number(*room as u64));
    }
    let mut applies = Family::new(Metric::Applies);
    let (applied, refused) = state.applies;
    applies.add(&["applied"], number(applied));
    applies.add(&["refused"], number(refused));
    let mut generation = Family::new(Metric::Generation);
    generation.add(&[], f64::from(state.tables.config.generation));
    [attached, entries, capacity, applies, generation]
}
