//! Load, attach, adopt, refuse, let go: against the running kernel. Needs root.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod node;

use std::fs;
use std::path::Path;

use aya::programs::links::PinnedLink;
use egress_agent::datapath::{
    Applied, Attached, DatapathError, Loaded, Options, Way, hook_names, map_names, uninstall,
};
use egress_agent::policy::Tables;
use egress_common::key::{
    Addr, AddressKey, ExactKey, ExceptionKey, GatewayId, PodId, PolicyId, RangeKey,
};
use egress_common::redirect::{RedirectKey, RedirectTo};
use egress_common::state::{
    Exact, Exception, OnAgentLoss, Pod, Policy, Range, Target, address, range,
};
use egress_common::{Mode, Reason, Verdict};

use node::{Bpffs, CgroupRoot, Pair, ip};

const HOOKS: [&str; 8] = [
    "wall_ingress",
    "wall",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "getpeername4",
    "getpeername6",
];

fn options(bpffs: &Bpffs) -> Options {
    Options {
        bpffs: bpffs.path().join("egress"),
        kernel_log: false,
        capacity: None,
        attach: Way::default(),
    }
}

fn pod(id: u64, policy: u32) -> Pod {
    Pod {
        id: PodId(id),
        policy: PolicyId(policy),
        capture: 0,
        flags: Pod::BOUNDARY,
        mac: node::MAC,
        proxy_uid: Pod::NO_PROXY,
        proxy_gid: Pod::NO_PROXY,
        v4: Addr::v4([192, 0, 2, 9]),
        v6: Addr::UNSPECIFIED,
        namespace: egress_common::key::NamespaceId(1),
        guarded: 0,
        netns: 0,
    }
}

/// One entry in every table.
fn tables(ifindex: u32) -> Tables {
    let (policy, addr) = (PolicyId(1), Addr::v4([10, 1, 2, 3]));
    let prefix = RangeKey { policy, addr: Addr::v4([10, 0, 0, 0]) };
    let mode = Policy::new(Mode::Enforce, OnAgentLoss::Hold);
    let mut tables = Tables::default();
    tables.config.kubepods_level = 2;
    tables.policies.insert(policy, mode);
    tables.pods.insert(77, pod(1, 1));
    tables.interfaces.insert(ifindex, pod(1, 1));
    tables.exact.insert(ExactKey::new(policy, addr, 6, 443), Exact::plain(Target::Node));
    tables.addresses.insert(AddressKey { policy, addr }, address::GATEWAY);
    let value = Range { kinds: range::CLUSTER, exceptions: 1 };
    tables.ranges.insert((RangeKey::bits(true, 8), prefix), value);
    tables.exceptions.insert(ExceptionKey::new(1, 6, 443), Exception { expires: 9 });
    let to = RedirectTo::new(addr, 8443, GatewayId(1), 1);
    tables.redirects.insert(RedirectKey::new(policy, 443, true, 0), to);
    tables
}

fn start(options: &Options, kubepods: &Path, tables: &Tables) -> (Attached, Applied) {
    Loaded::load(options).unwrap().attach(kubepods, tables, true).unwrap()
}

/// The kernel's numbers of every pinned link: another number means that it was detached.
fn link_ids(options: &Options, ifindex: u32) -> Vec<u32> {
    let links = options.bpffs.join("links");
    let tcx = ["egress", "ingress"].map(|way| links.join("tcx").join(format!("{ifindex}-{way}")));
    HOOKS
        .iter()
        .map(|hook| links.join(hook))
        .chain(tcx)
        .map(|path| aya::programs::links::FdLink::from(PinnedLink::from_pin(path).unwrap()))
        .map(|link| link.info().unwrap().id())
        .collect()
}

fn assert_all_attached(attached: &Attached) {
    let hooks = attached.hooks();
    assert_eq!(hooks.len(), HOOKS.len() + 2, "{hooks:?}");
    for hook in hooks {
        assert!(hook.attached, "{hook:?}");
    }
}

#[test]
fn a_second_agent_adopts_every_link_and_replaces_every_program() {
    let (bpffs, root, pair) = (Bpffs::mount(), CgroupRoot::create(), Pair::create());
    let (kubepods, _) = root.make("kubepods");
    let (options, desired) = (options(&bpffs), tables(pair.ifindex()));

    let (first, applied) = start(&options, &kubepods, &desired);
    assert_eq!((applied.generation, applied.attached), (1, 1), "{applied:?}");
    assert_eq!(applied.warnings, Vec::<String>::new());
    assert_all_attached(&first);
    let mut held = first.actual().unwrap();
    held.config.generation = 0;
    assert_eq!(held, desired);
    let links = link_ids(&options, pair.ifindex());
    drop(first);

    let (second, applied) = start(&options, &kubepods, &desired);
    assert_eq!((applied.generation, applied.put, applied.attached), (1, 0, 0), "{applied:?}");
    assert_eq!(link_ids(&options, pair.ifindex()), links, "a link was detached");
    // Verified against what the second agent loaded: the programs are its own.
    assert_all_attached(&second);
}

#[test]
fn an_interface_an_incomplete_snapshot_forgot_is_kept_with_the_new_program() {
    let (bpffs, root, pair) = (Bpffs::mount(), CgroupRoot::create(), Pair::create());
    let (kubepods, _) = root.make("kubepods");
    let options = options(&bpffs);
    drop(start(&options, &kubepods, &tables(pair.ifindex())));

    let mut forgetful = tables(pair.ifindex());
    forgetful.interfaces.clear();
    let loaded = Loaded::load(&options).unwrap();
    let (mut attached, applied) = loaded.attach(&kubepods, &forgetful, false).unwrap();
    assert_eq!((applied.withheld, applied.detached), (1, 0), "{applied:?}");
    assert_all_attached(&attached);

    let applied = attached.apply(&forgetful, true).unwrap();
    assert_eq!((applied.removed, applied.detached), (1, 1), "{applied:?}");
    assert_eq!(attached.hooks().len(), HOOKS.len());
}

#[test]
fn without_its_hooks_nothing_is_redirected_and_everything_else_holds() {
    let (bpffs, root, pair) = (Bpffs::mount(), CgroupRoot::create(), Pair::create());
    let (kubepods, _) = root.make("kubepods");
    let options = options(&bpffs);
    // What stands where the link's pin belongs makes attaching fail.
    fs::create_dir_all(options.bpffs.join("links").join("getpeername6")).unwrap();
    let loaded = Loaded::load(&options).unwrap();
    assert_eq!(loaded.no_redirect(), None);
    let (attached, _) = loaded.attach(&kubepods, &tables(pair.ifindex()), true).unwrap();
    let why = attached.no_redirect().unwrap();
    assert!(why.contains("getpeername6"), "{why}");
    let hooks = attached.hooks();
    let missing: Vec<&str> =
        hooks.iter().filter(|hook| !hook.attached).map(|hook| hook.hook).collect();
    assert_eq!(missing, ["getpeername6"]);
}

#[test]
fn links_follow_kubepods_to_another_cgroup() {
    let (bpffs, root) = (Bpffs::mount(), CgroupRoot::create());
    let (before, _) = root.make("before/kubepods");
    let (after, _) = root.make("after/kubepods");
    let options = options(&bpffs);
    drop(start(&options, &before, &Tables::default()));

    let (attached, _) = start(&options, &after, &Tables::default());
    assert!(attached.hooks().iter().all(|hook| hook.attached), "{:?}", attached.hooks());
    fs::remove_dir(&after).unwrap();
    assert!(attached.hooks().iter().all(|hook| !hook.attached), "{:?}", attached.hooks());
}

#[test]
fn an_interface_that_is_gone_is_a_warning_and_then_forgotten() {
    let (bpffs, root, pair) = (Bpffs::mount(), CgroupRoot::create(), Pair::create());
    let (kubepods, _) = root.make("kubepods");
    let desired = tables(pair.ifindex());
    let (mut attached, _) = start(&options(&bpffs), &kubepods, &desired);

    ip(&format!("link del {}", pair.host));
    let applied = attached.apply(&desired, true).unwrap();
    assert_eq!(applied.warnings.len(), 2, "{applied:?}");
    let applied = attached.apply(&Tables { interfaces: [].into(), ..desired }, true).unwrap();
    assert_eq!(applied.warnings, Vec::<String>::new());
    assert_eq!(attached.hooks().len(), HOOKS.len());
}

#[test]
fn a_plan_that_does_not_fit_changes_nothing() {
    let (bpffs, root) = (Bpffs::mount(), CgroupRoot::create());
    let (kubepods, _) = root.make("kubepods");
    let options = Options { capacity: Some(2), ..options(&bpffs) };
    let (mut attached, _) = start(&options, &kubepods, &Tables::default());
    let before = attached.actual().unwrap();

    let mut desired = tables(1);
    desired.interfaces.clear();
    for port in 1..=3 {
        let key = ExactKey::new(PolicyId(1), Addr::v4([10, 1, 2, 3]), 17, port);
        desired.exact.insert(key, Exact::plain(Target::Node));
    }
    let refused = attached.apply(&desired, true).unwrap_err();
    assert!(matches!(&refused, DatapathError::Refused(what) if what.table == "EXACT"), "{refused}");
    assert_eq!(attached.actual().unwrap(), before);
}

#[test]
fn a_pinned_map_of_another_shape_is_refused_by_name() {
    let bpffs = Bpffs::mount();
    drop(Loaded::load(&options(&bpffs)).unwrap());
    let other = Options { capacity: Some(8), ..options(&bpffs) };
    let error = Loaded::load(&other).err().unwrap().to_string();
    assert!(error.contains("EXACT") && error.contains("uninstall"), "{error}");
}

#[test]
fn counters_are_read_and_survive_the_agent() {
    let (bpffs, root) = (Bpffs::mount(), CgroupRoot::create());
    let (kubepods, _) = root.make("kubepods");
    let (mut attached, _) = start(&options(&bpffs), &kubepods, &Tables::default());
    attached.beat().unwrap();
    assert!(attached.take_events().is_some());
    assert!(attached.take_events().is_none());
    let reader = attached.reader().unwrap();
    drop(attached);
    assert!(reader.node().unwrap().contains_key(&(Verdict::Drop, Reason::NotGateway)));
    assert!(reader.losses().unwrap().iter().all(|(_, lost)| *lost == 0));
}

#[test]
fn uninstall_removes_what_is_ours_and_only_that() {
    let (bpffs, root, pair) = (Bpffs::mount(), CgroupRoot::create(), Pair::create());
    let (kubepods, _) = root.make("kubepods");
    let options = options(&bpffs);
    drop(start(&options, &kubepods, &tables(pair.ifindex())));

    let foreign = options.bpffs.join("links").join("somebodys");
    fs::create_dir(&foreign).unwrap();
    let removed = uninstall(&options).unwrap();
    assert_eq!(
        (removed.links, removed.objects),
        (HOOKS.len() + 2, map_names().len() + hook_names().len()),
        "{removed:?}"
    );
    assert!(foreign.exists());

    fs::remove_dir(&foreign).unwrap();
    assert_eq!(uninstall(&options).unwrap().links, 0);
    assert!(!options.bpffs.exists());
    assert_eq!(uninstall(&options).unwrap(), Default::default());
}
