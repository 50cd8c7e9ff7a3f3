//! curate (see ARCHITECTURE.md).
