//! Ids are stable, and depend on what they should.

use super::key;
use crate::{InputRef, StageKey, canonical_json, fingerprint};
use proptest::prelude::*;
use serde_json::{Value, json};

fn input(name: &str, id: &str) -> InputRef {
    InputRef { name: name.into(), kind: "corpus".into(), id: id.into() }
}

#[test]
fn golden_ids() {
    // These may change only together with every artifact that anybody has.
    let mut key = key(1);
    assert_eq!(key.id(), "638377a2ecd814143d83dd74de90b032");
    key.inputs = vec![input("text", "0123456789abcdef0123456789abcdef")];
    assert_eq!(key.id(), "3a9e799afe0c17237047a3ac7b5b5a71");
    // The beginning of blake3 of nothing, from its published test vectors.
    assert_eq!(fingerprint(b""), "af1349b9f5f9a1a6a0404dea36dcc949");
}

#[test]
fn the_canonical_form() {
    let value: Value =
        serde_json::from_str(r#"{"b": [1, 1.0, null, {"z": "\"é", "y": {}}], "a": [1e-7, 1e30]}"#).unwrap();
    assert_eq!(canonical_json(&value), r#"{"a":[1e-7,1e+30],"b":[1,1.0,null,{"y":{},"z":"\"é"}]}"#);
}

#[test]
fn what_the_id_depends_on() {
    let base = StageKey { inputs: vec![input("a", "1"), input("b", "2")], ..key(1) };
    let same = StageKey { inputs: vec![input("x", "1"), input("y", "2")], ..key(1) };
    assert_eq!(base.id(), same.id(), "the names of inputs are for people");
    let others = [
        StageKey { kind: "other".into(), ..base.clone() },
        StageKey { schema: 2, ..base.clone() },
        StageKey { recipe: json!({ "n": 1, "lr": 0.2 }), ..base.clone() },
        StageKey { inputs: vec![input("a", "2"), input("b", "1")], ..base.clone() },
        StageKey { inputs: vec![input("a", "1")], ..base.clone() },
    ];
    for other in others {
        assert_ne!(base.id(), other.id(), "{other:?}");
    }
}

proptest! {
    #[test]
    fn order_of_keys_does_not_matter(
        fields in prop::collection::btree_map("[a-z]{1,4}", any::<i64>(), 0..6),
        seed in any::<u64>(),
    ) {
        let mut shuffled: Vec<_> = fields.iter().collect();
        shuffled.sort_by_key(|(k, _)| blake3::hash(format!("{seed}{k}").as_bytes()).as_bytes()[0]);
        let body: Vec<String> = shuffled.iter().map(|(k, v)| format!("{k:?}: {v}")).collect();
        let recipe: Value = serde_json::from_str(&format!("{{{}}}", body.join(","))).unwrap();
        let other = StageKey { recipe, ..key(0) };
        prop_assert_eq!(other.id(), StageKey { recipe: json!(fields), ..key(0) }.id());
    }
}
