//! train (see ARCHITECTURE.md).
