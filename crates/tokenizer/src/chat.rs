//! Dialogs.
//!
//! Llama 3's chat format is built in: `<|begin_of_text|>`, then for each message `<|start_header_id|>`role`<|end_header_id|>`, two newlines, the content
//! without white space at its ends, `<|eot_id|>`. It is that of every tokenizer with these special tokens whose files bring
//! no other; with other chat templates, see [`Tokenizer::chat_template`].

use crate::{ChatOptions, Error, Result, Tokenizer};
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
    /// A tool: what a call that the model made gave. Llama 3.1 calls it `ipython`, in whose header it is; `tool`, as it is called
    /// elsewhere, is read as the same.
    #[serde(alias = "tool")]
    Ipython,
}

impl Role {
    /// The name in the header.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Ipython => "ipython",
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
    /// The chat template as a Jinja text, of Llama 3's format too; nothing where there is no chat format.
    pub fn chat_template(&self) -> Option<&str> {
        match self.template() {
            Some(template) => Some(template.source()),
            None => self.special().has_headers().then_some(CHAT_TEMPLATE),
        }
    }

    /// The ids of a dialog in the tokenizer's chat format. A special token spelled in a message is text, and so is any other added
    /// token that the chat template names as a marker.
    ///
    /// # Errors
    /// There is no chat format; the template is not understood, or refuses the dialog.
    pub fn encode_chat(&self, messages: &[Message], options: ChatOptions) -> Result<Vec<u32>> {
        if let Some(template) = self.template() {
            return Ok(self.encode_pieces(&template.render(messages, options)?, template.words()));
        }
        let headers = self.headers()?;
        let mut ids = self.encode_headed(messages, headers).ids;
        if options.generation_prompt {
            self.encode_header(Role::Assistant, headers, &mut ids);
        }
        Ok(ids)
    }

    /// The ids of a whole dialog; see [`Tokenizer::encode_chat`].
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode_chat`].
    pub fn encode_dialog(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.encode_chat(messages, ChatOptions { generation_prompt: false, date: None })
    }

    /// The ids of a dialog that the assistant is to continue: those of [`Tokenizer::encode_dialog`] and the beginning of an
    /// assistant's message.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode_chat`].
    pub fn encode_dialog_prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.encode_chat(messages, ChatOptions { generation_prompt: true, date: None })
    }

    /// The ids of a whole dialog in Llama 3's format, and which of them the assistant is to say.
    ///
    /// # Errors
    /// The tokenizer has another chat format, or none.
    pub fn encode_dialog_masked(&self, messages: &[Message]) -> Result<MaskedDialog> {
        if self.template().is_some() {
            let problem =
                "which tokens are the assistant's is known for Llama 3's built-in format only".into();
            return Err(Error::Template { problem });
        }
        Ok(self.encode_headed(messages, self.headers()?))
    }

    /// The tokens before and after the name of a role, in Llama 3's format.
    fn headers(&self) -> Result<(u32, u32)> {
        let special = self.special();
        special
            .start_header
            .zip(special.end_header)
            .filter(|_| special.has_headers())
            .ok_or(Error::NoChatFormat)
    }

    fn encode_headed(&self, messages: &[Message], headers: (u32, u32)) -> MaskedDialog {
        let mut ids = Vec::from_iter(self.special().begin_of_text);
        let mut assistant = vec![false; ids.len()];
        for Message { role, content } in messages {
            self.encode_header(*role, headers, &mut ids);
            assistant.resize(ids.len(), false);
            self.encode_into(content.trim_matches(is_space), &mut ids);
            ids.push(self.special().eot);
            assistant.resize(ids.len(), *role == Role::Assistant);
        }
        MaskedDialog { ids, assistant }
    }

    fn encode_header(&self, role: Role, (start, end): (u32, u32), ids: &mut Vec<u32>) {
        ids.push(start);
        self.encode_into(role.as_str(), ids);
        ids.push(end);
        self.encode_into("\n\n", ids);
    }
}

/// White space as Python's `str.strip`, which the reference and Jinja's `trim` use, understands it: Unicode's, and the
/// four separators of ASCII.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}
