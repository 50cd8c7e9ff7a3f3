//! One curve as SVG, in colours that the page's style sheet can change.

use std::fmt::Write as _;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::ReportError;
use super::format::tick;

/// Drawn at twice the size it is shown at, since the library rounds to whole units.
pub(super) const SIZE: (u32, u32) = (960, 540);
/// The library draws text at 1 / 1.24 of this.
pub(super) const FONT: u32 = 34;
/// A curve is drawn with at most this many points.
pub(super) const MAX_POINTS: usize = 1000;
/// From this many points on, a curve also gets a smoothed line.
const SMOOTH_FROM: usize = 100;
/// Values beyond this are treated as not finite: nothing that trains has them, and scales break on them.
const MAX_VALUE: f64 = 1e30;

pub(super) const AXIS: RGBColor = RGBColor(91, 101, 117);
pub(super) const GRID: RGBColor = RGBColor(223, 227, 234);
pub(super) const MAIN: RGBColor = RGBColor(42, 99, 201);
pub(super) const FAINT: RGBColor = RGBColor(180, 201, 240);
const SKIP: RGBColor = RGBColor(207, 59, 48);
const REFERENCES: [RGBColor; 3] = [RGBColor(31, 138, 91), RGBColor(179, 103, 11), RGBColor(130, 70, 181)];
/// Each colour and the style sheet's variable that stands for it.
const THEME: [(RGBColor, &str); 8] = [
    (AXIS, "soft"),
    (GRID, "rule"),
    (MAIN, "main"),
    (FAINT, "faint"),
    (SKIP, "skip"),
    (REFERENCES[0], "first"),
    (REFERENCES[1], "second"),
    (REFERENCES[2], "third"),
];

/// Style sheet rules that put the page's variables in place of the plots' colours, and dash reference lines.
pub(super) fn theme() -> String {
    let mut css = String::new();
    for (colour, name) in THEME {
        let hex = format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2);
        // Writing to a string cannot fail.
        let _ = writeln!(css, ".plot [stroke=\"{hex}\"] {{ stroke: var(--{name}); }}");
        let _ = writeln!(css, ".plot [fill=\"{hex}\"] {{ fill: var(--{name}); }}");
        if REFERENCES.contains(&colour) {
            let _ = writeln!(css, ".plot [stroke=\"{hex}\"] {{ stroke-dasharray: 14 9; }}");
        }
    }
    css
}

/// An SVG element made here, which a page may take as it is.
pub(super) struct Svg(String);

impl Svg {
    /// What the library has drawn at [`SIZE`]. Inside HTML the element needs no name space, and its size comes from the style
    /// sheet.
    pub(super) fn of(title: &'static str, drawn: &str) -> Svg {
        let (width, height) = SIZE;
        let head = format!(
            "<svg class=\"plot\" role=\"img\" aria-label=\"{title}\" viewBox=\"0 0 {width} {height}\">"
        );
        Svg(head + drawn.split_once('>').map_or("</svg>", |(_, body)| body))
    }

    /// The element.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A curve to draw.
pub(super) struct Plot<'a> {
    /// What it shows, for readers of the screen and for errors.
    pub(super) title: &'static str,
    /// Position and value of every point.
    pub(super) points: &'a [(f64, f64)],
    /// Values to draw as horizontal lines.
    pub(super) references: &'a [f64],
    /// Positions to mark at the top edge.
    pub(super) marks: &'a [f64],
    /// Whether single values scatter: a smoothed line is added, and outliers do not set the scale.
    pub(super) noisy: bool,
    /// Whether the scale starts at 0.
    pub(super) from_zero: bool,
}

/// What was drawn.
pub(super) struct Drawn {
    /// The plot.
    pub(super) svg: Svg,
    /// Whether it has a smoothed line beside the values.
    pub(super) smoothed: bool,
    /// Number of values above the top edge, drawn on it.
    pub(super) above: usize,
}

/// Draws a plot; nothing when no point of it is finite.
///
/// # Errors
/// [`ReportError::Plot`] when the library fails.
pub(super) fn draw(plot: &Plot<'_>) -> Result<Option<Drawn>, ReportError> {
    let usable = |v: f64| v.abs() <= MAX_VALUE;
    let points: Vec<(f64, f64)> =
        plot.points.iter().copied().filter(|&(x, y)| usable(x) && usable(y)).collect();
    let references: Vec<f64> = plot.references.iter().copied().filter(|&v| usable(v)).collect();
    if points.is_empty() {
        return Ok(None);
    }
    let frame = Frame::around(plot, &points, &references);
    let smoothed = plot.noisy && points.len() >= SMOOTH_FROM;
    let above = points.iter().filter(|p| p.1 > frame.y.1).count();
    let mut lines = vec![(thin(&points), if smoothed { FAINT } else { MAIN }, 3)];
    if smoothed {
        lines.push((thin(&smooth(&points)), MAIN, 4));
    }
    for (i, &value) in references.iter().enumerate() {
        let line = vec![(frame.x.0, value), (frame.x.1, value)];
        lines.push((line, REFERENCES[i % REFERENCES.len()], 3));
    }
    let mut svg = String::new();
    paint(&mut svg, &frame, &lines, plot.marks)
        .map_err(|source| ReportError::Plot { plot: plot.title, message: source.to_string() })?;
    Ok(Some(Drawn { svg: Svg::of(plot.title, &svg), smoothed, above }))
}

/// The ranges of both axes.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
    /// Power of ten that values are divided by before the library sees them, which cannot cope with tiny ones.
    unit: f64,
}

impl Frame {
    /// The frame of finite `points`, of which there is at least one.
    fn around(plot: &Plot<'_>, points: &[(f64, f64)], references: &[f64]) -> Self {
        let mut values: Vec<f64> = points.iter().map(|p| p.1).collect();
        values.sort_by(f64::total_cmp);
        let mut top = values[values.len() - 1];
        // The value that one in fifty is above: when the highest is far from it, it is an outlier.
        let usual = values[values.len() * 49 / 50];
        if plot.noisy && usual > 0.0 && top > 2.0 * usual && values.len() >= 20 {
            top = 1.25 * usual;
        }
        let mut bottom = if plot.from_zero { values[0].min(0.0) } else { values[0] };
        for &value in references {
            top = top.max(value);
            bottom = bottom.min(value);
        }
        let room = ((top - bottom) * 0.05).max(top.abs() * 1e-3);
        let room = if room > 0.0 { room } else { 1.0 };
        let y = (if plot.from_zero && bottom == 0.0 { 0.0 } else { bottom - room }, top + room);
        let largest = y.0.abs().max(y.1.abs());
        let unit = 10f64.powi((largest.log10().floor() as i32).clamp(-300, 300));
        let first = points.iter().map(|p| p.0).fold(f64::INFINITY, f64::min);
        let last = points.iter().map(|p| p.0).fold(f64::NEG_INFINITY, f64::max);
        Self { x: (first, last.max(first + 1.0).max(first + first.abs() * 1e-6)), y, unit }
    }

    /// A point on the library's scale, inside the frame.
    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (x.clamp(self.x.0, self.x.1), y.clamp(self.y.0, self.y.1) / self.unit)
    }
}

/// Points, colour and width.
type Line = (Vec<(f64, f64)>, RGBColor, u32);

fn paint(
    svg: &mut String,
    frame: &Frame,
    lines: &[Line],
    marks: &[f64],
) -> Result<(), Box<dyn std::error::Error>> {
    let area: DrawingArea<SVGBackend<'_>, Shift> = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let (bottom, top) = (frame.y.0 / frame.unit, frame.y.1 / frame.unit);
    let mut chart = ChartBuilder::on(&area)
        .margin_top(14)
        .margin_right(34)
        .x_label_area_size(50)
        .y_label_area_size(104)
        .build_cartesian_2d(frame.x.0..frame.x.1, bottom..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID.stroke_width(2))
        .axis_style(AXIS.stroke_width(2))
        .label_style(("sans-serif", FONT).into_font().color(&AXIS))
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&|x| tick(*x))
        .y_label_formatter(&|y| tick(*y * frame.unit))
        .draw()?;
    for (points, colour, width) in lines {
        let points = points.iter().map(|&p| frame.place(p));
        chart.draw_series(LineSeries::new(points, colour.stroke_width(*width)))?;
    }
    let height = (top - bottom) * 0.06;
    let marks = marks.iter().filter(|m| m.is_finite()).map(|&m| m.clamp(frame.x.0, frame.x.1));
    chart.draw_series(
        marks.map(|x| PathElement::new(vec![(x, top), (x, top - height)], SKIP.stroke_width(4))),
    )?;
    // A curve of one point has no line.
    if let Some(([point], colour)) = lines.first().map(|l| (l.0.as_slice(), l.1)) {
        chart.draw_series([Circle::new(frame.place(*point), 6, colour.filled())])?;
    }
    area.present()?;
    Ok(())
}

/// At most [`MAX_POINTS`] of the points: both ends, and the lowest and highest of each of equal stretches between,
/// so that no spike is lost.
pub(super) fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let inner = &points[1..points.len() - 1];
    let stretches = (MAX_POINTS - 2) / 2;
    let mut kept = vec![points[0]];
    for i in 0..stretches {
        let (start, end) = (i * inner.len() / stretches, (i + 1) * inner.len() / stretches);
        let lowest = (start..end).min_by(|&a, &b| inner[a].1.total_cmp(&inner[b].1));
        let highest = (start..end).max_by(|&a, &b| inner[a].1.total_cmp(&inner[b].1));
        if let (Some(a), Some(b)) = (lowest, highest) {
            kept.push(inner[a.min(b)]);
            if a != b {
                kept.push(inner[a.max(b)]);
            }
        }
    }
    kept.push(points[points.len() - 1]);
    kept
}

/// The median of each point's neighbourhood, which a single spike does not move.
///
/// The neighbourhood is a twentieth of the curve, and shrinks towards the ends so that it stays centred there, but
/// never to so few points that the line would scatter like the values.
pub(super) fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = (points.len() / 40).clamp(1, 200);
    let mut window = Vec::with_capacity(2 * reach + 1);
    (0..points.len())
        .map(|i| {
            let last = points.len() - 1;
            let reach = reach.min(i.min(last - i).max(8));
            window.clear();
            window.extend(points[i.saturating_sub(reach)..=last.min(i + reach)].iter().map(|p| p.1));
            let middle = (window.len() - 1) / 2;
            let (_, middle, _) = window.select_nth_unstable_by(middle, f64::total_cmp);
            (points[i].0, *middle)
        })
        .collect()
}
