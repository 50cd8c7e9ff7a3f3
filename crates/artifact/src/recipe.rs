//! Recipes: one TOML file, strict structs, and `--set a.b=c`.

use crate::{ArtifactError, RecipeError, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use toml::{Table, Value};

/// Loads a recipe from a file, with `--set` arguments laid over it in order.
///
/// Unknown keys are errors where the struct says `#[serde(deny_unknown_fields)]`, as every recipe struct should.
///
/// # Errors
/// The file cannot be read or is not UTF-8; TOML or recipe errors with file, line, column and key; a `--set` that is
/// malformed, unknown or of the wrong type.
pub fn load<T: DeserializeOwned>(path: impl AsRef<Path>, sets: &[String]) -> Result<T> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).map_err(|e| ArtifactError::io("read", path, e))?;
    Ok(load_str(&text, &path.display().to_string(), sets)?)
}

/// Loads a recipe from text; `file` names it in errors.
pub fn load_str<T: DeserializeOwned>(
    text: &str,
    file: &str,
    sets: &[String],
) -> std::result::Result<T, RecipeError> {
    let sets: Vec<Set> = sets.iter().map(|set| Set::parse(set)).collect::<std::result::Result<_, _>>()?;
    if sets.is_empty() {
        return toml::from_str(text).map_err(|e| located(file, text, &e));
    }
    let table: Table = toml::from_str(text).map_err(|e| located(file, text, &e))?;
    let mut merged = table.clone();
    for set in &sets {
        set.apply(&mut merged)?;
    }
    merged.try_into().map_err(|e| blame::<T>(&e, text, file, &table, &sets))
}

/// Writes a recipe as TOML; [`load_str`] of the result gives the same value.
pub fn to_toml<T: Serialize>(recipe: &T) -> std::result::Result<String, RecipeError> {
    toml::to_string_pretty(recipe).map_err(|e| RecipeError::Write { message: e.to_string() })
}

/// One `--set a.b=c`.
struct Set {
    text: String,
    path: Vec<String>,
    value: Value,
}

impl Set {
    fn parse(text: &str) -> std::result::Result<Self, RecipeError> {
        let bad =
            |message: &str| RecipeError::SetSyntax { set: text.to_owned(), message: message.to_owned() };
        let (key, value) = text.split_once('=').ok_or_else(|| bad("expected `key=value`"))?;
        let path: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
        let bare = |part: &String| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        };
        if !path.iter().all(bare) {
            return Err(bad("the key must be names of letters, digits, `_` and `-` joined by dots"));
        }
        let value = value.trim();
        let value = match value.parse::<Value>() {
            // No recipe value is a date; `--set run.dir=2026-11-23` means text.
            Ok(Value::Datetime(_)) => Value::String(value.to_owned()),
            Ok(parsed) => parsed,
            // A bracket or a quote says that TOML was meant, so a mistake in it is one.
            Err(e) if value.starts_with(['[', '{', '"', '\'']) => {
                return Err(bad(&format!("the value is not TOML: {}", e.message())));
            }
            Err(_) => Value::String(value.to_owned()),
        };
        Ok(Self { text: text.to_owned(), path, value })
    }

    fn apply(&self, table: &mut Table) -> std::result::Result<(), RecipeError> {
        let mut at = table;
        let (last, outer) = self.path.split_last().map_or(("", &[][..]), |(l, o)| (l.as_str(), o));
        for (depth, part) in outer.iter().enumerate() {
            let child = at.entry(part.clone()).or_insert_with(|| Value::Table(Table::new()));
            let found = child.type_str();
            at = child.as_table_mut().ok_or_else(|| RecipeError::Set {
                set: self.text.clone(),
                key: self.path[..=depth].join("."),
                message: format!("it is of type {found}, not a table"),
            })?;
        }
        at.insert(last.to_owned(), self.value.clone());
        Ok(())
    }
}

/// Finds whether the file or one of the `--set`s brought an error about, and says it of that one: the shortest run
/// of `--set`s over the file that fails in the same way ends in the culprit.
fn blame<T: DeserializeOwned>(
    error: &toml::de::Error,
    text: &str,
    file: &str,
    table: &Table,
    sets: &[Set],
) -> RecipeError {
    let (key, message) = key_and_message(error);
    let mut merged = table.clone();
    if let Err(alone) = toml::from_str::<T>(text)
        && key_and_message(&alone) == (key.clone(), message.clone())
    {
        return located(file, text, &alone);
    }
    let culprit = sets.iter().find(|set| {
        // The sets were applied before without an error.
        drop(set.apply(&mut merged));
        let failed = merged.clone().try_into::<T>().err();
        failed.is_some_and(|e| key_and_message(&e) == (key.clone(), message.clone()))
    });
    let set = culprit.or(sets.last()).map_or(String::new(), |set| set.text.clone());
    let hint = match set.split_once('=') {
        Some((name, value)) if message.ends_with("expected a string") => {
            format!(". hint: to pass it as text write --set {name}='\"{value}\"'")
        }
        _ => String::new(),
    };
    RecipeError::Set { set, key, message: message + &hint }
}

fn located(file: &str, text: &str, error: &toml::de::Error) -> RecipeError {
    let (key, message) = key_and_message(error);
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = text.get(..start).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    RecipeError::Parse { file: file.to_owned(), line, column, key, message }
}

/// The full dotted key of an error, and its message on one line.
fn key_and_message(error: &toml::de::Error) -> (String, String) {
    let mut bare = error.clone();
    // Without the input the library prints the keys of the tables around the error instead of the source line.
    bare.set_input(None);
    let shown = bare.to_string();
    let outer = shown.trim_end().rsplit_once("\nin `").map_or("", |(_, keys)| keys.trim_end_matches('`'));
    let message = error.message().trim().replace('\n', " ");
    // These two speak of a key inside the table that the library names.
    let inner = ["unknown field `", "missing field `"]
        .iter()
        .find_map(|start| message.strip_prefix(start))
        .and_then(|rest| rest.split_once('`'));
    let key = match inner {
        Some((field, _)) if outer.is_empty() => field.to_owned(),
        Some((field, _)) => format!("{outer}.{field}"),
        None => outer.to_owned(),
    };
    (key, message)
}
