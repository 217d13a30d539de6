//! The CustomResourceDefinitions of our own kinds, made from the structs that parse them.
//!
//! Invariant: what the API server accepts under these definitions the parser accepts as well, and
//! the other way round; docs/policy.md lists the few differences that are meant. The committed
//! files in `deploy/crds` are exactly what this module says.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use super::policy_spec::{EgressException, EgressPolicy};

pub(super) mod schema;

/// A definition, as a value for a writer of YAML or JSON.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Name of its resource in the API: `egresspolicies`.
    pub plural: String,
    /// The whole object.
    pub object: Value,
}

/// Objects as a stream of YAML documents.
///
/// # Errors
/// When one cannot be written, which none of ours is known to do.
pub fn yaml<'a>(
    objects: impl IntoIterator<Item = &'a Value>,
) -> Result<String, serde_saphyr::SerializeError> {
    let documents = objects.into_iter().map(serde_saphyr::to_string);
    Ok(documents.collect::<Result<Vec<_>, _>>()?.join("---\n"))
}

/// The definitions of our kinds.
///
/// # Errors
/// When one is no JSON, which is a mistake in this program.
pub fn definitions() -> Result<[Definition; 2], serde_json::Error> {
    Ok([definition(EgressPolicy::crd())?, definition(EgressException::crd())?])
}

fn definition(crd: CustomResourceDefinition) -> Result<Definition, serde_json::Error> {
    let plural = crd.spec.names.plural.clone();
    let mut object = serde_json::to_value(crd)?;
    let versions = object.pointer_mut("/spec/versions").and_then(Value::as_array_mut);
    for version in versions.into_iter().flatten() {
        if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
            tidy(schema);
        }
    }
    Ok(Definition { plural, object })
}

/// Takes away what a derived schema says too much.
fn tidy(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    // A null is an absent field: the server drops it, as the parser does.
    map.remove("nullable");
    map.remove("title");
    map.retain(|key, value| key != "default" || is_said(value));
    if let Some(Value::String(text)) = map.get_mut("description") {
        *text = paragraphs(text);
    }
    // Kubernetes knows no unsigned formats.
    if let Some(Value::String(format)) = map.get_mut("format")
        && format.starts_with("uint")
    {
        "int64".clone_into(format);
    }
    for limit in ["minimum", "maximum"] {
        if let Some(value) = map.get_mut(limit)
            && let Some(whole) = value.as_f64()
        {
            *value = Value::from(whole as i64);
        }
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(tidy);
    }
    for part in ["items", "additionalProperties"] {
        if let Some(schema) = map.get_mut(part) {
            tidy(schema);
        }
    }
}

/// Whether a default says more than that the field may be left out.
fn is_said(default: &Value) -> bool {
    match default {
        Value::String(text) => !text.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

/// Comments are wrapped for the source; readers wrap for themselves.
fn paragraphs(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(|part| part.lines().collect::<Vec<_>>().join(" "));
    paragraphs.collect::<Vec<_>>().join("\n\n")
}
