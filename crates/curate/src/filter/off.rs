//! Thresholds in recipes: a key that is absent has its default, `false` switches its rule off.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

pub(crate) fn serialize<T: Serialize, S: Serializer>(value: &Option<T>, out: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => value.serialize(out),
        None => out.serialize_bool(false),
    }
}

pub(crate) fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
    input: D,
) -> Result<Option<T>, D::Error> {
    match Value::deserialize(input)? {
        Value::Bool(false) | Value::Null => Ok(None),
        value => serde_json::from_value(value).map(Some).map_err(serde::de::Error::custom),
    }
}
