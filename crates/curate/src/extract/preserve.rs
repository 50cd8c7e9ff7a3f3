//! What rules for prose would lose is made safe before they run: the white space of code, mathematics, and the alternative text
//! of images.
//!
//! White space of code becomes noncharacters of Unicode, which no page may contain, and comes back in [`restore`].

use trafilatura::dom::{Document, NodeId};

use super::mathematics;

const LINE: char = '\u{fdd0}';
const SPACE: char = '\u{fdd1}';
const TAB: char = '\u{fdd2}';

/// Containers in which pages show one formula in several ways.
const FORMULAS: &str = ".mwe-math-element, .katex, mjx-container, .MathJax, .MathJax_Display";

/// Formulas as pictures of text, beside a script or an element that says what they are.
const PREVIEWS: &str = ".MathJax_Preview, .katex-html, mjx-math";

/// Columns of line numbers beside code.
const LINE_NUMBERS: &str =
    "pre .line-numbers-rows, pre .lineno, pre .linenos, td.gutter, td.linenos, td.line-numbers";

/// Where images belong to the site rather than to the page's text.
const AROUND: [&str; 6] = ["a", "nav", "aside", "header", "footer", "button"];

/// Shortest alternative text that says something, in characters.
const MIN_ALT: usize = 3;

/// The page without the characters that stand for white space here.
pub(super) fn without_marks(html: &str) -> std::borrow::Cow<'_, str> {
    if html.contains([LINE, SPACE, TAB]) { html.replace([LINE, SPACE, TAB], "").into() } else { html.into() }
}

/// Makes code, formulas and alternative texts safe.
pub(super) fn preserve(page: &mut Document, alt_text: bool) {
    formulas(page);
    code(page);
    images(page, alt_text);
}

/// White space as it was in the page.
pub(super) fn restore(text: &str) -> String {
    let back = |c| match c {
        LINE => '\n',
        SPACE => ' ',
        TAB => '\t',
        other => other,
    };
    text.chars().map(back).collect()
}

/// Makes an element one of this name that holds only this text.
fn replace(page: &mut Document, element: NodeId, tag: &str, text: &str) {
    page.set_tag_name(element, tag);
    page.clear_attributes(element);
    for child in page.child_nodes(element) {
        page.remove(child, true);
    }
    page.set_text(element, text);
}

/// Formulas become their LaTeX, where the page has it, or else a line that says the same.
fn formulas(page: &mut Document) {
    for container in page.query_selector_all(page.root(), FORMULAS) {
        let math = page.get_elements_by_tag_name(container, "math").first().copied();
        if let Some(formula) = math.and_then(|math| mathematics::of_mathml(page, math)) {
            replace(page, container, "span", &formula);
        }
    }
    for math in page.get_elements_by_tag_name(page.root(), "math") {
        match mathematics::of_mathml(page, math) {
            Some(formula) => replace(page, math, "span", &formula),
            None => page.remove(math, true),
        }
    }
    for script in page.get_elements_by_tag_name(page.root(), "script") {
        let kind = page.get_attribute(script, "type").unwrap_or_default();
        if kind.starts_with("math/tex") {
            let formula = mathematics::delimited(&page.text_content(script), kind.contains("mode=display"));
            replace(page, script, "span", &formula);
        }
    }
    for preview in page.query_selector_all(page.root(), PREVIEWS) {
        page.remove(preview, true);
    }
}

/// Code keeps its lines and indentation.
fn code(page: &mut Document) {
    for numbers in page.query_selector_all(page.root(), LINE_NUMBERS) {
        page.remove(numbers, true);
    }
    for block in page.get_elements_by_tag_name(page.root(), "pre") {
        let mut text = String::new();
        lines(page, block, &mut text);
        let text = text.replace("\r\n", "\n");
        let text = text.trim_matches('\n').trim_end();
        let marked: String = text
            .split('\n')
            .map(|line| {
                let code = line.trim_start_matches([' ', '\t']);
                let indent = &line[..line.len() - code.len()];
                // A space alone stays one, so that words stay words for the rules.
                let inner = code.trim_end().replace("  ", &format!("{SPACE}{SPACE}"));
                format!("{}{inner}", indent.replace(' ', &SPACE.to_string())).replace('\t', &TAB.to_string())
            })
            .collect::<Vec<_>>()
            .join(&LINE.to_string());
        replace(page, block, "pre", &marked);
    }
}

/// The text of an element with its line breaks.
fn lines(page: &Document, element: NodeId, into: &mut String) {
    let mut open = vec![element];
    while let Some(node) = open.pop() {
        if page.tag_name(node) == "br" {
            into.push('\n');
        }
        if page.is_text(node) {
            into.push_str(&page.text_content(node));
        }
        open.extend(page.child_nodes(node).into_iter().rev());
    }
}

/// Images become their alternative text: formulas as such, others as sentences of their own.
fn images(page: &mut Document, alt_text: bool) {
    for image in page.get_elements_by_tag_name(page.root(), "img") {
        let alt = page.get_attribute(image, "alt").unwrap_or_default();
        let alt = alt.split_whitespace().collect::<Vec<_>>().join(" ");
        if mathematics::is_formula(&alt, &page.class_name(image)) {
            replace(page, image, "span", &mathematics::delimited(&alt, false));
        } else if alt_text && says_something(&alt) && !is_around(page, image) {
            // Figures are taken out by the rules, with all that is in them.
            let figure = ancestors(page, image).find(|&up| page.tag_name(up) == "figure");
            match figure {
                Some(figure) => replace(page, figure, "p", &alt),
                None => replace(page, image, "span", &format!(" {alt} ")),
            }
        }
    }
}

/// Whether it is words, not the name of a file or a placeholder.
fn says_something(alt: &str) -> bool {
    alt.chars().count() >= MIN_ALT && alt.contains(' ')
}

fn is_around(page: &Document, image: NodeId) -> bool {
    ancestors(page, image).any(|up| AROUND.contains(&page.tag_name(up)))
}

fn ancestors(page: &Document, node: NodeId) -> impl Iterator<Item = NodeId> {
    std::iter::successors(page.parent(node), |&up| page.parent(up))
}
