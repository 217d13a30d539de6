//! The table of attacks as `docs/threat-model.md` shows it: made from the attacks themselves, so
//! that the page cannot promise what the suite does not try.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Attack, Row, attacks};

/// The classes of attacks with what each hook sees of them, and the attacks that were not made.
pub fn table() -> String {
    let mut text =
        "| class | attacker holds | socket hooks see it | the wall sees it | attacks |\n\
                    |---|---|---|---|---|\n"
            .to_owned();
    for row in Row::ALL {
        let of_row: Vec<&Attack> = attacks().filter(|attack| attack.row == *row).collect();
        let mut tiers: Vec<_> = of_row.iter().map(|attack| attack.actor.tier()).collect();
        tiers.sort_unstable();
        tiers.dedup();
        let tiers: Vec<&str> = tiers.into_iter().map(super::Tier::name).collect();
        let ids: Vec<String> = of_row.iter().map(|attack| format!("`{}`", attack.id)).collect();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            row.title(),
            tiers.join(", "),
            row.socket_hooks(),
            row.wall(),
            ids.join(" ")
        );
    }
    text.push_str("\nNot made, because there is nothing to make:\n\n");
    for (reason, ids) in impossible() {
        let _ = writeln!(text, "- {reason}: {}", ids.join(" "));
    }
    text
}

/// Attacks by the reason for which they cannot be made somewhere.
fn impossible() -> BTreeMap<String, Vec<String>> {
    let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for attack in attacks() {
        let over =
            attack.not_over.map(|(family, why)| format!("over IPv{}, {why}", family.digit()));
        let on = attack.not_on.map(|(wiring, why)| format!("{} wiring, {why}", wiring.name()));
        for reason in over.into_iter().chain(on) {
            reasons.entry(reason).or_default().push(format!("`{}`", attack.id));
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const MARK: &str = "<!-- attacks -->\n";

    #[test]
    fn the_threat_model_lists_the_attacks_that_are_made() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/threat-model.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let parts: Vec<&str> = page.split(MARK).collect();
        let [before, shown, after] = parts[..] else { panic!("the page has not two marks") };
        let made = table();
        if std::env::var_os("EGRESS_WRITE_DOCS").is_some() {
            std::fs::write(&path, format!("{before}{MARK}{made}{MARK}{after}")).unwrap();
        } else {
            assert!(
                shown == made,
                "docs/threat-model.md shows another table than the suite's: run \
                 `EGRESS_WRITE_DOCS=1 cargo test -p egress-tests --lib adversary::document`"
            );
        }
    }
}
