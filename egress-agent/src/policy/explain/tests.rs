use super::*;

#[test]
fn destinations_are_read_in_every_form() {
    for (text, shown) in [
        ("203.0.113.10:443", "203.0.113.10:443/tcp"),
        ("203.0.113.10:53/udp", "203.0.113.10:53/udp"),
        ("[2001:db8::1]:443/tcp", "[2001:db8::1]:443/tcp"),
        ("[::ffff:203.0.113.10]:443", "203.0.113.10:443/tcp"),
        ("203.0.113.10/icmp", "203.0.113.10/icmp"),
        ("2001:db8::1/icmp", "2001:db8::1/icmp"),
    ] {
        assert_eq!(text.parse::<Question>().unwrap().to_string(), shown);
    }
    for text in ["", "203.0.113.10", "example.com:443", "203.0.113.10:443/sctp", "2001:db8::1:443x"]
    {
        assert!(text.parse::<Question>().is_err(), "{text}");
    }
}

#[test]
fn the_lines_are_those_of_decide() {
    // `decide` numbers its order in its comment; a line added there needs its words here.
    let source = include_str!("../../../../egress-common/src/decide.rs");
    let numbered = |line: &str| {
        let text = line.trim().strip_prefix("///")?.trim_start();
        text.split_once(". ")?.0.parse::<usize>().ok()
    };
    let numbers: Vec<usize> = source.lines().filter_map(numbered).collect();
    assert_eq!(numbers, (0..LINES.len()).collect::<Vec<_>>());
}
