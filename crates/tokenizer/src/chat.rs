//! Llama 3's chat format.
//!
//! `<|begin_of_text|>`, then for each message `<|start_header_id|>`role`<|end_header_id|>`, two newlines, the content
//! without white space at its ends, `<|eot_id|>`.

use crate::Tokenizer;
use serde::{Deserialize, Serialize};

/// The format as a Jinja template, for `tokenizer_config.json`. It yields the text whose
/// [`Tokenizer::encode_with_special`] is [`Tokenizer::encode_dialog`], or with `add_generation_prompt`
/// [`Tokenizer::encode_dialog_prompt`], as long as no content spells a special token.
pub const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
    {{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole dialog.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name in the header.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// One turn of a dialog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said. A special token spelled here is ordinary text.
    pub content: String,
}

impl Message {
    /// A message of `role` that says `content`.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into() }
    }
}

/// A dialog as training data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MaskedDialog {
    /// The ids of the dialog.
    pub ids: Vec<u32>,
    /// As long as `ids`: whether the token is one that the assistant is to say, that is its content and the
    /// `<|eot_id|>` after it.
    pub assistant: Vec<bool>,
}

impl Tokenizer {
    /// The ids of a whole dialog, beginning with `<|begin_of_text|>`.
    pub fn encode_dialog(&self, messages: &[Message]) -> Vec<u32> {
        self.encode_dialog_masked(messages).ids
    }

    /// The ids of a dialog that the assistant is to continue: those of [`Tokenizer::encode_dialog`] and the header of
    /// an assistant's message.
    pub fn encode_dialog_prompt(&self, messages: &[Message]) -> Vec<u32> {
        let mut ids = self.encode_dialog(messages);
        self.encode_header(Role::Assistant, &mut ids);
        ids
    }

    /// The ids of a whole dialog, and which of them the assistant is to say.
    pub fn encode_dialog_masked(&self, messages: &[Message]) -> MaskedDialog {
        let mut ids = vec![self.special().begin_of_text];
        let mut assistant = vec![false];
        for Message { role, content } in messages {
            self.encode_header(*role, &mut ids);
            assistant.resize(ids.len(), false);
            self.encode_into(content.trim_matches(is_space), &mut ids);
            ids.push(self.special().eot);
            assistant.resize(ids.len(), *role == Role::Assistant);
        }
        MaskedDialog { ids, assistant }
    }

    fn encode_header(&self, role: Role, ids: &mut Vec<u32>) {
        ids.push(self.special().start_header);
        self.encode_into(role.as_str(), ids);
        ids.push(self.special().end_header);
        self.encode_into("\n\n", ids);
    }
}

/// White space as Python's `str.strip`, which the reference and Jinja's `trim` use, understands it: Unicode's, and the
/// four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}
