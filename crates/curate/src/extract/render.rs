//! From the cleaned HTML of an article to its text.

use trafilatura::dom::{Document, NodeId};

/// What stands between two blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Gap {
    None,
    Cell,
    Line,
    Paragraph,
}

/// How an element is set off from what comes before and after it.
fn gap(tag: &str) -> Gap {
    match tag {
        "p" | "div" | "pre" | "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "ul" | "ol" | "dl" | "table"
        | "blockquote" | "section" | "article" | "main" | "body" | "hr" | "quote" | "head" | "list"
        | "details" | "figure" => Gap::Paragraph,
        "br" | "li" | "tr" | "dt" | "dd" | "item" | "row" | "summary" | "figcaption" | "lb" => Gap::Line,
        "td" | "th" | "cell" => Gap::Cell,
        _ => Gap::None,
    }
}

/// The text: paragraphs with an empty line between them; list items and table rows on lines of their own, cells with a tab.
pub(super) fn text(page: &Document) -> String {
    let mut writer = Writer { text: String::new(), gap: Gap::None, space: false };
    enum Step {
        Enter(NodeId),
        Leave(Gap),
    }
    let mut open: Vec<Step> = page.body().map(Step::Enter).into_iter().collect();
    while let Some(step) = open.pop() {
        match step {
            Step::Leave(gap) => writer.gap = writer.gap.max(gap),
            Step::Enter(node) if page.is_text(node) => writer.write(&page.text_content(node)),
            Step::Enter(node) => {
                let gap = gap(page.tag_name(node));
                writer.gap = writer.gap.max(gap);
                open.push(Step::Leave(gap));
                open.extend(page.child_nodes(node).into_iter().rev().map(Step::Enter));
            }
        }
    }
    writer.text
}

struct Writer {
    text: String,
    /// What is owed before the next word.
    gap: Gap,
    /// Whether white space came after the last word.
    space: bool,
}

impl Writer {
    fn write(&mut self, text: &str) {
        self.space |= text.starts_with(char::is_whitespace);
        for word in text.split_whitespace() {
            if !self.text.is_empty() {
                match self.gap {
                    Gap::Paragraph => self.text.push_str("\n\n"),
                    Gap::Line => self.text.push('\n'),
                    Gap::Cell => self.text.push('\t'),
                    Gap::None if self.space => self.text.push(' '),
                    Gap::None => {}
                }
            }
            self.text.push_str(word);
            (self.gap, self.space) = (Gap::None, true);
        }
        if !text.trim().is_empty() {
            self.space = text.ends_with(char::is_whitespace);
        }
    }
}
