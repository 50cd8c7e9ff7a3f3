//! align (see ARCHITECTURE.md).
