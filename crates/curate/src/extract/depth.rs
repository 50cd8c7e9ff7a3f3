//! How deep a page is, found without building its tree: that takes a time that grows with the square of its depth.

use std::collections::HashMap;

/// Elements without an end, and those whose end may be left out and is found by what follows: open ones say nothing of depth.
const UNCOUNTED: [&str; 46] = [
    "a", "area", "base", "body", "br", "button", "caption", "col", "colgroup", "dd", "dt", "embed", "form",
    "h1", "h2", "h3", "h4", "h5", "h6", "head", "hr", "html", "img", "input", "li", "link", "meta", "nobr",
    "optgroup", "option", "p", "param", "rb", "rp", "rt", "rtc", "source", "tbody", "td", "tfoot", "th",
    "thead", "title", "tr", "track", "wbr",
];

/// Elements whose content is text up to their own end.
const RAW: [&str; 8] = ["script", "style", "textarea", "title", "iframe", "noframes", "xmp", "plaintext"];

/// Elements that end a picture or a formula around them.
const BREAKOUT: [&str; 18] = [
    "b",
    "blockquote",
    "center",
    "code",
    "div",
    "dl",
    "em",
    "i",
    "menu",
    "ol",
    "pre",
    "s",
    "small",
    "span",
    "strong",
    "table",
    "u",
    "ul",
];

/// Longest tag in a picture whose end is looked for, in bytes.
const MAX_TAG: usize = 4096;

/// Whether more than `limit` elements that need an end are open at once somewhere.
pub(super) fn is_deeper(html: &str, limit: usize) -> bool {
    let mut open: HashMap<String, usize> = HashMap::new();
    let (mut depth, mut rest, mut foreign) = (0, html, false);
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        if let Some(comment) = rest.strip_prefix("!--") {
            rest = comment.split_once("-->").map_or("", |(_, after)| after);
            continue;
        }
        let is_end = rest.starts_with('/');
        let tag = &rest[usize::from(is_end)..];
        if !tag.starts_with(|c: char| c.is_ascii_alphabetic()) {
            continue;
        }
        let length =
            tag.find(|c: char| c.is_ascii_whitespace() || matches!(c, '/' | '>')).unwrap_or(tag.len());
        let name = tag[..length].to_ascii_lowercase();
        rest = &tag[length..];
        if matches!(&*name, "svg" | "math") {
            foreign = !is_end;
        }
        foreign &= !BREAKOUT.contains(&&*name);
        if is_end {
            if let Some(count) = open.get_mut(&name).filter(|count| **count > 0) {
                *count -= 1;
                depth -= 1;
            }
            continue;
        }
        if RAW.contains(&&*name) && !foreign {
            rest = behind_end(rest, &name);
            continue;
        }
        // `<path/>` is closed in pictures and formulas, `<div/>` is not.
        let is_closed = || {
            let start = &rest.as_bytes()[..rest.len().min(MAX_TAG)];
            start.iter().position(|&byte| byte == b'>').is_some_and(|at| start[..at].ends_with(b"/"))
        };
        if UNCOUNTED.contains(&&*name) || foreign && is_closed() {
            continue;
        }
        *open.entry(name).or_default() += 1;
        depth += 1;
        if depth > limit {
            return true;
        }
    }
    false
}

/// What follows the end tag of an element that holds text.
fn behind_end<'a>(text: &'a str, name: &str) -> &'a str {
    let mut rest = text;
    while let Some(at) = rest.find("</") {
        rest = &rest[at + 2..];
        if rest.get(..name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name)) {
            return &rest[name.len()..];
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_counted() {
        for (html, depth) in [
            ("<div><div></div><span>x</span></div>", 2),
            ("<DIV><div class='a'><b>", 3),
            // Ends that may be left out, and elements that have none.
            ("<ul><li>a<p>b<br><img src=x>", 1),
            ("<p>a<p>b<p>c<tr><td><td>", 0),
            ("<!-- <div><div> --><div>", 1),
            ("<script>'<div><div>'</script ><div>", 1),
            ("<script><div>", 0),
            ("<svg><path d=''/><path/><g/></svg><i></i>", 1),
            ("<div/><div/>", 2),
            ("<svg><div/><div/><x/>", 4),
            // An end without a beginning closes nothing.
            ("<div></x><div></y></div>", 2),
            ("a < b <> </> <1> <div", 1),
            ("", 0),
        ] {
            assert!(!is_deeper(html, depth), "{html}");
            assert!(depth == 0 || is_deeper(html, depth - 1), "{html}");
        }
    }
}
