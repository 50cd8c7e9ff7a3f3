//! The main text of a page, by the rules of trafilatura.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::{Deserialize, Serialize};
use trafilatura::dom::{Document, NodeId};
use trafilatura::{Options, extract_document};

use super::{Extract, Extracted, depth, preserve, render};

/// Elements within one another; browsers allow no more.
const MAX_DEPTH: usize = 512;

/// Open elements at which a page is not even parsed. The count is rough, so it leaves room above [`MAX_DEPTH`].
const MAX_OPEN: usize = 4 * MAX_DEPTH;

/// Elements of a page. Some rules compare many of them, and no page for people has so many.
const MAX_ELEMENTS: usize = 100_000;

/// Finds the article of a page: what it is about, without navigation, comments and notices around it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Article {
    /// Keep the alternative text of images inside the article.
    pub alt_text: bool,
}

impl Default for Article {
    fn default() -> Self {
        Self { alt_text: true }
    }
}

impl Extract for Article {
    fn extract(&self, html: &str, url: Option<&str>) -> Option<Extracted> {
        // A page must not be able to end a run by meeting a fault of the library.
        catch_unwind(AssertUnwindSafe(|| self.article(html, url))).ok().flatten()
    }
}

impl Article {
    fn article(&self, html: &str, url: Option<&str>) -> Option<Extracted> {
        if depth::is_deeper(html, MAX_OPEN) {
            return None;
        }
        let mut page = Document::parse(&preserve::without_marks(html));
        if !is_bounded(&page) {
            return None;
        }
        preserve::preserve(&mut page, self.alt_text);
        let mut options = Options::default().with_fallback(true).with_exclude_comments(true);
        if let Some(url) = url.and_then(|url| url.parse().ok()) {
            options = options.with_url(url);
        }
        let found = extract_document(page, &options).ok()?;
        let text = preserve::restore(&render::text(&Document::parse(&found.content_html)));
        let meta = found.metadata;
        (!text.is_empty()).then(|| Extracted {
            title: meta.title,
            text,
            date: meta.date.map(|date| date.to_string()).unwrap_or_default(),
            lang: meta.language,
        })
    }
}

/// Whether the page is neither too deep nor too large.
fn is_bounded(page: &Document) -> bool {
    let mut open: Vec<(NodeId, usize)> = vec![(page.root(), 0)];
    let mut seen = 0;
    while let Some((node, depth)) = open.pop() {
        seen += 1;
        if depth > MAX_DEPTH || seen > MAX_ELEMENTS {
            return false;
        }
        open.extend(page.children(node).into_iter().map(|child| (child, depth + 1)));
    }
    true
}
