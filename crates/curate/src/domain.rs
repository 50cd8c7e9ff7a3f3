//! What kind of text a document is: `code`, `multilingual`, `maths` or `prose`, the first that applies.
//!
//! | domain | a document is of it when |
//! |---|---|
//! | `code` | its name ends like source code, its text has as many symbols as code has, or a classifier's tag `code` is 0.5 or more |
//! | `multilingual` | its language is known, and it is not the main one |
//! | `maths` | a classifier's tag `maths` is 0.5 or more, or formulas make up a twentieth of it |
//! | `prose` | nothing of that |
//!
//! The filter `kind` tells code from prose as soon as there is text, so that rules for prose leave code alone. The filter
//! `domain` says the rest when the language is known, and once more when there are tags. Where the source says what a document is, by a field `domain` that holds one of these
//! four words, that stays.

use serde::{Deserialize, Serialize};

use crate::language::normalise;
use crate::plan::Registry;
use crate::rules::{self, CODE, PROSE};
use crate::{Document, Dropped, Filter};

/// The domain of texts with formulas and reasoning about them.
pub(crate) const MATHS: &str = "maths";
/// The domain of texts of other languages than the main one.
pub(crate) const MULTILINGUAL: &str = "multilingual";

/// All domains.
pub const DOMAINS: [&str; 4] = [PROSE, CODE, MATHS, MULTILINGUAL];

/// The key of [`Document::meta`] by which a source says what a document is.
const SAID: &str = "domain";

/// A classifier is believed from here on.
const SURE: f64 = 0.5;

/// A text with this share of its bytes in formulas is mathematics.
const MATHS_SHARE: f64 = 0.05;

/// Endings of addresses that say nothing of what a page is about.
const PAGES: [&str; 9] = ["html", "htm", "xhtml", "php", "asp", "aspx", "jsp", "cgi", "warc"];

pub(crate) fn register(registry: &mut Registry) {
    registry.filter_of::<Kind>("kind");
    registry.filter_of::<Domain>("domain");
}

/// Sets the domain to `code` or `prose` where it is not known.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kind {}

impl Filter for Kind {
    fn name(&self) -> &'static str {
        "kind"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        if let Some(said) = said(document) {
            said.clone_into(&mut document.domain);
        } else if document.domain.is_empty() {
            kind(&document.url, &document.text).clone_into(&mut document.domain);
        }
        None
    }
}

/// The domain that the source gives a document. Other words in such a field, such as names of hosts, say nothing.
fn said(document: &Document) -> Option<&'static str> {
    let said = document.meta.get(SAID)?;
    DOMAINS.into_iter().find(|domain| domain == said)
}

/// `code` or `prose`, from the end of an address, or else from the text.
fn kind(url: &str, text: &str) -> &'static str {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    // A host's name ends like a file's, but is none.
    let path = path.split_once("://").map_or(path, |(_, rest)| rest.split_once('/').map_or("", |(_, p)| p));
    let name = path.rsplit('/').next().unwrap_or_default();
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    match extension {
        Some(extension) if !PAGES.contains(&extension.as_str()) => rules::domain(name, text),
        // Marked up as it may be, an article is none.
        _ if is_latex(text) => PROSE,
        _ => rules::domain_of_text(text),
    }
}

/// A text with a command of LaTeX for so many bytes, on average, is one in LaTeX.
const LATEX_BYTES: usize = 500;

/// Whether a text is LaTeX: `\\section{`, `\\cite{` and the like, which no programming language has many of.
fn is_latex(text: &str) -> bool {
    let is_command = |rest: &str| {
        let name = rest.bytes().take_while(u8::is_ascii_lowercase).count();
        name >= 3 && rest[name..].starts_with('{')
    };
    let commands = text.split('\\').skip(1).filter(|rest| is_command(rest)).count();
    commands >= 3 && commands * LATEX_BYTES >= text.len()
}

/// Sets what can only be told when language and tags are known.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Domain {
    pub(crate) main_language: String,
}

impl Filter for Domain {
    fn name(&self) -> &'static str {
        "domain"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        // Language and formulas were looked at before, but what a classifier says of code counts for more.
        if document.domain == CODE || !document.domain.is_empty() && said(document).is_some() {
            return None;
        }
        let tagged = |tag: &str| document.tags.get(tag).is_some_and(|&found| found >= SURE);
        let domain = if tagged(CODE) {
            CODE
        } else if !document.lang.is_empty() && document.lang != normalise(&self.main_language) {
            MULTILINGUAL
        } else if tagged(MATHS) || formula_share(&document.text) >= MATHS_SHARE {
            MATHS
        } else {
            PROSE
        };
        domain.clone_into(&mut document.domain);
        None
    }
}

/// Ways in which formulas begin and end.
const DELIMITERS: [(&str, &str); 4] = [("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$")];

/// No formula is longer, in bytes.
const MAX_FORMULA: usize = 2_000;

/// Share of a text's bytes that are in formulas. Sums of money are none: a formula has a command, an index, a power or an
/// equation in it, and no empty line.
fn formula_share(text: &str) -> f64 {
    let (mut rest, mut inside) = (text, 0);
    while let Some(at) = rest.find(['$', '\\']) {
        rest = &rest[at..];
        let Some((open, close)) = DELIMITERS.into_iter().find(|(open, _)| rest.starts_with(open)) else {
            rest = &rest[1..];
            continue;
        };
        let body = &rest[open.len()..];
        let near = &body[..body.floor_char_boundary(MAX_FORMULA)];
        match near.find(close).map(|end| &body[..end]) {
            Some(formula) if formula.contains(['\\', '^', '_', '=']) && !formula.contains("\n\n") => {
                inside += open.len() + formula.len() + close.len();
                rest = &body[formula.len() + close.len()..];
            }
            _ => rest = body,
        }
    }
    inside as f64 / text.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_told_by_name_or_by_symbols() {
        let prose = "Llamas live in herds. They graze on the high plain, and so do their young.";
        let code = "for (int i = 0; i < n; i++) { sum[i] += a[i] * b[i]; } /* done */";
        for (url, text, expected) in [
            ("https://example.com/a.py", prose, CODE),
            ("https://example.com/a.py?raw=1", prose, CODE),
            ("https://example.com/a.html", prose, PROSE),
            ("https://example.rs", prose, PROSE),
            ("https://example.com/a.html", code, CODE),
            ("notes/a.txt", code, PROSE),
            ("", code, CODE),
            ("", prose, PROSE),
        ] {
            assert_eq!(kind(url, text), expected, "{url}");
        }
    }

    #[test]
    fn latex_is_no_code() {
        let article = "\\begin{abstract} We show $x^2$ in \\cite{a,b}. \\end{abstract}\n\\section{Introduction} Let $\\{x_i\\}$ be.";
        assert_eq!(rules::domain_of_text(article), CODE);
        assert_eq!(kind("", article), PROSE);
        let rust = r#"fn main() { println!("\\n\\u{1f600} {} \\d{3}", a[i] += &b); } // \\p{L} x = {};"#;
        assert_eq!(kind("", &rust.repeat(9)), CODE);
    }

    #[test]
    fn what_the_source_says_stays() {
        let code = "for (int i = 0; i < n; i++) { sum[i] += a[i] * b[i]; } /* done */";
        for (said, expected) in [("prose", "prose"), ("maths", "maths"), ("example.org", "multilingual")] {
            let mut document = Document { lang: "de".into(), ..Document::default() };
            // What says nothing is told by the text.
            document.text = if said == "example.org" { "Plain words.".into() } else { code.into() };
            document.meta.insert(SAID.into(), said.into());
            Kind {}.apply(&mut document);
            Domain { main_language: "en".to_owned() }.apply(&mut document);
            assert_eq!(document.domain, expected, "{said}");
        }
    }

    #[test]
    fn domains_come_from_language_tags_and_formulas() {
        let filter = Domain { main_language: "EN-gb".to_owned() };
        let domain = |lang: &str, tag: &str, before: &str, text: &str| {
            let mut document = Document {
                lang: lang.into(),
                domain: before.into(),
                text: text.into(),
                tags: [(tag.to_owned(), 0.5)].into(),
                ..Document::default()
            };
            assert_eq!(filter.apply(&mut document), None);
            document.domain
        };
        let money = "It cost $5 then and costs $7 now, which is what they = say.";
        let maths = "Let $x^2 + y^2 = z^2$ hold; then \\(x < z\\) and $$\\frac{x}{z} = \\sin a$$ follow.";
        assert_eq!(domain("en", "", "prose", money), PROSE);
        assert_eq!(domain("", "", "", money), PROSE);
        assert_eq!(domain("de", "", "prose", money), MULTILINGUAL);
        assert_eq!(domain("en", "maths", "prose", money), MATHS);
        assert_eq!(domain("en", "", "prose", maths), MATHS);
        assert_eq!(domain("de", "maths", "code", maths), CODE);
        assert_eq!(domain("de", "code", "multilingual", money), CODE);
        assert_eq!(domain("en", "code", "maths", maths), CODE);
        assert_eq!(domain("en", "", "maths", maths), MATHS);
        assert!(formula_share(maths) > 0.5 && formula_share("a $ b, c \\( d \\[ e") == 0.0);
    }
}
