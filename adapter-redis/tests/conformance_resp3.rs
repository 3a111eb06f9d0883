//! The conformance suite over one server, in RESP3.

mod common;

fn main() -> std::process::ExitCode {
    common::suite("redis_resp3", common::Protocol::Resp3)
}
