//! What a policy says of redirection.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::schema;

/// Connections that go to the gateways instead of being refused.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields, expecting = "a mapping")]
#[schemars(extend("required" = ["ports"]))]
pub(in crate::registry) struct RedirectSpec {
    /// The ports that applications dial, each once.
    #[schemars(length(min = 1, max = 64))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["port"]))]
    pub(in crate::registry) ports: Vec<RedirectPortSpec>,
}

/// One port to redirect, and the gateway's port that takes it. In a manifest that no API server
/// sees, the number alone does too.
#[derive(Clone, Copy, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::registry) struct RedirectPortSpec {
    /// The port that applications dial; not 53 or 853, which are for resolvers.
    #[schemars(with = "schema::RedirectedPort")]
    pub(in crate::registry) port: u16,
    /// The port of the gateway's pods that takes it, such as its TLS port for 443 and its HTTP
    /// port for 80. Unless given, the one that the gateway's Service maps `port` to, or the only
    /// one there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "schema::Port")]
    pub(in crate::registry) gateway_port: Option<u16>,
}

impl<'de> Deserialize<'de> for RedirectPortSpec {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Mapping {
            /// Zero where absent, which is refused with every other that is no port.
            #[serde(default)]
            port: u16,
            gateway_port: Option<u16>,
        }
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = RedirectPortSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port, or a mapping such as {port: 443, gatewayPort: 8443}")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<RedirectPortSpec, E> {
                let wrong = |_| E::invalid_value(de::Unexpected::Unsigned(number), &self);
                let port = u16::try_from(number).map_err(wrong)?;
                Ok(RedirectPortSpec { port, gateway_port: None })
            }

            fn visit_map<A: de::MapAccess<'de>>(
                self,
                map: A,
            ) -> Result<RedirectPortSpec, A::Error> {
                let mapping = de::value::MapAccessDeserializer::new(map);
                let Mapping { port, gateway_port } = Mapping::deserialize(mapping)?;
                Ok(RedirectPortSpec { port, gateway_port })
            }
        }
        input.deserialize_any(Visitor)
    }
}
