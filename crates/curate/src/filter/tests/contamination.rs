//! Evaluation sets as files of all kinds, in all scripts, and what a document is asked for.

use std::fs;
use std::io::Write;

use crate::contamination::{Contamination, EvalSet};
use crate::{Document, Filter};

const ONE: &str = "A shepherd has twelve llamas and sells five of them at the market.";
const TWO: &str = "Which river did the herd cross on the first day of the long winter?";

fn read(name: &str, bytes: &[u8]) -> Result<EvalSet, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    EvalSet::read_text("quiz", 8, &path, &["text".to_owned()]).map_err(|error| error.to_string())
}

#[test]
fn every_kind_of_file_gives_its_examples_or_is_refused() {
    let lines = format!("{{\"text\": \"{ONE}\"}}\r\n\r\n{{\"text\": \"{TWO}\"}}\r\n");
    let array = format!("[\n {{\"text\": \"{ONE}\"}},\n {{\"text\": \"{TWO}\", \"answer\": 7}}\n]\n");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(lines.as_bytes()).unwrap();
    let expected = EvalSet::new("quiz", 8, [ONE, TWO]).unwrap();
    for (name, bytes) in [
        ("a.txt", format!("{ONE}\n\n{TWO}\n").into_bytes()),
        ("b.txt", format!("\u{feff}{ONE}\r\n \t\r\n\r\n{TWO}\r\n").into_bytes()),
        ("c", format!("{ONE}\r\r{TWO}").into_bytes()),
        ("d.jsonl", lines.clone().into_bytes()),
        ("e.NDJSON", lines.clone().into_bytes()),
        ("f.json", lines.clone().into_bytes()),
        ("g.json", array.into_bytes()),
        ("h.jsonl.gz", gzip.finish().unwrap()),
        ("i.jsonl.zst", zstd::encode_all(lines.as_bytes(), 3).unwrap()),
    ] {
        assert_eq!(read(name, &bytes).as_ref(), Ok(&expected), "{name}");
    }
    for (name, text, phrases) in [
        ("quiz.csv", ONE, ["`.csv`", "`.jsonl`"]),
        ("quiz.parquet", "PAR1", ["`.parquet`", "`.jsonl`"]),
        ("quiz.json", "{\n \"data\": []}", ["line 1", "one array of objects"]),
        ("quiz.json", "[\"words\"]", ["element 1", "no object"]),
        ("quiz.jsonl", "{\"Text\": \"a\"}", ["line 1: no text in `text`", "`Text`"]),
    ] {
        let error = read(name, text.as_bytes()).unwrap_err();
        assert!(phrases.iter().all(|phrase| error.contains(phrase)), "{name}: {error}");
    }
    assert!(read("quiz.txt", b"a \xff b").unwrap_err().contains("no UTF-8 from byte 2"));
}

#[test]
fn each_character_of_scripts_without_spaces_is_a_word() {
    for (example, document) in [
        (
            "牧羊人有十二只羊驼，在市场上卖掉了五只。",
            "今天的新闻。牧羊人有十二只羊驼,在市场上卖掉了五只！然后回家了。",
        ),
        ("羊飼いはラマを何頭飼っていますか。", "問題：羊飼いはラマを何頭飼っていますか？答えは十二頭です。"),
        ("คนเลี้ยงแกะมีลามาสิบสองตัว", "ข่าววันนี้ คนเลี้ยงแกะมีลามาสิบสองตัว และกลับบ้าน"),
    ] {
        let rules = Contamination::with(vec![(EvalSet::new("quiz", 8, [example]).unwrap(), 0.5)]).unwrap();
        let other: String = document.chars().rev().collect();
        let drops = |text: &str| {
            rules.apply(&mut Document { text: text.to_owned(), ..Document::default() }).is_some()
        };
        assert_eq!((drops(document), drops(&other)), (true, false), "{example}");
    }
}

#[test]
fn a_short_example_is_found_whole_and_a_shorter_one_is_counted() {
    let examples = ["What is the capital of France?", "What is your name?", "法国的首都是", ONE];
    let set = EvalSet::new("quiz", 8, examples).unwrap();
    assert_eq!((set.examples(), set.too_short, set.least_words()), (3, 1, 6));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quiz.hashes");
    set.save(&path).unwrap();
    assert_eq!(EvalSet::load(&path).unwrap(), set);
    let rules = Contamination::with(vec![(set, 0.9)]).unwrap();
    assert_eq!(rules.worst("They ask: what is the capital of France, then?"), Some((0, 0, 1.0)));
    assert_eq!(rules.worst("众所周知，法国的首都是巴黎。"), Some((0, 1, 1.0)));
    assert_eq!(rules.worst(ONE), Some((0, 2, 1.0)));
    assert_eq!(rules.worst("What is your name? What is the capital of Spain?"), None);
    let tallies = rules.tallies();
    assert_eq!((tallies[0].examples, tallies[0].too_short), (3, 1));
    let error = EvalSet::new("quiz", 8, ["What is your name?"]).unwrap_err().to_string();
    assert!(error.contains("1 examples, none with 6 words"), "{error}");
    for old in [b"evalhsh1", b"evalhsh2"] {
        assert!(EvalSet::from_bytes(old).unwrap_err().contains("make them again"));
    }
}

/// 400 times in the document by 5,000 examples, 56 n-grams each: what a document says is looked up once.
#[test]
fn a_common_preamble_costs_what_it_is_long() {
    let preamble: String = (0..64).map(|word| format!("rule{word} ")).collect();
    let examples: Vec<String> =
        (0..5000).map(|at| format!("{preamble} number {at} asks {} of {}", at * 7, at * 13)).collect();
    let set = EvalSet::new("quiz", 8, examples.iter().map(String::as_str)).unwrap();
    let rules = Contamination::with(vec![(set, 0.95)]).unwrap();
    let text = format!("{} and {}", preamble.repeat(400), examples[4321]);
    let (_, example, share) = rules.worst(&text).unwrap();
    assert_eq!((example, share), (4321, 1.0));
    let mut document = Document { text, ..Document::default() };
    assert!(rules.apply(&mut document).unwrap().detail.contains("example 4322 of `quiz`"));
    // Multiplied it is 112 million places. As a set it is the preamble's n-grams, those across its ends, and the example's.
    let (found, touched) = rules.found(&document.text);
    assert!(found.len() < 80, "{}", found.len());
    assert_eq!(touched.len(), 5000);
}

/// A virama and an accent that stands alone are no ends of words, so examples in Hindi are no longer than they are.
#[test]
fn signs_inside_words_do_not_end_them() {
    let hindi = "क्या हिन्दी में प्रश्न";
    assert!(EvalSet::new("quiz", 8, [hindi]).is_err(), "four words are too short to be found");
    assert!(EvalSet::new("quiz", 8, [format!("{hindi} {hindi}").as_str()]).is_ok());
    // Written in another way it is the same example.
    let example = "Où était né le célèbre écrivain français à la fin du siècle ?";
    let set = EvalSet::new("quiz", 8, [example]).unwrap();
    let rules = Contamination::with(vec![(set, 0.5)]).unwrap();
    let text = example.replace('é', "e\u{301}").replace("français", "fran\u{ad}çais");
    assert_eq!(rules.worst(&text), Some((0, 0, 1.0)));
}
