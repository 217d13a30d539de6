//! Fields of objects: reading them, and naming the one that is wrong.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// What is wrong with an object: the path of each field and what was expected there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FieldErrors(Vec<String>);

impl FieldErrors {
    /// One field.
    pub(super) fn one(path: &str, message: impl fmt::Display) -> Self {
        Self(vec![format!("{path}: {message}")])
    }

    /// Adds one more field.
    pub(super) fn push(&mut self, path: &str, message: impl fmt::Display) {
        self.0.push(format!("{path}: {message}"));
    }

    /// The value, or `None` with the errors noted.
    pub(super) fn take<T>(&mut self, result: Result<T, Self>) -> Option<T> {
        result.map_err(|errors| self.0.extend(errors.0)).ok()
    }

    /// The value, unless something was noted.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self),
        }
    }
}

impl fmt::Display for FieldErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// Types a value; an error names the field.
pub(super) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, FieldErrors> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        FieldErrors::one(if path == "." { "object" } else { &path }, error.inner())
    })
}

/// An address in text; an IPv4-mapped one becomes IPv4.
pub(super) fn address(path: &str, text: &str) -> Result<IpAddr, FieldErrors> {
    text.parse::<IpAddr>()
        .map(|ip| ip.to_canonical())
        .map_err(|_| FieldErrors::one(path, format!("`{text}` is not an IP address")))
}

/// The addresses of a list of texts.
pub(super) fn addresses(path: &str, texts: &[String]) -> Result<Vec<IpAddr>, FieldErrors> {
    let read = |(i, text): (usize, &String)| address(&format!("{path}[{i}]"), text);
    texts.iter().enumerate().map(read).collect()
}

/// The ranges of a list of texts, host bits cleared.
pub(super) fn ranges(path: &str, texts: &[String]) -> Result<Vec<IpNet>, FieldErrors> {
    let read = |(i, text): (usize, &String)| {
        let net = text.parse::<IpNet>().map(|net| net.trunc());
        net.map_err(|_| {
            FieldErrors::one(&format!("{path}[{i}]"), format!("`{text}` is not a range (CIDR)"))
        })
    };
    texts.iter().enumerate().map(read).collect()
}

/// `auto`, or a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum AutoOr {
    /// The word, or nothing.
    #[default]
    Auto,
    /// A list, possibly empty.
    List(Vec<String>),
}

impl AutoOr {
    /// Whether nothing was listed; then nothing is written either.
    pub(super) const fn is_auto(&self) -> bool {
        matches!(self, Self::Auto)
    }
}

impl Serialize for AutoOr {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => output.serialize_none(),
            Self::List(list) => list.serialize(output),
        }
    }
}

impl<'de> Deserialize<'de> for AutoOr {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = AutoOr;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`auto` or a list")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<AutoOr, E> {
                match text {
                    "auto" => Ok(AutoOr::Auto),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> Result<AutoOr, A::Error> {
                let mut list = Vec::new();
                while let Some(text) = seq.next_element()? {
                    list.push(text);
                }
                Ok(AutoOr::List(list))
            }
        }
        input.deserialize_any(Visitor)
    }
}
