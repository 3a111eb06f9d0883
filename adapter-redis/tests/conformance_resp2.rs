//! The conformance suite over one server, in RESP2.

mod common;

fn main() -> std::process::ExitCode {
    common::suite("redis_resp2", common::Protocol::Resp2)
}
