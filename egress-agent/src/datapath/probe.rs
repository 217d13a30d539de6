//! What can be found out of a node by trying: each attempt leaves nothing behind.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use aya::EbpfLoader;
use aya::maps::{Array, Map, MapData};
use aya_obj::generated::{bpf_attach_type, bpf_prog_type};
use nix::libc;
use nix::sched::{CloneFlags, unshare};

use super::attach::unlink;
use super::load::{
    CGROUP_HOOKS, Hook, INTERFACE_HOOKS, PEER_HOOKS, UPLINK_HOOK, causes, load_error, load_program,
    verify_pinned,
};
use super::sys::{self, Target};
use super::{DatapathError, Options, SysError, object};

/// Whether `bpf(2)` reaches the kernel's own code; otherwise the errno of what stands before it.
///
/// # Errors
/// When it does not.
pub fn reach() -> Result<(), io::Error> {
    match sys::probe::errno_of_oversize() {
        libc::E2BIG => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Creates a map and loads a program, and lets go of both.
///
/// # Errors
/// What the kernel says.
pub fn objects() -> Result<(), SysError> {
    sys::probe::create_map()?;
    let attach = bpf_attach_type::BPF_TCX_INGRESS;
    sys::probe::load(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, attach, -1).map(drop)
}

/// Pins a map in a directory of a bpffs, or in the nearest one above that is there, and removes the
/// pin.
///
/// # Errors
/// What the kernel says.
pub fn pin(directory: &Path) -> Result<(), SysError> {
    let map = sys::probe::create_map()?;
    let existing = directory.ancestors().find(|path| path.is_dir()).unwrap_or(directory);
    let path = existing.join(format!("doctor-{}", std::process::id()));
    sys::pin(map.as_fd(), &path)?;
    unlink(&path)
}

/// Loads every program of the release object on maps of its own; what the kernel said of those it
/// refused.
///
/// # Errors
/// When the object itself or one of its maps is refused.
pub fn programs() -> Result<Vec<(&'static str, Option<String>)>, DatapathError> {
    let loaded = EbpfLoader::new().load(object());
    let mut ebpf = loaded.map_err(|source| load_error("object", source))?;
    let hooks = hooks().map(|hook| {
        let refused = load_program(&mut ebpf, hook).err();
        (hook.name, refused.map(|error| causes(&error)))
    });
    Ok(hooks.collect())
}

fn hooks() -> impl Iterator<Item = Hook> {
    CGROUP_HOOKS.into_iter().chain(PEER_HOOKS).chain(INTERFACE_HOOKS).chain([UPLINK_HOOK])
}

/// How the kernel takes programs at interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tcx {
    /// A link was made in a network namespace of its own.
    Tried,
    /// The kernel knows such links; none was made, because that needs `CAP_SYS_ADMIN`.
    Known,
    /// The kernel does not know them.
    Missing,
}

/// Tries a tcx link on the loopback device of a namespace that goes with the attempt.
///
/// # Errors
/// What the kernel says of the program or of the link.
pub fn tcx() -> Result<Tcx, SysError> {
    let attach = bpf_attach_type::BPF_TCX_INGRESS;
    let program = sys::probe::load(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, attach, -1)?;
    if !sys::has_tcx(program.as_fd()) {
        return Ok(Tcx::Missing);
    }
    const LOOPBACK: u32 = 1;
    let attempt = || {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            return Ok(Tcx::Known);
        }
        let target = Target::Interface(LOOPBACK);
        let link = sys::create_link(program.as_fd(), target, attach, "lo of a namespace")?;
        drop(link);
        Ok(Tcx::Tried)
    };
    // A thread of its own: the namespace is the thread's alone.
    std::thread::scope(|scope| scope.spawn(attempt).join()).unwrap_or(Ok(Tcx::Known))
}

/// Attaches programs that allow everything at every hook of a cgroup, one after the other, each for
/// an instant.
///
/// # Errors
/// What the kernel says of the first that it refuses.
pub fn cgroup_links(kubepods: &Path) -> Result<(), SysError> {
    let object = kubepods.display().to_string();
    let directory = fs::File::open(kubepods).map_err(|source| failed(&object, source))?;
    let id = directory.metadata().map_err(|source| failed(&object, source))?.ino();
    for Hook { name, attach } in CGROUP_HOOKS.into_iter().chain(PEER_HOOKS) {
        let kind = if name.starts_with("wall") {
            bpf_prog_type::BPF_PROG_TYPE_CGROUP_SKB
        } else {
            bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR
        };
        let program = sys::probe::load(kind, attach, 1)?;
        let target = Target::Cgroup { directory: directory.as_fd(), id };
        sys::create_link(program.as_fd(), target, attach, &format!("{object} for {name}"))?;
    }
    Ok(())
}

fn failed(object: &str, source: io::Error) -> SysError {
    SysError { call: "open", object: object.to_owned(), source }
}

/// Programs at one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbours {
    /// The hook that this agent has there.
    pub hook: &'static str,
    /// Those that run before ours, or all where ours is not there: `name (id)`.
    pub ahead: Vec<String>,
    /// Those that run after it.
    pub behind: Vec<String>,
    /// Ours is there.
    pub present: bool,
    /// Nobody may attach anything below: the program was attached without `BPF_F_ALLOW_MULTI`.
    pub exclusive: bool,
}

/// Who is attached to a cgroup beside us.
///
/// # Errors
/// When the kernel does not say.
pub fn at_cgroup(options: &Options, path: &Path) -> Result<Vec<Neighbours>, SysError> {
    let object = path.display().to_string();
    let directory = fs::File::open(path).map_err(|source| failed(&object, source))?;
    let hooks = CGROUP_HOOKS.into_iter().chain(PEER_HOOKS);
    let asked = hooks.map(|hook| {
        let target = Target::Cgroup { directory: directory.as_fd(), id: 0 };
        neighbours(options, hook, target, &object)
    });
    asked.collect()
}

/// Who is attached to an interface beside us, in the chains of these hooks.
///
/// # Errors
/// When the kernel does not say.
pub fn at_interface(
    options: &Options,
    ifindex: u32,
    uplink: bool,
) -> Result<Vec<Neighbours>, SysError> {
    let object = format!("ifindex {ifindex}");
    let hooks = if uplink { vec![UPLINK_HOOK] } else { INTERFACE_HOOKS.to_vec() };
    let target = Target::Interface(ifindex);
    hooks.into_iter().map(|hook| neighbours(options, hook, target, &object)).collect()
}

fn neighbours(
    options: &Options,
    hook: Hook,
    target: Target<'_>,
    object: &str,
) -> Result<Neighbours, SysError> {
    let attendance = sys::probe::query(target, hook.attach, object)?;
    let ours = pinned_id(options, hook);
    let at = attendance.programs.iter().position(|id| Some(*id) == ours);
    let named = |ids: &[u32]| ids.iter().map(|id| name(*id)).collect();
    let (ahead, behind) = attendance.programs.split_at(at.unwrap_or(attendance.programs.len()));
    Ok(Neighbours {
        hook: hook.name,
        ahead: named(ahead),
        behind: named(behind.get(1..).unwrap_or_default()),
        present: at.is_some(),
        exclusive: attendance.flags == 0 && !attendance.programs.is_empty(),
    })
}

fn name(id: u32) -> String {
    let name = sys::probe::program_name(id).filter(|name| !name.is_empty());
    format!("{} (id {id})", name.as_deref().unwrap_or("unnamed"))
}

/// Id of the program that is pinned for a hook.
fn pinned_id(options: &Options, hook: Hook) -> Option<u32> {
    let info = aya::programs::ProgramInfo::from_pin(options.program_pin(hook.name)).ok()?;
    Some(info.id())
}

/// Pods that a new table has room for.
pub const POD_ROOM: usize = 2048;

/// What of an agent's is pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// This version's maps are there, in the shape it needs.
    pub maps: bool,
    /// Schemas of other versions that are there.
    pub others: Vec<u32>,
    /// Links at the cgroup.
    pub links: usize,
    /// Boot clock of the last sign of life, nanoseconds.
    pub beat: Option<u64>,
    /// Pods in the table, and its room, entries.
    pub pods: Option<(usize, usize)>,
}

/// Looks at the pins.
///
/// # Errors
/// When a map of this version's schema has another shape.
pub fn pinned(options: &Options) -> Result<Pinned, DatapathError> {
    verify_pinned(options)?;
    let schemas = fs::read_dir(&options.bpffs).into_iter().flatten().flatten();
    let number =
        |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix('s')?.parse::<u32>().ok();
    let others =
        schemas.filter_map(number).filter(|schema| *schema != egress_common::SCHEMA).collect();
    let links = CGROUP_HOOKS.iter().chain(&PEER_HOOKS);
    let links = links.filter(|hook| options.link_pin(hook.name).exists()).count();
    let beat = options.map_pin("HEARTBEAT");
    let beat = beat.exists().then(|| heartbeat(&beat)).flatten();
    let pods = options.map_pin("PODS");
    let pods = pods.exists().then(|| entries(&pods)).flatten();
    Ok(Pinned { maps: options.map_pin("CONFIG").exists(), others, links, beat, pods })
}

fn heartbeat(pin: &Path) -> Option<u64> {
    let map: Array<MapData, u64> =
        Array::try_from(Map::Array(MapData::from_pin(pin).ok()?)).ok()?;
    map.get(&0, 0).ok()
}

fn entries(pin: &Path) -> Option<(usize, usize)> {
    let data = MapData::from_pin(pin).ok()?;
    let room = data.info().ok()?.max_entries() as usize;
    let map: aya::maps::HashMap<MapData, u64, egress_common::state::Pod> =
        Map::HashMap(data).try_into().ok()?;
    Some((map.keys().count(), room))
}
