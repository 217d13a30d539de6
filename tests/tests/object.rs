//! The embedded object: both sides agree on its bytes, and the running kernel takes it.

use std::mem::size_of;

use aya::EbpfLoader;
use aya::programs::{CgroupSkb, CgroupSockAddr, SchedClassifier};
use egress_agent::datapath::object;
use egress_common::event::Event;
use egress_common::key::{AddressKey, ExactKey, ExceptionKey, PodId, PolicyId, RangeKey, ReplyKey};
use egress_common::redirect::{Original, RedirectKey, RedirectTo};
use egress_common::state::{
    BucketKey, Config, Counter, CounterKey, Exact, Exception, PlaceKey, Pod, Policy, Process,
    Range, Reply, Seen, SeenKey, Tally, loss,
};
use egress_common::{Reason, Verdict};

#[test]
fn sizes_agree_on_both_sides() {
    let parsed = aya_obj::Object::parse(object()).unwrap();
    let word = size_of::<u32>();
    for (name, key, value) in [
        ("CONFIG", word, size_of::<Config>()),
        ("HEARTBEAT", word, size_of::<u64>()),
        ("POLICIES", size_of::<PolicyId>(), size_of::<Policy>()),
        ("PODS", size_of::<u64>(), size_of::<Pod>()),
        ("INTERFACES", word, size_of::<Pod>()),
        ("EXACT", size_of::<ExactKey>(), size_of::<Exact>()),
        ("ADDRESSES", size_of::<AddressKey>(), word),
        // The trie's key starts with the length of the prefix.
        ("RANGES", word + size_of::<RangeKey>(), size_of::<Range>()),
        ("EXCEPTIONS", size_of::<ExceptionKey>(), size_of::<Exception>()),
        ("REPLIES", size_of::<ReplyKey>(), size_of::<Reply>()),
        ("PLACES", size_of::<PlaceKey>(), size_of::<ReplyKey>()),
        ("HANDS", size_of::<PodId>(), size_of::<u64>()),
        ("BUCKETS", size_of::<BucketKey>(), size_of::<u64>()),
        ("REDIRECTS", size_of::<RedirectKey>(), size_of::<RedirectTo>()),
        ("ORIGINALS", size_of::<u64>(), size_of::<Original>()),
        ("COUNTERS", size_of::<CounterKey>(), size_of::<Counter>()),
        ("NODE_COUNTERS", word, size_of::<Counter>()),
        ("LOSSES", word, size_of::<u64>()),
        ("SEEN", size_of::<SeenKey>(), size_of::<Seen>()),
        ("PROCESSES", size_of::<u64>(), size_of::<Process>()),
        ("TALLY", word, size_of::<Tally>()),
    ] {
        let map = parsed.maps.get(name).unwrap_or_else(|| panic!("no map {name}"));
        assert_eq!(map.key_size() as usize, key, "key of {name}");
        assert_eq!(map.value_size() as usize, value, "value of {name}");
    }
    let slots = |name: &str| parsed.maps.get(name).unwrap().max_entries();
    assert_eq!(slots("NODE_COUNTERS"), Verdict::SLOTS * Reason::SLOTS);
    assert_eq!(slots("LOSSES"), loss::SLOTS);
    assert_eq!(Event::SIZE, 128);
}

/// The oldest kernels of the matrix refuse a program that contains such a call, made or not.
#[test]
fn packet_programs_name_no_helper_of_processes() {
    const CALL: u8 = 0x85;
    // bpf_get_current_pid_tgid, _uid_gid and _comm: for packets since Linux 6.10.
    const OF_PROCESSES: [i32; 3] = [14, 15, 16];
    let parsed = aya_obj::Object::parse(object()).unwrap();
    let calls = |name: &str| {
        let key = parsed.programs.get(name).unwrap_or_else(|| panic!("no {name}")).function_key();
        let all = &parsed.functions.get(&key).unwrap().instructions;
        let helpers = all.iter().filter(|one| one.code == CALL && one.src_reg() == 0);
        helpers.filter(|one| OF_PROCESSES.contains(&one.imm)).count()
    };
    for name in ["pod_egress", "pod_ingress", "uplink_egress", "wall", "wall_ingress"] {
        assert_eq!(calls(name), 0, "{name}");
    }
    assert!(calls("connect4") > 0, "socket calls are made by processes");
}

/// Instructions of a program, and those the verifier walks of it.
const LIMIT: u32 = 50_000;

#[test]
fn the_running_kernel_accepts_every_program() {
    let mut ebpf = EbpfLoader::new().load(object()).unwrap();
    for name in [
        "pod_egress",
        "pod_ingress",
        "uplink_egress",
        "wall",
        "wall_ingress",
        "connect4",
        "connect6",
        "sendmsg4",
        "sendmsg6",
        "getpeername4",
        "getpeername6",
    ] {
        let program = ebpf.program_mut(name).unwrap_or_else(|| panic!("no program {name}"));
        let loaded = match name {
            "pod_egress" | "pod_ingress" | "uplink_egress" => {
                let program: &mut SchedClassifier = program.try_into().unwrap();
                program.load()
            }
            "wall" | "wall_ingress" => {
                let program: &mut CgroupSkb = program.try_into().unwrap();
                program.load()
            }
            _ => {
                let program: &mut CgroupSockAddr = program.try_into().unwrap();
                program.load()
            }
        };
        loaded.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let info = program.info().unwrap();
        // Eight bytes each. Kernels before 5.16 do not tell what the verifier walked.
        let length = info.size_translated().map(|bytes| bytes / 8);
        let processed = info.verified_instruction_count();
        println!("{name}: {length:?} instructions, of which the verifier walked {processed:?}");
        assert!(length.is_none_or(|count| count < LIMIT), "{name}: {length:?}");
        assert!(processed.is_none_or(|count| count < LIMIT), "{name}: {processed:?}");
    }
}
