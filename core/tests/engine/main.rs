//! The engine over the memory backend, near and far.

mod requests;
mod streams;
mod support;
