//! Asking the API server who somebody is, and what they may.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::Value;

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the API server says of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Review {
    /// It is somebody's who may.
    Allowed,
    /// It is nobody's, has ended, or is for another audience than the API server.
    Unknown,
    /// It is somebody's who may not.
    Forbidden,
}

/// Asks the API server about tokens.
#[derive(Clone)]
pub struct Reviewer(Client);

impl Reviewer {
    pub(in crate::registry) const fn new(client: Client) -> Self {
        Self(client)
    }

    /// Whether the owner of a token may do this to a path that is no object's.
    ///
    /// # Errors
    /// When the server did not answer, or does not let the agent ask; says what to do.
    pub async fn review(&self, token: &str, path: &str, verb: &str) -> Result<Review, String> {
        let asked = tokio::time::timeout(PATIENCE, self.ask(token, path, verb)).await;
        let Ok(answer) = asked else {
            return Err(format!("no answer within {} s", PATIENCE.as_secs()));
        };
        answer.map_err(|error| {
            if let kube::Error::Api(status) = &error
                && status.code == 403
            {
                let message = &status.message;
                return format!(
                    "{message}; grant it with `egress-agent rbac --metrics-authentication`"
                );
            }
            error.to_string()
        })
    }

    async fn ask(&self, token: &str, path: &str, verb: &str) -> Result<Review, kube::Error> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let review =
            Api::<TokenReview>::all(self.0.clone()).create(&PostParams::default(), &review).await?;
        let status = review.status.unwrap_or_default();
        let Some(user) = status.user.filter(|_| status.authenticated == Some(true)) else {
            return Ok(Review::Unknown);
        };
        let spec = SubjectAccessReviewSpec {
            user: user.username,
            uid: user.uid,
            groups: user.groups,
            extra: user.extra,
            non_resource_attributes: Some(NonResourceAttributes {
                path: Some(path.to_owned()),
                verb: Some(verb.to_owned()),
            }),
            ..SubjectAccessReviewSpec::default()
        };
        let access = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let access = Api::<SubjectAccessReview>::all(self.0.clone())
            .create(&PostParams::default(), &access)
            .await?;
        let allowed = access.status.is_some_and(|status| status.allowed);
        Ok(if allowed { Review::Allowed } else { Review::Forbidden })
    }
}

/// The rights to ask, and those of whoever is to be let in, as rules.
pub(super) fn rules() -> [Vec<Value>; 2] {
    let create = |group: &str, resource: &str| serde_json::json!({ "apiGroups": [group], "resources": [resource], "verbs": ["create"] });
    [
        vec![
            create("authentication.k8s.io", "tokenreviews"),
            create("authorization.k8s.io", "subjectaccessreviews"),
        ],
        vec![serde_json::json!({ "nonResourceURLs": ["/metrics"], "verbs": ["get"] })],
    ]
}
