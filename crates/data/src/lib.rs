//! data (see ARCHITECTURE.md).
