//! The steps of the seam, one by one; each commit waits for the disk.

use std::process::ExitCode;

use mcp_adapter_conformance::{Restart, Suite};
use mcp_adapter_core::Capabilities;
use mcp_adapter_sqlite::{SqliteOptions, SqliteStorage, Synchronous};

fn main() -> ExitCode {
    let folder = match tempfile::tempdir() {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("no folder for the files: {error}");
            return ExitCode::FAILURE;
        }
    };
    let path = folder.path().to_owned();
    let capabilities = Capabilities::server(std::time::Duration::from_millis(1));
    let suite = Suite::new("sqlite", capabilities).with_restart(Restart::by_handles());
    let exit = suite.run_storage(move |options| {
        let file = path.join(options.namespace());
        let options = SqliteOptions::new(file)
            .limits(options.limits().clone())
            .synchronous(Synchronous::Full);
        async move { Ok(SqliteStorage::new(options)?) }
    });
    drop(folder);
    exit
}
