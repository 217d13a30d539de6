//! Text of a manifest to objects, with the line each of them starts at.
//!
//! A file is read whole or not at all: half of a file that is being written must never look like
//! the deletion of the other half.

use serde::Deserialize;
use serde_json::{Map, Value};
use serde_saphyr::{Options, Spanned};

use super::object::{self, Entry};

/// Why a file could not be read, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub(super) struct Unreadable {
    pub(super) line: u64,
    pub(super) column: u64,
    pub(super) message: String,
}

impl Unreadable {
    fn at(line: u64, column: u64, message: impl ToString) -> Self {
        // The rest of a longer message repeats the text around the place.
        let message = message.to_string();
        let first = message.lines().next().unwrap_or_default();
        Self { line, column, message: first.trim_start_matches("error: ").to_owned() }
    }
}

/// Reads every object of a file. `file` is its path relative to the registry's directory.
pub(super) fn read(file: &str, bytes: &[u8]) -> Result<Vec<Entry>, Unreadable> {
    let mut entries = Vec::new();
    for (line, value) in objects(file, bytes)? {
        let entry = object::read(value, Some(format!("{file}:{line}")))
            .map_err(|error| Unreadable::at(line, 1, error))?;
        entries.extend(entry);
    }
    Ok(entries)
}

/// Every object of a file, of whatever kind, with the line it starts at.
pub(super) fn objects(file: &str, bytes: &[u8]) -> Result<Vec<(u64, Value)>, Unreadable> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        Unreadable::at(line as u64 + 1, 1, "UTF-8 text was expected")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        // Every writer that truncates first leaves this behind for a moment.
        return Err(Unreadable::at(1, 1, "the file is empty; delete it to remove its objects"));
    }
    let mut objects = Vec::new();
    for document in if file.ends_with(".json") { json(text)? } else { yaml(text)? } {
        objects.extend(document.objects()?);
    }
    Ok(objects)
}

/// The first document of a YAML text that stands in a field of an object.
pub(super) fn value(text: &str) -> Result<Value, Unreadable> {
    Ok(yaml(text)?.into_iter().next().map_or(Value::Null, |document| document.value))
}

/// One document of a file.
struct Document<'a> {
    /// Its text, for positions.
    text: &'a str,
    /// Line its text starts at.
    offset: u64,
    /// Line its first value starts at.
    line: u64,
    value: Value,
}

impl Document<'_> {
    /// The objects in it: itself, or the items of a list with the lines they start at.
    fn objects(self) -> Result<Vec<(u64, Value)>, Unreadable> {
        let Value::Object(map) = self.value else { return Ok(vec![(self.line, self.value)]) };
        let kind = map.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        let (Some(item_kind), Some(Value::Array(_))) =
            (kind.strip_suffix("List"), map.get("items"))
        else {
            return Ok(vec![(self.line, Value::Object(map))]);
        };
        let lines = item_lines(self.text, self.offset);
        let version = map.get("apiVersion").cloned();
        let items = map.into_iter().find(|(key, _)| key == "items").map(|(_, items)| items);
        let Some(Value::Array(items)) = items else { return Ok(Vec::new()) };
        let numbered = items.into_iter().enumerate().map(|(i, mut item)| {
            if let (Value::Object(item), false) = (&mut item, item_kind.is_empty()) {
                inherit(item, item_kind, version.as_ref());
            }
            (lines.get(i).copied().unwrap_or(self.line), item)
        });
        // A list within a list is legal and pointless; it is refused as an object without name.
        Ok(numbered.collect())
    }
}

/// Items of a typed list (`PodList`), as the API server sends it, do not repeat their kind.
fn inherit(item: &mut Map<String, Value>, kind: &str, version: Option<&Value>) {
    item.entry("kind").or_insert_with(|| Value::from(kind));
    if let Some(version) = version {
        item.entry("apiVersion").or_insert_with(|| version.clone());
    }
}

#[derive(Deserialize)]
struct Items {
    items: Vec<Spanned<serde::de::IgnoredAny>>,
}

/// Lines at which the items of a list start; empty where they cannot be told.
fn item_lines(text: &str, offset: u64) -> Vec<u64> {
    let items = serde_saphyr::from_str_with_options::<Items>(text, options());
    let items = items.map(|items| items.items).unwrap_or_default();
    items.iter().map(|item| offset + item.referenced.line().max(1) - 1).collect()
}

/// How YAML is read: `off`, `no` and the like are words, as `mode: off` needs; text that only
/// looks like a number in some dialect stays text. The limits on nodes are far above a dump of a
/// large cluster; those on aliases stay.
fn options() -> Options {
    serde_saphyr::options! {
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::AsString,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_events: 100_000_000,
            max_nodes: 50_000_000,
            max_total_scalar_bytes: 1 << 30,
        },
    }
}

fn yaml(text: &str) -> Result<Vec<Document<'_>>, Unreadable> {
    let mut documents = Vec::new();
    for (offset, text) in split(text) {
        let Some(first) = text.lines().position(has_content) else { continue };
        let value: Value =
            serde_saphyr::from_str_with_options(text, options()).map_err(|error| {
                let place = error.location();
                let line = place.map_or(1, |place| place.line().max(1));
                let column = place.map_or(1, |place| place.column().max(1));
                Unreadable::at(offset + line - 1, column, what(&error.to_string()))
            })?;
        if !value.is_null() {
            documents.push(Document { text, offset, line: offset + first as u64, value });
        }
    }
    Ok(documents)
}

/// The message without the place at its end, which is relative to its document, and without
/// advice to programmers.
fn what(message: &str) -> &str {
    let first = message.lines().next().unwrap_or_default();
    let end = [" at line ", ", set "].iter().filter_map(|tail| first.find(tail)).min();
    &first[..end.unwrap_or(first.len())]
}

/// Documents with the line each starts at. A line that starts with `---` separates documents
/// wherever it stands: YAML allows it inside no other construct.
fn split(text: &str) -> Vec<(u64, &str)> {
    let (mut documents, mut start, mut first) = (Vec::new(), 0, 1);
    let (mut at, mut line) = (0, 1);
    for content in text.split_inclusive('\n') {
        if separates(content) && at > start {
            documents.push((first, &text[start..at]));
            (start, first) = (at, line);
        }
        at += content.len();
        line += 1;
    }
    documents.push((first, &text[start..]));
    documents
}

fn separates(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Whether the line is more than white space, a comment, a separator or a directive.
fn has_content(line: &str) -> bool {
    let rest = if separates(line) { &line[3..] } else { line }.trim();
    !(rest.is_empty() || rest.starts_with(['#', '%']) || rest == "...")
}

fn json(text: &str) -> Result<Vec<Document<'_>>, Unreadable> {
    let mut documents = Vec::new();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut start = 0;
    while let Some(value) = stream.next() {
        let value = value.map_err(|error| {
            Unreadable::at(
                error.line() as u64,
                error.column().max(1) as u64,
                what(&error.to_string()),
            )
        })?;
        let end = stream.byte_offset();
        let skipped = text[start..end].len() - text[start..end].trim_start().len();
        let line = text[..start + skipped].matches('\n').count() as u64 + 1;
        let text = text[start..end].trim_start();
        documents.push(Document { text, offset: line, line, value });
        start = end;
    }
    Ok(documents)
}
