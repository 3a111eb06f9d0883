#![doc = include_str!("../README.md")]

mod accept;
mod answer;
mod batch;
mod bus;
mod config;
#[cfg(feature = "cors")]
mod cors;
mod drain;
mod era;
mod exchange;
mod fleet;
mod handle;
mod inbound;
mod lifecycle;
mod manager;
mod message;
mod negotiate;
mod orphans;
mod question;
mod record;
mod registry;
mod restore;
mod resume;
mod service;
mod signals;
mod sse;
mod telemetry;
mod transport;
mod verdict;
mod wire;
mod worker;

#[cfg(feature = "cors")]
pub use cors::cors;
pub use fleet::{Drained, FleetHandle, ListChanged, Readiness};
pub use handle::{Replayed, Session};
pub use service::{McpService, ResponseBody};
pub use transport::StreamableHttpTransport;
