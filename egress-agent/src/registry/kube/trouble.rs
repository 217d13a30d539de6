//! What can be wrong with a watch, in words an operator can act on.

use kube::core::Status;

use super::demand::Watch;
use super::resource::{Resource, resource};
use crate::policy::{EgressPolicy, Origin, Problem, ProblemCode};
use crate::registry::object::Kind;

/// Kind in the origin of what is wrong with the server itself.
const SERVER: &str = "ApiServer";

/// Why a list or a watch failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The server gave no answer, or only that it cannot answer now.
    Unreachable(String),
    /// It answered that it will not.
    Refused {
        /// `list` or `watch`.
        verb: &'static str,
        /// HTTP status.
        code: u16,
        /// What it said.
        message: String,
    },
}

impl Trouble {
    /// What a failed request means.
    pub(super) fn of(verb: &'static str, error: &kube::Error) -> Self {
        if let kube::Error::Api(status) = error {
            return Self::refused(verb, status);
        }
        Self::Unreachable(innermost(error))
    }

    /// What the server's answer means.
    pub(super) fn refused(verb: &'static str, status: &Status) -> Self {
        if is_busy(status) {
            return Self::Unreachable(format!("{}: {}", status.code, status.message));
        }
        Self::Refused { verb, code: status.code, message: status.message.clone() }
    }

    /// Whether the server answered.
    pub(super) const fn is_refusal(&self) -> bool {
        match self {
            Self::Unreachable(_) => false,
            Self::Refused { .. } => true,
        }
    }

    /// Whether the server forgot where a list or a watch was: it begins anew, and nothing is wrong.
    pub(super) const fn is_gone(&self) -> bool {
        matches!(self, Self::Refused { code: 410, .. })
    }

    /// Whether the server has no such kind, or has it no more.
    pub(super) const fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }

    /// The problem a watch makes of it. An unreachable server is one problem, however many watches
    /// miss it.
    pub(super) fn problem(&self, watch: &Watch, server: &str) -> Problem {
        let plural = resource(watch.kind).plural;
        match self {
            Self::Unreachable(error) => unreachable(server, error),
            Self::Refused { verb, code, message } => {
                let text = format!(
                    "the API server refuses to {verb} {plural} ({code}: {}); what was last known \
                     of them stays: {}",
                    message.trim_end_matches('.'),
                    remedy(*code, verb, watch.kind)
                );
                unreadable(watch.kind.name(), watch.to_string(), text)
            }
        }
    }

    /// The problem of a server that does not say which kinds it has.
    pub(super) fn undiscovered(&self, server: &str) -> Problem {
        match self {
            Self::Unreachable(error) => unreachable(server, error),
            Self::Refused { code, message, .. } => {
                let text = format!(
                    "refuses to say which kinds it has ({code}: {}): renew the agent's \
                     credentials, or bind it to the ClusterRole system:discovery",
                    message.trim_end_matches('.')
                );
                unreadable(SERVER, server.to_owned(), text)
            }
        }
    }

    /// Something that came in a list and is no object.
    pub(super) fn unreadable(watch: &Watch, what: &str) -> Problem {
        let message = format!("{what}; it is left out");
        unreadable(watch.kind.name(), watch.to_string(), message)
    }

    /// One of our own kinds that the server does not have.
    pub(super) fn not_installed(kind: Kind) -> Problem {
        let resource = resource(kind);
        let message = format!(
            "the API server has no such kind, so nothing is removed from the kernel until it has: \
             install the CustomResourceDefinition {}.{}",
            resource.plural, resource.group
        );
        unreadable(
            "CustomResourceDefinition",
            format!("{}.{}", resource.plural, resource.group),
            message,
        )
    }

    /// A policy that waits for what its gateways are made of.
    pub(super) fn held_back(policy: &EgressPolicy, watch: &Watch, in_force: bool) -> Problem {
        let outcome = if in_force {
            "its last version stays in force until they are"
        } else {
            "it is not in force until they are"
        };
        Problem {
            code: ProblemCode::Unreadable,
            origin: policy.origin.clone(),
            message: format!(
                "needs {} ({watch}), which cannot be listed; {outcome}",
                resource(watch.kind).plural
            ),
        }
    }
}

fn unreadable(kind: &str, name: String, message: String) -> Problem {
    let origin = Origin { kind: kind.to_owned(), name, file: None };
    Problem { code: ProblemCode::Unreadable, origin, message }
}

/// Whether the server has too much to do, or has only begun: it says the same of every kind.
pub(super) const fn is_busy(status: &Status) -> bool {
    matches!(status.code, 429 | 503 | 504)
}

fn unreachable(server: &str, error: &str) -> Problem {
    let text = format!(
        "gives no good answer ({error}); what was last known stays in force, and it is asked again \
         every few seconds: check that it runs and that this node may reach it"
    );
    unreadable(SERVER, server.to_owned(), text)
}

fn remedy(code: u16, verb: &str, kind: Kind) -> String {
    let Resource { group, plural, .. } = resource(kind);
    match code {
        401 => "renew the agent's credentials".to_owned(),
        403 => format!(
            "add to the agent's role the rule {{apiGroups: [\"{group}\"], resources: [{plural}], \
             verbs: [{verb}]}}"
        ),
        _ => "it is asked again every few seconds; see the API server's log".to_owned(),
    }
}

/// The cause that says most; those around it repeat it.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
