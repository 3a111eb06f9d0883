//! The engine over the memory backend, near and far.

mod failures;
mod holds;
mod listeners;
mod requests;
mod shards;
mod streams;
mod support;
