//! Faults: links that are cut, frozen, slow or lose replies, and processes that
//! are stopped or killed.
//!
//! [`Link`] is the switch; [`Proxy`] applies it to TCP connections, [`Far`] to
//! the steps of a [`Storage`](mcp_adapter_core::storage::Storage) in the same
//! process. [`Program`] runs a server of its own in a folder of its own.

mod far;
mod link;
#[cfg(unix)]
pub(crate) mod program;
mod proxy;

pub use far::Far;
pub use link::Link;
#[cfg(unix)]
pub use program::{Program, Signal, free_port};
pub use proxy::Proxy;
