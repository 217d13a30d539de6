//! How the programs get into the kernel.

use serde::Deserialize;

use crate::datapath::Way;

/// How the programs get to where they judge.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Datapath {
    /// `auto` (default): by tcx, and by clsact on kernels without it; `tcx`; `clsact`.
    pub attach: Way,
}
