//! Two numbers side by side for each of several classes, as SVG.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::ReportError;
use super::format::count;
use super::plot::{AXIS, FAINT, FONT, GRID, MAIN, SIZE, Svg};

/// Labels that fit side by side.
const MAX_LABELS: usize = 8;

/// Bars to draw.
pub(super) struct Bars<'a> {
    /// What they show, for readers of the screen and for errors.
    pub(super) title: &'static str,
    /// Name of each class and its numbers, of which the second is the stronger colour.
    pub(super) classes: &'a [(String, [u64; 2])],
}

/// Draws bars; nothing when all of them are 0.
///
/// # Errors
/// [`ReportError::Plot`] when the library fails.
pub(super) fn draw(bars: &Bars<'_>) -> Result<Option<Svg>, ReportError> {
    let top = bars.classes.iter().flat_map(|(_, numbers)| numbers).copied().max().unwrap_or(0);
    if top == 0 {
        return Ok(None);
    }
    let mut svg = String::new();
    paint(&mut svg, bars.classes, top as f64 * 1.05)
        .map_err(|source| ReportError::Plot { plot: bars.title, message: source.to_string() })?;
    Ok(Some(Svg::of(bars.title, &svg)))
}

fn paint(
    svg: &mut String,
    classes: &[(String, [u64; 2])],
    top: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin_top(14)
        .margin_right(34)
        .x_label_area_size(50)
        .y_label_area_size(104)
        .build_cartesian_2d(0.0..classes.len() as f64, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID.stroke_width(2))
        .axis_style(AXIS.stroke_width(2))
        .label_style(("sans-serif", FONT).into_font().color(&AXIS))
        .x_labels(0)
        .y_labels(6)
        .y_label_formatter(&|y| count(*y as u64))
        .draw()?;
    for (side, colour) in [FAINT, MAIN].into_iter().enumerate() {
        let bar = |(at, (_, numbers)): (usize, &(String, [u64; 2]))| {
            let left = at as f64 + 0.1 + 0.4 * side as f64;
            Rectangle::new([(left, 0.0), (left + 0.38, numbers[side] as f64)], colour.filled())
        };
        let drawn = classes.iter().enumerate().filter(|(_, (_, numbers))| numbers[side] > 0);
        chart.draw_series(drawn.map(bar))?;
    }
    let style = ("sans-serif", FONT).into_font().color(&AXIS).pos(Pos::new(HPos::Center, VPos::Top));
    for (at, (name, _)) in classes.iter().enumerate().step_by(classes.len().div_ceil(MAX_LABELS)) {
        let (x, y) = chart.backend_coord(&(at as f64 + 0.5, 0.0));
        area.draw_text(name, &style, (x, y + 10))?;
    }
    area.present()?;
    Ok(())
}
