//! Both suites over the memory backend, as a third party runs them.

use mcp_adapter_core::Capabilities;
use mcp_adapter_memory::MemoryStorage;

fn main() -> std::process::ExitCode {
    mcp_adapter_conformance::certify("memory", Capabilities::in_process(), |options| async move {
        Ok(options.store(MemoryStorage::new))
    })
}
