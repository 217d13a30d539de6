//! Classes of addresses, and what must never change.

extern crate std;
use super::*;
use std::string::ToString;

fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<IpAddr>().unwrap())
}

#[test]
fn both_forms_of_an_ipv4_address_are_one_key() {
    assert_eq!(addr("::ffff:192.0.2.1"), addr("192.0.2.1"));
    assert_eq!(addr("192.0.2.1").to_string(), "192.0.2.1");
    assert_eq!(addr("2001:db8::1").to_string(), "2001:db8::1");
}

#[test]
fn address_classes_hold_at_their_edges() {
    for (class, inside, outside) in [
        (
            Addr::is_loopback as fn(&Addr) -> bool,
            &["127.0.0.1", "127.255.255.255", "::1"][..],
            &["126.255.255.255", "128.0.0.0", "::2", "::", "1::1"][..],
        ),
        (
            Addr::is_multicast_or_broadcast,
            &["224.0.0.0", "239.255.255.255", "255.255.255.255", "ff00::", "ff02::1"],
            &["223.255.255.255", "240.0.0.0", "255.255.255.254", "fe00::"],
        ),
        (
            Addr::is_link_local,
            &["169.254.0.0", "169.254.255.255", "fe80::", "febf:ffff::"],
            &["169.253.255.255", "169.255.0.0", "fe7f::", "fec0::"],
        ),
        (Addr::is_unspecified, &["0.0.0.0", "::"], &["0.0.0.1", "::1"]),
    ] {
        for text in inside {
            assert!(class(&addr(text)), "{text}");
        }
        for text in outside {
            assert!(!class(&addr(text)), "{text}");
        }
    }
}

#[test]
fn identities_are_frozen() {
    // Written to pinned maps: a change here orphans every counter of a running node.
    assert_eq!(PodId::of("11111111-2222-3333-4444-555555555555").0, 0x2b5e_6f6c_85dc_9232);
    assert_eq!(PolicyId::of("shop").0, PolicyId::of("shop").0);
    assert_ne!(GatewayId::of("a", "bc"), GatewayId::of("ab", "c"));
}

#[test]
fn keys_carry_ports_in_network_order() {
    let key = ExactKey::new(PolicyId(7), addr("192.0.2.1"), 6, 443);
    assert_eq!((key.port, key.port(), key.policy().0), ([1, 187], 443, 7));
}

#[test]
fn a_link_local_address_is_made_from_the_mac() {
    let made = Addr::link_local([0x0a, 0x58, 0x0a, 0xf4, 0x01, 0x02]);
    assert_eq!(made.ip(), "fe80::858:aff:fef4:102".parse::<IpAddr>().unwrap());
}

#[test]
fn only_multicast_of_the_link_stays_on_it() {
    for (text, scoped) in [("ff02::1", true), ("ff05::1", false), ("fe80::1", false)] {
        assert_eq!(Addr::from(text.parse::<IpAddr>().unwrap()).is_link_scoped_multicast(), scoped);
    }
}
