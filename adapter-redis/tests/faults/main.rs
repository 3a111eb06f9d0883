//! Faults of servers and links, under load. Each test has a server of its own,
//! and checks the history of what was written, read, asked and answered.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod cluster;
mod connections;
mod load;
mod memory;
mod outages;
mod rights;
mod sentinel;
