//! The page of a corpus: what each step let through, and what is known of the rest.

#[cfg(test)]
#[path = "curation_tests.rs"]
pub(super) mod tests;

use std::collections::BTreeMap;

use llamero_curate::audit::{Fate, Outcome};
use llamero_curate::contamination::EvalSetTally;
use llamero_curate::{BeforeAfter, CurateReport, DroppedRecord, Duplicates, MixReport, Tally};
use serde::Serialize;

use super::ReportError;
use super::bars::{self, Bars};
use super::format::{bytes, count, grouped, number, percent};
use super::page::Page;
use super::plot::theme;
use super::sections::{facts, title};

/// Everything that the page shows.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct CurationData {
    /// Folder of the corpus.
    pub(crate) folder: String,
    /// What came in, what was kept, and why the rest was not.
    pub(crate) report: CurateReport,
    /// What the mix came to, by the names of the draws.
    pub(crate) mix: BTreeMap<String, MixReport>,
    /// The documents that the largest clusters are named after, by id.
    pub(crate) survivors: BTreeMap<String, Fate>,
    /// Some dropped documents of each reason.
    pub(crate) samples: BTreeMap<String, Vec<DroppedRecord>>,
}

/// Clusters that are shown of each kind.
const CLUSTERS: usize = 12;

/// Hosts and sources that are shown.
const ORIGINS: usize = 25;

/// The page as one string.
///
/// # Errors
/// [`ReportError::Plot`] when the plotting library fails.
pub(crate) fn render(data: &CurationData) -> Result<String, ReportError> {
    let mut page = Page::new("Curation", &theme());
    let CurationData { report, .. } = data;
    title(&mut page, "Curation", &data.folder, "");
    summary(&mut page, report);
    samples(&mut page, report, &data.samples);
    distributions(&mut page, report)?;
    for (reason, found) in &report.duplicates {
        duplicates(&mut page, reason, found, &data.survivors)?;
    }
    evaluation_sets(&mut page, &report.evaluation_sets);
    for (name, mix) in &data.mix {
        draw(&mut page, name, mix);
    }
    nothing_lost(&mut page, report);
    Ok(page.finish())
}

/// Numbers, funnel, domains and reasons: what the page of a run shows, too.
pub(super) fn summary(page: &mut Page, report: &CurateReport) {
    page.open("section").leaf("h2", "Curation");
    let kept = report.documents_kept as f64 / report.documents_in as f64;
    let mut rows = vec![
        ("documents in", grouped(report.documents_in)),
        ("documents kept", format!("{} ({})", grouped(report.documents_kept), percent(kept))),
        ("inputs", bytes(report.bytes_in)),
        ("text kept", bytes(report.bytes_kept)),
    ];
    if report.broken.count > 0 {
        rows.push(("broken parts of inputs", grouped(report.broken.count)));
    }
    let passed: u64 = report.passed.values().sum();
    if passed > 0 {
        rows.push(("records that are no documents", grouped(passed)));
    }
    facts(page, rows.into_iter());
    funnel(page, report);
    if !report.domains.is_empty() {
        let most = report.domains.values().map(|tally| tally.bytes).max().unwrap_or(0);
        page.leaf("h3", "Kept, by domain").open("div class=\"scroll\"").open("table").open("tr");
        page.leaf("th", "domain").leaf("th class=\"wide\"", "text").leaf("th class=\"num\"", "");
        page.leaf("th class=\"num\"", "documents").close();
        for (name, tally) in &report.domains {
            page.open("tr").leaf("td", name);
            page.open("td class=\"wide\"").bar("", tally.bytes as f64 / most as f64).close();
            page.leaf("td class=\"num\"", &bytes(tally.bytes));
            page.leaf("td class=\"num\"", &grouped(tally.documents)).close();
        }
        page.close().close();
    }
    dropped(page, report);
    page.close();
}

/// What is left after each step.
fn funnel(page: &mut Page, report: &CurateReport) {
    if report.steps.is_empty() {
        return;
    }
    page.leaf("h3", "Left after each step").open("div class=\"scroll\"").open("table").open("tr");
    page.leaf("th", "step")
        .leaf("th class=\"wide\"", "documents, and text below")
        .leaf("th class=\"num minor\"", "in");
    page.leaf("th class=\"num\"", "dropped").leaf("th class=\"num\"", "edited");
    page.leaf("th class=\"num\"", "left").leaf("th class=\"num\"", "text left").close();
    let first = report.steps.first().map_or_else(Tally::default, |step| step.before.clone());
    let share = |tally: &Tally| {
        [tally.documents as f64 / first.documents as f64, tally.bytes as f64 / first.bytes as f64]
    };
    let row = |page: &mut Page, name: &str, left: &Tally, [came, dropped, edited]: [String; 3]| {
        let [documents, text] = share(left);
        page.open("tr")
            .leaf("td", name)
            .open("td class=\"wide\"")
            .bar("", documents)
            .bar("tuned", text)
            .close();
        page.leaf("td class=\"num minor\"", &came).leaf("td class=\"num\"", &dropped);
        page.leaf("td class=\"num\"", &edited).leaf("td class=\"num\"", &grouped(left.documents));
        page.leaf("td class=\"num\"", &bytes(left.bytes)).close();
    };
    row(page, "as read", &first, Default::default());
    for step in &report.steps {
        let numbers = [step.before.documents, step.dropped(), step.edited].map(grouped);
        row(page, &step.step, &step.after, numbers);
    }
    page.close().close();
}

fn dropped(page: &mut Page, report: &CurateReport) {
    let rows = by_count(report);
    let Some((_, first)) = rows.first() else { return };
    let most = first.count;
    page.leaf("h3", "Dropped, by reason").open("div class=\"scroll\"").open("table").open("tr");
    page.leaf("th", "reason").leaf("th class=\"wide\"", "documents").leaf("th class=\"num\"", "");
    page.leaf("th class=\"num minor\"", "as read").close();
    for (reason, tally) in &rows {
        page.open("tr").leaf("td", reason);
        page.open("td class=\"wide\"").bar("drop", tally.count as f64 / most as f64).close();
        page.leaf("td class=\"num\"", &grouped(tally.count));
        page.leaf("td class=\"num minor\"", &bytes(tally.bytes)).close();
    }
    page.close().close();
    if rows.iter().all(|(_, tally)| tally.examples.is_empty()) {
        return;
    }
    page.open("details").leaf("summary", "Examples of dropped documents");
    for (reason, tally) in rows.iter().filter(|(_, tally)| !tally.examples.is_empty()) {
        page.leaf("h3", reason).open("ul");
        for example in &tally.examples {
            page.open("li").leaf("code", example).close();
        }
        page.close();
    }
    page.close();
}

/// Reasons, most frequent first.
fn by_count(report: &CurateReport) -> Vec<(&String, &llamero_curate::DroppedTally)> {
    let mut rows: Vec<_> = report.dropped.iter().collect();
    rows.sort_by(|a, b| b.1.count.cmp(&a.1.count).then_with(|| a.0.cmp(b.0)));
    rows
}

/// Some dropped documents of each reason, with what was found and the beginning of their text.
fn samples(page: &mut Page, report: &CurateReport, samples: &BTreeMap<String, Vec<DroppedRecord>>) {
    if samples.is_empty() {
        return;
    }
    page.open("section").leaf("h2", "Dropped documents");
    page.leaf("p class=\"soft\"", "Drawn at random. `llamero curate sample` draws more.");
    for (reason, _) in by_count(report) {
        let Some(records) = samples.get(reason) else { continue };
        page.open("details").leaf("summary", reason);
        for record in records {
            page.open("div class=\"sample\"").open("p").leaf("code", name(&record.id, &record.url)).close();
            page.leaf("p class=\"soft\"", &format!("{}: {}", record.step, record.detail));
            if !record.excerpt.is_empty() {
                page.verbatim("pre dir=\"auto\"", &record.excerpt);
            }
            page.close();
        }
        page.close();
    }
    page.close();
}

fn name<'a>(id: &'a str, url: &'a str) -> &'a str {
    if url.is_empty() { id } else { url }
}

/// The keys of before and after.
fn key(page: &mut Page) {
    page.open("p class=\"soft\"")
        .leaf("span class=\"key faint\"", "as read")
        .leaf("span class=\"key\"", "kept")
        .close();
}

fn distributions(page: &mut Page, report: &CurateReport) -> Result<(), ReportError> {
    if report.documents_in == 0 {
        return Ok(());
    }
    page.open("section").leaf("h2", "Before and after");
    let sizes: Vec<_> = classes(&report.lengths, |own| [own.before.documents, own.after.documents]);
    page.open("div class=\"plots\"");
    figure(page, "Documents by bytes of text", &sizes, Some(["as read", "kept"]))?;
    let texts: Vec<_> = classes(&report.lengths, |own| [own.before.bytes, own.after.bytes]);
    figure(page, "Bytes of text by the size of documents", &texts, Some(["as read", "kept"]))?;
    page.close();
    let languages: Vec<_> = report.languages.iter().map(|(name, own)| (name.as_str(), own.clone())).collect();
    table(page, "Languages", languages, None);
    let domains = report.domains_before.iter().map(|(name, before)| {
        let after = report.domains.get(name).cloned().unwrap_or_default();
        (name.as_str(), BeforeAfter { before: before.clone(), after })
    });
    table(page, "Domains", domains.collect(), None);
    let origins = &report.origins;
    let mut rows: Vec<_> =
        origins.listed.iter().map(|origin| (origin.name.as_str(), origin.documents.clone())).collect();
    let mut others = origins.others.clone();
    for (_, own) in rows.drain(rows.len().min(ORIGINS)..) {
        others =
            BeforeAfter { before: sum(&others.before, &own.before), after: sum(&others.after, &own.after) };
    }
    let others_name = format!("{} others", grouped(origins.number.saturating_sub(rows.len() as u64)));
    let others = Some((others_name.as_str(), others)).filter(|(_, own)| own.before.documents > 0);
    table(page, "Hosts and sources", rows, others);
    if origins.missing_at_most > 0 {
        let words = format!(
            "There are so many hosts and sources that one may have {} documents more than is said here.",
            grouped(origins.missing_at_most)
        );
        page.leaf("p class=\"soft\"", &words);
    }
    page.close();
    Ok(())
}

fn sum(a: &Tally, b: &Tally) -> Tally {
    Tally { documents: a.documents + b.documents, bytes: a.bytes + b.bytes }
}

/// Every class of sizes between the least and the greatest, by the least size in it.
fn classes<T>(sizes: &BTreeMap<u32, T>, numbers: impl Fn(&T) -> [u64; 2]) -> Vec<(String, [u64; 2])> {
    let (Some((&first, _)), Some((&last, _))) = (sizes.first_key_value(), sizes.last_key_value()) else {
        return Vec::new();
    };
    let least = |bits: u32| if bits == 0 { 0 } else { 1_u64 << (bits - 1).min(63) };
    (first..=last.min(64))
        .map(|bits| (bytes(least(bits)), sizes.get(&bits).map_or([0; 2], &numbers)))
        .collect()
}

/// A plot of bars with its title, and its numbers in a table below.
fn figure(
    page: &mut Page,
    title: &'static str,
    classes: &[(String, [u64; 2])],
    keys: Option<[&str; 2]>,
) -> Result<(), ReportError> {
    let Some(svg) = bars::draw(&Bars { title, classes })? else { return Ok(()) };
    page.open("figure").open("figcaption").leaf("b", title);
    if let Some([before, after]) = keys {
        page.open("div").leaf("span class=\"key faint\"", before).leaf("span class=\"key\"", after).close();
    }
    page.close().plot(&svg).open("details").leaf("summary", "Numbers").open("table");
    for (name, numbers) in classes {
        page.open("tr").leaf("td", &format!("from {name}"));
        for number in if keys.is_some() { &numbers[..] } else { &numbers[1..] } {
            page.leaf("td class=\"num\"", &grouped(*number));
        }
        page.close();
    }
    page.close().close().close();
    Ok(())
}

/// Numbers before and after by name, most documents first, and what is summed up below.
fn table<'a>(
    page: &mut Page,
    heading: &'static str,
    mut rows: Vec<(&'a str, BeforeAfter)>,
    others: Option<(&'a str, BeforeAfter)>,
) {
    if rows.is_empty() {
        return;
    }
    rows.sort_by_key(|(_, own)| std::cmp::Reverse(own.before.documents));
    rows.extend(others);
    let most = rows.iter().map(|(_, own)| own.before.documents).max().unwrap_or(0) as f64;
    page.leaf("h3", heading);
    key(page);
    page.open("div class=\"scroll\"")
        .open("table")
        .open("tr")
        .leaf("th", "")
        .leaf("th class=\"wide\"", "documents");
    page.leaf("th class=\"num\"", "as read").leaf("th class=\"num\"", "kept");
    page.leaf("th class=\"num minor\"", "text as read").leaf("th class=\"num\"", "text kept").close();
    for (name, BeforeAfter { before, after }) in &rows {
        page.open("tr").open("td").leaf("span class=\"name\"", name).close().open("td class=\"wide\"");
        page.bar("before", before.documents as f64 / most).bar("", after.documents as f64 / most).close();
        page.leaf("td class=\"num\"", &grouped(before.documents))
            .leaf("td class=\"num\"", &grouped(after.documents));
        page.leaf("td class=\"num minor\"", &bytes(before.bytes));
        page.leaf("td class=\"num\"", &bytes(after.bytes)).close();
    }
    page.close().close();
}

/// One kind of duplicates: how large clusters are, and the largest.
fn duplicates(
    page: &mut Page,
    reason: &str,
    found: &Duplicates,
    survivors: &BTreeMap<String, Fate>,
) -> Result<(), ReportError> {
    page.open("section").leaf("h2", &format!("Duplicates: {reason}"));
    let rows =
        [("clusters", grouped(found.clusters)), ("documents dropped for another", grouped(found.dropped))];
    facts(page, rows.into_iter());
    let sizes: Vec<_> = found.sizes.iter().map(|(&bits, &clusters)| (bits, clusters)).collect();
    let least = |bits: u32| count(1_u64 << (bits.max(1) - 1).min(63));
    let sizes: Vec<_> = sizes.into_iter().map(|(bits, clusters)| (least(bits), [0, clusters])).collect();
    page.open("div class=\"plots\"");
    figure(page, "Clusters by number of documents", &sizes, None)?;
    page.close();
    page.leaf("h3", "The largest clusters");
    for cluster in found.largest.iter().take(CLUSTERS) {
        let fate = survivors.get(&cluster.survivor);
        let url = fate.map_or("", |fate| fate.url.as_str());
        page.open("details open").open("summary").leaf("code", name(&cluster.survivor, url));
        page.text(&format!(" and {} like it", grouped(cluster.dropped))).close();
        page.leaf(
            "p class=\"soft\"",
            &format!("Of these the step kept {}{}", cluster.survivor, became(fate)),
        );
        page.leaf("p class=\"soft\"", "Dropped for it:").open("ul");
        for example in &cluster.examples {
            page.open("li").leaf("code", name(&example.id, &example.url)).close();
        }
        let more = cluster.dropped.saturating_sub(cluster.examples.len() as u64);
        if more > 0 {
            page.leaf("li", &format!("and {} more", grouped(more)));
        }
        page.close().close();
    }
    page.close();
    Ok(())
}

/// What became of a survivor, behind its name.
fn became(fate: Option<&Fate>) -> String {
    match fate.map(|fate| &fate.outcome) {
        Some(Outcome::Kept { places }) => {
            let files: Vec<_> = places.iter().map(|place| place.file.as_str()).collect();
            format!(", which is in {}.", files.join(", "))
        }
        Some(Outcome::Dropped { step, reason, .. }) => format!(", which {step} dropped later: {reason}."),
        None => ".".to_owned(),
    }
}

/// What documents were held against, and how much of that can be recognised.
fn evaluation_sets(page: &mut Page, sets: &[EvalSetTally]) {
    if sets.is_empty() {
        return;
    }
    page.open("section").leaf("h2", "Evaluation sets kept out");
    page.open("div class=\"scroll\"").open("table").open("tr").leaf("th", "set");
    page.leaf("th class=\"num\"", "examples").leaf("th class=\"num\"", "too short to be recognised").close();
    for set in sets {
        page.open("tr").leaf("td", &set.name).leaf("td class=\"num\"", &grouped(set.examples));
        page.leaf("td class=\"num\"", &grouped(set.too_short)).close();
    }
    page.close().close().close();
}

/// A draw of the mix: what was wanted and what came of it.
fn draw(page: &mut Page, name: &str, mix: &MixReport) {
    page.open("section").leaf("h2", &format!("Mix: {name}"));
    let rows = [
        ("text wanted", bytes(mix.target_bytes)),
        ("text written", bytes(mix.bytes)),
        ("documents written", grouped(mix.documents)),
    ];
    facts(page, rows.into_iter());
    page.open("p class=\"soft\"")
        .leaf("span class=\"key faint\"", "wanted")
        .leaf("span class=\"key\"", "written")
        .close();
    page.open("div class=\"scroll\"")
        .open("table")
        .open("tr")
        .leaf("th", "domain")
        .leaf("th class=\"wide\"", "share");
    for heading in ["wanted", "written", "epochs", "text there is", "text written"] {
        page.leaf("th class=\"num\"", heading);
    }
    page.close();
    for (domain, own) in &mix.domains {
        page.open("tr").leaf("td", domain).open("td class=\"wide\"");
        page.bar("before", own.target_share).bar("", own.share).close();
        page.leaf("td class=\"num\"", &percent(own.target_share))
            .leaf("td class=\"num\"", &percent(own.share));
        page.leaf("td class=\"num\"", &number(own.epochs, 2))
            .leaf("td class=\"num\"", &bytes(own.available_bytes));
        page.leaf("td class=\"num\"", &bytes(own.bytes)).close();
    }
    page.close().close();
    for topic in &mix.topics {
        let words = format!(
            "Topic {}: {} of the text there is, {} allowed, {} of its documents drawn from.",
            topic.tag,
            percent(topic.available_share),
            percent(topic.max_share),
            percent(topic.kept)
        );
        page.leaf("p class=\"soft\"", &words);
    }
    if !mix.short.is_empty() {
        page.leaf("h3", "Fell short").open("ul");
        for words in &mix.short {
            page.leaf("li", words);
        }
        page.close();
    }
    page.close();
}

/// What of the inputs is no document.
fn nothing_lost(page: &mut Page, report: &CurateReport) {
    if report.passed.is_empty() && report.broken.count == 0 {
        return;
    }
    page.open("section").leaf("h2", "What of the inputs is no document");
    if !report.passed.is_empty() {
        let most = report.passed.values().max().copied().unwrap_or(0) as f64;
        page.leaf("h3", "Records that are meant to be none").open("div class=\"scroll\"").open("table");
        let mut rows: Vec<_> = report.passed.iter().collect();
        rows.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (kind, count) in rows {
            page.open("tr")
                .leaf("td", kind)
                .open("td class=\"wide\"")
                .bar("base", *count as f64 / most)
                .close();
            page.leaf("td class=\"num\"", &grouped(*count)).close();
        }
        page.close().close();
    }
    if report.broken.count > 0 {
        page.leaf("h3", &format!("Parts that cannot be read: {}", grouped(report.broken.count))).open("ul");
        for example in &report.broken.examples {
            page.open("li").leaf("code", example).close();
        }
        let more = report.broken.count.saturating_sub(report.broken.examples.len() as u64);
        if more > 0 {
            page.leaf("li", &format!("and {} more, in {}", grouped(more), llamero_curate::BROKEN_FILE));
        }
        page.close();
    }
    page.close();
}
