//! The contract between the kernel programs and the agent.
//!
//! Everything both sides must agree on lives here and only here: the bytes of every map key, map
//! value and ring record ([`key`], [`state`], [`event`], [`dns`]), the closed list of reasons ([`reason`]),
//! the facts a hook knows about a packet ([`packet`]) and the one function that turns those facts
//! into a verdict ([`decide`]), with the rule
//! for what is rewritten instead of refused ([`redirect`]).
//!
//! Invariants: nothing here allocates, reads a clock or touches a map; shared structs are
//! `repr(C)` with explicit padding and const-asserted sizes; no `bool`, `Option` or data-carrying
//! enum crosses the kernel boundary; the numbers of [`reason::Reason`] are never reused.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod decide;
pub mod dns;
pub mod event;
pub mod key;
pub mod packet;
pub mod reason;
pub mod redirect;
pub mod state;
pub mod subject;
#[cfg(feature = "user")]
mod user;

pub use decide::{Lookup, Ruling, decide, lately_excepted};
pub use key::Addr;
pub use packet::Packet;
pub use reason::{Mode, Reason, Verdict};
pub use redirect::{Endpoints, redirect};
pub use subject::Subject;

/// Number of the layout of every pinned map. A change of any key, value or record in this crate
/// raises it; the agent keeps maps of different schemas in different directories.
pub const SCHEMA: u32 = 4;
