//! How deep a page is and how many attributes its elements have, found without building its tree: that takes a time that grows
//! with the square of both.

use std::collections::HashMap;

use crate::Dropped;

/// Elements without an end, and those whose end may be left out and is found by what follows: open ones say nothing of depth.
const UNCOUNTED: [&str; 41] = [
    "a", "area", "base", "body", "br", "button", "caption", "col", "colgroup", "dd", "dt", "embed", "form",
    "h1", "h2", "h3", "h4", "h5", "h6", "head", "hr", "html", "img", "input", "li", "link", "meta", "nobr",
    "option", "p", "param", "source", "tbody", "td", "tfoot", "th", "thead", "title", "tr", "track", "wbr",
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

/// The verdict on a page with more than `limit` elements within one another.
pub(super) fn too_deep(limit: usize) -> Dropped {
    Dropped::new("page_too_deep", format!("elements within one another, limit {limit}"))
}

/// Makes sure that nowhere more than `limit` elements that need an end are open at once, and that none has more than so many
/// attributes.
pub(super) fn check(html: &str, limit: usize, attributes: usize) -> Result<(), Dropped> {
    let mut open: HashMap<String, usize> = HashMap::new();
    // Pictures and formulas that are open.
    let (mut depth, mut rest, mut foreign) = (0, html, 0_usize);
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        if let Some(comment) = rest.strip_prefix("!--") {
            rest = behind_comment(comment);
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
        let behind = Tag::of(&tag[length..]);
        rest = &tag[length + behind.length..];
        if behind.attributes > attributes {
            let detail = format!("{} attributes of a `{name}`, limit {attributes}", behind.attributes);
            return Err(Dropped::new("page_too_many_attributes", detail));
        }
        if matches!(&*name, "svg" | "math") {
            foreign = if is_end { foreign.saturating_sub(1) } else { foreign + 1 };
        }
        if BREAKOUT.contains(&&*name) {
            foreign = 0;
        }
        if is_end {
            if let Some(count) = open.get_mut(&name).filter(|count| **count > 0) {
                *count -= 1;
                depth -= 1;
            }
            continue;
        }
        if RAW.contains(&&*name) && foreign == 0 {
            rest = behind_end(rest, &name);
            continue;
        }
        // `<path/>` is closed in pictures and formulas, `<div/>` is not.
        if UNCOUNTED.contains(&&*name) || foreign > 0 && behind.is_closed {
            continue;
        }
        *open.entry(name).or_default() += 1;
        depth += 1;
        if depth > limit {
            return Err(too_deep(limit));
        }
    }
    Ok(())
}

/// How many tags may begin elements, wherever they stand: no page has more elements.
pub(super) fn tags(html: &str) -> usize {
    html.as_bytes().windows(2).filter(|pair| pair[0] == b'<' && pair[1].is_ascii_alphabetic()).count()
}

/// What follows a comment of which `text` is what stands behind its `<!--`.
fn behind_comment(text: &str) -> &str {
    if let Some(rest) = text.strip_prefix('>').or_else(|| text.strip_prefix("->")) {
        return rest;
    }
    let (before, behind) = text.split_once("-->").unwrap_or((text, ""));
    // Looked for in front of the other alone: a page may have many comments, and none that ends like this.
    before.find("--!>").map_or(behind, |at| &text[at + 4..])
}

/// What follows the name in a tag.
struct Tag {
    /// Its bytes, the `>` included.
    length: usize,
    attributes: usize,
    /// It ends with `/>`.
    is_closed: bool,
}

impl Tag {
    fn of(text: &str) -> Tag {
        let bytes = text.as_bytes();
        let from = |at: usize, is_end: fn(u8) -> bool| {
            bytes[at..].iter().position(|&byte| is_end(byte)).map_or(bytes.len(), |found| at + found)
        };
        let (mut at, mut attributes) = (0, 0);
        loop {
            at = from(at, |byte| !byte.is_ascii_whitespace() && byte != b'/');
            match bytes.get(at) {
                None => return Tag { length: at, attributes, is_closed: false },
                Some(b'>') => {
                    let is_closed = bytes[..at].ends_with(b"/");
                    return Tag { length: at + 1, attributes, is_closed };
                }
                Some(_) => attributes += 1,
            }
            at = from(at + 1, |byte| byte.is_ascii_whitespace() || matches!(byte, b'/' | b'>' | b'='));
            let value = from(at, |byte| !byte.is_ascii_whitespace());
            if bytes.get(value) != Some(&b'=') {
                continue;
            }
            at = from(value + 1, |byte| !byte.is_ascii_whitespace());
            at = match bytes.get(at) {
                Some(b'"') => (from(at + 1, |byte| byte == b'"') + 1).min(bytes.len()),
                Some(b'\'') => (from(at + 1, |byte| byte == b'\'') + 1).min(bytes.len()),
                _ => from(at, |byte| byte.is_ascii_whitespace() || byte == b'>'),
            };
        }
    }
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
            ("<!--><div><div>", 2),
            ("<!---><div><div>", 2),
            ("<!----><div><div>", 2),
            ("<!-- a --!><div><div> -->", 2),
            ("<!-- a --><div> --!><div>", 2),
            ("<!-- <div>", 0),
            ("<svg><svg></svg><title><x><y></svg>", 3),
            ("<optgroup><optgroup><rt><rb>", 4),
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
            assert!(check(html, depth, 2).is_ok(), "{html}");
            assert!(depth == 0 || check(html, depth - 1, 2).is_err(), "{html}");
        }
    }

    #[test]
    fn many_comments_take_a_time_that_grows_with_them() {
        assert!(check(&"<!-- --> words".repeat(1_000_000), 1, 1).is_ok());
    }

    #[test]
    fn attributes_are_counted_tag_by_tag() {
        for (html, count) in [
            ("<a b c=d e='f > g' h=\"i j\">k l m n o</a p>", 4),
            ("<br/><img src=a/b alt = 'c' / >", 2),
            ("<a b", 1),
            ("<a b='c d e", 1),
            ("</a b c>", 2),
            ("<script>a<b c d e f g h</script><a>", 0),
            ("<!-- <a b c d> -->", 0),
            ("<a<b<c =d>", 1),
        ] {
            assert!(check(html, 9, count).is_ok(), "{html}");
            let reason = |dropped: Dropped| dropped.reason;
            assert!(
                count == 0
                    || check(html, 9, count - 1).map_err(reason) == Err("page_too_many_attributes".into()),
                "{html}"
            );
        }
    }
}
