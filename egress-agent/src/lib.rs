//! The node agent: registry to kernel, counters and events back.
#![deny(unsafe_code)]

pub mod admin;
pub mod agent;
pub mod alerts;
pub mod cli;
pub mod clock;
pub mod config;
pub mod datapath;
pub mod doctor;
pub mod events;
pub mod exposure;
#[cfg(test)]
mod generated;
pub mod identity;
pub mod lock;
pub mod metrics;
pub mod names;
pub mod netlink;
pub mod policy;
pub mod registry;
pub mod supervise;
