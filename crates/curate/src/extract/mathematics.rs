//! Formulas of web pages as LaTeX between dollar signs, as papers and forums write them.

use trafilatura::dom::{Document, NodeId};

/// Elements of a formula within one another.
const MAX_DEPTH: usize = 64;

/// Commands without which an alternative text with a backslash is taken for a path rather than a formula.
const COMMANDS: [&str; 12] = [
    "\\frac",
    "\\sum",
    "\\int",
    "\\sqrt",
    "\\displaystyle",
    "\\mathbf",
    "\\mathrm",
    "\\left",
    "\\alpha",
    "\\beta",
    "\\cdot",
    "\\in",
];

/// LaTeX between dollar signs: one for a formula inside a line, two for one of its own.
pub(super) fn delimited(latex: &str, display: bool) -> String {
    let latex = latex.trim().trim_matches('$').trim();
    // Wikipedia writes {\displaystyle …} around every formula.
    let inner = latex.strip_prefix("{\\displaystyle").and_then(|latex| latex.strip_suffix('}'));
    let latex = inner.unwrap_or(latex).split_whitespace().collect::<Vec<_>>().join(" ");
    if display { format!("$${latex}$$") } else { format!("${latex}$") }
}

/// Whether the alternative text of an image with these classes is a formula.
pub(super) fn is_formula(alt: &str, classes: &str) -> bool {
    let classed = classes.split_whitespace().any(|class| {
        matches!(class, "tex" | "latex" | "math")
            || class.starts_with("mwe-math")
            || class.starts_with("ee_img")
    });
    let delimited = alt.len() > 2 && alt.starts_with('$') && alt.ends_with('$');
    !alt.is_empty() && (classed || delimited || COMMANDS.iter().any(|command| alt.contains(command)))
}

/// A `math` element: the LaTeX it was made from, where it has that, or else its content on one line. None where it is empty.
pub(super) fn of_mathml(page: &Document, math: NodeId) -> Option<String> {
    let display = page.get_attribute(math, "display").is_some_and(|value| value == "block");
    let annotations = page.get_elements_by_tag_name(math, "annotation").into_iter();
    let is_tex =
        |&note: &NodeId| page.get_attribute(note, "encoding").is_some_and(|kind| kind.contains("tex"));
    let latex = annotations.filter(is_tex).map(|note| page.text_content(note)).next();
    let latex = latex.or_else(|| page.get_attribute(math, "alttext")).unwrap_or_else(|| {
        let mut line = String::new();
        children(page, math, &mut line, 0);
        line
    });
    (!latex.trim().is_empty()).then(|| delimited(&latex, display))
}

fn children(page: &Document, element: NodeId, line: &mut String, depth: usize) {
    for child in page.child_nodes(element) {
        write(page, child, line, depth + 1);
    }
}

/// Writes an element and what is in it as LaTeX.
fn write(page: &Document, element: NodeId, line: &mut String, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    let parts = page.children(element);
    let group = |at: usize, line: &mut String| {
        let mut part = String::new();
        if let Some(&part_at) = parts.get(at) {
            write(page, part_at, &mut part, depth + 1);
        }
        // One character needs no braces.
        let braces = part.chars().count() != 1;
        line.extend(braces.then_some('{'));
        line.push_str(part.trim());
        line.extend(braces.then_some('}'));
    };
    match page.tag_name(element) {
        "annotation" | "annotation-xml" => {}
        "mfrac" => {
            line.push_str("\\frac{");
            for (at, end) in ["}{", "}"].into_iter().enumerate() {
                parts.get(at).iter().for_each(|&&part| write(page, part, line, depth + 1));
                line.push_str(end);
            }
        }
        "msqrt" => {
            line.push_str("\\sqrt{");
            children(page, element, line, depth);
            line.push('}');
        }
        "mroot" => {
            let mut degree = String::new();
            parts.get(1).iter().for_each(|&&part| write(page, part, &mut degree, depth + 1));
            line.push_str(&format!("\\sqrt[{degree}]"));
            group(0, line);
        }
        name @ ("msup" | "mover" | "msub" | "munder" | "msubsup" | "munderover") => {
            parts.first().iter().for_each(|&&base| write(page, base, line, depth + 1));
            let marks: &[char] = match name {
                "msup" | "mover" => &['^'],
                "msub" | "munder" => &['_'],
                _ => &['_', '^'],
            };
            for (at, &mark) in marks.iter().enumerate() {
                line.push(mark);
                group(at + 1, line);
            }
        }
        "mtr" => {
            children(page, element, line, depth);
            line.push_str(" \\\\ ");
        }
        "mtd" => {
            children(page, element, line, depth);
            line.push_str(" & ");
        }
        "mtext" => line.push_str(&format!("\\text{{{}}}", page.text_content(element).trim())),
        "mspace" => line.push(' '),
        "mo" => {
            let sign = page.text_content(element);
            let sign = sign.trim();
            let apart = matches!(sign, "=" | "+" | "<" | ">" | "≤" | "≥" | "≠" | "→" | "∈" | "≈" | "−" | "×");
            line.push_str(&if apart { format!(" {sign} ") } else { sign.to_owned() });
        }
        "" if page.is_text(element) => line.push_str(page.text_content(element).trim()),
        _ => children(page, element, line, depth),
    }
}
