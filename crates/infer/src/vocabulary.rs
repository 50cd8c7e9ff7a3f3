//! Between the metadata of a GGUF file and a tokenizer.

use llamero_model::gguf::{GgufArray, GgufFile, GgufStrings, GgufTokenizer, GgufValue};
use llamero_tokenizer::{GgufVocabulary, Tokenizer};

use crate::Result;

/// The type of a token that no text is encoded to.
const UNUSED: i32 = 5;

/// What a file says about its vocabulary. The strings stay in the file's metadata.
pub(crate) fn read(file: &GgufFile) -> Result<GgufVocabulary<&str>> {
    let said = GgufTokenizer::of(file);
    let tokens = said.tokens()?;
    let id = |role| said.id(role, tokens.len());
    Ok(GgufVocabulary {
        model: said.model()?,
        pre: said.pre()?,
        token_types: said.token_types(tokens.len())?,
        merges: said.merges()?.into_iter().flat_map(GgufStrings::iter).collect(),
        bos: id("bos")?,
        eos: id("eos")?,
        eot: id("eot")?,
        add_bos: said.add_bos()?,
        chat_template: said.chat_template()?,
        tokens: tokens.iter().collect(),
    })
}

/// What a GGUF file is to say about a tokenizer, for [`llamero_model::gguf::Writer::describe`]. It has as many tokens as the
/// embedding has `rows`, which llama.cpp insists on: those beyond the tokenizer's are unused.
///
/// # Errors
/// A tokenizer that the format has no name for.
pub fn gguf_vocabulary(tokenizer: &Tokenizer, rows: usize) -> Result<Vec<(String, GgufValue)>> {
    let mut own = tokenizer.to_gguf()?;
    let first = own.tokens.len();
    own.tokens.extend((first..rows).map(|id| format!("[PAD{id}]")));
    own.token_types.resize(own.tokens.len(), UNUSED);
    let strings = |all: Vec<String>| GgufValue::Array(GgufArray::String(all.iter().collect()));
    let entries = [
        ("ggml.model", Some(own.model.into())),
        ("ggml.pre", Some(own.pre.into())),
        ("ggml.tokens", Some(strings(own.tokens))),
        ("ggml.token_type", Some(GgufValue::Array(GgufArray::I32(own.token_types)))),
        ("ggml.merges", Some(strings(own.merges))),
        ("ggml.bos_token_id", own.bos.map(Into::into)),
        ("ggml.eos_token_id", own.eos.map(Into::into)),
        ("ggml.eot_token_id", own.eot.map(Into::into)),
        ("ggml.add_bos_token", own.add_bos.map(Into::into)),
        ("chat_template", own.chat_template.map(Into::into)),
    ];
    let present = entries.into_iter().filter_map(|(key, value)| Some((format!("tokenizer.{key}"), value?)));
    Ok(present.collect())
}
