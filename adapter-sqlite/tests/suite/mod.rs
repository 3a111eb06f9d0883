//! The conformance suite over this adapter: instances are handles of their own
//! on one file.

use std::process::ExitCode;

use mcp_adapter_conformance::{Absent, Restart, Suite};
use mcp_adapter_core::Capabilities;
use mcp_adapter_sqlite::{SqliteAdapter, SqliteOptions};

pub(crate) fn run(name: &'static str, tune: fn(SqliteOptions) -> SqliteOptions) -> ExitCode {
    let folder = match tempfile::tempdir() {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("no folder for the files: {error}");
            return ExitCode::FAILURE;
        }
    };
    let path = folder.path().to_owned();
    let capabilities = Capabilities::server(std::time::Duration::from_millis(1));
    // There is no connection that could be cut.
    let suite = Suite::new(name, capabilities)
        .without(Absent::Link)
        .with_restart(Restart::by_handles());
    let exit = suite.run(move |options| {
        let file = path.join(options.namespace());
        let options = tune(SqliteOptions::new(file).limits(options.limits().clone()));
        async move { Ok(SqliteAdapter::open(options).await?) }
    });
    drop(folder);
    exit
}
