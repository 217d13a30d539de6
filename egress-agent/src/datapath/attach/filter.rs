//! Programs as filters of a clsact qdisc: what holds an interface where the kernel has no tcx.
//!
//! A filter belongs to its interface, not to a pin: it outlives the agent and every file of it,
//! and is known again by its handle and its name. It is replaced in place (the kernel exchanges
//! one list entry under RCU: every packet meets the old program or the new), and it stands first:
//! priority 1, and within it the kernel runs the latest filter first. One that another tool has
//! come before is joined by a second at the head, and only then removed.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink's attributes and messages are the kernel's to extend"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use nix::libc;

use super::chain::Place;
use crate::datapath::load::{Hook, INTERFACE_HOOKS, Program, UPLINK_HOOK};
use crate::datapath::sys::LinkInfo;
use crate::datapath::{Options, SysError};
use crate::netlink;

/// The priority before all others.
const PRIORITY: u32 = 1;
/// `ETH_P_ALL` in network order.
const EVERY_PROTOCOL: u32 = 0x0003_u16.to_be() as u32;
/// What the names of our filters begin with.
const OWNER: &str = "egress-enforcer:";
/// Handles of our filters; other tools count theirs from one.
const HANDLES: u32 = 0x4547_0000;

/// A filter, in the order in which the kernel runs them.
struct Filter {
    handle: u32,
    priority: u32,
    name: String,
    program: u32,
}

/// A place as a filter.
#[derive(Clone, Copy)]
struct Spot {
    place: Place,
    parent: TcHandle,
    /// The two handles that our filter has in turn.
    handles: [u32; 2],
}

impl Spot {
    fn of(place: Place) -> Self {
        let [pod_ingress, pod_egress] = INTERFACE_HOOKS;
        let (number, minor) = match place.hook.name {
            name if name == pod_egress.name => (1, TcHandle::MIN_INGRESS),
            name if name == pod_ingress.name => (2, TcHandle::MIN_EGRESS),
            _ => (3, TcHandle::MIN_EGRESS),
        };
        let handle = HANDLES | number << 4;
        let parent = TcHandle { major: u16::MAX, minor };
        Self { place, parent, handles: [handle, handle | 1] }
    }

    fn name(self) -> String {
        format!("{OWNER}{}", self.place.hook.name)
    }

    fn is_ours(self, filter: &Filter) -> bool {
        self.handles.contains(&filter.handle)
            && filter.priority == PRIORITY
            && filter.name == self.name()
    }

    fn failed(self, call: &'static str) -> impl FnOnce(io::Error) -> SysError {
        let Place { hook, ifindex } = self.place;
        move |source| SysError {
            call,
            object: format!("{} on ifindex {ifindex}", hook.name),
            source,
        }
    }

    fn message(self, handle: u32) -> TcMessage {
        let mut message = message(self.place.ifindex);
        message.header.parent = self.parent;
        message.header.handle = handle.into();
        message.header.info = PRIORITY << 16 | EVERY_PROTOCOL;
        message
    }

    /// Every filter here, the first to run first.
    fn filters(self) -> Result<Vec<Filter>, SysError> {
        let mut request = message(self.place.ifindex);
        request.header.parent = self.parent;
        let request = RouteNetlinkMessage::GetTrafficFilter(request);
        netlink::dump(request, |answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(message) => Filter::read(&message),
            _ => None,
        })
        .map_err(self.failed("RTM_GETTFILTER"))
    }

    /// Adds a filter at the head, or replaces the program of the one with this handle.
    fn put(self, handle: u32, program: &Program) -> Result<(), SysError> {
        let mut message = self.message(handle);
        message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
        let fd = program.fd.as_fd().as_raw_fd().cast_unsigned();
        let options = [
            TcFilterBpfOption::ProgFd(fd),
            TcFilterBpfOption::ProgName(self.name()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        let options = options.into_iter().map(TcOption::Bpf).collect();
        message.attributes.push(TcAttribute::Options(options));
        let request = RouteNetlinkMessage::NewTrafficFilter(message);
        netlink::change(request, NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(self.failed("RTM_NEWTFILTER"))
    }

    fn remove(self, handle: u32) -> Result<(), SysError> {
        let mut message = self.message(handle);
        message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
        match netlink::change(RouteNetlinkMessage::DelTrafficFilter(message), 0) {
            Err(error) if !is_gone(&error) => Err(self.failed("RTM_DELTFILTER")(error)),
            _ => Ok(()),
        }
    }
}

impl Filter {
    /// Any filter has a handle; the head of a priority, which a dump also names, has none.
    fn read(message: &TcMessage) -> Option<Self> {
        let handle = u32::from(message.header.handle);
        let mut filter =
            Self { handle, priority: message.header.info >> 16, name: String::new(), program: 0 };
        for attribute in &message.attributes {
            let TcAttribute::Options(options) = attribute else { continue };
            for option in options {
                match option {
                    TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => {
                        filter.name.clone_from(name);
                    }
                    TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = *id,
                    _ => {}
                }
            }
        }
        (handle != 0).then_some(filter)
    }
}

/// Holds a place with this program, ahead of every other filter. With `replace`, an earlier agent's
/// program is exchanged for this one.
pub(super) fn hold(
    options: &Options,
    place: Place,
    program: &Program,
    replace: bool,
) -> Result<(), SysError> {
    let spot = Spot::of(place);
    let filters = spot.filters()?;
    let ours: Vec<&Filter> = filters.iter().filter(|filter| spot.is_ours(filter)).collect();
    let leads = filters.first().is_some_and(|first| spot.is_ours(first));
    let [one, other] = spot.handles;
    let keeper = match ours.first() {
        Some(first) if leads => {
            if replace && first.program != program.id {
                spot.put(first.handle, program)?;
            }
            first.handle
        }
        Some(behind) => {
            let handle = if behind.handle == one { other } else { one };
            tracing::warn!(hook = place.hook.name, ifindex = place.ifindex, "filter was not first");
            // Two of ours behind another's: the kernel would replace the one where it stands.
            if ours.iter().any(|filter| filter.handle == handle) {
                spot.remove(handle)?;
            }
            spot.put(handle, program)?;
            handle
        }
        None => {
            ensure_qdisc(options, spot)?;
            spot.put(one, program)?;
            one
        }
    };
    ours.iter().filter(|filter| filter.handle != keeper).try_for_each(|old| spot.remove(old.handle))
}

/// What holds a place, as the kernel says: the program that runs first of ours.
pub(super) fn holder(place: Place) -> Result<LinkInfo, SysError> {
    let spot = Spot::of(place);
    let found = spot.filters()?.into_iter().find(|filter| spot.is_ours(filter));
    let missing = || spot.failed("RTM_GETTFILTER")(io::Error::from_raw_os_error(libc::ENOENT));
    let Filter { program, .. } = found.ok_or_else(missing)?;
    Ok(LinkInfo { program, target: u64::from(place.ifindex) })
}

/// Interfaces of this network namespace with a filter of this hook. Marks of interfaces that are
/// gone go too.
pub(super) fn held(options: &Options, hook: Hook) -> Result<BTreeSet<u32>, SysError> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let interfaces = netlink::dump(request, |answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link.header.index),
        _ => None,
    });
    let failed =
        |source| SysError { call: "RTM_GETLINK", object: "the interfaces".to_owned(), source };
    let interfaces: BTreeSet<u32> = interfaces.map_err(failed)?.into_iter().collect();
    for entry in fs::read_dir(options.qdisc_marks()).into_iter().flatten().flatten() {
        let ifindex = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if ifindex.is_some_and(|ifindex| !interfaces.contains(&ifindex)) {
            // One that stays is looked at again before it makes a qdisc ours.
            let _ = fs::remove_dir(entry.path());
        }
    }
    let mut found = BTreeSet::new();
    for ifindex in interfaces {
        let spot = Spot::of(Place { hook, ifindex });
        if spot.filters()?.iter().any(|filter| spot.is_ours(filter)) {
            found.insert(ifindex);
        }
    }
    Ok(found)
}

/// Removes our filters of a place, and the qdisc when this agent made it and nothing is left in it.
/// Returns how many filters there were.
pub(super) fn let_go(options: &Options, place: Place) -> Result<usize, SysError> {
    let spot = Spot::of(place);
    let mut removed = 0;
    for filter in spot.filters()?.iter().filter(|filter| spot.is_ours(filter)) {
        spot.remove(filter.handle)?;
        removed += 1;
    }
    let mark = mark(options, place.ifindex);
    if mark.is_dir() && is_empty(place.ifindex)? {
        match netlink::change(RouteNetlinkMessage::DelQueueDiscipline(qdisc(place.ifindex)), 0) {
            Err(error) if !is_gone(&error) => return Err(spot.failed("RTM_DELQDISC")(error)),
            _ => {}
        }
        fs::remove_dir(&mark).map_err(spot.failed("rmdir"))?;
    }
    Ok(removed)
}

/// Removes every filter of this agent's in this network namespace; returns how many there were.
pub(in crate::datapath) fn clear(options: &Options) -> Result<usize, SysError> {
    let mut removed = 0;
    for hook in INTERFACE_HOOKS.into_iter().chain([UPLINK_HOOK]) {
        for ifindex in held(options, hook)? {
            removed += let_go(options, Place { hook, ifindex })?;
        }
    }
    Ok(removed)
}

/// Whether nobody has a filter at this interface, in either direction.
fn is_empty(ifindex: u32) -> Result<bool, SysError> {
    for hook in INTERFACE_HOOKS {
        if !Spot::of(Place { hook, ifindex }).filters()?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether any filter at this interface is this agent's.
fn is_ours(ifindex: u32) -> Result<bool, SysError> {
    for hook in INTERFACE_HOOKS.into_iter().chain([UPLINK_HOOK]) {
        let spot = Spot::of(Place { hook, ifindex });
        if spot.filters()?.iter().any(|filter| spot.is_ours(filter)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A directory that says that the interface's clsact is ours: a bpffs takes no files.
fn mark(options: &Options, ifindex: u32) -> PathBuf {
    options.qdisc_marks().join(ifindex.to_string())
}

/// Makes the qdisc that filters need, unless there is one; says whose it is.
fn ensure_qdisc(options: &Options, spot: Spot) -> Result<(), SysError> {
    let ifindex = spot.place.ifindex;
    let request = RouteNetlinkMessage::NewQueueDiscipline(qdisc(ifindex));
    let mark = mark(options, ifindex);
    match netlink::change(request, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => match fs::create_dir(&mark) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(spot.failed("mkdir")(error))
            }
            _ => Ok(()),
        },
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            // The mark of an interface that had the same number must not make it ours.
            if mark.is_dir() && !is_ours(ifindex)? {
                fs::remove_dir(&mark).map_err(spot.failed("rmdir"))?;
            }
            Ok(())
        }
        Err(error) => Err(spot.failed("RTM_NEWQDISC clsact")(error)),
    }
}

fn qdisc(ifindex: u32) -> TcMessage {
    let mut message = message(ifindex);
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    message
}

fn message(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::default();
    // An index is a positive number to the kernel too.
    message.header.index = ifindex.cast_signed();
    message
}

/// Whether what was to be removed, or what it was on, is not there.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL))
}
