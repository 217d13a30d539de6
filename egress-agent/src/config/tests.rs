use super::*;

fn parse(text: &str) -> Result<File, ConfigError> {
    File::parse(Path::new("agent.yaml"), text)
}

#[test]
fn an_empty_file_is_all_defaults() {
    let file = parse("").unwrap();
    let cluster = file.cluster(Path::new("agent.yaml")).unwrap();
    assert_eq!(cluster.exempt_namespaces, ["kube-system", "istio-system"]);
    assert_eq!(cluster.metadata_addresses.len(), 2);
    assert_eq!(cluster.mesh_vip_ranges[0].to_string(), "240.240.0.0/16");
    assert_eq!(cluster.mesh_vip_ranges[1].to_string(), "2001:2::/48");
    assert_eq!(file.lease(Path::new("x")).unwrap(), Duration::from_secs(30));
    assert_eq!(file.unknown_pod(), Mode::Audit);
}

#[test]
fn pods_nobody_knows_are_audited_or_denied() {
    assert_eq!(parse("unknownPod: audit").unwrap().unknown_pod(), Mode::Audit);
    assert_eq!(parse("unknownPod: deny").unwrap().unknown_pod(), Mode::Enforce);
    let error = parse("unknownPod: enforce").unwrap_err().to_string();
    assert!(error.contains("expected one of audit, deny"), "{error}");
}

#[test]
fn an_unknown_key_is_named_with_its_place() {
    let error = parse("nodeName: a\nclustre:\n  ranges: []\n").unwrap_err().to_string();
    let expected = "configuration agent.yaml:2:1: unknown field `clustre`";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn ranges_that_cannot_be_meant_are_refused_by_key() {
    for (range, expected) in [
        ("0.0.0.0/0", "wider than /8"),
        ("10.0.0.1/8", "did you mean 10.0.0.0/8"),
        ("127.0.0.0/8", "loopback"),
        ("nonsense", "not a range"),
    ] {
        let file = parse(&format!("cluster: {{ranges: [\"10.0.0.0/8\", \"{range}\"]}}")).unwrap();
        let error = file.cluster(Path::new("agent.yaml")).unwrap_err().to_string();
        assert!(error.contains("cluster.ranges[1]") && error.contains(expected), "{error}");
    }
}

#[test]
fn a_mark_is_two_bits_that_nobody_else_uses() {
    let mark = |text: &str| {
        let file = parse(&format!("uplink: {{markMask: \"{text}\"}}")).unwrap();
        file.mark(Path::new("agent.yaml")).map_err(|error| error.to_string())
    };
    let default = parse("").unwrap().mark(Path::new("agent.yaml")).unwrap();
    assert_eq!(default, Mark { audit: 0x1000, enforce: 0x2000 });
    assert_eq!(mark("0x42"), Ok(Mark { audit: 0x2, enforce: 0x40 }));
    assert_eq!(mark("0"), Ok(Mark::default()));
    for (text, expected) in [
        ("0x1000", "not exactly two bits"),
        ("0x6000", "kube-proxy"),
        ("0x1100", "Cilium"),
        ("0x30000", "Calico"),
        ("mark", "no number"),
    ] {
        let error = mark(text).unwrap_err();
        assert!(error.contains("uplink.markMask") && error.contains(expected), "{error}");
    }
}

#[test]
fn what_is_said_of_names_is_read_and_what_cannot_be_meant_is_refused() {
    let names = |text: &str| parse(text).unwrap().names(Path::new("agent.yaml"));
    let default = names("").unwrap();
    assert!(default.enabled && default.internal_domains == ["cluster.local"]);
    assert_eq!((default.learning.as_secs(), default.grace.as_secs()), (86_400, 300));
    let given =
        names("names: {enabled: false, learning: \"0\", internalDomains: [.Corp.Example.]}")
            .unwrap();
    assert!(!given.enabled && given.learning.is_zero());
    assert_eq!(given.internal_domains, ["corp.example"]);
    for (text, expected) in [
        ("names: {learning: soon}", "names.learning: `soon`"),
        ("names: {grace: -5s}", "names.grace: `-5s`"),
        ("names: {internalDomains: [\"*.corp\"]}", "names.internalDomains[0]"),
    ] {
        let error = names(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_lease_is_none_or_at_least_three_heartbeats() {
    let lease = |text: &str| parse(&format!("lease: \"{text}\"")).unwrap().lease(Path::new("x"));
    assert_eq!(lease("0").unwrap(), Duration::ZERO);
    assert_eq!(lease("90s").unwrap(), Duration::from_secs(90));
    assert!(lease("1s").unwrap_err().to_string().contains("three heartbeats"));
    assert!(lease("-5s").is_err() && lease("soon").is_err());
}
