use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};

/// Learns merges by counting all pairs of all words anew for each: the definition.
fn naive_merges(words: &BTreeMap<String, u64>, wanted: usize, min_frequency: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut words: Vec<(Vec<Vec<u8>>, u64)> =
        words.iter().map(|(word, &count)| (word.bytes().map(|byte| vec![byte]).collect(), count)).collect();
    let mut merges = Vec::new();
    while merges.len() < wanted {
        let mut pairs: BTreeMap<(Vec<u8>, Vec<u8>), u64> = BTreeMap::new();
        for (word, count) in &words {
            for two in word.windows(2) {
                *pairs.entry((two[0].clone(), two[1].clone())).or_default() += count;
            }
        }
        let best = pairs.into_iter().map(|(pair, count)| (count, pair)).max();
        let Some((count, (left, right))) = best else { break };
        if count < min_frequency.max(1) {
            break;
        }
        for (word, _) in &mut words {
            let mut i = 0;
            while i + 1 < word.len() {
                if word[i] == left && word[i + 1] == right {
                    let right = word.remove(i + 1);
                    word[i].extend(right);
                }
                i += 1;
            }
        }
        merges.push((left, right));
    }
    merges
}

fn word_counts(docs: &[String]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for word in docs.iter().flat_map(|doc| Split::Llama3.pieces(doc)) {
        *counts.entry(word.to_owned()).or_default() += 1;
    }
    counts
}

fn joined(merges: &[(Vec<u8>, Vec<u8>)]) -> Vec<Vec<u8>> {
    merges.iter().map(|(left, right)| [left.as_slice(), right].concat()).collect()
}

fn documents() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec("[ab]{0,12}( [abc]{1,6}){0,8}|[a-eéß] {0,3}[xy\n]{0,4}", 0..8)
}

proptest! {
    #[test]
    fn learns_what_counting_anew_each_time_learns(docs in documents(), merges in 0usize..60, min_frequency in 0u64..4) {
        let expected = naive_merges(&word_counts(&docs), merges, min_frequency);
        let trainer = Trainer { vocab_size: 512 + merges, min_frequency, ..Trainer::new(0) };
        let (tokenizer, report) = trainer.train(docs.iter(), &mut |_, _| ()).unwrap();
        prop_assert_eq!(&tokenizer.tokens().iter().take(tokenizer.num_ranks()).skip(256).map(<[u8]>::to_vec).collect::<Vec<_>>(), &joined(&expected));
        prop_assert_eq!(report.vocab_size, 512 + expected.len());
        prop_assert_eq!(report.reached_size(), expected.len() == merges);

        // Encoding by ranks merges as training did, so the trainer's count of tokens is the encoder's.
        let tokens: usize = docs.iter().map(|doc| tokenizer.encode(doc).len()).sum();
        prop_assert_eq!(report.tokens, tokens as u64);
        prop_assert_eq!(report.bytes, docs.iter().map(String::len).sum::<usize>() as u64);
    }

    #[test]
    fn order_of_documents_and_threads_do_not_matter(docs in documents(), threads in 1usize..5) {
        let trainer = Trainer::new(512 + 40);
        let (one, _) = trainer.train(docs.iter(), &mut |_, _| ()).unwrap();
        let (other, _) = Trainer { threads: Some(threads), ..trainer.clone() }.train(docs.iter().rev(), &mut |_, _| ()).unwrap();
        prop_assert_eq!(one.fingerprint(), other.fingerprint());
    }
}

#[test]
fn many_documents_over_many_threads_give_one_result() {
    let docs: Vec<String> = (0..3000u32)
        .map(|i| {
            (0..20).map(|j| format!("w{} ", i.wrapping_mul(2_654_435_761).rotate_left(j) % 977)).collect()
        })
        .collect();
    let train = |threads| {
        let trainer = Trainer { threads: Some(threads), ..Trainer::new(900) };
        let (tokenizer, report) = trainer.train(docs.iter(), &mut |_, _| ()).unwrap();
        (tokenizer.fingerprint(), report)
    };
    let one = train(1);
    assert_eq!(one, train(2));
    assert_eq!(one, train(7));
}

#[test]
fn progress_goes_through_reading_and_merging() {
    let mut calls = Vec::new();
    let (_, report) = Trainer { vocab_size: 514, min_frequency: 1, threads: Some(1), ..Trainer::new(0) }
        .train(["ab ab", "abc"].iter(), &mut |done, total| calls.push((done, total)))
        .unwrap();
    assert_eq!(calls, [(8, 0), (0, 2), (1, 2), (2, 2)]);
    let expected = TrainReport {
        documents: 2,
        bytes: 8,
        words: 3,
        distinct_words: 3,
        // "ab", then "abc" rather than " ab": both pairs occur once, and the bytes `ab`, `c` are greater.
        tokens: 4,
        wanted_vocab_size: 514,
        vocab_size: 514,
        spilled_bytes: 0,
    };
    assert_eq!(report, expected);
}

#[test]
fn sizes_out_of_range_are_errors() {
    let error = Trainer::new(511).train([""].iter(), &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().starts_with("vocabulary size `511` is out of range"), "{error}");
    let (smallest, _) = Trainer::new(512).train([""].iter(), &mut |_, _| ()).unwrap();
    assert_eq!(smallest.vocab_size(), 512);
}

#[test]
fn a_long_word_is_no_problem() {
    let letters: String = "a".repeat(1 << 20);
    let (tokenizer, report) = Trainer::new(512 + 18).train([&letters].into_iter(), &mut |_, _| ()).unwrap();
    assert_eq!(tokenizer.encode(&letters).len() as u64, report.tokens);
    assert_eq!(report.tokens, 4);
}

/// Many distinct words, some of them often.
fn varied(words: u32) -> Vec<String> {
    let letter = |digits: u32| char::from(b'a' + (digits & 15) as u8);
    let word = |i: u32| -> String {
        let digits = i.wrapping_mul(2_654_435_761);
        std::iter::once(' ').chain((0..8).map(|at| letter(digits >> (4 * at)))).collect()
    };
    (0..8).map(|doc| (0..words).map(|i| word(i * (1 + doc % 3))).collect()).collect()
}

#[test]
fn counts_that_go_to_disk_give_the_same_result() {
    let long = varied(40_000);
    let docs: Vec<&str> = long
        .iter()
        .flat_map(|doc| doc.as_bytes().chunks(9 * 1000))
        .map(|doc| std::str::from_utf8(doc).unwrap())
        .collect();
    let trainer = Trainer { threads: Some(2), ..Trainer::new(900) };
    let (expected, in_memory) = trainer.train(docs.iter(), &mut |_, _| ()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let counting =
        Counting { split: Split::Llama3, threads: 2, memory: Some(1 << 14), scratch: scratch.path().into() };
    let counted = counting.count(docs.iter(), &mut |_| ()).unwrap();
    // Many went to disk, and few of them were open at the end of it.
    assert!(counted.runs.added > 100 && counted.runs.bytes > 0, "{} runs", counted.runs.added);
    assert!(counted.runs.open() <= 3 * 31, "{} runs are open", counted.runs.open());
    let words = counted.into_words(&counting, 1, &|_| Ok(())).unwrap();
    let corpus = trainer.corpus(words, &mut TrainReport::default()).unwrap();
    let (ranks, tokens) = trainer.learn(byte_tokens(), corpus, &mut |_, _| false, &mut |_, _| ()).unwrap();
    assert_eq!(Tokenizer::from_ranks(ranks).unwrap().fingerprint(), expected.fingerprint());
    assert_eq!(tokens, in_memory.tokens);
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn a_cap_that_is_too_small_is_an_error_that_says_what_to_do() {
    let docs = varied(20_000);
    let scratch = tempfile::tempdir().unwrap();
    let trainer =
        Trainer { memory: Some(1 << 20), scratch: Some(scratch.path().into()), ..Trainer::new(900) };
    let error = trainer.train(docs.iter(), &mut |_, _| ()).unwrap_err().to_string();
    assert!(error.contains("may take 1 beside") && error.contains("--min-word-count"), "{error}");
    let (roomy, _) = Trainer { memory: Some(1 << 30), ..trainer }.train(docs.iter(), &mut |_, _| ()).unwrap();
    let (free, _) = Trainer::new(900).train(docs.iter(), &mut |_, _| ()).unwrap();
    assert_eq!(roomy.fingerprint(), free.fingerprint());
}

/// A text that only the thread that made it can read.
struct Own(std::thread::ThreadId);

impl AsRef<str> for Own {
    fn as_ref(&self) -> &str {
        assert_eq!(std::thread::current().id(), self.0, "another thread");
        "a b c"
    }
}

#[test]
#[should_panic(expected = "another thread")]
fn threads_that_panic_keep_nobody_waiting() {
    let trainer = Trainer { threads: Some(2), ..Trainer::new(600) };
    let docs = std::iter::repeat_with(|| Own(std::thread::current().id())).take(1 << 22);
    drop(trainer.train(docs, &mut |_, _| ()));
}

#[test]
fn a_scratch_folder_that_is_not_there_is_named() {
    let scratch = tempfile::tempdir().unwrap().path().join("gone");
    let trainer = Trainer { memory: Some(1 << 16), scratch: Some(scratch), ..Trainer::new(900) };
    let error = trainer.train(varied(5000).iter(), &mut |_, _| ()).unwrap_err().to_string();
    assert!(error.contains("gone") && error.starts_with("cannot write into"), "{error}");
}

#[test]
fn rare_words_can_be_left_out() {
    let docs = ["xy xy ab", "ab xy zz qq"];
    let trainer = Trainer { min_frequency: 1, min_word_count: 2, ..Trainer::new(600) };
    let (tokenizer, report) = trainer.train(docs.iter(), &mut |_, _| ()).unwrap();
    let learned: Vec<_> = tokenizer.tokens().iter().take(tokenizer.num_ranks()).skip(256).collect();
    // Only " xy" occurs twice.
    assert_eq!(learned, [&b"xy"[..], b" xy"]);
    assert_eq!((report.distinct_words, report.reached_size()), (1, false));
}

proptest! {
    #[test]
    fn merged_runs_have_the_sums(lists in proptest::collection::vec(proptest::collection::vec(("[ab]{0,3}", 1u64..300), 0..20), 0..70)) {
        let scratch = tempfile::tempdir().unwrap();
        let mut expected = BTreeMap::new();
        let mut all = runs::Runs::default();
        for list in &lists {
            let mut counts = counts::WordCounts::default();
            for (word, count) in list {
                counts.add(word.as_bytes(), *count);
                *expected.entry(word.as_bytes().to_vec()).or_insert(0) += count;
            }
            all.add(runs::Run::write(&counts.into_list(), scratch.path()).unwrap()).unwrap();
            assert!(all.open() <= 2 * 31, "{} runs are open", all.open());
        }
        let mut found = Vec::new();
        all.merge(&mut |word, count| { found.push((word.to_vec(), count)); Ok(()) }).unwrap();
        prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
    }
}

/// The corpus, vocabulary and merges of Stanford's CS336, with GPT-2's split pattern.
#[test]
fn learns_the_reference_vocabulary_of_cs336() {
    let root = std::env::var_os("LLAMERO_TEST_DATA").unwrap_or_else(|| "$LLAMERO_TEST_DATA".into());
    let folder = std::path::PathBuf::from(root).join("tokenizer/cs336-bpe");
    if !folder.exists() {
        println!("skipped: no reference data in `{}`", folder.display());
        return;
    }
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let from_char: HashMap<char, u8> = byte_chars().into_iter().zip(0..=255).collect();
    let bytes = |token: &str| token.chars().map(|c| from_char[&c]).collect::<Vec<u8>>();

    let corpus = read("corpus.en");
    let trainer = Trainer { min_frequency: 1, ..Trainer::new(512 + 243) };
    let (words, mut report) = trainer.count([&corpus].into_iter(), Split::Gpt2, &mut |_, _| ()).unwrap();
    let corpus = trainer.corpus(words, &mut report).unwrap();
    let (learned, _) = trainer.learn(byte_tokens(), corpus, &mut |_, _| false, &mut |_, _| ()).unwrap();

    let merges = read("train-bpe-reference-merges.txt");
    let merges: Vec<(Vec<u8>, Vec<u8>)> = merges
        .lines()
        .map(|line| line.split_once(' ').map(|(left, right)| (bytes(left), bytes(right))).unwrap())
        .collect();
    assert_eq!(merges.len(), 243);
    assert_eq!(learned[256..], joined(&merges));

    let vocab: HashMap<String, u32> = serde_json::from_str(&read("train-bpe-reference-vocab.json")).unwrap();
    assert_eq!(vocab.len(), learned.len() + 1);
    for (token, id) in vocab.into_iter().filter(|(token, _)| token != "<|endoftext|>") {
        assert_eq!(learned[id as usize - 1], bytes(&token), "{token}");
    }
}
