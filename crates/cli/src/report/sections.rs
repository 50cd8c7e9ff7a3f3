//! The sections of a run's page other than curation and the training curves.

use super::format::{duration, grouped, number, percent};
use super::page::Page;
use super::{BpbRow, ChoiceRow, ReportData, Sample, StageRow, TimeRow, Tokenizer};

/// Characters of an artifact id that are shown.
const ID_CHARACTERS: usize = 12;

/// Title, folder and date.
pub(super) fn header(page: &mut Page, data: &ReportData) {
    title(page, &data.title, &data.run_dir, &data.created);
}

/// The same of any page.
pub(super) fn title(page: &mut Page, title: &str, folder: &str, created: &str) {
    page.open("header").leaf("h1", title).open("p class=\"soft\"");
    if !folder.is_empty() {
        page.leaf("code", folder);
    }
    if !created.is_empty() {
        page.text(if folder.is_empty() { "" } else { " · " }).text(created);
    }
    page.close().close();
}

/// The summary's names and values, then what did not go as planned.
pub(super) fn summary(page: &mut Page, data: &ReportData) {
    if !data.summary.is_empty() {
        page.open("section").leaf("h2", "Summary");
        facts(page, data.summary.iter().map(|(key, value)| (key.as_str(), value.clone())));
        page.close();
    }
    if !data.remarks.is_empty() {
        page.open("section class=\"remarks\"").leaf("h2", "Remarks").open("ul");
        for remark in &data.remarks {
            page.leaf("li", remark);
        }
        page.close().close();
    }
}

/// Stages and the time each took.
pub(super) fn stages(page: &mut Page, stages: &[StageRow]) {
    if stages.is_empty() {
        return;
    }
    let longest = stages.iter().map(|s| s.seconds).fold(0.0, f64::max);
    page.open("section").leaf("h2", "Stages").open("div class=\"scroll\"").open("table").open("tr");
    page.leaf("th", "stage").leaf("th class=\"minor\"", "artifact");
    page.leaf("th class=\"wide\"", "wall time").leaf("th class=\"num\"", "").close();
    for stage in stages {
        page.open("tr").open("td").text(&stage.name);
        if stage.reused {
            page.leaf("span class=\"badge\"", "reused");
        }
        let id: String = stage.id.chars().take(ID_CHARACTERS).collect();
        page.close().open("td class=\"minor\"").leaf("code", &id).close();
        let class = if stage.reused { "base" } else { "" };
        page.open("td class=\"wide\"").bar(class, stage.seconds / longest).close();
        page.leaf("td class=\"num\"", &duration(stage.seconds)).close();
    }
    page.close().close().close();
}

/// Facts about the tokenizer.
pub(super) fn tokenizer(page: &mut Page, tokenizer: &Tokenizer) {
    page.open("section").leaf("h2", "Tokenizer");
    facts(
        page,
        [("tokens", grouped(tokenizer.vocab)), ("bytes per token", number(tokenizer.bytes_per_token, 2))]
            .into_iter(),
    );
    page.close();
}

/// Effective training time, and what the rest went to.
pub(super) fn time(page: &mut Page, rows: &[TimeRow]) {
    if rows.is_empty() {
        return;
    }
    page.open("section").leaf("h2", "Time of training");
    for row in rows {
        page.leaf("h3", &format!("{} ({})", row.stage, duration(row.seconds))).open("table");
        for (i, (name, share)) in row.shares.iter().enumerate() {
            page.open("tr").leaf("td", name);
            page.open("td class=\"wide\"").bar(if i == 0 { "" } else { "base" }, *share).close();
            page.leaf("td class=\"num\"", &percent(*share)).close();
        }
        page.close();
        let counts = [(row.failures, "failed jobs"), (row.rollbacks, "rollbacks from silent corruption")];
        for (number, what) in counts.into_iter().filter(|(number, _)| *number > 0) {
            page.leaf("p class=\"soft\"", &format!("{number} {what}"));
        }
    }
    page.close();
}

/// Bits per byte of the models beside those of the baselines.
pub(super) fn bits_per_byte(page: &mut Page, rows: &[BpbRow]) {
    if rows.is_empty() {
        return;
    }
    let columns = |row: &BpbRow| {
        [
            ("unigram", "base", Some(row.unigram)),
            ("bigram", "base", Some(row.bigram)),
            ("pre-trained", "", row.pretrained),
            ("fine-tuned", "tuned", row.fine_tuned),
        ]
    };
    let values = rows.iter().flat_map(columns).filter_map(|(_, _, value)| value);
    let most = values.filter(|v| v.is_finite()).fold(0.0, f64::max);
    page.open("section").leaf("h2", "Held-out bits per byte");
    page.leaf(
        "p class=\"soft\"",
        "On text that training did not see; lower is better. Unigram and bigram are baselines.",
    );
    for row in rows {
        page.leaf("h3", &row.domain).open("table");
        for (name, class, value) in columns(row) {
            let Some(value) = value else { continue };
            page.open("tr").leaf("td", name);
            page.open("td class=\"wide\"").bar(class, value / most).close();
            page.leaf("td class=\"num\"", &number(value, 3)).close();
        }
        page.close();
    }
    page.close();
}

/// Accuracy of each model with its interval and the chance level.
pub(super) fn multiple_choice(page: &mut Page, rows: &[ChoiceRow]) {
    if rows.is_empty() {
        return;
    }
    page.open("section").leaf("h2", "Multiple choice");
    let scale = "Questions about what fine-tuning taught, in words that it did not use, from 0 to 100 %: accuracy, its 95 % interval, and chance (dashed).";
    page.leaf("p class=\"soft\"", scale).open("div class=\"scroll\"").open("table").open("tr");
    page.leaf("th", "model").leaf("th class=\"wide\"", "").leaf("th class=\"num\"", "accuracy");
    page.leaf("th class=\"num\"", "chance").close();
    for row in rows {
        let correct = format!("{} of {}", grouped(row.correct), grouped(row.questions));
        let interval = format!("{}–{}", number(row.low95 * 100.0, 1), number(row.high95 * 100.0, 1));
        page.open("tr").open("td").text(&row.model).leaf("div class=\"soft\"", &correct).close();
        page.open("td class=\"wide\"").whisker(row.low95, row.accuracy, row.high95, row.chance).close();
        page.open("td class=\"num\"").text(&percent(row.accuracy));
        page.leaf("div class=\"soft\"", &interval).close();
        page.leaf("td class=\"num\"", &percent(row.chance)).close();
    }
    page.close().close().close();
}

/// What the models wrote, by prompt in the order of its first sample.
pub(super) fn samples(page: &mut Page, samples: &[Sample]) {
    if samples.is_empty() {
        return;
    }
    page.open("section").leaf("h2", "Samples");
    for (i, first) in samples.iter().enumerate() {
        if samples[..i].iter().any(|s| s.prompt == first.prompt) {
            continue;
        }
        page.open("div class=\"sample\"").verbatim("pre class=\"prompt\" dir=\"auto\"", &first.prompt);
        for sample in samples[i..].iter().filter(|s| s.prompt == first.prompt) {
            page.leaf("p class=\"soft\"", &sample.model);
            if sample.output.is_empty() {
                page.leaf("p class=\"soft\"", "(nothing)");
            } else {
                page.verbatim("pre dir=\"auto\"", &sample.output);
            }
        }
        page.close();
    }
    page.close();
}

/// Names and their values.
pub(super) fn facts<'a>(page: &mut Page, rows: impl Iterator<Item = (&'a str, String)>) {
    page.open("dl");
    for (key, value) in rows {
        page.open("div").leaf("dt", key).leaf("dd", &value).close();
    }
    page.close();
}
