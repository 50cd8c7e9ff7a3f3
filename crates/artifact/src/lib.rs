//! artifact (see ARCHITECTURE.md).
