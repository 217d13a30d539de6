//! From the object to programs and maps in the kernel, with nothing attached yet.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::maps::MapInfo;
use aya::programs::{CgroupSkb, CgroupSockAddr, ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::bpf_attach_type;

use super::maps::Maps;
use super::{Capacities, DatapathError, EventRing, Options, make_dir, object, sys};
use crate::policy::{OwnPod, Tables};

/// One kernel program and where it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    /// Name of the program and of its pins.
    pub(super) name: &'static str,
    /// Attach point.
    pub(super) attach: bpf_attach_type,
}

/// The hooks attached once, at `kubepods`. Answers are known before the wall asks for them; and the
/// wall comes before the socket hooks, because it protects.
pub(super) const CGROUP_HOOKS: [Hook; 6] = [
    Hook { name: "wall_ingress", attach: bpf_attach_type::BPF_CGROUP_INET_INGRESS },
    Hook { name: "wall", attach: bpf_attach_type::BPF_CGROUP_INET_EGRESS },
    Hook { name: "connect4", attach: bpf_attach_type::BPF_CGROUP_INET4_CONNECT },
    Hook { name: "connect6", attach: bpf_attach_type::BPF_CGROUP_INET6_CONNECT },
    Hook { name: "sendmsg4", attach: bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG },
    Hook { name: "sendmsg6", attach: bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG },
];

/// The hooks that tell an application the peer it asked for, without which nothing is redirected.
/// Also at `kubepods`; a kernel that refuses them still gets everything else.
pub(super) const PEER_HOOKS: [Hook; 2] = [
    Hook { name: "getpeername4", attach: bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME },
    Hook { name: "getpeername6", attach: bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME },
];

/// The hooks attached to every pod's interface. Replies are tracked before anything is dropped.
pub(super) const INTERFACE_HOOKS: [Hook; 2] = [
    Hook { name: "pod_ingress", attach: bpf_attach_type::BPF_TCX_EGRESS },
    Hook { name: "pod_egress", attach: bpf_attach_type::BPF_TCX_INGRESS },
];

/// The hook attached to every uplink of the node.
pub(super) const UPLINK_HOOK: Hook =
    Hook { name: "uplink_egress", attach: bpf_attach_type::BPF_TCX_EGRESS };

/// Maps that outlive the agent.
pub(super) const PINNED: [&str; 22] = [
    "CONFIG",
    "HEARTBEAT",
    "POLICIES",
    "PODS",
    "INTERFACES",
    "EXACT",
    "ADDRESSES",
    "RANGES",
    "EXCEPTIONS",
    "REPLIES",
    "PLACES",
    "HANDS",
    "BUCKETS",
    "REDIRECTS",
    "ORIGINALS",
    "COUNTERS",
    "NODE_COUNTERS",
    "LOSSES",
    "SEEN",
    "PROCESSES",
    "TALLY",
    "EVENTS",
];

/// Names of all hooks, as metrics and `status` tell them.
pub fn hook_names() -> Vec<&'static str> {
    let hooks = CGROUP_HOOKS.iter().chain(&PEER_HOOKS).chain(&INTERFACE_HOOKS);
    hooks.chain([&UPLINK_HOOK]).map(|hook| hook.name).collect()
}

/// Names of the maps that outlive the agent, likewise.
pub fn map_names() -> Vec<&'static str> {
    PINNED.to_vec()
}

/// Maps whose size [`Options::capacity`] overrides.
const SIZED: [&str; 4] = ["EXACT", "ADDRESSES", "RANGES", "REDIRECTS"];

/// A loaded program.
pub(super) struct Program {
    pub(super) hook: Hook,
    pub(super) fd: OwnedFd,
    /// The kernel's id of it.
    pub(super) id: u32,
}

/// Reader of the programs' debug lines.
pub type Logger = aya_log::EbpfLogger<&'static dyn log::Log>;

/// Programs and maps in the kernel; nothing holds traffic yet.
pub struct Loaded {
    pub(super) options: Options,
    pub(super) maps: Maps,
    pub(super) programs: Vec<Program>,
    pub(super) events: EventRing,
    pub(super) logger: Option<Logger>,
    /// Why the kernel has no [`PEER_HOOKS`], where it refused them.
    pub(super) no_redirect: Option<String>,
}

impl Loaded {
    /// Loads all programs, on the pinned maps where there are any.
    ///
    /// # Errors
    /// When the pins cannot be used, a pinned map has another shape, or the kernel refuses the
    /// object. Nothing that is already attached is touched.
    pub fn load(options: &Options) -> Result<Self, DatapathError> {
        let root = &options.bpffs;
        for dir in ["maps", "progs"] {
            make_dir(&options.schema().join(dir), root)?;
        }
        make_dir(&options.interface_pins(), root)?;
        make_dir(&options.uplink_pins(), root)?;
        make_dir(&options.qdisc_marks(), root)?;
        verify_pinned(options)?;

        let pins: Vec<_> = PINNED.iter().map(|map| (*map, options.map_pin(map))).collect();
        let kernel_log = u8::from(options.kernel_log);
        let mut loader = EbpfLoader::new();
        for (map, path) in &pins {
            loader.map_pin_path(map, path.as_path());
        }
        if let Some(capacity) = options.capacity {
            for map in SIZED {
                loader.map_max_entries(map, capacity);
            }
        }
        loader.override_global("KERNEL_LOG", &kernel_log, true);
        let mut ebpf = loader.load(object()).map_err(|source| load_error("object", source))?;

        let mut programs = CGROUP_HOOKS
            .into_iter()
            .chain(INTERFACE_HOOKS)
            .chain([UPLINK_HOOK])
            .map(|hook| load_program(&mut ebpf, hook))
            .collect::<Result<Vec<_>, _>>()?;
        let peers = PEER_HOOKS.into_iter().map(|hook| load_program(&mut ebpf, hook));
        let no_redirect = match peers.collect::<Result<Vec<_>, _>>() {
            Ok(peers) => {
                programs.extend(peers);
                None
            }
            Err(error) => Some(causes(&error)),
        };
        let logger = if options.kernel_log {
            let logger = aya_log::EbpfLogger::init_with_logger(&mut ebpf, log::logger());
            Some(logger.map_err(|source| load_error("map AYA_LOGS", source))?)
        } else {
            None
        };
        let maps = Maps::take(&mut ebpf)?;
        let events = EventRing::take(&mut ebpf)?;
        Ok(Self { options: options.clone(), maps, programs, events, logger, no_redirect })
    }

    /// Why connections cannot be redirected on this node, if they cannot.
    pub fn no_redirect(&self) -> Option<&str> {
        self.no_redirect.as_deref()
    }

    /// Makes the agent's own pod known before there is a policy. The wall of an earlier agent stands
    /// and does not know it: where unknown pods are denied, the API server could not be asked.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn exempt(&mut self, own: Option<&OwnPod>) -> Result<(), DatapathError> {
        own.map_or(Ok(()), |own| self.maps.put_pod(own.cgroup, own.entry()))
    }

    /// Stamps the heartbeat, on which the lease of what an earlier agent attached depends.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn beat(&mut self) -> Result<(), DatapathError> {
        self.maps.beat(crate::clock::boot_clock())
    }

    /// Sizes of the kernel's tables.
    pub const fn capacities(&self) -> &Capacities {
        self.maps.capacities()
    }

    /// Reads the kernel's tables as an earlier agent left them.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn actual(&self) -> Result<Tables, DatapathError> {
        self.maps.actual()
    }
}

pub(super) fn load_error<E>(what: &str, source: E) -> DatapathError
where
    E: std::error::Error + Send + Sync + 'static,
{
    DatapathError::Load { what: what.to_owned(), source: Box::new(source) }
}

/// The kernel's first word on a program it refused; the verifier's log is for nobody's status.
pub(super) fn causes(error: &DatapathError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

pub(super) fn load_program(ebpf: &mut Ebpf, hook: Hook) -> Result<Program, DatapathError> {
    let name = hook.name;
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| DatapathError::Missing { what: format!("program {name}") })?;
    let failed = |source: ProgramError| load_error(&format!("program {name}"), source);
    if INTERFACE_HOOKS.iter().chain([&UPLINK_HOOK]).any(|other| other.name == name) {
        let classifier: &mut SchedClassifier = program.try_into().map_err(failed)?;
        classifier.load().map_err(failed)?;
    } else if name == "wall" || name == "wall_ingress" {
        let wall: &mut CgroupSkb = program.try_into().map_err(failed)?;
        wall.load().map_err(failed)?;
    } else {
        let socket: &mut CgroupSockAddr = program.try_into().map_err(failed)?;
        socket.load().map_err(failed)?;
    }
    let id = program.info().map_err(failed)?.id();
    let fd = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
    let fd = fd.map_err(|source| load_error(&format!("program {name}"), source))?;
    Ok(Program { hook, fd, id })
}

/// aya 0.14 hands out whatever a pin holds; a map of another shape would be read past its end.
pub(super) fn verify_pinned(options: &Options) -> Result<(), DatapathError> {
    let parsed = aya_obj::Object::parse(object()).map_err(|source| load_error("object", source))?;
    for map in PINNED {
        let path = options.map_pin(map);
        if !path.exists() {
            continue;
        }
        let wanted = parsed
            .maps
            .get(map)
            .ok_or_else(|| DatapathError::Missing { what: format!("map {map}") })?;
        let found = pinned_info(&path, map)?;
        let sized = options.capacity.filter(|_| SIZED.contains(&map));
        let entries = sized.unwrap_or_else(|| wanted.max_entries());
        let kind = found.map_type().map_err(|source| DatapathError::Map { map, source })?;
        for (field, found, expected) in [
            ("type", u64::from(kind as u32), u64::from(wanted.map_type())),
            ("key size", u64::from(found.key_size()), u64::from(wanted.key_size())),
            ("value size", u64::from(found.value_size()), u64::from(wanted.value_size())),
            ("size", u64::from(found.max_entries()), u64::from(entries)),
            ("flags", u64::from(found.map_flags()), u64::from(wanted.map_flags())),
        ] {
            if found != expected {
                let map = map.to_owned();
                return Err(DatapathError::MapShape { map, field, found, expected });
            }
        }
    }
    Ok(())
}

fn pinned_info(path: &Path, map: &'static str) -> Result<MapInfo, DatapathError> {
    MapInfo::from_pin(path).map_err(|source| DatapathError::Map { map, source })
}

/// Opens the program an earlier agent pinned for a hook, which is the one a link runs.
pub(super) fn pinned_program(options: &Options, hook: &str) -> Option<OwnedFd> {
    sys::open_pin(&options.program_pin(hook)).ok()
}
