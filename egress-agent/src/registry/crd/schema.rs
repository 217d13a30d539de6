//! Types of the CRDs' schemas that Rust's own types do not say: texts that are ranges, addresses
//! or moments, and the rules between fields.
//!
//! The parser (`policy_object`, `range`) is the authority; what stands here tells the API server
//! the same, so that a mistake is refused when it is made. Rules are CEL as of Kubernetes 1.31.
//! Every text and list has a longest length: the API server estimates what a rule costs from it.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// Declares a type that stands for the schema of a text or number.
macro_rules! value {
    ($(#[$meta:meta])* $name:ident = $schema:expr) => {
        $(#[$meta])*
        pub(in crate::registry) struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

value! {
    /// Name of an object.
    Name = json_schema!({ "type": "string", "minLength": 1, "maxLength": 253 })
}

value! {
    /// A port.
    Port = json_schema!({ "type": "integer", "format": "int32", "minimum": 1, "maximum": 65535 })
}

value! {
    /// A port whose connections may be redirected.
    RedirectedPort = json_schema!({
        "type": "integer",
        "format": "int32",
        "minimum": 1,
        "maximum": 65535,
        "x-kubernetes-validations": [rule(
            "!(self in [53, 853])",
            "is DNS, which only named resolvers get",
        )],
    })
}

value! {
    /// Text that says something.
    Words = json_schema!({
        "type": "string",
        "maxLength": 1024,
        "x-kubernetes-validations": [rule("self.trim() != ''", "required: say it in words")],
    })
}

value! {
    /// An RFC 3339 time.
    Moment = json_schema!({
        "type": "string",
        "format": "date-time",
        "maxLength": 64,
        "pattern": MOMENT,
    })
}

/// `date-time` alone also takes times without their offset.
const MOMENT: &str = r"^\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})$";

value! {
    /// An address that something may be sent to.
    Address = json_schema!({
        "type": "string",
        "maxLength": 45,
        "x-kubernetes-validations": [
            rule("isIP(self)", "is not an IP address; an IPv4-mapped one is written as IPv4"),
            rule(
                "!isIP(self) || !(ip(self).isLoopback() || ip(self).isUnspecified() || \
                 cidr('224.0.0.0/4').containsIP(self) || cidr('ff00::/8').containsIP(self))",
                "is a loopback, multicast or unspecified address",
            ),
        ],
    })
}

value! {
    /// A range that is permanently allowed or answered.
    AllowedRange = range(&[rule(
        "!isCIDR(self) || cidr(self).prefixLength() >= (cidr(self).ip().family() == 4 ? 8 : 16)",
        "is wider than /8, or /16 for IPv6: no cluster is that large",
    )])
}

value! {
    /// The range of an exception.
    ExceptedRange = range(&[])
}

/// Ranges no rule can allow; `range::NEVER` names them one by one.
const NEVER: [&str; 7] = [
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "0.0.0.0/8",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
];

fn range(more: &[Value]) -> Schema {
    let never = NEVER.map(|range| format!("cidr('{range}').containsCIDR(self)")).join(" || ");
    let mut rules = vec![
        rule("isCIDR(self)", "is not a range; write it as 10.0.0.0/8 or fd00::/64"),
        rule(
            "!isCIDR(self) || cidr(self) == cidr(self).masked()",
            "has host bits set; write the range's first address",
        ),
        rule(
            &format!("!isCIDR(self) || !({never})"),
            "is loopback, link-local, multicast or unspecified: no rule can allow it",
        ),
    ];
    rules.extend_from_slice(more);
    json_schema!({ "type": "string", "maxLength": 49, "x-kubernetes-validations": rules })
}

/// What spans fields of a policy.
pub(in crate::registry) fn policy() -> Value {
    json!([at(
        ".redirect",
        "!has(self.redirect) || (has(self.gateways) && size(self.gateways) > 0)",
        "needs a gateway to redirect to: name one in spec.gateways",
    )])
}

/// What a gateway is found by.
pub(in crate::registry) fn gateway() -> Value {
    json!([
        rule(
            "[has(self.service), has(self.gateway), has(self.podSelector)]\
             .exists_one(given, given)",
            "exactly one of service, gateway and podSelector is required",
        ),
        at(
            ".ports",
            "has(self.podSelector) || !has(self.ports) || size(self.ports) == 0",
            "only for podSelector; a Service's ports come from its endpoint slices",
        ),
        at(
            ".ports",
            "!has(self.podSelector) || (has(self.ports) && size(self.ports) > 0)",
            "required with podSelector: the TCP ports to dial",
        ),
        at(
            ".podSelector",
            "!has(self.podSelector) || (has(self.podSelector.matchLabels) && \
             size(self.podSelector.matchLabels) > 0)",
            "matchLabels is required: an empty selector would trust every pod of the namespace",
        ),
    ])
}

/// At least one rate, and no burst without its rate.
pub(in crate::registry) fn rate_limit() -> Value {
    json!([
        rule(
            "has(self.connectionsPerSecond) || has(self.burst) || has(self.namespace)",
            "is empty: give connectionsPerSecond, namespace or both",
        ),
        at(
            ".connectionsPerSecond",
            "!has(self.burst) || has(self.connectionsPerSecond)",
            "required with burst: 1 to 1000000",
        ),
    ])
}

fn rule(rule: &str, message: &str) -> Value {
    json!({ "rule": rule, "message": message })
}

fn at(field: &str, rule: &str, message: &str) -> Value {
    json!({ "rule": rule, "message": message, "fieldPath": field })
}
