//! The date that a page states.
//!
//! The library guesses one where it finds none, from the year of a copyright line and any other number like a date. A date that is
//! not that of the page is worse than none, so it is shown nothing but what is meant to say a date to programs.

use trafilatura::dom::Document;
use trafilatura::metadata::extract_metadata;
use trafilatura::{HtmlDateMode, Options};

/// The day of a page by its URL, its `meta` elements, its JSON-LD or its `time` elements with a `datetime`; empty where they say none.
pub(super) fn date(page: &Document, options: &Options) -> String {
    let mut options = options.clone();
    options.html_date_mode = HtmlDateMode::Fast;
    let found = extract_metadata(&Document::parse(&statements(page)), &options);
    found.date.map(|date| date.to_string()).unwrap_or_default()
}

/// A page of nothing but the elements that can state a date.
fn statements(page: &Document) -> String {
    let (mut head, mut body) = (String::new(), String::new());
    for element in page.query_selector_all(page.root(), "meta, link, script, time") {
        let attribute = |name| page.get_attribute(element, name).unwrap_or_default();
        match page.tag_name(element) {
            // The address of an image may be dated, and a copyright lasts.
            "meta" => {
                let key = ["name", "property", "itemprop"].map(attribute).concat().to_lowercase();
                if !key.contains("image") && !key.contains("copyright") {
                    head.push_str(&page.outer_html(element));
                }
            }
            "link" if attribute("rel") == "canonical" => head.push_str(&page.outer_html(element)),
            "script" if attribute("type") == "application/ld+json" => {
                head.push_str(&page.outer_html(element));
            }
            "time" => {
                let datetime = attribute("datetime");
                let is_plain = |c: char| c.is_ascii_alphanumeric() || ":+-. ".contains(c);
                if !datetime.is_empty() && datetime.chars().all(is_plain) {
                    body.push_str(&format!("<time datetime=\"{datetime}\"></time>"));
                }
            }
            _ => {}
        }
    }
    format!("<html><head>{head}</head><body>{body}</body></html>")
}
