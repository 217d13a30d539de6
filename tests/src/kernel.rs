//! The loaded programs on bytes of our own, by `BPF_PROG_TEST_RUN`, and a small policy in which
//! every line of the verdict order has something to match.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray};
use aya::programs::{CgroupSkb, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use egress_agent::datapath::object;
use egress_agent::identity::cgroup::Kubepods;
use egress_agent::policy::Tables;
use egress_common::key::{
    Addr, AddressKey, ExactKey, ExceptionKey, GatewayId, NamespaceId, PodId, PolicyId, RangeKey,
    ReplyKey,
};
use egress_common::state::{
    Config, Counter, Exact, Exception, OnAgentLoss, PlaceKey, Pod, Policy, Range, Reply, Target,
    address, range,
};
use egress_common::{Mode, Reason, Verdict};
use nix::libc;

use crate::cgroup;
use crate::netns::Netns;
use crate::sweep;

/// The interface a test run's packet comes in by, where it is told none.
pub const LOOPBACK: u32 = 1;
/// The policy.
pub const POLICY: PolicyId = PolicyId(7);
/// The pod's MAC.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The pod's IPv4 address.
pub const V4: [u8; 4] = [10, 0, 1, 2];
/// The pod's IPv6 address.
pub const V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
/// Marks of the boundary, as the configuration gives them.
pub const MARKS: (u32, u32) = (0x1000, 0x2000);

/// Another address of the pod's IPv6 network.
pub const fn v6(last: u8) -> [u8; 16] {
    let mut octets = V6;
    octets[15] = last;
    octets
}

/// The pod, with a boundary.
pub const fn pod() -> Pod {
    Pod {
        id: PodId(1),
        policy: POLICY,
        capture: 0,
        flags: Pod::BOUNDARY,
        mac: MAC,
        proxy_uid: Pod::NO_PROXY,
        proxy_gid: Pod::NO_PROXY,
        v4: Addr::v4(V4),
        v6: Addr::new(V6),
        namespace: NamespaceId(1),
        guarded: 0,
        netns: 0,
    }
}

/// The policy's tables, and those of the uplink and of pods nobody knows; the pod behind
/// [`LOOPBACK`].
pub fn tables() -> Tables {
    let mut tables = Tables::default();
    (tables.config.mark_audit, tables.config.mark_enforce) = MARKS;
    tables.policies.insert(POLICY, Policy::new(Mode::Enforce, OnAgentLoss::Hold));
    tables.interfaces.insert(LOOPBACK, pod());
    let gateway = GatewayId(9);
    for (addr, protocol, port, entry) in [
        (Addr::v4([10, 0, 2, 2]), 6, 8443, Exact::gateway(gateway, false)),
        (Addr::new(v6(9)), 6, 8443, Exact::gateway(gateway, false)),
        (Addr::v4([10, 0, 2, 3]), 6, 8443, Exact::gateway(gateway, true)),
        (Addr::v4([10, 0, 0, 10]), 17, 53, Exact::plain(Target::Resolver)),
        (Addr::v4([192, 0, 2, 1]), 6, 6443, Exact::plain(Target::Infrastructure)),
        (Addr::v4([10, 0, 9, 1]), 6, 10250, Exact::plain(Target::Node)),
        (Addr::v4([10, 0, 3, 3]), 6, 443, Exact::plain(Target::HiddenExternal)),
    ] {
        tables.exact.insert(ExactKey::new(POLICY, addr, protocol, port), entry);
        if entry.target != Target::HiddenExternal.number() {
            tables.exact.insert(ExactKey::new(PolicyId::UPLINK, addr, protocol, port), entry);
        }
        if entry.target == Target::Resolver.number() {
            tables.exact.insert(ExactKey::new(PolicyId::NONE, addr, protocol, port), entry);
        }
    }
    for (addr, bits) in [
        (Addr::v4([10, 0, 2, 2]), address::GATEWAY),
        (Addr::new(v6(9)), address::GATEWAY),
        (Addr::v4([10, 0, 2, 9]), address::FOREIGN_GATEWAY),
    ] {
        tables.addresses.insert(AddressKey { policy: POLICY, addr }, bits);
    }
    let cluster = range::CLUSTER | range::INBOUND;
    let all6 = Addr::new([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for (addr, bits, kinds, exceptions) in [
        (Addr::v4([10, 0, 0, 0]), 104, cluster, 0),
        (Addr::v4([10, 0, 9, 1]), 128, cluster | range::NODE, 0),
        (Addr::v4([10, 7, 7, 7]), 128, cluster | range::THIS_NODE, 0),
        (all6, 16, cluster, 0),
        (Addr::v4([169, 254, 169, 254]), 128, range::METADATA, 0),
        (Addr::v4([240, 240, 0, 0]), 112, range::MESH_VIP, 0),
        (Addr::v4([198, 51, 100, 0]), 120, range::INBOUND, 3),
    ] {
        let mut enter = |policy, kinds, exceptions| {
            let key = RangeKey { policy, addr };
            tables.ranges.insert((32 + bits, key), Range { kinds, exceptions });
        };
        enter(POLICY, kinds, exceptions);
        enter(PolicyId::UPLINK, kinds & (range::CLUSTER | range::NODE | range::METADATA), 0);
        enter(PolicyId::NONE, kinds & range::INBOUND, 0);
    }
    tables.exceptions.insert(ExceptionKey::new(3, 6, 443), Exception { expires: u64::MAX });
    tables
}

/// Where test runs happen: a namespace with an interface beside loopback, and a pod's cgroup, to
/// which the kernel gives the socket of every run.
#[derive(Debug)]
pub struct Ground {
    netns: Netns,
    container: PathBuf,
    root: cgroup::Root,
}

/// What the programs see of the ground.
#[derive(Clone, Copy, Debug)]
pub struct Stand {
    /// Index of the interface.
    pub ifindex: u32,
    /// Id of the pod's cgroup.
    pub cgroup: u64,
    /// Absolute level of `kubepods`.
    pub level: u8,
}

impl Ground {
    /// Makes it.
    ///
    /// # Errors
    /// When the namespace or the cgroups cannot be made.
    pub fn new() -> Result<Self> {
        const UID: &str = "5f0c1a52-0c4b-4c1e-9d53-000000000061";
        sweep::sweep();
        let name = sweep::fresh_name();
        let root = cgroup::Root::create(&name)?;
        let container = root.container(UID, "app")?;
        let netns = Netns::create(&format!("{name}-runs"))?;
        netns.batch("link add near type veth peer name far\nlink set near up\n")?;
        Ok(Self { netns, container, root })
    }

    /// Does the work there.
    ///
    /// # Errors
    /// As the work, or when the place cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce(Stand) -> Result<T> + Send) -> Result<T> {
        let pod = self.container.parent().context("a container is in a pod")?;
        let cgroup = std::fs::metadata(pod).context("read the pod's cgroup")?.ino();
        let level = Kubepods::find(Some(self.root.path()))?.level;
        self.netns.run(|| {
            let ifindex = nix::net::if_::if_nametoindex("near").context("find the interface")?;
            cgroup::inside(&self.container, || work(Stand { ifindex, cgroup, level }))
        })
    }
}

/// One loaded object with its maps.
pub struct Kernel {
    ebpf: Ebpf,
}

/// What a run is told beside the packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Around {
    /// The interface; zero for loopback.
    pub ifindex: u32,
    /// The packet's mark.
    pub mark: u32,
}

/// What a run gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// What the program returned.
    pub verdict: i32,
    /// The packet's mark afterwards.
    pub mark: u32,
}

impl Kernel {
    /// Loads these programs, of the agent's object or of the one that `EGRESS_FUZZ_OBJECT` names,
    /// and fills the maps.
    ///
    /// # Errors
    /// When the kernel refuses a program or an entry.
    pub fn load(programs: &[&str], tables: &Tables) -> Result<Self> {
        let other = std::env::var_os("EGRESS_FUZZ_OBJECT");
        let other = other.map(std::fs::read).transpose().context("read EGRESS_FUZZ_OBJECT")?;
        let bytes = other.as_deref().unwrap_or_else(|| object());
        let mut kernel = Self { ebpf: EbpfLoader::new().load(bytes)? };
        for name in programs {
            let program = kernel.ebpf.program_mut(name).with_context(|| format!("no {name}"))?;
            if name.starts_with("wall") {
                let program: &mut CgroupSkb = program.try_into()?;
                program.load()?;
            } else {
                let program: &mut SchedClassifier = program.try_into()?;
                program.load()?;
            }
        }
        kernel.fill(tables)?;
        Ok(kernel)
    }

    fn map<'a, T>(&'a mut self, name: &str) -> Result<T>
    where
        T: TryFrom<&'a mut Map, Error = MapError>,
    {
        Ok(T::try_from(self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?)?)
    }

    /// Enters tables; nothing that is there goes.
    ///
    /// # Errors
    /// When the kernel refuses an entry.
    pub fn fill(&mut self, tables: &Tables) -> Result<()> {
        self.map::<Array<_, Config>>("CONFIG")?.set(0, tables.config, 0)?;
        let mut policies: HashMap<_, PolicyId, Policy> = self.map("POLICIES")?;
        tables.policies.iter().try_for_each(|(key, value)| policies.insert(key, value, 0))?;
        let mut pods: HashMap<_, u64, Pod> = self.map("PODS")?;
        tables.pods.iter().try_for_each(|(key, value)| pods.insert(key, value, 0))?;
        let mut interfaces: HashMap<_, u32, Pod> = self.map("INTERFACES")?;
        tables.interfaces.iter().try_for_each(|(key, value)| interfaces.insert(key, value, 0))?;
        let mut exact: HashMap<_, ExactKey, Exact> = self.map("EXACT")?;
        tables.exact.iter().try_for_each(|(key, value)| exact.insert(key, value, 0))?;
        let mut addresses: HashMap<_, AddressKey, u32> = self.map("ADDRESSES")?;
        tables.addresses.iter().try_for_each(|(key, value)| addresses.insert(key, value, 0))?;
        let mut ranges: LpmTrie<_, RangeKey, Range> = self.map("RANGES")?;
        for ((bits, key), value) in &tables.ranges {
            ranges.insert(&Key::new(*bits, *key), *value, 0)?;
        }
        let mut exceptions: HashMap<_, ExceptionKey, Exception> = self.map("EXCEPTIONS")?;
        tables.exceptions.iter().try_for_each(|(key, value)| exceptions.insert(key, value, 0))?;
        Ok(())
    }

    /// Forgets every flow that was opened from outside.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn forget_replies(&mut self) -> Result<()> {
        fn clear<K: aya::Pod, V: aya::Pod>(
            mut map: HashMap<&mut MapData, K, V>,
        ) -> Result<(), MapError> {
            let keys = map.keys().collect::<Result<Vec<K>, _>>()?;
            keys.iter().try_for_each(|key| map.remove(key))
        }
        clear::<ReplyKey, Reply>(self.map("REPLIES")?)?;
        clear::<PlaceKey, ReplyKey>(self.map("PLACES")?)?;
        clear::<PodId, u64>(self.map("HANDS")?)?;
        Ok(())
    }

    /// The descriptor of a loaded program.
    ///
    /// # Errors
    /// When it is not loaded.
    pub fn program(&self, name: &str) -> Result<i32> {
        let program = self.ebpf.program(name).with_context(|| format!("no {name}"))?;
        let descriptor = if name.starts_with("wall") {
            let program: &CgroupSkb = program.try_into()?;
            program.fd()
        } else {
            let program: &SchedClassifier = program.try_into()?;
            program.fd()
        };
        Ok(descriptor?.as_fd().as_raw_fd())
    }

    /// Packets counted for the node under a verdict and a reason.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counted(&self, verdict: Verdict, reason: Reason) -> Result<u64> {
        let totals = self.ebpf.map("NODE_COUNTERS").context("no counters")?;
        let totals: PerCpuArray<_, Counter> = PerCpuArray::try_from(totals)?;
        let slot = u32::from(verdict.number()) * Reason::SLOTS + u32::from(reason.number());
        Ok(totals.get(&slot, 0)?.iter().map(|one| one.packets).sum())
    }
}

/// `union bpf_attr` of `BPF_PROG_TEST_RUN`, up to what is used (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    verdict: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    batch: [u32; 2],
}

/// Size of `struct __sk_buff` up to now, with room; and where two of its fields are, in words.
const CONTEXT_WORDS: usize = 64;
const MARK: usize = 2;
const IFINDEX: usize = 10;

/// Runs a program on one frame.
///
/// # Errors
/// When the kernel refuses the frame.
pub fn run(program: i32, frame: &[u8], around: Around) -> Result<Ran> {
    const BPF_PROG_TEST_RUN: libc::c_int = 10;
    let mut given = [0u32; IFINDEX + 1];
    (given[MARK], given[IFINDEX]) = (around.mark, around.ifindex);
    let mut taken = [0u32; CONTEXT_WORDS];
    let mut attributes = TestRun {
        program: program as u32,
        size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat: 1,
        context_size_in: size_of_val(&given) as u32,
        context_in: given.as_ptr() as u64,
        context_size_out: size_of_val(&taken) as u32,
        context_out: taken.as_mut_ptr() as u64,
        ..TestRun::default()
    };
    // SAFETY: the attributes, the frame and both contexts outlive the call, which writes only into
    // the attributes and the second context, no more than its size.
    let failed = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<TestRun>())
    };
    ensure!(failed == 0, "test run: {}", std::io::Error::last_os_error());
    Ok(Ran { verdict: attributes.verdict as i32, mark: taken[MARK] })
}
