//! URL, exact, lines, semantic, components, labels.

use std::sync::Arc;

use proptest::prelude::*;

use super::semantic::{Keep, Semantic};
use super::*;
use crate::Embed;
use crate::plan::{Step, Task};

fn because(reason: &str, survivor: &str) -> (String, Option<String>) {
    (reason.to_owned(), Some(survivor.to_owned()))
}

#[test]
fn addresses_of_one_page_are_one() {
    let same = [
        "https://example.org/a/b?x=1&y=2",
        "http://www.example.org/a/b/?y=2&x=1#part",
        "HTTPS://user:secret@EXAMPLE.org:443/a/b?utm_source=mail&x=1&y=2&fbclid=z",
        "https://example.org./a/b/index.html?x=1&y=2",
    ];
    let normal: Vec<_> = same.iter().map(|address| url::normalise(address).unwrap()).collect();
    assert!(normal.iter().all(|address| address == "example.org/a/b?x=1&y=2"), "{normal:?}");
    for (left, right) in [
        ("https://example.org/a", "https://example.org/A"),
        ("https://example.org/?id=1", "https://example.org/?id=2"),
        ("https://example.org/a", "https://example.org:8080/a"),
        ("https://a.example.org/", "https://example.org/"),
        ("src/lib.rs", "src/lib.rs#2"),
        ("file:///a", "file:///b"),
    ] {
        assert_ne!(url::normalise(left), url::normalise(right), "{left} {right}");
    }
    assert_eq!(url::normalise(" "), None);
    assert_eq!(url::normalise("crate-1.0.0/src/lib.rs").unwrap(), "crate-1.0.0/src/lib.rs");
}

#[test]
fn the_newest_of_an_address_and_then_of_a_text_survives() {
    let page = |id: &str, date: &str, url: &str, text: &str| Document {
        url: url.to_owned(),
        ..document(id, date, text)
    };
    let documents = [
        page("a", "2023-01-01", "https://one.org/", "the old text of page one, which others have too"),
        page("b", "2024-01-01", "http://www.one.org", "the new text of page one"),
        // As old page one, and older: without the step before, it would give way to a page that is gone.
        page("c", "2022-01-01", "https://two.org/", "the old text of page one, which others have too"),
        page(
            "d",
            "2022-01-01",
            "https://three.org/",
            "the old text of page one, which others have too  \r\n\n",
        ),
        page("e", "", "", "no address and no date"),
        page("f", "", "", "no address and no date but another text"),
    ];
    let items = run(&documents, &dedup_plan(&MinHash::default()), &registry());
    assert_eq!(
        dropped(&items),
        [("a".to_owned(), because("url_duplicate", "b")), ("d".to_owned(), because("exact_duplicate", "c"))]
            .into()
    );
    assert!(items["a"].document.text.is_empty() && items["c"].document == documents[2]);
}

#[test]
fn common_lines_are_taken_away() {
    let menu = "Home | About | Page 1\n";
    let mut documents: Vec<_> = (0..9)
        .map(|at| {
            let menu = menu.replace('1', &at.to_string());
            document(
                &format!("d{at}"),
                "",
                &format!("{menu}What document number {at} says: {}.\n", "x".repeat(at + 1)),
            )
        })
        .collect();
    documents.push(document("menu", "", &format!("\n{menu}  \n{menu}")));
    let lines = |common: lines::CommonLines| {
        let mut plan = base_plan();
        plan.stage("judged", vec![Input::all("documents")], None);
        common.append(&mut plan, "judged").unwrap();
        run(&documents, &plan, &registry())
    };
    let items = lines(lines::CommonLines::default());
    assert_eq!(items["d3"].document.text, "What document number 3 says: xxxx.\n");
    assert_eq!(items["d3"].document.tags["lines.taken_away"], 1.0);
    assert_eq!(dropped(&items), [("menu".to_owned(), ("common_lines".to_owned(), None))].into());
    // Eleven lines are the menu: as many may stay.
    let items = lines(lines::CommonLines { max_seen: 11, ..Default::default() });
    assert!(items.values().zip(&documents).all(|(item, before)| item.document == *before));
    let items = lines(lines::CommonLines { keep_first: true, ..Default::default() });
    assert!(items["d0"].document.text.starts_with("Home") && !items["d1"].document.text.starts_with("Home"));
    // As they are, only the two lines of one document are equal to document 1's.
    let items = lines(lines::CommonLines { max_seen: 2, normalise: false, ..Default::default() });
    assert!(!items["d1"].document.text.contains("Home") && items["d2"].document.text.contains("Home"));
}

/// Counts of letters.
struct Letters;

impl Embed for Letters {
    fn embed(&self, text: &str) -> Result<Option<Vec<f32>>, CurateError> {
        let mut counts = vec![0.0; 26];
        text.bytes().filter(u8::is_ascii_lowercase).for_each(|byte| counts[usize::from(byte - b'a')] += 1.0);
        Ok(Some(counts))
    }
}

#[test]
fn of_like_meanings_one_survives() {
    let mut draw = Draw(5);
    let mut documents = Vec::new();
    for group in 0..30 {
        let letters: Vec<u8> = (0..60).map(|_| b'a' + draw.below(26) as u8).collect();
        for copy in 0..1 + group % 4 {
            let mut letters = letters.clone();
            letters.rotate_left(copy);
            letters.extend(vec![b'z'; copy]);
            documents.push(document(
                &format!("g{group:02}-{copy}"),
                "",
                std::str::from_utf8(&letters).unwrap(),
            ));
        }
    }
    let mut registry = registry();
    registry.encoders(|_| Ok(Arc::new(Letters)));
    for keep in [Keep::Farthest, Keep::Nearest] {
        let semantic = Semantic {
            clusters: 4,
            threshold: 0.98,
            keep,
            model: Some("letters".into()),
            ..Semantic::default()
        };
        let mut plan = base_plan();
        plan.stage("judged", vec![Input::all("documents")], None);
        semantic.append(&mut plan, "judged").unwrap();
        let items = run(&documents, &plan, &registry);
        let dropped = dropped(&items);
        assert!(dropped.len() > 30, "{}", dropped.len());
        for (id, (reason, survivor)) in &dropped {
            let survivor = survivor.as_ref().unwrap();
            assert_eq!((reason.as_str(), &survivor[..3]), ("semantic_duplicate", &id[..3]));
            assert!(!dropped.contains_key(survivor), "{id} gave way to {survivor}, which is gone");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn labels_sort_by_newness_and_then_by_id(
        items in prop::collection::vec((prop::collection::vec(prop_oneof![Just(0), Just(0xFF), any::<u8>()], 0..4), "[a-c\u{0}é]{0,3}"), 2..6),
    ) {
        for (newness, id) in &items {
            let whole = label(newness, id.as_bytes());
            prop_assert_eq!(id_of(&whole).unwrap(), id.as_bytes());
            for (other, its_id) in &items {
                let expected = other.cmp(newness).then_with(|| id.cmp(its_id));
                let found = label(newness, id.as_bytes()).cmp(&label(other, its_id.as_bytes()));
                prop_assert_eq!(found, expected, "{:?} {:?} and {:?} {:?}", newness, id, other, its_id);
            }
        }
    }
}

/// The least member of each vertex's component, the slow way.
fn by_flooding(vertices: usize, edges: &[(usize, usize)]) -> Vec<usize> {
    let mut least: Vec<_> = (0..vertices).collect();
    for _ in 0..vertices {
        for &(a, b) in edges {
            let low = least[a].min(least[b]);
            (least[a], least[b]) = (low, low);
        }
    }
    least
}

/// Edges as a source.
struct Edges<'a>(&'a [(usize, usize)]);

impl Source for Edges<'_> {
    fn fingerprint(&self) -> String {
        format!("{:?}", self.0)
    }

    fn splits(&self) -> usize {
        3
    }

    fn bytes(&self, _: usize) -> u64 {
        1
    }

    fn read(
        &self,
        split: usize,
        emit: &mut Emit,
        _: &mut Broken,
        _: &dyn Fn(u64),
    ) -> Result<(), CurateError> {
        let mut edges = self.0.iter().skip(split).step_by(3);
        edges.try_for_each(|(a, b)| emit(&a.to_be_bytes(), &b.to_be_bytes()))
    }
}

fn components_match(vertices: usize, edges: &[(usize, usize)]) {
    let work = TempDir::new().unwrap();
    let mut plan = Plan { sources: vec!["edges".to_owned()], tasks: Vec::new() };
    plan.stage("start", vec![Input::all("edges")], None);
    components::append(&mut plan, "start", "components");
    assert!(matches!(plan.tasks[1], Task::Repeat(_)));
    // A record of its own, since a plan may not end empty; and sorted, since they are read in order.
    plan.stage("sorted", vec![Input::all("components"), Input::all("edges")], Some(Step::new("list")));
    let mut registry = registry();
    registry.reduce("list", |_| Ok(Box::new(List)));
    let source = Edges(edges);
    let sources: BTreeMap<&str, &dyn Source> = [("edges", &source as &dyn Source)].into();
    let done =
        Local { partitions: 3, ..Local::new(work.path()) }.run(&plan, &registry, &sources, &()).unwrap();
    let number = |bytes: &[u8]| usize::from_be_bytes(bytes.try_into().unwrap());
    let mut least: Vec<_> = (0..vertices).collect();
    done.in_order(|key, value| {
        // The first value of a key that has an edge to the least is that edge.
        least[number(key)] = least[number(key)].min(number(value));
        Ok(())
    })
    .unwrap();
    let stars = done.stages["components"].records;
    assert_eq!(least, by_flooding(vertices, edges));
    let joined = by_flooding(vertices, edges).iter().enumerate().filter(|&(at, &least)| at != least).count();
    assert_eq!(stars as usize, joined, "one edge for each that is not the least");
}

struct List;

impl crate::plan::Reduce for List {
    fn reduce(
        &self,
        key: &[u8],
        values: &mut dyn crate::plan::Values,
        emit: &mut Emit,
    ) -> Result<(), CurateError> {
        while let Some(value) = values.next()? {
            emit(key, value)?;
        }
        Ok(())
    }
}

#[test]
fn a_long_chain_is_one_component() {
    let mut draw = Draw(3);
    let mut order: Vec<usize> = (0..400).collect();
    (1..order.len()).rev().for_each(|at| order.swap(at, draw.below(at as u64 + 1) as usize));
    let edges: Vec<_> = order.windows(2).map(|pair| (pair[0], pair[1])).collect();
    components_match(400, &edges);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn components_are_those_of_flooding(edges in prop::collection::vec((0..30_usize, 0..30_usize), 1..40)) {
        components_match(30, &edges);
    }
}

#[test]
fn two_documents_of_one_id_are_an_error() {
    let documents = [document("a", "", "some words"), document("a", "", "some other words")];
    let work = TempDir::new().unwrap();
    let local = Local { partitions: 1, threads: 1, ..Local::new(work.path()) };
    let source = Documents(&documents, 1);
    let sources: BTreeMap<&str, &dyn Source> = [("documents", &source as &dyn Source)].into();
    let error = local.run(&dedup_plan(&MinHash::default()), &registry(), &sources, &()).err().unwrap();
    assert!(error.to_string().contains("two have the id `a`"), "{error}");
}
