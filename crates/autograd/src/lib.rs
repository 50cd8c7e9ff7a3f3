//! autograd (see ARCHITECTURE.md).
