//! The reference of docs/policy.md, from the same schema that the API server gets.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::registry::crd::Definition;

/// A section for each kind: its description and a table of its fields.
pub(super) fn reference(definitions: &[Definition]) -> String {
    let mut text = String::new();
    for definition in definitions {
        let names = &definition.object["spec"]["names"];
        let schema = &definition.object["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut rows = Vec::new();
        fields(&schema["properties"]["spec"], "spec", &mut rows);
        let kind = names["kind"].as_str().unwrap();
        let description = schema["description"].as_str().unwrap();
        text +=
            &format!("### {kind}\n\n{description}\n\n| field | type | meaning |\n|---|---|---|\n");
        text += &rows.concat();
        text += "\n";
    }
    text
}

fn fields(schema: &Value, path: &str, rows: &mut Vec<String>) {
    let required: BTreeSet<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let shown = format!("`{}`", path.trim_start_matches("spec."));
        let shown = if required.contains(&**name) { format!("*{shown}*") } else { shown };
        let meaning = field["description"].as_str().unwrap_or_default().replace('|', "\\|");
        rows.push(format!("| {shown} | {} | {meaning} |\n", kind(field)));
        fields(field, &path, rows);
        fields(&field["items"], &format!("{path}[]"), rows);
    }
}

/// The type of a field with its limits and default.
fn kind(field: &Value) -> String {
    let number = |name: &str| field[name].as_i64();
    let mut text = match field["type"].as_str().unwrap_or_default() {
        "array" => {
            let most = number("maxItems").map_or(String::new(), |most| format!(", at most {most}"));
            format!("list of {}{most}", kind(&field["items"]))
        }
        "object" if field.get("additionalProperties").is_some() => "map of text".to_owned(),
        "object" => "object".to_owned(),
        "integer" => match (number("minimum"), number("maximum")) {
            (Some(least), Some(most)) => format!("{least} to {most}"),
            _ => "integer".to_owned(),
        },
        "string" => match field["enum"].as_array() {
            Some(words) => {
                let words = words.iter().filter_map(Value::as_str).map(|word| format!("`{word}`"));
                words.collect::<Vec<_>>().join(", ")
            }
            None if field["format"] == "date-time" => "time".to_owned(),
            None => {
                let most =
                    number("maxLength").map_or(String::new(), |most| format!(" up to {most}"));
                format!("text{most}")
            }
        },
        other => other.to_owned(),
    };
    if let Some(default) = field.get("default") {
        let default = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
        text += &format!("; default `{default}`");
    }
    text
}
