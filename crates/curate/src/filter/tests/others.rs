//! The filters that datatrove does not have, and what all of them owe.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::contamination::{Contamination, EvalSet};
use crate::filter::{
    Divergence, DivergenceConfig, FILTERS, HeuristicsConfig, Kind, Pii, PiiConfig, Unigrams, filter,
};
use crate::{Document, Dropped, Filter};

fn document(text: &str) -> Document {
    Document { text: text.to_owned(), ..Document::default() }
}

fn apply(name: &str, settings: &Value, text: &str) -> (Option<Dropped>, String) {
    let mut document = document(text);
    (filter(name, settings).unwrap().apply(&mut document), document.text)
}

#[test]
fn wrong_settings_name_their_key() {
    for (name, settings, phrase) in [
        ("gopher_quality", json!({"min_alphabetic": 1.5}), "gopher_quality.min_alphabetic"),
        ("gopher_repetition", json!({"max_top_ngrams": [[0, 0.1]]}), "n-grams of 0 words"),
        ("fineweb", json!({"max_short_lines": -0.1}), "fineweb.max_short_lines"),
        ("c4", json!({"min_sentence": 3}), "min_sentence"),
        ("heuristics", json!({"c4": {"min_sentence": 3}}), "min_sentence"),
        ("heuristics", json!({"c4": true}), "c4"),
        ("dirty_words", json!({}), "dirty_words.lists"),
        ("url_block", json!({"built_in": false}), "one list at least"),
        ("pii", json!({"kinds": ["names"]}), "names"),
        ("contamination", json!({}), "contamination.sets"),
        ("quality", json!({}), "model"),
        ("gopher", json!({}), "gopher_quality"),
    ] {
        let error = filter(name, &settings).err().unwrap().to_string();
        assert!(error.contains(phrase), "{name}: {error}");
    }
}

#[test]
fn false_switches_a_rule_off_and_zero_is_zero() {
    let text = "Only four short words here";
    let reason = |settings: &Value| apply("gopher_quality", settings, text).0.map(|dropped| dropped.reason);
    assert_eq!(reason(&Value::Null).unwrap(), "gopher_short_doc");
    assert_eq!(reason(&json!({"min_words": false})).unwrap(), "gopher_enough_stop_words");
    assert_eq!(reason(&json!({"min_words": false, "min_stop_words": 0})), None);
    assert_eq!(reason(&json!({"min_words": false, "max_words": 0})).unwrap(), "gopher_long_doc");
    let config: HeuristicsConfig = serde_json::from_value(json!({"c4": false})).unwrap();
    assert_eq!((config.c4.clone(), config.fineweb.is_some()), (None, true));
    let again: HeuristicsConfig = serde_json::from_value(serde_json::to_value(&config).unwrap()).unwrap();
    assert_eq!(config, again);
}

#[test]
fn lines_that_repeat_themselves_go() {
    let log = "error at line 7 of the file; ".repeat(12);
    let prose = "Nobody had seen the herd since the storm, but the shepherd went up to the pass every day with some salt and \
                 a lamp, because she knew that they would come back to her.";
    let text = format!("{prose}\n{log}\n{prose} Again.\n{prose} And again.");
    let (dropped, left) = apply("ngram_coverage", &Value::Null, &text);
    assert_eq!(dropped, None);
    assert_eq!(left, format!("{prose}\n\n{prose} Again.\n{prose} And again."));
    assert_eq!(
        apply("ngram_coverage", &Value::Null, &format!("{log}\n{log}")).0.unwrap().reason,
        "ngram_coverage"
    );
}

#[test]
fn dirty_words_are_counted_as_whole_words() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("words.txt");
    fs::write(&list, "# rude\nmuck\nfilthy mud\n泥\n").unwrap();
    let settings = json!({"lists": [list], "max_count": 2, "max_share": false});
    let count = |text: &str| {
        let mut document = document(text);
        let dropped = filter("dirty_words", &settings).unwrap().apply(&mut document);
        (dropped.map(|dropped| dropped.reason), document.tags.get("dirty_words").copied())
    };
    assert_eq!(count("Muck, mucky mucking; amuck."), (None, Some(1.0)));
    assert_eq!(count("FILTHY MUD and 很泥的"), (None, Some(2.0)));
    assert_eq!(count("muck muck muck"), (Some("dirty_words".to_owned()), None));
}

#[test]
fn urls_are_blocked_by_each_list() {
    let folder = tempfile::tempdir().unwrap();
    let list = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let settings = json!({
        "domains": [list("domains", "bad.example\nworse.test\n")],
        "urls": [list("urls", "good.example/bad/page/\n")],
        "banned_words": [list("words", "slots\n")],
        "soft_words": [list("soft", "bet\nwin\nspin\n")],
        "banned_subwords": [list("subwords", "free-gold\n")],
    });
    let rules = filter("url_block", &settings).unwrap();
    for (url, reason) in [
        ("https://bad.example/", Some("domain")),
        ("http://user@www.BAD.example:80/a", Some("domain")),
        ("https://notbad.example/", None),
        ("https://www.good.example/bad/page", Some("url")),
        ("https://good.example/bad/pages", None),
        ("https://x.test/Slots-here", Some("hard_blacklisted")),
        ("https://x.test/slotsmachine", None),
        ("https://x.test/bet-and-bet", None),
        ("https://x.test/bet?win=1", Some("soft_blacklisted")),
        ("https://x.test/my-free_gold-now", Some("blacklisted_subword")),
        ("https://xxx.test/", Some("hard_blacklisted")),
        ("", None),
    ] {
        let mut document = Document { url: url.to_owned(), ..Document::default() };
        assert_eq!(rules.apply(&mut document).map(|dropped| dropped.reason).as_deref(), reason, "{url}");
    }
}

#[test]
fn personal_data_is_found_and_replaced() {
    let bare = json!({"bare_phone_numbers": true});
    for (text, left) in [
        ("Mail john.doe+x@mail.example.org, please.", "Mail [EMAIL], please."),
        ("not@mail and @user and a@b", "not@mail and @user and a@b"),
        ("from 8.8.8.8 to 10.0.0.1, version 1.2.3.4.5", "from [IP] to 10.0.0.1, version 1.2.3.4.5"),
        ("2a00:1450:4001:82f::200e or fe80::1:2:3", "[IP] or fe80::1:2:3"),
        ("call (814) 360 8593 or +1-212-456-7890!", "call [PHONE] or [PHONE]!"),
        ("2312322334", "[PHONE]"),
        ("in 1984-2005 it was 10:30:45 and 3.14159", "in 1984-2005 it was 10:30:45 and 3.14159"),
        ("card 4111 1111 1111 1111, not 4111 1111 1111 1112", "card [CARD], not 4111 1111 1111 1112"),
        ("my ssn 514-14-8905 is", "my ssn [SSN] is"),
        ("key AKIAIOSFODNN7EXAMPLE and AKIA", "key [KEY] and AKIA"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nb", "a\n[KEY]\nb"),
        ("ünïcode ✓ é@é.é", "ünïcode ✓ é@é.é"),
    ] {
        assert_eq!(apply("pii", &bare, text).1, left);
    }
    assert_eq!(apply("pii", &Value::Null, "id 2312322334").1, "id 2312322334");
    let mails = "a@b.org c@d.org e@f.org";
    let dropped = apply("pii", &json!({"max_count": 2}), mails).0.unwrap();
    assert_eq!((dropped.reason.as_str(), dropped.detail.as_str()), ("pii", "3 email, limit 2"));
    assert!(apply("pii", &json!({"max_density": 200.0}), mails).0.is_none());
    assert_eq!(apply("pii", &json!({"action": "tag"}), mails).1, mails);
}

/// The marked fixtures of NeMo Curator: every mark of the kinds that are looked for.
#[test]
fn marked_fixtures_are_found() {
    let Some(root) = std::env::var_os("LLAMERO_TEST_DATA").map(PathBuf::from) else {
        eprintln!("skipped: LLAMERO_TEST_DATA is not set");
        return;
    };
    let rules = Pii::new(&PiiConfig { bare_phone_numbers: true, ..PiiConfig::default() }).unwrap();
    let mut marks = 0;
    for (file, mark, kind) in [
        ("emails.txt", "email", Kind::Email),
        ("phone_numbers.txt", "phone_number", Kind::Phone),
        ("card_no.txt", "credit_card_number", Kind::Card),
        ("ssn.txt", "ssn", Kind::Ssn),
        ("multiple.txt", "email", Kind::Email),
        ("multiple.txt", "phone_number", Kind::Phone),
        ("multiple.txt", "ssn", Kind::Ssn),
    ] {
        let text = fs::read_to_string(root.join("corpora/nemo-curator-tests/pii_data").join(file)).unwrap();
        let (open, close) = (format!("<{mark}>"), format!("</{mark}>"));
        for part in text.split(&open).skip(1) {
            let value = part.split(&close).next().unwrap();
            let found = rules.find(&format!("so {value}."));
            let expected = [(kind, 3..3 + value.len())];
            assert_eq!(
                found.into_iter().map(|finding| (finding.kind, finding.range)).collect::<Vec<_>>(),
                expected,
                "{value}"
            );
            marks += 1;
        }
    }
    assert!(marks >= 12, "{marks}");
    // Addresses of private networks are nobody's.
    let text = fs::read_to_string(root.join("corpora/nemo-curator-tests/pii_data/ip_address.txt")).unwrap();
    assert!(rules.find(&text).is_empty());
}

#[test]
fn parts_of_a_corpus_add_up_and_outliers_differ() {
    let prose: Vec<String> =
        (0..200).map(|i| format!("the herd {i} went to the river with the shepherd and came back")).collect();
    let (mut whole, mut left, mut right) = (Unigrams::default(), Unigrams::default(), Unigrams::default());
    for (at, text) in prose.iter().enumerate() {
        whole.add(text);
        if at % 3 == 0 { left.add(text) } else { right.add(text) }
    }
    right.merge(&left);
    assert_eq!(whole, right);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("corpus.unigrams");
    whole.save(&path).unwrap();
    assert_eq!(Unigrams::load(&path).unwrap(), whole);
    let usual = "the shepherd and the herd went to the river and came back ".repeat(3);
    let odd = "qx7 zz9 kk3 vb2 rt5 pl8 mn1 wq4 hj6 yu0 ".repeat(3);
    assert!(whole.divergence(&odd) > whole.divergence(&usual) + 1.0);
    let config = DivergenceConfig { unigrams: path, max_nats: whole.divergence(&odd) - 0.5, min_words: 10 };
    let rules = Divergence::with(&config, whole).unwrap();
    assert_eq!(rules.apply(&mut document(&odd)).unwrap().reason, "unigram_divergence");
    let mut usual = document(&usual);
    assert_eq!(rules.apply(&mut usual), None);
    assert!(usual.tags.contains_key("unigram_divergence"));
}

const QUESTIONS: [&str; 3] = [
    "A shepherd has twelve llamas and sells five of them at the market. How many llamas has she then?",
    "Which river did the herd cross on the first day of the long winter, and who led them over the ice?",
    "Too short.",
];

#[test]
fn hashes_keep_out_what_texts_keep_out() {
    let folder = tempfile::tempdir().unwrap();
    let (text, hashes) = (folder.path().join("quiz.jsonl"), folder.path().join("quiz.hashes"));
    let lines: Vec<String> =
        QUESTIONS.iter().map(|question| json!({"question": question, "answer": 7}).to_string()).collect();
    fs::write(&text, lines.join("\n")).unwrap();
    let set = EvalSet::read_text("quiz", 8, &text, &["question".to_owned()]).unwrap();
    assert_eq!((set.examples(), set.too_short), (2, 1));
    set.save(&hashes).unwrap();
    let stored = fs::read(&hashes).unwrap();
    assert!(!String::from_utf8_lossy(&stored).contains("llama"));
    assert_eq!(EvalSet::load(&hashes).unwrap(), set);

    let by_text = filter("contamination", &json!({"sets": [{"name": "quiz", "text": text}]})).unwrap();
    let by_hash = filter("contamination", &json!({"sets": [{"hashes": hashes}]})).unwrap();
    let long = "Nobody had seen them since the storm. ".repeat(40);
    for (text, dropped) in [
        (
            format!(
                "{long}a SHEPHERD has twelve llamas, and sells five of them... at the market\nhow many llamas has she then?{long}"
            ),
            true,
        ),
        (format!("{long} A shepherd has twelve llamas and sells five, quickly. {long}"), false),
        (long.clone(), false),
        (String::new(), false),
    ] {
        let (one, two) = (by_text.apply(&mut document(&text)), by_hash.apply(&mut document(&text)));
        assert_eq!(one, two);
        assert_eq!(one.is_some(), dropped, "{one:?}");
        if let Some(Dropped { reason, detail, .. }) = one {
            assert_eq!(reason, "contamination");
            assert!(detail.contains("1.000 of the words of example 1 of `quiz`"), "{detail}");
        }
    }
    let part = "a shepherd has twelve llamas and sells five, quickly";
    let found = Contamination::with(vec![(set, 0.5)]).unwrap().worst(part).unwrap();
    assert_eq!(found, (0, 0, 8.0 / 19.0));
    for end in 0..stored.len() {
        assert!(EvalSet::from_bytes(&stored[..end]).is_err());
    }
    let error = filter("contamination", &json!({"ngram": 5, "sets": [{"hashes": hashes}]}))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("hashes of 8 words"), "{error}");
}

proptest! {
    /// Whatever a page holds, filters judge it; and what they leave, they leave again.
    #[test]
    fn any_text_is_judged(text in "(\\PC|[ \\n.#{}•\\[\\]@…-]|\\r\\n|[a-z]{1,8} ){0,120}") {
        for name in FILTERS.iter().filter(|name| ["heuristics", "gopher_repetition", "gopher_quality", "ngram_coverage", "c4", "fineweb", "pii", "language"].contains(name)) {
            let (_, left) = apply(name, &Value::Null, &text);
            prop_assert!(left.len() <= text.len() + 64 * 8, "{name}");
        }
        let settings = json!({"min_sentences": 0, "min_words_per_line": 0});
        let (dropped, left) = apply("c4", &settings, &text);
        if dropped.is_none() && !left.contains('[') {
            prop_assert_eq!(apply("c4", &settings, &left).1, left);
        }
    }

    /// Words do not overlap, are in order, and leave out white space only.
    #[test]
    fn words_cover_the_text(text in "(\\PC|[ .,:;!?'\"()-]|n't|'s|[a-zA-Z]{1,6} |[0-9]km |http://a\\.bc/ ){0,60}") {
        let analysis = crate::filter::Analysis::new(&text);
        let joined: String = analysis.words.iter().map(|word| &text[word.start..word.end]).collect();
        let visible: String = text.chars().filter(|&c| !crate::filter::characters::is_space(c)).collect();
        prop_assert_eq!(joined, visible);
    }
}
