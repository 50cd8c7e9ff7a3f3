//! The filters that datatrove does not have, and what all of them owe.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::contamination::{Contamination, EvalSet};
use crate::filter::{
    Divergence, DivergenceConfig, FILTERS, HeuristicsConfig, Kind, Pii, PiiConfig, Unigrams, filter,
};
use crate::{Document, Dropped, Filter, Item};

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
        ("decontaminate", json!({}), "decontaminate.sets"),
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
        ("http://user@www.GOOD.example:80/bad/page", Some("url")),
        ("https://free-porn.test/a", Some("hard_blacklisted")),
        ("https://x.test/a/Porn/b", Some("hard_blacklisted")),
        ("https://ietf.test/draft-xxx-llama.txt", None),
        ("https://x.test/why-porn-harms", None),
        ("https://x.test/?q=porn", None),
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

    let by_text = filter("decontaminate", &json!({"sets": [{"name": "quiz", "text": text}]})).unwrap();
    let by_hash = filter("decontaminate", &json!({"sets": [{"hashes": hashes}]})).unwrap();
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
    let error = filter("decontaminate", &json!({"ngram": 5, "sets": [{"hashes": hashes}]}))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("hashes of 8 words"), "{error}");
}

#[test]
fn an_address_as_long_as_its_word_is_an_edit() {
    let pii = filter("pii", &Value::Null).unwrap();
    for (text, edits) in [("Write to a@bb.cc now.", 1), ("Write to nobody now.", 0)] {
        let mut item = Item::new(document(text), text.len() as u64);
        pii.pass(&mut item).unwrap();
        assert_eq!((item.edits.len(), item.text_bytes), (edits, text.len() as u64), "{}", item.document.text);
    }
}

#[test]
fn each_set_of_rules_is_a_step_of_its_own() {
    let again = "the llama met the herd ".repeat(4) + "\n";
    let good =
        "The shepherd has twelve llamas. He sells five of them at the market. Nobody had seen them since.\n";
    let rules = filter(
        "heuristics",
        &json!({"gopher_repetition": false, "gopher_quality": false, "ngram_coverage": {}, "fineweb": false,
            "c4": {"min_sentences": 4}}),
    )
    .unwrap();
    let pass = |text: &str| {
        let mut item = Item::new(document(text), 0);
        rules.pass(&mut item).unwrap();
        (item.edits, item.step, item.document.text)
    };
    let four = good.repeat(2) + "no end\n";
    let (edits, step, text) = pass(&(four.clone() + &again));
    let left = |step: &str, text: &str| (step.to_owned(), text.len() as u64);
    assert_eq!(edits, [left("ngram_coverage", &(four + "\n")), left("c4", &text)]);
    assert_eq!((step.as_str(), text.trim_end()), ("", good.repeat(2).trim_end()));
    // Dropped by the second, behind what the first took away.
    let (edits, step, _) = pass(&(good.to_owned() + &again));
    assert_eq!((edits, step.as_str()), (vec![left("ngram_coverage", &format!("{good}\n"))], "c4"));
    let (edits, step, _) = pass(&again);
    assert_eq!((edits, step.as_str()), (vec![], "ngram_coverage"));
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

/// A page of an encyclopaedia, as it would be written: paragraphs with the marks of their script.
const FOREIGN: [(&str, &str); 4] = [
    (
        "Chinese",
        "大羊驼是骆驼科的一种动物，原产于南美洲的安第斯山脉。当地居民自古以来就饲养它们，用来驮运货物，也取用它们的毛。\n\
         它们性情温和，善于学习，经过几次练习就能掌握简单的任务。成年个体的身高大约为一米七，体重可以超过一百五十公斤。\n\
         牧人说：“没有它们，我们就无法翻过这座山。”春天来临的时候，幼崽在清晨出生，几个小时以后便能站立行走。\n\
         研究人员认为，人类驯化这种动物已有数千年的历史，考古遗址中发现的骨骼证明了这一点。如今世界各地都有人饲养。",
    ),
    (
        "Japanese",
        "ラマはラクダ科の動物で、南アメリカのアンデス山脈に暮らしている。古くから荷物を運ぶために飼われ、その毛も利用されてきた。\n\
         性格はおとなしく、簡単な仕事なら数回の練習で覚えることができる。大人になると背の高さは一メートル七十センチほどになる。\n\
         羊飼いは「彼らがいなければ山を越えられない。」と語った。春になると子どもが朝早く生まれ、数時間後には歩き始める。\n\
         研究者によれば、人がこの動物を飼い始めたのは数千年前のことである。遺跡から見つかった骨がそれを示している。今では世界中で見られる。",
    ),
    (
        "Thai",
        "ลามาเป็นสัตว์ในวงศ์อูฐ มีถิ่นกำเนิดในเทือกเขาแอนดีสของอเมริกาใต้ ชาวบ้านเลี้ยงไว้ใช้ขนของมาตั้งแต่โบราณ\n\
         พวกมันมีนิสัยอ่อนโยน เรียนรู้งานง่ายได้เร็ว เมื่อโตเต็มวัยจะสูงราวหนึ่งเมตรเจ็ดสิบเซนติเมตร\n\
         คนเลี้ยงสัตว์เล่าว่าหากไม่มีพวกมันก็ข้ามภูเขาไม่ได้ ลูกเกิดในตอนเช้าของฤดูใบไม้ผลิ ไม่กี่ชั่วโมงก็เดินได้\n\
         นักวิจัยเชื่อว่ามนุษย์เลี้ยงสัตว์ชนิดนี้มาหลายพันปีแล้ว กระดูกที่พบในแหล่งโบราณคดียืนยันเรื่องนี้",
    ),
    (
        "Hindi",
        "लामा ऊँट परिवार का एक पशु है जो दक्षिण अमेरिका के पहाड़ों में पाया जाता है। लोग इसे बहुत पहले से सामान ढोने के लिए पालते आए हैं।\n\
         इसका स्वभाव शांत होता है और यह सरल काम जल्दी सीख लेता है। वयस्क पशु की ऊँचाई लगभग पौने दो मीटर तक होती है।\n\
         चरवाहे कहते हैं कि इनके बिना वे पहाड़ पार नहीं कर सकते। वसंत में बच्चे सुबह के समय जन्म लेते हैं और कुछ घंटों में चलने लगते हैं।\n\
         शोध करने वाले मानते हैं कि मनुष्य ने हज़ारों वर्ष पहले इसे पालतू बनाया था। पुराने स्थानों पर मिली हड्डियाँ यही बताती हैं।",
    ),
];

#[test]
fn good_texts_of_other_scripts_stay() {
    // Stop words are those of English; documents of other languages are not asked for them.
    let quality = json!({"min_stop_words": false});
    for (language, text) in FOREIGN {
        for (name, settings) in [
            ("gopher_quality", &quality),
            ("gopher_repetition", &Value::Null),
            ("ngram_coverage", &Value::Null),
            ("c4", &Value::Null),
            ("fineweb", &Value::Null),
        ] {
            let (dropped, left) = apply(name, settings, text);
            assert_eq!((dropped, left.as_str()), (None, text), "{language}: {name}");
        }
    }
    // What repeats itself does so in every script, and what is short is short.
    let reason =
        |name: &str, text: &str| apply(name, &quality_of(name), text).0.map(|dropped| dropped.reason);
    let twice = "这是一个关于羊驼的故事。它们住在高原上。".repeat(9);
    assert!(reason("gopher_repetition", &twice).is_some());
    assert_eq!(reason("gopher_quality", "这是一个关于羊驼的故事。").unwrap(), "gopher_short_doc");
    assert_eq!(reason("c4", "这是一个关于羊驼的故事。").unwrap(), "too_few_sentences");
    assert_eq!(reason("fineweb", "首页\n关于\n新闻\n联系\n").unwrap(), "line_punct_ratio");
}

fn quality_of(name: &str) -> Value {
    if name == "gopher_quality" { json!({"min_stop_words": false}) } else { Value::Null }
}

#[test]
fn hostile_texts_take_a_time_that_grows_with_their_length() {
    // Every word twice, all singles first: all n-grams of one word are the most frequent ones.
    let pairs: String =
        (0..400_000).map(|n| format!("w{} ", if n < 200_000 { n } else { 200_000 + n / 2 })).collect();
    let patterns = [
        ("(", "a"),
        (".(", "a"),
        ("[1", "x"),
        ("a\n", ""),
        ("'", "s"),
        ("…(", "x9"),
        ("#", "$"),
        ("-", "-"),
        ("大", ""),
        ("大。\n", ""),
    ];
    let texts = patterns.map(|(unit, end)| unit.repeat(1_500_000 / unit.len()) + end);
    for text in texts.iter().chain([&pairs]) {
        for (name, settings) in [
            (
                "gopher_repetition",
                json!({"max_top_ngrams": [[1, 1.0], [2, 1.0]], "max_duplicate_lines": false, "max_duplicate_paragraphs": false,
                "max_duplicate_line_characters": false, "max_duplicate_paragraph_characters": false, "max_duplicate_ngrams": [[2, 1.0], [5, 1.0]]}),
            ),
            (
                "gopher_quality",
                json!({"min_words": false, "max_words": false, "min_mean_word": false, "max_mean_word": false,
                "max_symbol_ratio": false, "min_alphabetic": false}),
            ),
            ("ngram_coverage", Value::Null),
            (
                "c4",
                json!({"terminal_punctuation": false, "max_word_length": false, "min_words_per_line": false}),
            ),
            (
                "fineweb",
                json!({"min_punctuated_lines": false, "max_short_lines": false, "max_duplicate_characters": false}),
            ),
        ] {
            let start = std::time::Instant::now();
            apply(name, &settings, text);
            let took = start.elapsed();
            println!("{name} {:?} {took:?}", &text[..text.floor_char_boundary(12)]);
            assert!(
                took.as_secs() < 10,
                "{name} takes {took:?} for {:?}",
                &text[..text.floor_char_boundary(12)]
            );
        }
    }
}
