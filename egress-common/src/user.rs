//! aya's permission to move these bytes in and out of maps.

use crate::key::{
    AddressKey, ExactKey, ExceptionKey, GatewayId, NamespaceId, PodId, PolicyId, RangeKey, ReplyKey,
};
use crate::redirect::{Original, RedirectKey, RedirectTo};
use crate::state::{
    BucketKey, Config, Counter, CounterKey, Exact, Exception, PlaceKey, Pod, Policy, Process,
    Range, Rate, Reply, Seen, SeenKey, Tally,
};

macro_rules! plain_bytes {
    ($($name:ident),+ $(,)?) => {
        $(
            // SAFETY: repr(C) or repr(transparent) over integers and integer arrays, without
            // implicit padding (sizes are asserted beside each type): every bit pattern is valid.
            unsafe impl aya::Pod for $name {}
        )+
    };
}

plain_bytes!(
    AddressKey,
    BucketKey,
    Config,
    Counter,
    CounterKey,
    Exact,
    ExactKey,
    Exception,
    ExceptionKey,
    GatewayId,
    NamespaceId,
    Original,
    PlaceKey,
    Pod,
    PodId,
    Policy,
    PolicyId,
    Process,
    Range,
    RangeKey,
    Rate,
    RedirectKey,
    RedirectTo,
    Reply,
    ReplyKey,
    Seen,
    SeenKey,
    Tally,
);
