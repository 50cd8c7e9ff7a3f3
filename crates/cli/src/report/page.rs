//! Builds HTML in which only literals are markup: whatever comes from data is escaped, and tags always balance.

/// A page under construction.
pub(super) struct Page {
    html: String,
    /// Names of the elements that are open.
    open: Vec<&'static str>,
}

impl Page {
    /// A page with its head written and its `main` open; `theme` is style sheet text of ours.
    pub(super) fn new(title: &str, theme: &str) -> Self {
        let mut page = Self { html: String::new(), open: Vec::new() };
        page.html.push_str("<!DOCTYPE html>\n");
        page.open("html lang=\"en\"").open("head");
        page.html.push_str(concat!(
            "<meta charset=\"utf-8\">\n",
            // The browser itself then refuses to load anything, whatever the data holds.
            "<meta http-equiv=\"Content-Security-Policy\" ",
            "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n",
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
            "<meta name=\"color-scheme\" content=\"light dark\">\n",
        ));
        page.leaf("title", title).open("style");
        page.html.push_str(include_str!("style.css"));
        page.html.push_str(theme);
        page.close().close().open("body").open("main");
        page
    }

    /// Opens an element; `tag` is its name and attributes.
    pub(super) fn open(&mut self, tag: &'static str) -> &mut Self {
        self.html.push('<');
        self.html.push_str(tag);
        self.html.push('>');
        self.open.push(tag.split(' ').next().unwrap_or(tag));
        self
    }

    /// Closes the element opened last.
    pub(super) fn close(&mut self) -> &mut Self {
        if let Some(name) = self.open.pop() {
            self.html.push_str("</");
            self.html.push_str(name);
            self.html.push_str(">\n");
        }
        self
    }

    /// Text from anywhere, escaped.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        escape(&mut self.html, text);
        self
    }

    /// An element with nothing but text in it.
    pub(super) fn leaf(&mut self, tag: &'static str, text: &str) -> &mut Self {
        self.open(tag).text(text).close()
    }

    /// Text of another writer as it was given, line breaks included, kept from changing the direction of what
    /// is around it.
    pub(super) fn verbatim(&mut self, tag: &'static str, text: &str) -> &mut Self {
        self.open(tag);
        // A parser drops the first line break of a `pre`; this is the one it drops.
        self.html.push('\n');
        self.text(text).close()
    }

    /// A bar that fills `share` of its place.
    pub(super) fn bar(&mut self, class: &'static str, share: f64) -> &mut Self {
        let width = percent_of(share);
        self.html.push_str(&format!(
            "<span class=\"track\"><span class=\"bar {class}\" style=\"width:{width:.2}%\"></span></span>"
        ));
        self
    }

    /// A value with its interval on a scale from 0 to 1, and a mark at `chance`.
    pub(super) fn whisker(&mut self, low: f64, value: f64, high: f64, chance: f64) -> &mut Self {
        let (low, value, high, chance) =
            (percent_of(low), percent_of(value), percent_of(high), percent_of(chance));
        let width = (high - low).max(0.0);
        self.html.push_str(&format!(
            concat!(
                "<span class=\"track scale\">",
                "<span class=\"chance\" style=\"left:{chance:.2}%\"></span>",
                "<span class=\"interval\" style=\"left:{low:.2}%;width:{width:.2}%\"></span>",
                "<span class=\"dot\" style=\"left:{value:.2}%\"></span></span>"
            ),
            chance = chance,
            low = low,
            width = width,
            value = value
        ));
        self
    }

    /// A plot drawn by [`super::plot`].
    pub(super) fn plot(&mut self, svg: &super::plot::Svg) -> &mut Self {
        self.html.push_str(svg.as_str());
        self
    }

    /// The page, with every element closed.
    pub(super) fn finish(mut self) -> String {
        while !self.open.is_empty() {
            self.close();
        }
        self.html
    }
}

/// `share` of 1 as a percentage within 0 and 100; 0 when it is not a number.
fn percent_of(share: f64) -> f64 {
    if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) * 100.0 }
}

/// Appends `text` so that it is text in an element and in a quoted attribute alike.
///
/// Control characters, which HTML forbids and terminals act on, become their visible pictures.
fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\0'..='\x1f' => out.push(char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}')),
            '\x7f' => out.push('\u{2421}'),
            '\u{80}'..='\u{9f}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_markup_and_controls() {
        let mut out = String::new();
        escape(&mut out, "<a href='x' b=\"&\">\0\x1b[31m\u{9b}\n\té\x7f");
        assert_eq!(out, "&lt;a href=&#39;x&#39; b=&quot;&amp;&quot;&gt;␀␛[31m\u{fffd}\n\té␡");
    }

    #[test]
    fn shares_stay_inside_their_place() {
        assert_eq!([f64::NAN, -1.0, 0.25, f64::INFINITY].map(percent_of), [0.0, 0.0, 25.0, 100.0]);
    }
}
