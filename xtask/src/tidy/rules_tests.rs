//! Each rule about one file, broken and kept.

use super::*;

#[test]
fn a_product_file_has_a_bound_and_its_tests_have_none() {
    let long = "//! Doc.\n".repeat(MAX_LINES + 1);
    assert_eq!(broken("egress-agent/src/a.rs", &long), ["length"]);
    assert_eq!(broken("egress-agent/src/a.rs", &"//! Doc.\n".repeat(MAX_LINES)), [""; 0]);
    for path in ["egress-common/src/decide/tests.rs", "tests/tests/kernel.rs"] {
        assert_eq!(broken(path, &long), [""; 0], "{path}");
    }
}

#[test]
fn a_product_file_says_what_it_is() {
    assert_eq!(broken("xtask/src/a.rs", "fn a() {}\n"), ["module doc"]);
    assert_eq!(broken("tests/src/a.rs", "fn a() {}\n"), [""; 0]);
}

#[test]
fn unsafe_is_in_one_file_of_the_agent() {
    let text = "//! Doc: unsafe in words is fine.\nfn a() { unsafe { b() } }\n";
    assert_eq!(broken("egress-agent/src/a.rs", text), ["unsafe"]);
    assert_eq!(broken("egress-agent/src/datapath/sys.rs", text), [""; 0]);
    assert_eq!(broken("egress-ebpf/src/maps.rs", text), [""; 0]);
}

#[test]
fn kernel_entries_name_every_case() {
    let text = "//! Doc.\nmatch x {\n    A => 1,\n    _ => 2,\n}\n";
    assert_eq!(broken("egress-ebpf/src/main.rs", text), ["packet fate"]);
    assert_eq!(broken("egress-ebpf/src/main.rs", &text.replace("_ =>", "Other(_) =>")), [""; 0]);
    assert_eq!(broken("egress-ebpf/src/packet.rs", text), [""; 0]);
}

#[test]
fn nothing_is_left_unfinished() {
    for word in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")] {
        assert_eq!(broken("README.md", &format!("a {word}: b\n")), ["unfinished"], "{word}");
    }
    for name in ["todo", "unimplemented", "dbg"] {
        let text = format!("//! Doc.\nfn a() {{ {name}!() }}\n");
        assert_eq!(broken("xtask/src/a.rs", &text), ["unfinished"], "{name}");
    }
    assert_eq!(broken("tests/a.sh", "mktemp /tmp/a.XXXXXX\n"), [""; 0]);
}

#[test]
fn an_ignored_test_has_a_reason() {
    let text = "#[test]\n#[ignore]\nfn a() {}\n";
    assert_eq!(broken("tests/tests/a.rs", text), ["ignored test"]);
    assert_eq!(broken("tests/tests/a.rs", &text.replace("ignore", "ignore = \"slow\"")), [""; 0]);
}

#[test]
fn no_path_of_somebodys_machine() {
    let home = concat!("/ho", "me/");
    for text in [format!("see {home}jo/x"), format!("\"{home}jo\""), format!("{home}jo")] {
        assert_eq!(broken("README.md", &text), ["machine path"], "{text}");
    }
    assert_eq!(broken("a.o", &format!("\0{home}jo\0")), ["machine path"]);
    assert_eq!(broken("README.md", &format!("mnt{home}jo and $HOME{home}")), [""; 0]);
}

/// Names of the rules that a file with this path and text breaks.
fn broken(path: &str, text: &str) -> Vec<&'static str> {
    let file = File { path: path.to_owned(), text: text.to_owned() };
    check(&file).into_iter().map(|finding| finding.rule).collect()
}
