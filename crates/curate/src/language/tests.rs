use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::*;
use crate::filter::filter;

/// The folder `models` below `LLAMERO_TEST_DATA`, where the real model and its golden answers are.
fn models() -> Option<PathBuf> {
    let root = std::env::var_os("LLAMERO_TEST_DATA").map(PathBuf::from)?.join("models");
    root.join("lid.176.ftz").exists().then_some(root)
}

#[test]
fn lid_176_answers_as_fasttext_does() {
    let Some(models) = models() else {
        eprintln!("skipped: $LLAMERO_TEST_DATA/models/lid.176.ftz is not there");
        return;
    };
    let identifier = Identifier::open(Some(&models.join("lid.176.ftz"))).unwrap();
    let mut lines = String::new();
    let golden = fs::File::open(models.join("lid176_golden.jsonl.gz")).unwrap();
    flate2::read::GzDecoder::new(golden).read_to_string(&mut lines).unwrap();
    let (mut texts, mut worst) = (0, 0.0_f64);
    for line in lines.lines() {
        let golden: serde_json::Value = serde_json::from_str(line).unwrap();
        let found = identifier.identify(golden["text"].as_str().unwrap(), 3);
        let expected = golden["pred"].as_array().unwrap();
        for (at, expected) in expected.iter().enumerate() {
            assert_eq!(found[at].language, expected[0], "place {at} of {line}");
            worst = worst.max((found[at].score - expected[1].as_f64().unwrap()).abs());
        }
        texts += 1;
    }
    eprintln!("{texts} texts, probabilities within {worst:.1e}");
    assert_eq!(texts, 120);
    assert!(worst < 1e-3);
}

#[test]
fn the_built_in_identifier_knows_clear_text() {
    let identifier = Identifier::open(None).unwrap();
    for (language, text) in [
        (
            "en",
            "The herd crossed the river before the winter came, and nobody was lost on the way to the village.",
        ),
        (
            "de",
            "Die Herde überquerte den Fluss, bevor der Winter kam, und niemand ging auf dem Weg ins Dorf verloren.",
        ),
        (
            "fr",
            "Le troupeau a traversé la rivière avant l'arrivée de l'hiver et personne ne s'est perdu en chemin.",
        ),
        ("ru", "Стадо перешло реку до наступления зимы, и никто не потерялся по дороге в деревню."),
        ("ja", "群れは冬が来る前に川を渡り、誰も迷子になりませんでした。"),
    ] {
        assert_eq!(identifier.identify(text, 1)[0].language, language);
    }
    assert!(identifier.identify("12 34", 1).is_empty());
}

#[test]
fn languages_are_tagged_and_kept() {
    let english =
        "The herd crossed the river before the winter came, and nobody was lost on the way to the village.";
    let german = "Die Herde überquerte den Fluss, bevor der Winter kam, und niemand ging auf dem Weg ins Dorf verloren.";
    let rules =
        filter("language", &serde_json::json!({"keep": ["en"], "min_score": 0.1, "drop_lines_from": 20}))
            .unwrap();
    let mut document =
        Document { text: format!("{english}\n{english}\n{german}\n{english}"), ..Document::default() };
    assert_eq!(rules.apply(&mut document), None);
    assert_eq!(document.lang, "en");
    assert!(document.tags["lang.score"] > 0.1);
    assert_eq!(document.text, format!("{english}\n{english}\n{english}"));
    let mut document = Document { text: german.to_owned(), ..Document::default() };
    assert_eq!(rules.apply(&mut document).unwrap().reason, "language");
    for keep in ["en", "eng", "eng_Latn", "en-US", "English"] {
        let rules = filter("language", &serde_json::json!({"keep": [keep]})).unwrap();
        let mut document = Document { text: english.to_owned(), ..Document::default() };
        assert_eq!(rules.apply(&mut document), None, "{keep}");
    }
    let error = filter("language", &serde_json::json!({"keep": ["Englisch"]})).err().unwrap().to_string();
    assert!(
        error.contains("`language.keep` is `Englisch`")
            && error.contains("one of the 70 languages of built-in")
            && error.contains("those that begin like it: el, en, eo, es, et"),
        "{error}"
    );
    let error = filter("language", &serde_json::json!({"keep": ["Quenya"]})).err().unwrap().to_string();
    assert!(error.contains("those: af, ak, am,") && error.ends_with("yi, zh, zu"), "{error}");
}

#[test]
fn a_file_that_is_no_model_is_named() {
    let error = Identifier::open(Some(Path::new("/nowhere/lid.ftz"))).err().unwrap().to_string();
    assert!(error.contains("/nowhere/lid.ftz"), "{error}");
}

#[test]
fn a_language_has_one_code_however_sources_write_it() {
    for (code, names) in [
        (
            "en",
            &[
                "en",
                "EN",
                "en-US",
                "en_GB",
                "en_GB.UTF-8",
                "eng",
                "eng_Latn",
                "English",
                " english ",
                "eng,deu",
            ][..],
        ),
        ("zh", &["zh-Hant-TW", "cmn", "zho_Hans", "chi", "Chinese (Simplified)"]),
        ("no", &["nb-NO", "nob", "nor"]),
        ("he", &["iw", "heb", "he-IL"]),
        ("gd", &["gla", "gd"]),
        ("ceb", &["ceb", "CEB", "ceb_Latn"]),
        ("als", &["als"]),
        ("klingon", &["Klingon"]),
        ("x-private", &["x-Private"]),
        ("", &["", "und", "und_Zzzz", "unknown"]),
    ] {
        for name in names {
            assert_eq!(super::normalise(name), code, "{name}");
        }
    }
    // What our own identifiers say stays.
    for language in super::built_in::languages() {
        assert_eq!(super::normalise(language), language);
    }
}
