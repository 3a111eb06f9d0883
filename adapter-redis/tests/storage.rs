//! The steps of the seam over one server.

mod common;

fn main() -> std::process::ExitCode {
    common::storage_suite("redis", common::Protocol::Resp3)
}
