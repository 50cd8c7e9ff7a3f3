//! Where a text can be cut in two without changing its pieces, whatever comes next.
//!
//! A text that is read in parts must be cut where a piece ends in any case. A pattern looks ahead only within white space,
//! so two neighbouring characters nearly always tell:
//!
//! | Split | A piece ends between |
//! |---|---|
//! | all | a letter and what is none; a number and what is none |
//! | Llama 3's | other characters (neither letter, number nor white space) and a number or white space that is no newline; a newline and what is no white space; a newline and the white space behind it, if this holds no newline and its end is seen |
//! | GPT-2's | other characters and what is none, but not between an apostrophe and a letter |
//! | SmolLM's | those of GPT-2's; before and behind every number |
//!
//! So what is left behind the last such place is less than a handful of runs of one class: a word and what clings to it.

use super::class::{Class, Classes};
use crate::Split;

impl Split {
    /// The last position within `text` where a piece ends and another begins, whatever comes before and after `text`:
    /// the pieces of the whole are those of what lies before the position, and then those of what lies after, each taken
    /// for a text of its own. Nothing where no position is sure, as within a single word.
    ///
    /// The search goes backwards from the end. A caller who appends to a text in which there was none need search only from
    /// the last run of white space before what was added, or from the last character where that is none.
    ///
    /// ```
    /// use llamero_tokenizer::Split;
    ///
    /// assert_eq!(Split::Llama3.safe_cut("two words and a ha"), Some(15));
    /// assert_eq!(Split::Llama3.safe_cut("word"), None);
    /// ```
    pub fn safe_cut(self, text: &str) -> Option<usize> {
        let classes = Classes::get();
        let mut right = None;
        // Whether only white space without a newline lies between here and a character that is no white space.
        let mut blank = false;
        for (at, c) in text.char_indices().rev() {
            let (left, position) = classes.at(text.as_bytes(), at)?;
            if let Some(right) = right
                && (self.ends(c, left, right) || (blank && left == Class::Newline && self == Split::Llama3))
            {
                return Some(position);
            }
            let visible = !matches!(right, None | Some(Class::Space | Class::Newline));
            blank = left == Class::Space && (blank || visible);
            right = Some(left);
        }
        None
    }

    /// The first position behind `from`, the boundary of a character, where two neighbouring characters say that a piece ends;
    /// otherwise the end of `text`.
    pub(crate) fn next_cut(self, text: &str, from: usize) -> usize {
        let classes = Classes::get();
        let mut before = None;
        for (at, c) in text[from..].char_indices().map(|(at, c)| (from + at, c)) {
            let Some((class, _)) = classes.at(text.as_bytes(), at) else { break };
            if before.is_some_and(|(c, left)| self.ends(c, left, class)) {
                return at;
            }
            before = Some((c, class));
        }
        text.len()
    }

    /// Whether a piece always ends between `c`, which is of class `left`, and a character of class `right`.
    fn ends(self, c: char, left: Class, right: Class) -> bool {
        use Class::{Letter, Newline, Number, Other, Space};
        match (self, left, right) {
            (Split::SmolLm, Number, _) | (Split::SmolLm, _, Number) => true,
            (_, Letter, Letter) | (_, Number, Number) => false,
            (_, Letter | Number, _) => true,
            (Split::Llama3, Other, Number | Space) => true,
            (Split::Llama3, Newline, Letter | Number | Other) => true,
            (Split::Gpt2 | Split::SmolLm, Other, Letter) => c != '\'',
            (Split::Gpt2 | Split::SmolLm, Other, Number | Space | Newline) => true,
            _ => false,
        }
    }
}
