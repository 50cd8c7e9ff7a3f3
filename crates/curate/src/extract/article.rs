//! The main text of a page, by the rules of trafilatura.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::{Deserialize, Serialize};
use trafilatura::dom::{Document, NodeId};
use trafilatura::{Config, HtmlDateMode, Options, TrafilaturaError, extract_document};

use super::{Extract, Extracted, depth, preserve, render, stated};
use crate::Dropped;

/// Elements within one another; browsers allow no more.
const MAX_DEPTH: usize = 512;

/// Open elements at which a page is not even parsed. The count is rough, so it leaves room above [`MAX_DEPTH`].
const MAX_OPEN: usize = 4 * MAX_DEPTH;

/// Attributes of an element at which a page is not even parsed: each is compared with all before it.
const MAX_ATTRIBUTES: usize = 1024;

/// Elements of a page. Some rules compare many of them, and no page for people has so many.
const MAX_ELEMENTS: usize = 100_000;

/// Bytes of attributes that any page may have.
const ROOM: usize = 1 << 20;

/// A text of fewer characters may be less than the page says.
const SHORT: usize = 250;

/// Bytes from which on all that a page says is more than an article, if its rules find but a short one.
const MAX_WHOLE: usize = 1000;

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
    fn extract(&self, html: &str, url: Option<&str>) -> Result<Extracted, Dropped> {
        // A page must not be able to end a run by meeting a fault of the library.
        catch_unwind(AssertUnwindSafe(|| self.article(html, url))).unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let said = said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(Dropped::new("extraction_failed", format!("a fault in the extraction: {said}")))
        })
    }
}

impl Article {
    fn article(&self, html: &str, url: Option<&str>) -> Result<Extracted, Dropped> {
        if depth::tags(html) > MAX_ELEMENTS {
            return Err(too_large());
        }
        depth::check(html, MAX_OPEN, MAX_ATTRIBUTES)?;
        let mut page = Document::parse(&preserve::without_marks(html));
        check(&page, html.len())?;
        preserve::preserve(&mut page, self.alt_text);
        // The library's last resort for a text that it deems too short is the text of the page without its structure: headings run
        // into paragraphs. A short text with its structure is better, so that is left for pages where nothing else is found.
        let mut options = Options::default()
            .with_fallback(true)
            .with_exclude_comments(true)
            .with_config(Config::default().with_min_extracted_size(1));
        options.html_date_mode = HtmlDateMode::Disabled;
        if let Some(url) = url.and_then(|url| url.parse().ok()) {
            options = options.with_url(url);
        }
        let date = stated::date(&page, &options);
        let whole = page.body().map(|body| page.inner_html(body)).unwrap_or_default();
        let mut found = extracted(page, &options)?;
        // A page that does not say where its text is loses all but paragraphs, which is most of a short page.
        if found.text.chars().count() < SHORT {
            let page = format!("<html><body><div class=post>{whole}</div></body></html>");
            // Whatever it meets, the first look has found what it has found.
            let again = || extracted(Document::parse(&page), &options).unwrap_or_default();
            let again = catch_unwind(AssertUnwindSafe(again)).unwrap_or_default();
            if again.text.len() <= MAX_WHOLE && says(&again.text) > says(&found.text) {
                found = Extracted { title: found.title, ..again };
            }
        }
        if found.text.is_empty() {
            let detail = format!("{} bytes of HTML hold no main text", html.len());
            return Err(Dropped::new("no_main_text", detail));
        }
        Ok(Extracted { date, ..found })
    }
}

/// How much a text says: different lines, of which none should be there twice.
fn says(text: &str) -> (usize, Reverse<usize>) {
    let lines = || text.lines().filter(|line| !line.is_empty());
    (lines().collect::<HashSet<_>>().len(), Reverse(lines().count()))
}

/// What the rules find in a page; no text where that is nothing.
fn extracted(page: Document, options: &Options) -> Result<Extracted, Dropped> {
    match extract_document(page, options) {
        Ok(found) => Ok(Extracted {
            title: found.metadata.title,
            text: preserve::restore(&render::text(&Document::parse(&found.content_html))),
            date: String::new(),
            lang: found.metadata.language,
        }),
        Err(TrafilaturaError::InsufficientContent { .. }) => Ok(Extracted::default()),
        Err(error) => Err(Dropped::new("extraction_failed", error.to_string())),
    }
}

fn too_large() -> Dropped {
    let detail = format!("more than {MAX_ELEMENTS} elements and pieces of text, which is the limit");
    Dropped::new("page_too_large", detail)
}

/// Makes sure that the page, of so many bytes of HTML, is neither too deep nor too large.
fn check(page: &Document, bytes: usize) -> Result<(), Dropped> {
    // An element that is left open comes again in each paragraph, with all of its attributes.
    let mut room = 2 * bytes + ROOM;
    let mut open: Vec<(NodeId, usize)> = vec![(page.root(), 0)];
    let mut seen = 0;
    while let Some((node, depth)) = open.pop() {
        seen += 1;
        if depth > MAX_DEPTH {
            return Err(depth::too_deep(MAX_DEPTH));
        }
        if seen > MAX_ELEMENTS {
            return Err(too_large());
        }
        for name in page.attribute_names(node) {
            let length = page.get_attribute(node, &name).map_or(0, |value| value.len());
            room = room.checked_sub(length).ok_or_else(|| {
                let detail = format!("its attributes, repeated, have more than twice its {bytes} bytes");
                Dropped::new("page_too_large", detail)
            })?;
        }
        open.extend(page.children(node).into_iter().map(|child| (child, depth + 1)));
    }
    Ok(())
}
