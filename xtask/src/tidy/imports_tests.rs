//! Each arrow of the dependency direction, reversed and kept.

use super::*;

#[test]
fn policy_is_pure() {
    for line in [
        "use tokio::sync::watch;",
        "use aya::maps::HashMap;",
        "fn a(c: kube::Client) {}",
        "let now = std::time::Instant::now();",
        "let now = jiff::Timestamp::now();",
    ] {
        assert_eq!(broken("egress-agent/src/policy/compile.rs", line), 1, "{line}");
    }
    for line in ["use std::time::Duration;", "// use tokio::x;", "let a = \"aya::x\";"] {
        assert_eq!(broken("egress-agent/src/policy.rs", line), 0, "{line}");
    }
}

#[test]
fn only_datapath_speaks_to_the_kernel() {
    for path in ["agent.rs", "registry/dir.rs", "metrics.rs", "main.rs"] {
        assert_eq!(broken(&format!("egress-agent/src/{path}"), "use aya_obj::Object;"), 1);
    }
    for path in ["datapath.rs", "datapath/load.rs"] {
        assert_eq!(broken(&format!("egress-agent/src/{path}"), "use aya_obj::Object;"), 0);
    }
}

#[test]
fn only_registry_speaks_to_kubernetes() {
    assert_eq!(broken("egress-agent/src/agent.rs", "let c = ::kube::Client::new();"), 1);
    assert_eq!(broken("egress-agent/src/agent.rs", "use crate::registry::kube::Watch;"), 0);
    assert_eq!(broken("egress-agent/src/registry/kube.rs", "use kube::Client;"), 0);
}

#[test]
fn registry_and_datapath_do_not_know_each_other_and_events_no_maps() {
    assert_eq!(broken("egress-agent/src/registry/dir.rs", "use crate::datapath::Loaded;"), 1);
    assert_eq!(broken("egress-agent/src/datapath/diff.rs", "use crate::registry::Source;"), 1);
    assert_eq!(broken("egress-agent/src/events/ocsf.rs", "use crate::datapath::Attached;"), 1);
    assert_eq!(broken("egress-agent/src/agent.rs", "use crate::datapath::Attached;"), 0);
}

#[test]
fn the_contract_imports_core_only() {
    let lib = "pub mod key;\n#[cfg(feature = \"user\")]\nmod user;\n";
    let key = |text: &str| {
        let files = [
            file("egress-common/src/lib.rs", lib),
            file("egress-common/src/key.rs", text),
            file("egress-common/src/user.rs", "use aya::Pod;"),
            file("egress-common/src/key/tests.rs", "use std::vec;"),
        ];
        check_core_only(&files).len()
    };
    assert_eq!(key("use core::fmt;"), 0);
    assert_eq!(key("use std::net::Ipv4Addr;"), 1);
    assert_eq!(key("fn a() -> alloc::vec::Vec<u8> {}"), 1);
    assert_eq!(key("#[cfg(test)]\nmod tests {\n    use std::vec;\n}\n"), 0);
    assert_eq!(key("#[cfg(test)]\nmod tests {\n}\nuse std::vec;\n"), 1);
}

#[test]
fn manifests_keep_the_direction() {
    let on_agent = "[dependencies]\negress-agent.workspace = true\n";
    assert_eq!(broken("xtask/Cargo.toml", on_agent), 1);
    assert_eq!(broken("tests/Cargo.toml", on_agent), 0);
    let on_tests = "[dev-dependencies]\negress-tests = { path = \"../tests\" }\n";
    assert_eq!(broken("egress-agent/Cargo.toml", on_tests), 1);
    assert_eq!(broken("tests/Cargo.toml", "[package]\nname = \"egress-tests\"\n"), 0);
}

fn broken(path: &str, text: &str) -> usize {
    check(&file(path, text)).len()
}

fn file(path: &str, text: &str) -> File {
    File { path: path.to_owned(), text: text.to_owned() }
}
