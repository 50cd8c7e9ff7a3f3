//! Chat templates of Hugging Face: a Jinja text that turns a dialog into the model's format.
//!
//! A template is trusted and may name special tokens; what messages say is not and must stay text, whatever the template
//! does with it: trim, split, join, cut. Escaping the contents cannot promise that, so the other side is marked. Before
//! the template is compiled, each name of a special token in it becomes one private-use character, and so do `bos_token`
//! and `eos_token`; after rendering, these characters are the special tokens, and everything else is text. The characters
//! are chosen so that no message contains one.
//!
//! Files often hold markers of dialogs as added tokens that are not called special, and that any text may spell. Those that
//! the template names are special within a dialog.
//!
//! A template may also build a name from parts, such as `'<|' + message['role'] + '|>'`. That cannot be told from a content
//! that spells it, unless the dialog is rendered again with every name in the contents broken: a name that is still there
//! was built by the template, which is then refused.

mod jinja;

use crate::added::{Added, Finder, Found};
use crate::{Error, Message, Result, Role, SpecialTokens, Tokenizer};
use minijinja::{Environment, Value};
use std::sync::OnceLock;

/// Where the private-use characters are taken from: the first of these ranges of which the texts have none.
const PRIVATE: [u32; 4] = [0xF_0000, 0x10_0000, 0xF_8000, 0xE000];
const PRIVATE_LEN: u32 = 0x1800;

const NAME: &str = "chat_template";

/// How a dialog is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChatOptions {
    /// Whether the beginning of an assistant's message follows, for the model to go on.
    pub generation_prompt: bool,
    /// What `strftime_now` says in templates that ask for the day. Without it they take the day that they name themselves.
    pub date: Option<Date>,
}

/// A day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

impl Date {
    /// The day of the Gregorian calendar, if there is such a day.
    pub fn new(year: u16, month: u8, day: u8) -> Option<Date> {
        let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
        let days = match month {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        (1..=days).contains(&day).then_some(Date { year, month, day })
    }
}

/// A template with the special tokens of its tokenizer.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    source: String,
    /// Special tokens, and others that the template uses like them.
    special: Vec<Added>,
    bos: Option<u32>,
    eos: u32,
    /// What the role of a tool's result is called: `ipython` in templates that know this name, in others `tool`.
    tool: &'static str,
    /// All of their names.
    names: Option<Finder>,
    /// Names of all other added tokens, which messages may spell.
    words: Finder,
    /// With the first range of characters.
    compiled: OnceLock<Result<Compiled, String>>,
}

/// A template whose special tokens are single characters.
#[derive(Debug)]
struct Compiled {
    environment: Environment<'static>,
    marks: Marks,
}

/// Characters from `first` on that stand for the special tokens `ids`, in order.
#[derive(Clone, Debug)]
struct Marks {
    first: u32,
    ids: Vec<u32>,
}

/// A part of a dialog's format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(String),
    Token(u32),
}

impl Marks {
    /// The character that stands for `id`, which gets one if it has none yet.
    fn mark(&mut self, id: u32) -> char {
        let at = self.ids.iter().position(|&known| known == id).unwrap_or_else(|| {
            self.ids.push(id);
            self.ids.len() - 1
        });
        // `ChatTemplate::compile` allows no more than there are characters.
        char::from_u32(self.first + at as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
    }

    fn id(&self, c: char) -> Option<u32> {
        let at = (c as u32).checked_sub(self.first)?;
        self.ids.get(at as usize).copied()
    }

    /// A character that stands for nothing, and is in no text that these marks are for.
    fn spare(&self) -> char {
        char::from_u32(self.first + PRIVATE_LEN - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
    }

    fn pieces(&self, rendered: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut rest = 0;
        for (at, c) in rendered.char_indices() {
            let Some(id) = self.id(c) else { continue };
            if rest < at {
                pieces.push(Piece::Text(rendered[rest..at].to_owned()));
            }
            pieces.push(Piece::Token(id));
            rest = at + c.len_utf8();
        }
        if rest < rendered.len() {
            pieces.push(Piece::Text(rendered[rest..].to_owned()));
        }
        pieces
    }
}

impl ChatTemplate {
    /// Keeps `source`, which is read when it is first used: a model with a strange template can still continue texts.
    pub(crate) fn new(source: String, added: &[Added], special: &SpecialTokens) -> ChatTemplate {
        let (bos, eos) = (special.bos(), special.eos());
        let directs = |token: &Added| {
            let ends = bos == Some(token.id) || special.ends().contains(&token.id);
            token.special || ends || is_marker(&token.content, &source, added)
        };
        let (special, words): (Vec<Added>, Vec<Added>) = added.iter().cloned().partition(directs);
        let special: Vec<Added> =
            special.into_iter().map(|token| Added { normalized: false, ..token }).collect();
        // The tokenizer has built such searches already, so these do not fail.
        let names = Finder::new(special.iter()).ok();
        let words = Finder::new(words.iter()).unwrap_or_default();
        let tool = if source.contains(Role::Ipython.as_str()) { Role::Ipython.as_str() } else { "tool" };
        ChatTemplate { source, special, bos, eos, tool, names, words, compiled: OnceLock::new() }
    }

    /// Finds the added tokens that messages may spell.
    pub(crate) fn words(&self) -> &Finder {
        &self.words
    }

    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// The pieces of a dialog.
    pub(crate) fn render(&self, messages: &[Message], options: ChatOptions) -> Result<Vec<Piece>> {
        let compiled = self.compiled_for(messages)?;
        let compiled = match &compiled {
            Some(own) => own,
            None => self.first_compiled()?,
        };
        let pieces = compiled.render(messages, self.tool, options)?;
        if self.spelled(&pieces).is_some() {
            let spare = compiled.marks.spare();
            let broken = |message: &Message| Message::new(message.role, self.broken(&message.content, spare));
            let broken: Vec<Message> = messages.iter().map(broken).collect();
            if let Some(id) = self.spelled(&compiled.render(&broken, self.tool, options)?) {
                let name =
                    self.special.iter().find(|token| token.id == id).map_or("", |token| &token.content);
                return Err(problem(format!(
                    "it builds the name of the special token `{name}` from parts, so that what a message says could \
                     become one too. hint: write the name as one string in the template"
                )));
            }
        }
        Ok(pieces)
    }

    fn first_compiled(&self) -> Result<&Compiled> {
        let compile = || self.compile(PRIVATE[0]).map_err(|error| jinja::explain(&error));
        self.compiled.get_or_init(compile).as_ref().map_err(|error| problem(error.clone()))
    }

    /// The template with other characters, where a text has one of the first range.
    fn compiled_for(&self, messages: &[Message]) -> Result<Option<Compiled>> {
        // Names, too: a text whose names are broken by a character of theirs would never be rid of them.
        let names = || self.special.iter().map(|token| token.content.as_str());
        let contents = || messages.iter().map(|message| message.content.as_str());
        let texts = || contents().chain(names()).chain([self.source.as_str()]);
        let free = |first: u32| {
            !texts().any(|text| text.chars().any(|c| (first..first + PRIVATE_LEN).contains(&(c as u32))))
        };
        match PRIVATE.into_iter().find(|&first| free(first)) {
            Some(first) if first == PRIVATE[0] => Ok(None),
            Some(first) => self.compile(first).map(Some).map_err(|error| problem(jinja::explain(&error))),
            None => {
                Err(problem("messages and names of special tokens use up all private-use characters".into()))
            }
        }
    }

    fn compile(&self, first: u32) -> Result<Compiled, minijinja::Error> {
        let mut marks = Marks { first, ids: Vec::new() };
        let mut source = String::with_capacity(self.source.len());
        if let Some(names) = &self.names {
            names.split(&self.source, &mut |found| match found {
                Found::Text(text) => source.push_str(text),
                Found::Token(id) => source.push(marks.mark(id)),
            });
        }
        let mut environment = jinja::environment()?;
        let named = |id: Option<u32>| id.filter(|&id| self.special.iter().any(|token| token.id == id));
        for (name, id) in [("bos_token", named(self.bos)), ("eos_token", named(Some(self.eos)))] {
            if let Some(id) = id {
                environment.add_global(name, marks.mark(id).to_string());
            }
        }
        if marks.ids.len() as u32 >= PRIVATE_LEN {
            let problem = format!("it names `{}` special tokens, too many", marks.ids.len());
            return Err(jinja::failure(problem));
        }
        environment.add_template_owned(NAME, source)?;
        Ok(Compiled { environment, marks })
    }

    /// The first special token whose name is in the text between tokens.
    fn spelled(&self, pieces: &[Piece]) -> Option<u32> {
        pieces.iter().find_map(|piece| match piece {
            Piece::Text(text) => self.names.as_ref()?.first(text),
            Piece::Token(_) => None,
        })
    }

    /// `text` with `spare` inside every name of a special token.
    fn broken(&self, text: &str, spare: char) -> String {
        let mut text = text.to_owned();
        // Names may overlap, so that one pass may leave some.
        while let Some(names) = self.names.as_ref().filter(|names| names.first(&text).is_some()) {
            let mut broken = String::with_capacity(text.len() + 16);
            names.split(&text, &mut |found| match found {
                Found::Text(text) => broken.push_str(text),
                Found::Token(id) => {
                    let name = self.special.iter().find(|token| token.id == id);
                    let mut name = name.map_or("", |token| &token.content).chars();
                    // A name of one character goes: nothing can be put inside.
                    broken.extend(name.next().filter(|_| !name.as_str().is_empty()));
                    broken.push(spare);
                    broken.push_str(name.as_str());
                }
            });
            text = broken;
        }
        text
    }
}

/// Whether an added token that is not called special directs the model all the same: the template `source` names it, and it
/// looks like `<|im_start|>` or `[INST]`. Not so tags in pairs, `<think>` and `</think>`: these are part of what is said, and
/// templates look for them there.
fn is_marker(name: &str, source: &str, added: &[Added]) -> bool {
    let inside = |open: char, close: char| name.strip_prefix(open)?.strip_suffix(close);
    let tag = inside('<', '>');
    let Some(text) = tag.or_else(|| inside('[', ']')) else { return false };
    let partner = match tag.and_then(|tag| tag.strip_prefix('/')) {
        Some(opened) => format!("<{opened}>"),
        None => format!("</{text}>"),
    };
    let paired = tag.is_some() && added.iter().any(|token| token.content == partner);
    let is_word = text.contains(char::is_alphabetic) && !text.contains(char::is_whitespace);
    is_word && !paired && source.contains(name)
}

impl Compiled {
    fn render(&self, messages: &[Message], tool: &str, options: ChatOptions) -> Result<Vec<Piece>> {
        let render = || -> Result<String, minijinja::Error> {
            let template = self.environment.get_template(NAME)?;
            let message = |message: &Message| {
                let role = if message.role == Role::Ipython { tool } else { message.role.as_str() };
                let role = ("role", Value::from(role));
                Value::from_pairs([role, ("content", Value::from(message.content.as_str()))])
            };
            let mut context = vec![
                ("messages", messages.iter().map(message).collect::<Value>()),
                ("add_generation_prompt", Value::from(options.generation_prompt)),
                ("tools", Value::from(())),
                ("documents", Value::from(())),
            ];
            if let Some(date) = options.date {
                context.push(("strftime_now", jinja::strftime_now(date)));
            }
            template.render(Value::from_pairs(context))
        };
        Ok(self.marks.pieces(&render().map_err(|error| problem(jinja::explain(&error)))?))
    }
}

fn problem(problem: String) -> Error {
    Error::Template { problem }
}

impl Tokenizer {
    /// The ids of pieces, in whose texts the names that `words` knows are tokens.
    pub(crate) fn encode_pieces(&self, pieces: &[Piece], words: &Finder) -> Vec<u32> {
        let mut ids = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => self.encode_finding(words, text, &mut ids),
                Piece::Token(id) => ids.push(*id),
            }
        }
        ids
    }
}
