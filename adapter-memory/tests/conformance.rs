//! The conformance suite over this adapter.

use std::process::ExitCode;

use mcp_adapter_core::Capabilities;
use mcp_adapter_memory::MemoryAdapter;

fn main() -> ExitCode {
    mcp_adapter_conformance::run("memory", Capabilities::in_process(), |options| async move {
        let store = options.store(|| MemoryAdapter::new(options.limits().clone()));
        Ok(store.instance())
    })
}
