//! The verdict order: every numbered line above `decide` has a test of its number.

use super::scrub::{code, positions};
use super::{File, Finding};

const DECIDE: &str = "egress-common/src/decide.rs";
const RULE: &str = "verdict order";
/// Lines that the order always has; more may be added around them.
const REQUIRED: std::ops::RangeInclusive<u32> = 1..=13;

pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let Some(decide) = files.iter().find(|file| file.path == DECIDE) else { return Vec::new() };
    let numbered = numbered(&decide.text);
    let mut findings = Vec::new();
    for number in REQUIRED.filter(|number| numbered.iter().all(|(_, found)| found != number)) {
        let remedy = format!("the comment above `decide` has no line {number}: write it out");
        findings.push(Finding::new(decide, 0, RULE, remedy));
    }
    let tests: Vec<String> = files
        .iter()
        .filter(|file| file.path.starts_with("egress-common/") && file.path.ends_with(".rs"))
        .flat_map(|file| code(&file.text))
        .collect();
    for (line, number) in numbered {
        let name = format!("fn line_{number:02}_");
        if !tests.iter().any(|line| line.contains(&name)) {
            let remedy = format!("line {number} has no test: name one `line_{number:02}_...`");
            findings.push(Finding::new(decide, line, RULE, remedy));
        }
    }
    findings
}

/// Line of the file and number of each `/// N. ` in the comment above `decide`.
fn numbered(text: &str) -> Vec<(usize, u32)> {
    let lines: Vec<&str> = text.lines().collect();
    let Some(function) = lines.iter().position(|line| {
        line.trim_start().starts_with("pub fn") && positions(line, "decide").next().is_some()
    }) else {
        return Vec::new();
    };
    let start = lines[..function]
        .iter()
        .rposition(|line| !line.starts_with("///") && !line.starts_with("#["))
        .map_or(0, |line| line + 1);
    lines[start..function]
        .iter()
        .enumerate()
        .filter_map(|(index, line)| {
            let (number, _) = line.strip_prefix("///")?.split_once(". ")?;
            Some((start + index + 1, number.trim().parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complete_order_with_its_tests_is_fine() {
        assert_eq!(check(&[decide(0..=14), tests(0..=14)]), []);
    }

    #[test]
    fn a_line_without_a_test_is_found_where_it_stands() {
        let findings = check(&[decide(1..=14), tests(1..=13)]);
        let [finding] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!((finding.path.as_str(), finding.line), (DECIDE, 16));
        assert!(finding.remedy.contains("line_14_"), "{finding}");
    }

    #[test]
    fn a_missing_line_is_found() {
        let findings = check(&[decide(1..=12), tests(1..=13)]);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].remedy.contains("no line 13"), "{}", findings[0]);
    }

    fn decide(lines: std::ops::RangeInclusive<u32>) -> File {
        let lines: String = lines.map(|n| format!("/// {n:2}. Something → allow.\n")).collect();
        let text = format!(
            "/// 99. Of something else.\nconst A: u8 = 1;\n{lines}#[inline]\npub fn decide<L>() {{}}\n"
        );
        File { path: DECIDE.to_owned(), text }
    }

    fn tests(lines: std::ops::RangeInclusive<u32>) -> File {
        let text = lines.map(|n| format!("fn line_{n:02}_does_it() {{}}\n")).collect();
        File { path: "egress-common/src/decide/tests.rs".to_owned(), text }
    }
}
