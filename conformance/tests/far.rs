//! The suite over the memory backend behind a link that can be cut: the lanes,
//! the repeats and the outages of a backend that is far away.

use std::time::Duration;

use mcp_adapter_conformance::{Restart, Suite, faults::Far};
use mcp_adapter_core::{Capabilities, Engine};
use mcp_adapter_memory::MemoryStorage;

fn main() -> std::process::ExitCode {
    // The store outlives all instances; the end of this process it does not.
    let capabilities = Capabilities::server(Duration::from_millis(1));
    let suite = Suite::new("far", capabilities);
    let suite = suite.with_restart(Restart::none("the store is in this process"));
    suite.run(|options| async move {
        let storage = Far::new(options.store(MemoryStorage::new), options.link());
        Ok(Engine::new(storage, options.limits().clone()))
    })
}
