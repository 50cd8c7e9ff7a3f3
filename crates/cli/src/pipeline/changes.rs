//! What of a recipe and its inputs is not as it was when an artifact was made.

use std::collections::{BTreeMap, BTreeSet};

use llamero_artifact::{Manifest, StageKey};
use serde_json::Value;

/// Values that are shown of a key before the rest is cut off, in characters.
const SHOWN: usize = 60;

/// What differs, one key a line; keys of the recipe stand below `section`.
pub(super) fn changes(section: &str, before: &Manifest, now: &StageKey) -> Vec<String> {
    let mut found = Vec::new();
    if before.schema != now.schema {
        found.push("it was made by another version of llamero".to_owned());
    }
    compare(section, Some(&before.recipe), Some(&now.recipe), &mut found);
    let by_name = |inputs: &[llamero_artifact::InputRef]| -> BTreeMap<String, String> {
        inputs.iter().map(|input| (input.name.clone(), input.id.clone())).collect()
    };
    let (before, now) = (by_name(&before.inputs), by_name(&now.inputs));
    for name in before.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
        if before.get(name) != now.get(name) {
            found.push(format!("`{section}.{name}`: the files have other contents or names"));
        }
    }
    found
}

fn compare(key: &str, before: Option<&Value>, now: Option<&Value>, found: &mut Vec<String>) {
    if before == now {
        return;
    }
    if let (Some(Value::Object(before)), Some(Value::Object(now))) = (before, now) {
        for name in before.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
            compare(&format!("{key}.{name}"), before.get(name), now.get(name), found);
        }
        return;
    }
    found.push(format!("`{key}` was {} and is {}", shown(before), shown(now)));
}

fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else { return "absent".to_owned() };
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}\u{2026}", &text[..end]),
        None => text,
    }
}
