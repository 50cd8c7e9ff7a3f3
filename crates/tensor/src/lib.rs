//! tensor (see ARCHITECTURE.md).
