//! The steps of the seam over one server, in RESP2.

mod common;

fn main() -> std::process::ExitCode {
    common::storage_suite("redis_resp2", common::Protocol::Resp2)
}
