//! Token buckets, one number each: the moment up to which a bucket is filled.
//!
//! Reading, comparing and adding are three steps and no lock: two CPUs at the same bucket may both
//! take its last token, which is one connection too many and no more, because each adds what it
//! took. A bucket that cannot be made allows nothing.

use egress_common::Subject;
use egress_common::key::{PodId, PolicyId};
use egress_common::state::{BucketKey, NODE_EVENT_RATE, POD_EVENT_RATE, Policy, Rate, loss};

use crate::atomic::add;
use crate::maps::BUCKETS;

/// Whether one more connection of the subject exceeds a rate of its policy. With `take`, one that
/// does not is taken into account.
#[inline(always)]
pub(crate) fn over(who: &Subject, policy: &Policy, now: u64, take: bool) -> bool {
    let pod = BucketKey { id: who.pod.0, kind: BucketKey::POD, policy: who.policy };
    let namespace = BucketKey {
        id: u64::from(who.namespace.0),
        kind: BucketKey::NAMESPACE,
        policy: who.policy,
    };
    let (Ok(pod), Ok(namespace)) =
        (room(&pod, &policy.pod_rate, now), room(&namespace, &policy.namespace_rate, now))
    else {
        return true;
    };
    if take {
        fill(pod, &policy.pod_rate, now);
        fill(namespace, &policy.namespace_rate, now);
    }
    false
}

/// Takes a token for an event of the pod, out of its own bucket and out of the node's; the index of
/// the loss counter where one of them is empty.
#[inline(always)]
pub(crate) fn event(pod: PodId, now: u64) -> Result<(), u32> {
    let key = BucketKey { id: pod.0, kind: BucketKey::POD_EVENTS, policy: PolicyId::NONE };
    let node = BucketKey { id: 0, kind: BucketKey::NODE_EVENTS, policy: PolicyId::NONE };
    let pod = room(&key, &POD_EVENT_RATE, now).map_err(|_: Full| loss::BUCKET_POD)?;
    let node = room(&node, &NODE_EVENT_RATE, now).map_err(|_: Full| loss::BUCKET_NODE)?;
    fill(pod, &POD_EVENT_RATE, now);
    fill(node, &NODE_EVENT_RATE, now);
    Ok(())
}

/// There is no room.
struct Full;

/// The bucket, where it has room for one more; `None` where the rate has no limit.
#[inline(always)]
fn room(key: &BucketKey, rate: &Rate, now: u64) -> Result<Option<*mut u64>, Full> {
    const BPF_NOEXIST: u64 = 1;
    if rate.interval == 0 {
        return Ok(None);
    }
    let bucket = match BUCKETS.get_ptr_mut(key) {
        Some(bucket) => bucket,
        None => {
            // Where another CPU was first, its bucket is found below.
            let _ = BUCKETS.insert(key, now, BPF_NOEXIST);
            BUCKETS.get_ptr_mut(key).ok_or(Full)?
        }
    };
    // SAFETY: eight aligned bytes of a map, valid for the program's run.
    if rate.allows(unsafe { bucket.read_volatile() }, now) { Ok(Some(bucket)) } else { Err(Full) }
}

#[inline(always)]
fn fill(bucket: Option<*mut u64>, rate: &Rate, now: u64) {
    let Some(bucket) = bucket else {
        return;
    };
    // SAFETY: as above. A store that races with an addition loses at most that one connection,
    // and only in a bucket that was empty.
    unsafe {
        if bucket.read_volatile() < now {
            bucket.write_volatile(now);
        }
        add(bucket, rate.interval);
    }
}
