//! Host names and the patterns for them.

/// Whether everything that `host` stands for is covered by the pattern: exact, `*`, or `*` before
/// a suffix. Both may be patterns; case does not matter.
pub fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => {
            let start = host.len().checked_sub(suffix.len());
            let end = start.and_then(|start| host.get(start..));
            end.is_some_and(|end| end.eq_ignore_ascii_case(suffix))
        }
        None => pattern.eq_ignore_ascii_case(host),
    }
}

/// Whether one of the two covers the other.
pub fn overlaps(one: &str, other: &str) -> bool {
    covers(one, other) || covers(other, one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_what_it_says_and_no_more() {
        for (pattern, host, expected) in [
            ("api.example", "api.example", true),
            ("api.example", "API.Example", true),
            ("api.example", "api.example.com", false),
            ("*", "anything", true),
            ("*", "*.example", true),
            ("*.example", "api.example", true),
            ("*.example", "a.b.example", true),
            ("*.EXAMPLE", "*.b.example", true),
            ("*.example", "example", false),
            ("*.example", "badexample", false),
            ("*.b.example", "*.example", false),
            ("a.example", "*.example", false),
            ("*.é", "é", false),
        ] {
            assert_eq!(covers(pattern, host), expected, "{pattern} {host}");
        }
        assert!(overlaps("a.example", "*.example"));
    }
}
