//! The suite of the storage seam over the memory backend.

use mcp_adapter_memory::MemoryStorage;

fn main() -> std::process::ExitCode {
    mcp_adapter_conformance::run_storage("memory", |options| async move {
        Ok(options.store(MemoryStorage::new))
    })
}
