//! `driftwood inspect MODEL`: what the engine knows of a model from its headers, and where it is from.
//!
//! The engine's description is shown as it is serialised, key by key, so that what it learns to tell is shown without a change here.

use crate::models::{self, Found};
use crate::output;
use crate::repository;
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Entries of a list that are shown; JSON has all.
const LIST_MAX: usize = 8;

/// Whether a file says that it is GGUF.
pub fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"GGUF"
}

/// Shows a model.
///
/// # Errors
/// If it is none that the engine runs.
pub fn show(model: &Found, as_json: bool) -> Result<()> {
    let Found { name, path } = model;
    let described = driftwood_engine::describe(path).with_context(|| format!("cannot use the model {}", path.display()))?;
    let described: Value = serde_json::from_str(&serde_json::to_string(&described)?)?; // by way of text an f32 keeps its few digits
    let origin = repository::origin_of(path);
    if as_json {
        let shown = json!({ "name": name, "path": path, "bytes": models::bytes_under(path), "origin": origin, "model": described });
        return output::json(&shown);
    }
    let mut rows = vec![
        ["name".to_owned(), name.clone()],
        ["path".to_owned(), path.display().to_string()],
        ["from".to_owned(), origin.map_or_else(String::new, |origin| origin.to_string())],
    ];
    let mut tables = Vec::new();
    if let Value::Object(fields) = &described {
        flatten("", fields, &mut rows, &mut tables);
    }
    rows.retain(|[_, value]| !value.is_empty());
    output::pairs(&rows)?;
    tables.iter().try_for_each(|(title, entries)| table(title, entries))
}

/// Lists of objects, by what they are lists of.
type Tables<'a> = Vec<(String, &'a [Value])>;

/// One row a number or a text; lists of objects become tables.
fn flatten<'a>(prefix: &str, fields: &'a Map<String, Value>, rows: &mut Vec<[String; 2]>, tables: &mut Tables<'a>) {
    for (key, value) in fields {
        let title = format!("{prefix}{}", key.replace('_', " "));
        match value {
            Value::Object(inner) => flatten(&format!("{title}: "), inner, rows, tables),
            Value::Array(entries) if entries.first().is_some_and(Value::is_object) => tables.push((title, entries)),
            value => {
                let value = cell(&title, value);
                rows.push([title, value]);
            }
        }
    }
}

/// A value for people; what is counted in bytes, as its name says, with a unit.
fn cell(key: &str, value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::String(text) => text.replace(char::is_control, " "),
        Value::Number(number) if key.contains("bytes") => number.as_u64().map_or_else(|| number.to_string(), output::human_bytes),
        Value::Number(number) if number.is_f64() => number.as_f64().unwrap_or_default().to_string(),
        Value::Array(entries) => list(key, entries),
        other => other.to_string(),
    }
}

fn list(key: &str, entries: &[Value]) -> String {
    let shown = entries.iter().take(LIST_MAX).map(|entry| cell(key, entry)).collect::<Vec<_>>().join(", ");
    let more = entries.len().saturating_sub(LIST_MAX);
    if more == 0 { shown } else { format!("{shown}, and {more} more") }
}

fn table(title: &str, entries: &[Value]) -> Result<()> {
    let Some(Value::Object(first)) = entries.first() else { return Ok(()) };
    let heading = |(key, value): (&String, &Value)| format!("{}{}", if value.is_number() { ">" } else { "" }, key.replace('_', " "));
    let titles: Vec<String> = first.iter().map(heading).collect();
    let row = |entry: &Value| first.keys().map(|key| cell(key, &entry[key.as_str()])).collect();
    output::line(&format!("\n{title}"))?;
    output::table(&titles.iter().map(String::as_str).collect::<Vec<_>>(), &entries.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_becomes_rows_and_tables() {
        let value = json!({
            "family": "llama", "rope": { "base": 10000.0, "scaling": null }, "file_bytes": 2000,
            "types": [{ "type": "Q4_1", "bytes": 1000 }], "windows": [4, 8], "tied": true,
        });
        let (mut rows, mut tables) = (Vec::new(), Vec::new());
        flatten("", value.as_object().unwrap(), &mut rows, &mut tables);
        let expected = [
            ["family", "llama"],
            ["rope: base", "10000"],
            ["rope: scaling", ""],
            ["file bytes", "2.0 kB"],
            ["windows", "4, 8"],
            ["tied", "yes"],
        ];
        assert_eq!(rows, expected.map(|row| row.map(str::to_owned)));
        assert_eq!((tables.len(), &*tables[0].0), (1, "types"));
    }
}
