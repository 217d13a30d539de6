//! Gateways of the Gateway API. Which Service is theirs is said by that Service's owner, never by
//! a name: Istio names it after the class, and an annotation may change that.

use serde::Deserialize;
use serde_json::Value;

use super::field::{FieldErrors, typed};
use super::object::Object;
use crate::policy::Origin;
use crate::policy::mesh::ApiGateway;

/// API group of the Gateway API.
pub(super) const GATEWAY_API_GROUP: &str = "gateway.networking.k8s.io";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a mapping")]
struct Spec {
    gateway_class_name: String,
}

/// A Gateway.
pub(super) fn api_gateway(value: Value, origin: &Origin) -> Result<ApiGateway, FieldErrors> {
    let object: Object<Spec> = typed(value)?;
    let spec = object.spec.unwrap_or_default();
    Ok(ApiGateway {
        uid: object.metadata.uid,
        class: spec.gateway_class_name,
        origin: origin.clone(),
    })
}
