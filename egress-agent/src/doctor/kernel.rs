//! The kernel: how old it is and how it is set up.

use std::path::Path;

use super::{Finding, Node, read};

/// Oldest kernel with everything the wall needs.
const OLDEST_KERNEL: (u32, u32) = (5, 10);

pub(super) fn version(_: &Node<'_>) -> Finding {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (major, minor) = OLDEST_KERNEL;
    if parsed(&release) >= OLDEST_KERNEL {
        return Finding::ok(release);
    }
    let remedy = format!("use Linux {major}.{minor} or newer");
    Finding::fail(format!("kernel {release} is too old"), remedy)
}

/// Major and minor number of a release; zeroes where it has none.
pub(super) fn parsed(release: &str) -> (u32, u32) {
    let mut parts =
        release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

pub(super) fn lockdown(_: &Node<'_>) -> Finding {
    // The programs read no memory of the kernel's: neither level refuses them.
    match read("/sys/kernel/security/lockdown") {
        Some(text) => {
            let chosen = text.split(['[', ']']).nth(1).unwrap_or("unknown");
            Finding::ok(format!("{chosen}; the programs need nothing that any level refuses"))
        }
        None => Finding::ok("not told (securityfs is not mounted here), or not in this kernel"),
    }
}

pub(super) fn security_modules(_: &Node<'_>) -> Finding {
    let modules = read("/sys/kernel/security/lsm");
    let profile = read("/proc/self/attr/current").map(|text| text.replace('\0', ""));
    let profile = profile.filter(|text| !text.is_empty()).unwrap_or_else(|| "none".to_owned());
    let modules = modules.unwrap_or_else(|| "not told".to_owned());
    Finding::ok(format!("modules: {modules}; this process's profile: {profile}"))
}

pub(super) fn unprivileged(_: &Node<'_>) -> Finding {
    match read("/proc/sys/kernel/unprivileged_bpf_disabled").as_deref() {
        Some("0") => Finding::warn(
            "processes without capabilities may load programs",
            "sysctl -w kernel.unprivileged_bpf_disabled=2",
        ),
        Some(value) => Finding::ok(format!("refused (kernel.unprivileged_bpf_disabled={value})")),
        None => Finding::ok("not told"),
    }
}

pub(super) fn jit(_: &Node<'_>) -> Finding {
    match read("/proc/sys/net/core/bpf_jit_enable").as_deref() {
        Some("0") => Finding::warn(
            "programs are interpreted: every packet costs several times as much",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(value) => Finding::ok(format!("on (net.core.bpf_jit_enable={value})")),
        None => Finding::ok("not told"),
    }
}

pub(super) fn btf(_: &Node<'_>) -> Finding {
    let there = Path::new("/sys/kernel/btf/vmlinux").exists();
    Finding::ok(if there { "there, and not needed" } else { "not there, and not needed" })
}

#[cfg(test)]
mod tests {
    use super::parsed;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(parsed("5.10.0-30-cloud-amd64"), (5, 10));
        assert_eq!(parsed("6.18.44"), (6, 18));
        assert_eq!(parsed("7.3-rc1"), (7, 3));
        assert!(parsed("5.9.16") < (5, 10) && parsed("") < (5, 10));
    }
}
