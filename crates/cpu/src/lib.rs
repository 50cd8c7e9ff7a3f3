//! cpu (see ARCHITECTURE.md).
