//! Other tools' programs on the hooks that this agent uses.

use std::path::Path;

use super::{Finding, Node};
use crate::datapath::SysError;
use crate::datapath::probe::{self, Neighbours};
use crate::identity::cgroup::Kubepods;
use crate::identity::{link, uplink};

pub(super) fn at_cgroup(node: &Node<'_>) -> Finding {
    let kubepods = match Kubepods::find(node.cgroup_root) {
        Ok(kubepods) => kubepods,
        Err(error) => return Finding::fail(error.to_string(), error.remedy()),
    };
    // Up to the root of the hierarchy: what is attached above runs for every pod as well.
    let mut found = Vec::new();
    for path in kubepods.path.ancestors().take(kubepods.level as usize + 1) {
        match probe::at_cgroup(node.options, path) {
            Ok(hooks) => found.push((path, hooks)),
            Err(error) => return unasked(&error),
        }
    }
    beside_us(&found, &kubepods.path)
}

fn beside_us(found: &[(&Path, Vec<Neighbours>)], kubepods: &Path) -> Finding {
    let mut others = Vec::new();
    for (path, hooks) in found {
        for hook in hooks {
            let list: Vec<&str> =
                hook.ahead.iter().chain(&hook.behind).map(String::as_str).collect();
            if list.is_empty() {
                continue;
            }
            let list = format!("{} at {}: {}", hook.hook, path.display(), list.join(", "));
            if hook.exclusive && *path != kubepods {
                return Finding::fail(
                    format!("attached so that nobody may attach below it: {list}"),
                    "let its owner attach with BPF_F_ALLOW_MULTI or as a link (old versions of \
                     Cilium: upgrade it), and remove the program",
                );
            }
            others.push(list);
        }
    }
    if others.is_empty() {
        return Finding::ok("no other program on our hooks");
    }
    // Verdicts of a cgroup's programs are joined by "and".
    Finding::ok(format!("others run too and cannot overrule a denial: {}", others.join("; ")))
}

pub(super) fn at_interfaces(node: &Node<'_>) -> Finding {
    let (pods, uplinks) = match (link::links(), uplink::uplinks()) {
        (Ok(links), Ok(uplinks)) => (links, uplinks),
        (Err(error), _) | (_, Err(error)) => {
            return Finding::fail(error.to_string(), error.remedy());
        }
    };
    let places = pods.iter().map(|link| (link.ifindex, false));
    let mut found = Vec::new();
    for (ifindex, uplink) in places.chain(uplinks.iter().map(|ifindex| (*ifindex, true))) {
        match probe::at_interface(node.options, ifindex, uplink) {
            Ok(chains) => found.extend(chains.into_iter().map(|chain| (ifindex, chain))),
            Err(error) if error.errno() == nix::libc::EINVAL => {
                return Finding::ok("this kernel has no tcx chains (see tcx)");
            }
            // An interface may go while we ask.
            Err(error) if error.errno() == nix::libc::ENODEV => {}
            Err(error) => return unasked(&error),
        }
    }
    in_chains(&found)
}

fn in_chains(found: &[(u32, Neighbours)]) -> Finding {
    let list = |of: &dyn Fn(&Neighbours) -> Vec<&str>| -> Vec<String> {
        let named = found.iter().map(|(ifindex, chain)| (ifindex, chain.hook, of(chain)));
        let named = named.filter(|(_, _, names)| !names.is_empty());
        named
            .map(|(at, hook, names)| format!("{hook} at ifindex {at}: {}", names.join(", ")))
            .collect()
    };
    let ahead = list(&|chain| {
        let ahead = if chain.present { chain.ahead.as_slice() } else { &[] };
        ahead.iter().map(String::as_str).collect()
    });
    if !ahead.is_empty() {
        return Finding::warn(
            format!(
                "ahead of ours, so that what they let through may never reach it: {}",
                ahead.join("; ")
            ),
            "the agent moves to the head again; a tool that comes back each time must attach behind \
             it (for Cilium: its default), or not at all",
        );
    }
    let others = list(&|chain| {
        let ahead = if chain.present { &[] } else { chain.ahead.as_slice() };
        ahead.iter().chain(&chain.behind).map(String::as_str).collect()
    });
    if others.is_empty() {
        return Finding::ok(format!("no other program in {} chains", found.len()));
    }
    Finding::ok(format!("others run behind ours, or will: {}", others.join("; ")))
}

fn unasked(error: &SysError) -> Finding {
    Finding::warn(
        format!("cannot be asked: {error}"),
        "give CAP_NET_ADMIN (see capabilities); names of programs need CAP_SYS_ADMIN",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::CheckStatus;

    fn chain(ahead: &[&str], behind: &[&str], present: bool, exclusive: bool) -> Neighbours {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        let (ahead, behind) = (names(ahead), names(behind));
        Neighbours { hook: "pod_egress", ahead, behind, present, exclusive }
    }

    #[test]
    fn only_what_is_ahead_of_ours_can_hide_a_packet_from_it() {
        let status = |chain| in_chains(&[(7, chain)]).status;
        assert_eq!(
            status(chain(&[], &["cil_from_container (id 4)"], true, false)),
            CheckStatus::Ok
        );
        assert_eq!(status(chain(&["other (id 3)"], &[], true, false)), CheckStatus::Warn);
        // Ours comes at the head.
        assert_eq!(status(chain(&["other (id 3)"], &[], false, false)), CheckStatus::Ok);
    }

    #[test]
    fn an_exclusive_program_above_kubepods_leaves_no_room_below() {
        let (root, kubepods) = (Path::new("/sys/fs/cgroup"), Path::new("/sys/fs/cgroup/kubepods"));
        let status = |path, exclusive| {
            beside_us(&[(path, vec![chain(&["old (id 3)"], &[], false, exclusive)])], kubepods)
                .status
        };
        assert_eq!(status(root, true), CheckStatus::Fail);
        assert_eq!(status(root, false), CheckStatus::Ok);
        assert_eq!(status(kubepods, true), CheckStatus::Ok);
    }
}
