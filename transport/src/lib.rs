#![doc = include_str!("../README.md")]

mod accept;
mod bus;
mod config;
mod drain;
mod exchange;
mod fleet;
mod handle;
mod manager;
mod message;
mod record;
mod registry;
mod restore;
mod service;
mod signals;
mod sse;
mod transport;
mod verdict;
mod worker;

pub use fleet::{Drained, FleetHandle, ListChanged, Readiness};
pub use handle::{Replayed, Session};
pub use service::{McpService, ResponseBody};
pub use transport::StreamableHttpTransport;
