//! Ending a text at a string.

use crate::{InferError, Result};

/// Passes text on as it comes and ends it before the first of some strings. What may be the beginning of one is held back
/// until it is known whether it is.
///
/// The pieces joined are the whole text up to where a string was complete first; of several that are complete at the same
/// character, up to the longest.
#[derive(Clone, Debug, Default)]
pub struct StopText {
    stops: Vec<String>,
    held: String,
    found: bool,
}

impl StopText {
    /// Stops at any of these; with none of them, every piece is passed on at once.
    ///
    /// # Errors
    /// [`InferError::Parameter`] for an empty string.
    pub fn new(stops: Vec<String>) -> Result<Self> {
        if stops.iter().any(String::is_empty) {
            let (found, allowed) = (String::new(), "a text of one character or more");
            return Err(InferError::Parameter { key: "stop", found, allowed });
        }
        Ok(Self { stops, ..Self::default() })
    }

    /// Takes a piece of text; returns what can be passed on. After a stop string it is empty.
    pub fn push(&mut self, piece: &str) -> String {
        if self.found {
            return String::new();
        }
        for c in piece.chars() {
            self.held.push(c);
            let complete = self.stops.iter().filter(|stop| self.held.ends_with(stop.as_str()));
            if let Some(len) = complete.map(String::len).max() {
                self.found = true;
                self.held.truncate(self.held.len() - len);
                return std::mem::take(&mut self.held);
            }
        }
        let rest = self.held.split_off(self.held.len() - self.begun());
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop string came.
    pub fn found(&self) -> bool {
        self.found
    }

    /// What is still held back at the end of the text; then it is at the start of another.
    pub fn finish(&mut self) -> String {
        self.found = false;
        std::mem::take(&mut self.held)
    }

    /// Length of the longest end of the held text that a stop string begins with.
    fn begun(&self) -> usize {
        let ends = self.held.char_indices().map(|(at, _)| &self.held[at..]);
        let mut begun = ends.filter(|end| self.stops.iter().any(|stop| stop.starts_with(*end)));
        begun.next().map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop(stops: &[&str]) -> StopText {
        StopText::new(stops.iter().map(|&s| s.to_owned()).collect()).unwrap()
    }

    /// The text cut at the first place where a stop string is complete.
    fn cut<'t>(text: &'t str, stops: &[&str]) -> (&'t str, bool) {
        let ends = text.char_indices().map(|(at, c)| &text[..at + c.len_utf8()]);
        for before in ends {
            if let Some(len) = stops.iter().filter(|s| before.ends_with(**s)).map(|s| s.len()).max() {
                return (&before[..before.len() - len], true);
            }
        }
        (text, false)
    }

    #[test]
    fn any_division_of_any_text_is_cut_at_the_same_place() {
        let letters = ["a", "b", "ä", "🦙"];
        let all = |len: u32| {
            (0..4usize.pow(len))
                .map(move |n| (0..len).map(|i| letters[n / 4usize.pow(i) % 4]).collect::<Vec<_>>())
        };
        for stops in [&["ab", "b🦙"][..], &["aab"], &["aba", "ba"], &["🦙ä", "🦙"], &["aaaaaaaa"], &[]]
        {
            for letters in all(5) {
                let text = letters.concat();
                let (expected, found) = cut(&text, stops);
                for division in 0..16 {
                    let mut stop = stop(stops);
                    let (mut said, mut piece) = (String::new(), String::new());
                    for (i, letter) in letters.iter().enumerate() {
                        piece.push_str(letter);
                        if division >> i & 1 == 0 || i == 4 {
                            said.push_str(&stop.push(&piece));
                            piece.clear();
                        }
                    }
                    assert_eq!(stop.found(), found, "{text} {stops:?}");
                    said.push_str(&stop.finish());
                    assert_eq!(said, expected, "{stops:?} {division}");
                    assert!(!stop.found());
                }
            }
        }
    }

    #[test]
    fn only_what_may_begin_a_stop_string_is_held_back() {
        let mut stop = stop(&["\n\nQ:"]);
        assert_eq!(stop.push("one\n"), "one");
        assert_eq!(stop.push("two\n\n"), "\ntwo");
        assert_eq!(stop.push("Q"), "");
        assert_eq!(stop.push("!"), "\n\nQ!");
        assert_eq!(
            (stop.push("\n\nQ: more"), stop.push("even more"), stop.found()),
            (String::new(), String::new(), true)
        );
        assert_eq!(self::stop(&[]).push("\n\nQ:"), "\n\nQ:");
        assert!(StopText::new(vec!["a".into(), String::new()]).unwrap_err().to_string().contains("`stop`"));
    }
}
