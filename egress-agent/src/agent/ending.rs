//! Why an agent ends, in words and as an exit code.

use crate::cli::exit;
use crate::config::ConfigError;
use crate::doctor::{Check, CheckStatus};
use crate::lock::LockError;
use crate::metrics::serve::AccessError;
use crate::registry::RegistryError;

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The registry that was named cannot be followed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Metrics cannot be served as asked.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Another agent runs here.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The node cannot enforce.
    #[error("this node cannot enforce:{}", list(.0))]
    Preflight(Vec<Check>),
    /// Anything else.
    #[error("{}", causes(.0))]
    Failed(#[from] anyhow::Error),
}

/// An error with its causes, each said once: most of ours name their cause themselves.
pub fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn list(checks: &[Check]) -> String {
    let failed = checks.iter().filter(|check| check.status == CheckStatus::Fail);
    failed.map(|check| format!("\n  {}: {}: {}", check.name, check.detail, check.remedy)).collect()
}

impl RunError {
    /// The documented exit code.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Registry(_) => exit::USAGE,
            Self::Access(AccessError::Bind { .. }) => exit::FAILED,
            Self::Access(_) => exit::USAGE,
            Self::Lock(LockError::Held { .. }) => exit::LOCKED,
            Self::Preflight(_) => exit::CANNOT_ENFORCE,
            Self::Lock(LockError::Unusable { .. }) | Self::Failed(_) => exit::FAILED,
        }
    }
}
