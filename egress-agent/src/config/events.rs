//! Section `events`: what is written of denials, and where.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ConfigError;
use crate::events::Rotation;

/// Events.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Events {
    /// `compact` or `ocsf`.
    pub format: Option<EventFormat>,
    /// `stdout`, or a file that is appended to.
    pub output: Option<PathBuf>,
    /// Size at which the file turns over, MiB; 0 for none. Default 64, at most 65536.
    pub max_size_mib: Option<u32>,
    /// Files kept beside the one that is written. Default 4, at most 100.
    pub keep: Option<u32>,
}

impl Events {
    /// When the file turns over.
    ///
    /// # Errors
    /// When a number is out of range.
    pub fn rotation(&self, path: &Path) -> Result<Rotation, ConfigError> {
        let default = Rotation::default();
        let within = |key: &str, value: Option<u32>, most: u32| match value {
            Some(value) if value > most => Err(ConfigError::Value {
                path: path.to_owned(),
                message: format!("events.{key}: {value} is more than {most}"),
            }),
            other => Ok(other),
        };
        let size = within("maxSizeMib", self.max_size_mib, 65_536)?;
        let keep = within("keep", self.keep, 100)?;
        Ok(Rotation {
            size: size.map_or(default.size, |mib| u64::from(mib) << 20),
            keep: keep.unwrap_or(default.keep),
        })
    }
}

/// How events are written.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum EventFormat {
    /// One line for people.
    Compact,
    /// One JSON object of OCSF class 4001.
    #[default]
    Ocsf,
}
