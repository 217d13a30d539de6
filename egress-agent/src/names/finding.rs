//! What is wrong with an answer.

use std::net::IpAddr;

use super::history::Drift;
use super::name::Name;
use crate::policy::compile::Place;
use crate::policy::{CoverageState, ObjectName};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A name of the outside leads to a place inside.
    Rebinding(Place),
    /// A registered host answers from where it never was, or is not expected.
    Drift(Drift),
}

/// The two that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// See [`Kind::Rebinding`].
    Rebinding,
    /// See [`Kind::Drift`].
    Drift,
}

impl Kind {
    /// Which of the two it is.
    pub const fn class(self) -> Class {
        match self {
            Self::Rebinding(_) => Class::Rebinding,
            Self::Drift(_) => Class::Drift,
        }
    }

    /// The class of event.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rebinding(_) => "rebinding",
            Self::Drift(_) => "drift",
        }
    }

    /// What about it: the place, or why it is a drift.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Rebinding(place) => place.name(),
            Self::Drift(drift) => drift.name(),
        }
    }
}

/// The pod that an answer went to.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// UID.
    pub uid: String,
    /// Workload kind and name.
    pub workload: (String, String),
    /// Whether it is governed, or a gateway's.
    pub state: CoverageState,
}

/// One address of one answer, and what is wrong with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Boot clock nanoseconds.
    pub time: u64,
    /// What is wrong.
    pub kind: Kind,
    /// The pod that asked.
    pub pod: Pod,
    /// The name it asked for.
    pub host: Name,
    /// The address it was given.
    pub ip: IpAddr,
    /// Seconds for which it may be used.
    pub ttl: u32,
    /// Who answered.
    pub resolver: IpAddr,
    /// IP protocol of the answer.
    pub protocol: u8,
    /// The ServiceEntry that registers the host, where one does.
    pub declared_by: Option<ObjectName>,
    /// Findings of the same that were not told since the last one.
    pub untold: u64,
}
