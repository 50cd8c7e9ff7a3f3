//! comm (see ARCHITECTURE.md).
