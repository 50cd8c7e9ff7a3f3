//! What is drawn, against what was asked for.

use std::collections::{BTreeMap, BTreeSet};

use tempfile::TempDir;

use super::*;
use crate::item::Value;
use crate::local::Local;
use crate::plan::{Broken, Emit, Source};

/// Documents at hand.
struct Documents(Vec<Document>);

impl Source for Documents {
    fn fingerprint(&self) -> String {
        String::new()
    }

    fn splits(&self) -> usize {
        1
    }

    fn bytes(&self, _: usize) -> u64 {
        1
    }

    fn read(&self, _: usize, emit: &mut Emit, _: &mut Broken, _: &dyn Fn(u64)) -> Result<(), CurateError> {
        for document in &self.0 {
            let item = Item::new(document.clone(), document.text.len() as u64);
            emit(document.id.as_bytes(), &Value::Item(Box::new(item)).encode()?)?;
        }
        Ok(())
    }
}

/// Documents of 100 bytes: `prose`, `code`, `maths` so many, every fourth piece of prose about sport.
fn documents(prose: usize, code: usize, maths: usize) -> Documents {
    let of = |domain: &str, count: usize| -> Vec<Document> {
        let document = |n: usize| Document {
            id: format!("{domain}{n:05}"),
            domain: domain.to_owned(),
            text: format!("{n:0100}"),
            tags: [("sport".to_owned(), if domain == PROSE && n.is_multiple_of(4) { 0.9 } else { 0.1 })]
                .into(),
            ..Document::default()
        };
        (0..count).map(document).collect()
    };
    Documents([of(PROSE, prose), of(CODE, code), of(MATHS, maths)].concat())
}

/// Ids of the copies of each draw in their order, reasons of those left out, and the reports.
type Drawn = (Vec<Vec<String>>, BTreeMap<String, String>, BTreeMap<String, MixReport>);

fn draw(config: &MixConfig, documents: &Documents, partitions: u32) -> Drawn {
    config.validate().unwrap();
    let mut plan = Plan { sources: vec!["documents".to_owned()], tasks: Vec::new() };
    plan.stage("all", vec![Input::all("documents")], Some(Step::new("in-order")));
    config.append(&mut plan, "all").unwrap();
    let work = TempDir::new().unwrap();
    let local = Local { partitions, ..Local::new(&work.path().join("work")) };
    let sources: BTreeMap<&str, &dyn Source> = [("documents", documents as &dyn Source)].into();
    let done = local.run(&plan, &crate::registry(), &sources, &()).unwrap();
    let (mut copies, mut dropped) = (vec![Vec::new(); config.draws().len()], BTreeMap::new());
    let mut counts = Counts::new(config);
    done.in_order(|key, value| {
        let item = Value::item(value)?;
        match Ledger::of(key) {
            Ledger::Copy(at) => {
                counts.copy(at, &item);
                assert_eq!(item.document.text.len(), 100);
                copies[at as usize].push(item.document.id);
            }
            Ledger::Entry => {
                counts.entry(&item);
                assert!(item.document.text.is_empty() && item.text_bytes == 100);
                if let Some(why) = item.dropped {
                    dropped.insert(item.document.id, why.reason);
                }
            }
        }
        Ok(())
    })
    .unwrap();
    (copies, dropped, counts.reports())
}

fn times<'a>(copies: &'a [String], domain: &str) -> BTreeMap<&'a str, usize> {
    let mut times = BTreeMap::new();
    for id in copies.iter().filter(|id| id.starts_with(domain)) {
        *times.entry(id.as_str()).or_default() += 1;
    }
    times
}

#[test]
fn parts_are_met_by_drawing_and_by_repeating() {
    let documents = documents(4_000, 300, 100);
    let config = MixConfig { size: Some(200_000), ..MixConfig::default() };
    let (copies, dropped, reports) = draw(&config, &documents, 3);
    let report = &reports["mix"];
    // 1,000 documents of prose are wanted, 500 of maths but at most 400, 340 of code, 160 of other languages.
    assert_eq!(report.target_bytes, 200_000);
    let prose = times(&copies[0], PROSE);
    assert!(prose.values().all(|&times| times == 1) && prose.len() == 1_000, "{}", prose.len());
    let maths = times(&copies[0], MATHS);
    assert!(maths.len() == 100 && maths.values().all(|&times| times == 4), "the cap of epochs is exact");
    let code = times(&copies[0], CODE);
    assert!(code.len() == 300 && code.values().all(|&times| times == 1 || times == 2));
    assert_eq!(code.values().sum::<usize>(), 340);
    assert_eq!(dropped.len(), 4_000 - prose.len());
    assert!(dropped.values().all(|reason| reason == "not_in_mix"));
    assert_eq!(report.domains[MATHS].epochs, 4.0);
    assert_eq!(report.domains[MATHS].bytes, 40_000);
    assert_eq!(report.domains[PROSE].available_documents, 4_000);
    assert_eq!(report.documents, copies[0].len() as u64);
    let short = report.short.join("; ");
    assert!(short.contains("maths: 10000 of 50000 bytes are missing, even repeated"), "{short}");
    assert!(short.contains("multilingual: 16000 of 16000 bytes are missing, there is none"), "{short}");
    // Every tenth of the order has about the same parts.
    for part in copies[0].chunks(copies[0].len() / 10 + 1) {
        let share = times(part, PROSE).len() as f64 / part.len() as f64;
        assert!((0.4..0.7).contains(&share), "{share}");
    }
}

#[test]
fn the_draw_depends_on_ids_and_seed_alone() {
    let config = MixConfig { size: Some(100_000), ..MixConfig::default() };
    let mut others = documents(2_000, 300, 100);
    let one = draw(&config, &others, 1);
    others.0.reverse();
    assert!(one == draw(&config, &others, 7));
    let other = draw(&MixConfig { seed: 2, ..config }, &others, 1);
    let set = |drawn: &Drawn| drawn.0[0].iter().cloned().collect::<BTreeSet<_>>();
    assert_ne!(set(&one), set(&other));
}

#[test]
fn a_topic_is_brought_down_to_its_share() {
    let topic = Topic { tag: "sport".to_owned(), at_least: 0.5, max_share: 0.1 };
    let proportions: BTreeMap<String, f64> = [(PROSE.to_owned(), 1.0)].into();
    let config = MixConfig { topics: vec![topic], proportions, ..MixConfig::default() };
    let (copies, _, reports) = draw(&config, &documents(4_000, 0, 0), 2);
    let sport = copies[0].iter().filter(|id| id[PROSE.len()..].parse::<usize>().unwrap() % 4 == 0).count();
    let share = sport as f64 / copies[0].len() as f64;
    assert!((share - 0.1).abs() < 0.001, "{share}");
    assert!((reports["mix"].topics[0].share - share).abs() < 1e-9);
    assert!((reports["mix"].topics[0].available_share - 0.25).abs() < 1e-9);
    // What is no sport is all there.
    assert!((3_332..=3_334).contains(&copies[0].len()), "{}", copies[0].len());
}

#[test]
fn all_there_is_is_what_may_be_drawn() {
    // Ten times as much code, of which no part is wanted, does not make prose come twice.
    let config = MixConfig { proportions: [(PROSE.to_owned(), 1.0)].into(), ..MixConfig::default() };
    let (copies, _, reports) = draw(&config, &documents(100, 1_000, 0), 2);
    assert_eq!((copies[0].len(), reports["mix"].target_bytes), (100, 10_000));
}

#[test]
fn annealing_is_a_draw_of_its_own() {
    let annealing = Draw {
        size: Some(20_000),
        proportions: [(CODE.to_owned(), 1.0), (PROSE.to_owned(), 1.0)].into(),
        require: [("sport".to_owned(), 0.5)].into(),
        ..Draw::default()
    };
    let config = MixConfig { size: Some(50_000), annealing: Some(annealing), ..MixConfig::default() };
    let (copies, dropped, reports) = draw(&config, &documents(2_000, 300, 100), 2);
    assert!(copies[1].iter().all(|id| id.starts_with(PROSE)), "no code is about sport");
    assert_eq!(copies[1].len(), 100);
    assert!(copies.concat().iter().all(|id| !dropped.contains_key(id)));
    assert_eq!(reports["annealing"].domains[CODE].available_documents, 0);
    assert_eq!(reports["annealing"].domains[PROSE].available_documents, 500);
}

#[test]
fn topics_hold_their_shares_together() {
    let topic = |tag: &str| Topic { tag: tag.to_owned(), at_least: 0.5, max_share: 0.3 };
    let config = MixConfig {
        topics: vec![topic("sport"), topic("games")],
        proportions: [(PROSE.to_owned(), 1.0)].into(),
        ..MixConfig::default()
    };
    let mut documents = documents(1_000, 0, 0);
    for (at, document) in documents.0.iter_mut().enumerate() {
        let tag = if at < 600 { "sport" } else { "games" };
        document.tags = if at < 900 { [(tag.to_owned(), 1.0)].into() } else { BTreeMap::new() };
    }
    let (copies, dropped, reports) = draw(&config, &documents, 2);
    let topics = &reports["mix"].topics;
    assert!(topics.iter().all(|topic| (topic.share - 0.3).abs() < 0.01), "{topics:?}");
    assert_eq!((copies[0].len(), dropped.len()), (250, 750));

    // Where all is of a topic, shares that leave room for more cannot be held, and that is said.
    documents.0.truncate(900);
    let (copies, _, reports) = draw(&config, &documents, 1);
    assert!(!copies[0].is_empty());
    assert!(
        reports["mix"].short.iter().any(|words| words.starts_with("topic ")),
        "{:?}",
        reports["mix"].short
    );
}

#[test]
fn what_keeps_a_document_out_is_said() {
    let detail = |config: &MixConfig, item: &Item| {
        let cells = draw::why_left_out(config, item);
        cells.detail
    };
    let config = MixConfig { require: [("sport".to_owned(), 0.5)].into(), ..MixConfig::default() };
    let mut item = Item::new(documents(1, 0, 0).0.remove(0), 100);
    item.document.tags = [("sport".to_owned(), 0.25)].into();
    assert_eq!(detail(&config, &item), "tag `sport` is 0.250, required 0.5");
    item.document.tags.clear();
    assert_eq!(detail(&config, &item), "has no tag `sport`, required 0.5");
    item.document.domain = "verse".to_owned();
    assert_eq!(detail(&MixConfig::default(), &item), "domain `verse` has no part");
    let half = MixConfig { max_epochs: 2.5, ..MixConfig::default() };
    assert!(half.validate().unwrap_err().to_string().contains("a whole number"));
}
