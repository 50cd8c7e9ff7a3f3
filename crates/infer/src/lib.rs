//! infer (see ARCHITECTURE.md).
