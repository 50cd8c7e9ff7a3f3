//! Against a server in this process that speaks the hub's endpoints.
