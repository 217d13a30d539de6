//! Which cgroup and which interface belong to which pod, from kernel truth alone.
//!
//! Cgroups are found by the pod UID in their name, interfaces by the addresses inside the
//! namespace they lead to. Nothing here reads `/proc`, a container runtime's socket or an
//! interface's name.

pub mod cgroup;
pub mod link;
pub mod rules;
pub mod uplink;

use std::path::PathBuf;

/// Why the node could not be read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is no cgroup v2 hierarchy.
    #[error("no cgroup v2 hierarchy is mounted")]
    NoCgroup2,
    /// There is no `kubepods` cgroup.
    #[error("no kubepods cgroup below {}", root.display())]
    NoKubepods {
        /// Where it was looked for.
        root: PathBuf,
    },
    /// The mounted hierarchy starts below the real root, whose levels the kernel counts.
    #[error("{} is seen from inside a cgroup namespace: its level cannot be known", path.display())]
    CgroupNamespace {
        /// The `kubepods` directory.
        path: PathBuf,
    },
    /// A directory could not be read or watched.
    #[error("cgroup {}: {source}", path.display())]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A netlink exchange failed.
    #[error("netlink {request}: {source}")]
    Netlink {
        /// What was asked.
        request: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl IdentityError {
    /// What to do about it.
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::NoCgroup2 => "boot with the unified cgroup hierarchy (cgroup v2)",
            Self::NoKubepods { .. } => {
                "start the kubelet first, or name the cgroup that holds kubepods with --cgroup-root"
            }
            Self::CgroupNamespace { .. } => {
                "mount the host's /sys/fs/cgroup into the agent's container (hostPath), or run it \
                 with the host's cgroup namespace"
            }
            Self::Cgroup { .. } => "mount the cgroup hierarchy into the agent's container",
            Self::Netlink { .. } => "give the agent CAP_NET_ADMIN and the host's network namespace",
        }
    }
}
