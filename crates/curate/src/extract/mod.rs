//! Extraction: from the HTML of a page to its text.
//!
//! What is sought is the main content without the site around it, as Llama 3's own parser gives it (The Llama 3 Herd of Models,
//! 3.1.1): code and mathematics keep their structure, images leave their alternative text, and no markers of Markdown are
//! written.

mod article;
mod depth;
mod mathematics;
mod preserve;
mod render;
mod stated;
#[cfg(test)]
mod tests;

pub use article::Article;

use crate::read::{CONTENT_TYPE, HTML};
use crate::{Document, Dropped, Filter};

/// What is found in a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// The title; empty where there is none.
    pub title: String,
    /// The main text: paragraphs with an empty line between them.
    pub text: String,
    /// The day it was written, as ISO 8601; empty where unknown.
    pub date: String,
    /// The language that the page declares or its text is in, an ISO 639 code; empty where unknown.
    pub lang: String,
}

/// A way to get the text out of HTML.
pub trait Extract: Send + Sync {
    /// The text of a page, which was found at `url`.
    ///
    /// # Errors
    /// Why there is none: the page has no main text (`no_main_text`), or it was given up.
    fn extract(&self, html: &str, url: Option<&str>) -> Result<Extracted, Dropped>;
}

/// The step that replaces HTML by its text. Documents that are no HTML stay as they are.
pub struct Extraction<E>(pub E);

impl<E: Extract> Filter for Extraction<E> {
    fn name(&self) -> &'static str {
        "extract"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        if document.meta.get(CONTENT_TYPE).is_none_or(|kind| kind != HTML) {
            return None;
        }
        let url = Some(document.url.as_str()).filter(|url| url.contains("://"));
        let found = match self.0.extract(&document.text, url) {
            Ok(found) => found,
            Err(dropped) => return Some(dropped),
        };
        document.text = found.text;
        if document.lang.is_empty() {
            document.lang = crate::language::normalise(&found.lang).into_owned();
        }
        for (key, value) in [("title", found.title), ("written", found.date)] {
            if !value.is_empty() {
                document.meta.insert(key.to_owned(), value);
            }
        }
        document.meta.insert(CONTENT_TYPE.to_owned(), "text/plain".to_owned());
        None
    }
}
