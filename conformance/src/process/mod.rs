//! A storage in a process of its own.
//!
//! Instances that are handles in one process share that process: its locks, its
//! caches, its signals. For a backend where this makes a difference, such as one
//! on a file, [`Remote`] keeps the [`Storage`] of an instance in a child process,
//! and the [`Engine`](mcp_adapter_core::Engine) in that of the suite. The suite
//! kills an instance, and its child is killed; it freezes one, and nobody takes
//! what the child says.
//!
//! The test file starts itself as its children, here on the file `acme.db`:
//!
//! ```no_run
//! use std::{process::{Command, ExitCode}, time::Duration};
//!
//! use mcp_adapter_conformance::{certify, process};
//! use mcp_adapter_core::Capabilities;
//! use mcp_adapter_memory::MemoryStorage as AcmeStorage; // yours
//!
//! const FILE: &str = "ACME_TEST_FILE";
//!
//! fn main() -> ExitCode {
//!     if let Some(_file) = std::env::var_os(FILE) {
//!         return process::serve(|| Ok(AcmeStorage::new())); // on the file
//!     }
//!     let capabilities = Capabilities::server(Duration::from_millis(1));
//!     certify("acme_processes", capabilities, |options| async move {
//!         let mut child = Command::new(std::env::current_exe()?);
//!         child.env(FILE, options.namespace());
//!         let patience = options.limits().operation_timeout();
//!         Ok(process::Remote::start("acme", child, patience).await?)
//!     })
//! }
//! ```
//!
//! Steps and answers cross as frames in `MessagePack` through the child's input and
//! output, so the child must print nothing; what it says on its standard error is
//! shown. Both sides are of one build: the frames are no format that lasts.

mod frame;
mod remote;
mod serve;
mod step;

#[cfg(doc)]
use mcp_adapter_core::storage::Storage;

pub use remote::Remote;
pub use serve::{serve, serve_on};
