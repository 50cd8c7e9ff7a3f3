//! The section of a training stage.

use super::format::{count, number};
use super::page::Page;
use super::plot::{Plot, draw};
use super::{CurvePoint, Reference, ReportError};

/// Keys of reference lines, in the order of the plot's colours.
const REFERENCE_KEYS: [&str; 3] =
    ["span class=\"key first\"", "span class=\"key second\"", "span class=\"key third\""];

/// Reads one number of a step.
type Field = fn(&CurvePoint) -> f64;

/// Loss over tokens, and learning rate, gradient norm and throughput over steps.
///
/// # Errors
/// [`ReportError::Plot`] when a plot cannot be drawn.
pub(super) fn section(
    page: &mut Page,
    heading: &'static str,
    curve: &[CurvePoint],
    references: &[Reference],
) -> Result<(), ReportError> {
    let Some(last) = curve.last() else { return Ok(()) };
    let skipped = curve.iter().filter(|p| p.skipped).count() as u64;
    page.open("section").leaf("h2", heading);
    let mut line = format!("{} steps, {} tokens", count(curve.len() as u64), count(last.tokens));
    if let Some(loss) = curve.iter().rev().map(|p| p.loss).find(|l| l.is_finite()) {
        line += &format!(", last loss {} nats per token", number(loss, 3));
    }
    if skipped > 0 {
        line += &format!(", {} without an update", count(skipped));
    }
    page.leaf("p class=\"soft\"", &line).open("div class=\"plots\"");
    // Those that cannot be drawn have no key either.
    let references: Vec<&Reference> = references.iter().filter(|r| r.loss.is_finite()).collect();
    let levels: Vec<f64> = references.iter().map(|r| r.loss).collect();
    let (tokens, step): (Field, Field) = (|p| p.tokens as f64, |p| p.step as f64);
    let marks = |x: Field| -> Vec<f64> { curve.iter().filter(|p| p.skipped).map(x).collect() };
    let points = |x: Field, y: Field| -> Vec<(f64, f64)> { curve.iter().map(|p| (x(p), y(p))).collect() };
    let plot = Plot {
        title: "Loss over tokens",
        points: &points(tokens, |p| p.loss),
        references: &levels,
        marks: &marks(tokens),
        noisy: true,
        from_zero: false,
    };
    figure(page, &plot, &references)?;
    let plot = Plot {
        title: "Learning rate over steps",
        points: &points(step, |p| p.lr),
        references: &[],
        marks: &[],
        noisy: false,
        from_zero: true,
    };
    figure(page, &plot, &[])?;
    let marks = marks(step);
    let norm = points(step, |p| p.grad_norm);
    figure(
        page,
        &Plot { title: "Gradient norm over steps", points: &norm, marks: &marks, noisy: true, ..plot },
        &[],
    )?;
    let speed = points(step, |p| p.tokens_per_second);
    figure(page, &Plot { title: "Tokens per second over steps", points: &speed, noisy: true, ..plot }, &[])?;
    page.close().close();
    Ok(())
}

/// A plot under its title and key; nothing when there is nothing to draw.
fn figure(page: &mut Page, plot: &Plot<'_>, references: &[&Reference]) -> Result<(), ReportError> {
    let Some(drawn) = draw(plot)? else { return Ok(()) };
    page.open("figure").open("figcaption").leaf("b", plot.title).open("div");
    if drawn.smoothed {
        page.leaf("span class=\"key faint\"", "each step").leaf("span class=\"key\"", "running median");
    }
    for (i, reference) in references.iter().enumerate() {
        let label = format!("{} {}", reference.label, number(reference.loss, 3));
        page.leaf(REFERENCE_KEYS[i % REFERENCE_KEYS.len()], &label);
    }
    if !plot.marks.is_empty() {
        page.leaf("span class=\"key skip\"", "skipped step");
    }
    if drawn.above > 0 {
        page.leaf("span class=\"key note\"", &format!("{} above the scale", count(drawn.above as u64)));
    }
    page.close().close().plot(&drawn.svg).close();
    Ok(())
}
