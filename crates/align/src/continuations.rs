//! Passages of the corpus and how they go on.

use std::collections::BTreeSet;
use std::path::Path;

use llamero_data::{DataError, Document, Domain, documents, hash_fraction};

use crate::AlignError;

/// Bytes of a passage shown, and of its continuation; each goes on to the end of its word.
const SHOWN: usize = 160;
const CONTINUATION: usize = 120;

/// Passages taken of one document.
const MAX_PER_DOCUMENT: usize = 16;

/// A passage and what follows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Passage {
    pub(crate) shown: String,
    pub(crate) next: String,
}

/// The passages of one document.
struct Source {
    id: String,
    passages: Vec<Passage>,
}

/// Passages to train on and passages to ask about, of different documents; no two have the same continuation.
#[derive(Debug, Default)]
pub(crate) struct Passages {
    pub(crate) trained: Vec<Passage>,
    pub(crate) asked: Vec<Passage>,
}

/// Reads the passages of a curated folder: of its prose, and where that gives too few, of all its documents.
///
/// # Errors
/// Documents that cannot be read; fewer than `choices` passages to train on or to ask about.
pub(crate) fn read(curated: &Path, choices: usize) -> Result<Passages, AlignError> {
    prose_or_all(|| documents::read(curated), choices)
}

fn prose_or_all<D>(read: impl Fn() -> Result<D, DataError>, choices: usize) -> Result<Passages, AlignError>
where
    D: Iterator<Item = Result<Document, DataError>>,
{
    let prose = sources(read()?, |domain| domain == Domain::Prose)?;
    split(prose, choices).or_else(|_| split(sources(read()?, |_| true)?, choices))
}

/// The documents of the wanted domains that have passages. Of passages with the same continuation, the first is taken.
fn sources(
    documents: impl Iterator<Item = Result<Document, DataError>>,
    wanted: impl Fn(Domain) -> bool,
) -> Result<Vec<Source>, AlignError> {
    let mut seen = BTreeSet::new();
    let mut sources = Vec::new();
    for document in documents {
        let document = document?;
        if wanted(document.domain) {
            let mut passages = passages(&document.text);
            passages.retain(|p| seen.insert(p.next.clone()));
            if !passages.is_empty() {
                sources.push(Source { id: document.id, passages });
            }
        }
    }
    Ok(sources)
}

/// Divides whole documents, in the order of a hash of their ids: the first go to the questions, until they hold a
/// quarter of the passages and enough for one question.
fn split(mut sources: Vec<Source>, choices: usize) -> Result<Passages, AlignError> {
    sources
        .sort_by(|a, b| hash_fraction(&a.id).total_cmp(&hash_fraction(&b.id)).then_with(|| a.id.cmp(&b.id)));
    let (documents, total) = (sources.len(), sources.iter().map(|s| s.passages.len()).sum::<usize>());
    let wanted = (total / 4).max(choices);
    let mut out = Passages::default();
    for source in sources {
        let left = total - out.asked.len() - out.trained.len() - source.passages.len();
        // Training needs some too, so a document that would take the last ones away is not asked about.
        let spared = out.trained.len() + left >= choices;
        let side = if out.asked.len() < wanted && spared { &mut out.asked } else { &mut out.trained };
        side.extend(source.passages);
    }
    if out.asked.len() >= choices && out.trained.len() >= choices {
        return Ok(out);
    }
    let each = SHOWN + CONTINUATION;
    Err(AlignError::TooLittle {
        found: format!(
            "the corpus gives {total} different passages of {each} bytes in {documents} documents, too few for \
             questions and answers"
        ),
        hint: format!(
            "questions are about documents that are not trained on: give at least two documents in `curate.sources`, and \
             {choices} or more passages for either use"
        ),
    })
}

/// The first passages of a document, each with what follows it.
fn passages(text: &str) -> Vec<Passage> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    let mut rest = text.as_str();
    while found.len() < MAX_PER_DOCUMENT
        && let Some((shown, after)) = cut(rest, SHOWN)
        && let Some((next, after)) = cut(after, CONTINUATION)
    {
        found.push(Passage { shown: shown.into(), next: next.into() });
        rest = after;
    }
    found
}

/// Cuts off `length` bytes and the rest of the word. A word that goes on for long is cut between two characters: some
/// scripts have no spaces. `None` where the text is shorter.
fn cut(text: &str, length: usize) -> Option<(&str, &str)> {
    if text.len() < length {
        return None;
    }
    let start = text.ceil_char_boundary(length);
    let limit = text.ceil_char_boundary(start + length / 2);
    let end = match text[start..limit].find(' ') {
        Some(space) => start + space,
        None if limit == text.len() => limit,
        None => start,
    };
    Some((&text[..end], text[end..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(from: usize, count: usize) -> String {
        (from..from + count).map(|i| format!("word{i} ")).collect()
    }

    fn source(id: &str, from: usize) -> Source {
        Source { id: id.into(), passages: passages(&words(from, 400)) }
    }

    #[test]
    fn passages_end_with_a_word() {
        let text = words(0, 2000);
        let found = passages(&text);
        assert_eq!(found.len(), MAX_PER_DOCUMENT);
        let joined: Vec<_> = found.iter().flat_map(|p| [p.shown.as_str(), p.next.as_str()]).collect();
        assert!(text.starts_with(&joined.join(" ")));
        assert!(found.iter().all(|p| p.next.len() >= CONTINUATION && p.next.len() < CONTINUATION + 10));
        assert!(passages(&words(0, 20)).is_empty());
    }

    #[test]
    fn text_without_spaces_is_cut_between_characters() {
        let chinese: String = (0..2000).map(|i| char::from_u32(0x4e00 + i).unwrap()).collect();
        for text in [chinese, "x".repeat(5000), format!("{}é", "ab".repeat(2500))] {
            let found = passages(&text);
            assert_eq!(found.len(), MAX_PER_DOCUMENT);
            let joined: String = found.iter().flat_map(|p| [p.shown.as_str(), p.next.as_str()]).collect();
            assert!(text.starts_with(&joined));
            assert!(found.iter().all(|p| p.shown.len() < SHOWN + 4 && p.next.len() < CONTINUATION + 4));
        }
    }

    #[test]
    fn the_same_continuation_is_taken_once_and_code_only_when_wanted() {
        let document = |id: &str, domain, text: String| {
            Ok(Document { id: id.into(), url: id.into(), source: id.into(), domain, text })
        };
        let documents = || {
            // The copy comes in other words and goes on alike.
            let (text, copy) = (words(0, 60), words(0, 60).replacen("word0", "copy0", 1));
            [
                document("a", Domain::Prose, text),
                document("b", Domain::Prose, copy),
                document("c", Domain::Code, words(500, 60)),
            ]
            .into_iter()
        };
        let ids = |sources: Vec<Source>| sources.into_iter().map(|s| s.id).collect::<Vec<_>>();
        assert_eq!(ids(sources(documents(), |domain| domain == Domain::Prose).unwrap()), ["a"]);
        assert_eq!(ids(sources(documents(), |_| true).unwrap()), ["a", "c"]);
    }

    #[test]
    fn code_is_asked_about_where_prose_is_too_little() {
        let read = |prose: usize| {
            move || {
                let document = move |i: usize| {
                    let domain = if i < prose { Domain::Prose } else { Domain::Code };
                    let name = format!("id{i}");
                    let text = words(1000 * i + 1000, 400);
                    Ok(Document { id: name.clone(), url: name.clone(), source: name, domain, text })
                };
                Ok((0..4).map(document))
            }
        };
        let count = |prose| {
            let made = prose_or_all(read(prose), 4).unwrap();
            made.trained.len() + made.asked.len()
        };
        let each = passages(&words(1000, 400)).len();
        assert_eq!([0, 1, 2, 3, 4].map(count), [4, 4, 2, 3, 4].map(|documents| documents * each));
    }

    #[test]
    fn every_document_is_on_one_side() {
        for documents in [2, 3, 10, 40] {
            let sources = |turned: bool| -> Vec<Source> {
                let mut sources: Vec<_> =
                    (0..documents).map(|i| source(&format!("id{i}"), 1000 * i + 1000)).collect();
                if turned {
                    sources.reverse();
                }
                sources
            };
            let made = split(sources(false), 4).unwrap();
            let on = |side: &[Passage], s: &Source| s.passages.iter().filter(|p| side.contains(p)).count();
            for s in sources(false) {
                let (trained, asked) = (on(&made.trained, &s), on(&made.asked, &s));
                assert!((trained == 0) != (asked == 0), "{}: {trained} and {asked}", s.id);
                assert_eq!(trained + asked, s.passages.len());
            }
            let turned = split(sources(true), 4).unwrap();
            assert_eq!((turned.trained, turned.asked), (made.trained, made.asked));
        }
    }

    #[test]
    fn too_little_says_what_is_needed() {
        let one = split(vec![source("a", 0)], 4).unwrap_err().to_string();
        for part in ["in 1 documents", "at least two documents", "`curate.sources`", "4 or more passages"] {
            assert!(one.contains(part), "{part}: {one}");
        }
        let none = split(vec![], 4).unwrap_err().to_string();
        assert!(none.contains("0 different passages"), "{none}");
    }
}
