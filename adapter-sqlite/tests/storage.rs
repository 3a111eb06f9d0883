//! The steps of the seam, one by one; each commit waits for the disk.

use std::process::ExitCode;

use mcp_adapter_conformance::run_storage;
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
    let exit = run_storage("sqlite", move |options| {
        let file = path.join(options.namespace());
        let options = SqliteOptions::new(file)
            .limits(options.limits().clone())
            .synchronous(Synchronous::Full);
        async move { Ok(SqliteStorage::new(options)?) }
    });
    drop(folder);
    exit
}
