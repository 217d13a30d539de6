//! Who else uses our bits of the packet mark: rules of nftables, of iptables on top of it, and of
//! routing. Read from the kernel, whoever wrote them.

use std::collections::BTreeMap;

use super::{Finding, Node, read};
use crate::identity::rules::{self, Expression, Rule};

pub(super) fn conflicts(node: &Node<'_>) -> Finding {
    if node.mark == 0 {
        return Finding::ok("packets are not marked (uplink.markMask: \"0\")");
    }
    let (packets, routes) = match (rules::netfilter(), rules::routing()) {
        (Ok(packets), Ok(routes)) => (packets, routes),
        (Err(error), _) | (_, Err(error)) => {
            return Finding::warn(error.to_string(), error.remedy());
        }
    };
    let mut others = Vec::new();
    for rule in &packets {
        let Uses { sets, tests } = uses(&rule.expressions);
        let Rule { table, chain, handle, .. } = rule;
        for (what, bits) in [("sets", sets & node.mark), ("tests", tests & node.mark)] {
            if bits != 0 {
                others.push(format!("rule {handle} of {table} {chain} {what} {bits:#x}"));
            }
        }
    }
    for (priority, mask) in routes {
        if mask & node.mark != 0 {
            let bits = mask & node.mark;
            others.push(format!("the routing rule of priority {priority} tests {bits:#x}"));
        }
    }
    if !others.is_empty() {
        return Finding::warn(
            format!("bits of ours ({:#x}) are used: {}", node.mark, others.join("; ")),
            "choose two bits that nobody uses with uplink.markMask, or have the other tool use a \
             mask without them",
        );
    }
    // These keep their rules where nf_tables does not show them.
    let legacy = ["ip", "ip6"].into_iter().filter_map(|family| {
        let names = read(&format!("/proc/net/{family}_tables_names"))?;
        (!names.is_empty()).then(|| format!("{family}: {}", names.replace('\n', ", ")))
    });
    let legacy: Vec<String> = legacy.collect();
    if !legacy.is_empty() {
        return Finding::warn(
            format!(
                "legacy tables are in use ({}), whose rules are not read here",
                legacy.join("; ")
            ),
            format!(
                "look for {:#x} in `iptables-legacy-save | grep -i mark` and ip6tables-legacy-save",
                node.mark
            ),
        );
    }
    Finding::ok(format!(
        "{:#x}, and none of {} rules sets or tests these bits",
        node.mark,
        packets.len()
    ))
}

/// Bits of the mark that a rule uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Uses {
    sets: u32,
    tests: u32,
}

/// A register that holds the mark, as far as it still does.
#[derive(Clone, Copy)]
struct Held {
    kept: u32,
    turned: u32,
}

/// Follows the mark through a rule's registers.
fn uses(expressions: &[Expression]) -> Uses {
    let mut registers: BTreeMap<u32, Held> = BTreeMap::new();
    let mut found = Uses::default();
    for expression in expressions {
        match *expression {
            Expression::LoadMark { to } => {
                registers.insert(to, Held { kept: u32::MAX, turned: 0 });
            }
            Expression::Bitwise { from, to, mask, xor } => match registers.get(&from).copied() {
                Some(Held { kept, turned }) => {
                    let held = Held { kept: kept & mask, turned: (turned & mask) ^ xor };
                    registers.insert(to, held);
                }
                None => drop(registers.remove(&to)),
            },
            Expression::Overwrite { to } => drop(registers.remove(&to)),
            Expression::Compare { from } => {
                found.tests |= registers.get(&from).map_or(0, |held| held.kept);
            }
            // What is written is the mark itself, with some bits cleared and some turned; or
            // something else, and then every bit is.
            Expression::SetMark { from } => {
                found.sets |=
                    registers.get(&from).map_or(u32::MAX, |held| !held.kept | held.turned);
            }
            Expression::Sets(bits) => found.sets |= bits,
            Expression::Tests(bits) => found.tests |= bits,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_mark_is_used_under_its_mask_only() {
        // `meta mark & 0x4000 == 0x4000`
        let test = [
            Expression::LoadMark { to: 1 },
            Expression::Bitwise { from: 1, to: 1, mask: 0x4000, xor: 0 },
            Expression::Compare { from: 1 },
        ];
        assert_eq!(uses(&test), Uses { sets: 0, tests: 0x4000 });
        // `meta mark set meta mark or 0x1000`
        let or = [
            Expression::LoadMark { to: 1 },
            Expression::Bitwise { from: 1, to: 1, mask: !0x1000, xor: 0x1000 },
            Expression::SetMark { from: 1 },
        ];
        assert_eq!(uses(&or), Uses { sets: 0x1000, tests: 0 });
    }

    #[test]
    fn a_mark_that_is_set_or_compared_as_a_whole_uses_every_bit() {
        let set = [Expression::Overwrite { to: 1 }, Expression::SetMark { from: 1 }];
        assert_eq!(uses(&set).sets, u32::MAX);
        let whole = [Expression::LoadMark { to: 1 }, Expression::Compare { from: 1 }];
        assert_eq!(uses(&whole).tests, u32::MAX);
        // Something else in the register is no use of the mark.
        let other = [Expression::Overwrite { to: 1 }, Expression::Compare { from: 1 }];
        assert_eq!(uses(&other), Uses::default());
    }

    #[test]
    fn the_matches_of_iptables_say_their_bits_themselves() {
        let found = uses(&[Expression::Tests(0x8000), Expression::Sets(0x1000)]);
        assert_eq!(found, Uses { sets: 0x1000, tests: 0x8000 });
    }
}
