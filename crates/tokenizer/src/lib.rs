//! tokenizer (see ARCHITECTURE.md).
