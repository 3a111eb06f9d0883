//! The contract where each instance keeps its handle in a process of its own:
//! this program starts itself as its children. What SQLite sees, locks, the
//! shared memory of the log, wake-ups through the file, is between processes.

use std::{
    env,
    process::{Command, ExitCode},
    time::Duration,
};

use mcp_adapter_conformance::{Absent, BoxError, Restart, Suite, process};
use mcp_adapter_core::{Capabilities, Limits};
use mcp_adapter_sqlite::{SqliteOptions, SqliteStorage};

/// The file of a child.
const FILE: &str = "MCP_TEST_FILE";
/// The limits of which a storage knows, in milliseconds.
const OPERATION: &str = "MCP_TEST_OPERATION_MS";
const HEARTBEAT: &str = "MCP_TEST_HEARTBEAT_MS";

fn main() -> ExitCode {
    if let Some(file) = env::var_os(FILE) {
        return process::serve(|| {
            let limits = Limits::builder()
                .operation_timeout(millis(OPERATION)?)
                .heartbeat(millis(HEARTBEAT)?)
                .build()?;
            Ok(SqliteStorage::new(SqliteOptions::new(file).limits(limits))?)
        });
    }
    let folder = match tempfile::tempdir() {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("no folder for the files: {error}");
            return ExitCode::FAILURE;
        }
    };
    let path = folder.path().to_owned();
    let capabilities = Capabilities::server(Duration::from_millis(1));
    // There is no connection that could be cut.
    let suite = Suite::new("sqlite_processes", capabilities)
        .without(Absent::Link)
        .with_restart(Restart::by_handles());
    let exit = suite.certify(move |options| {
        let limits = options.limits();
        let child = child(
            path.join(options.namespace()).as_os_str(),
            limits.operation_timeout(),
            limits.heartbeat(),
        );
        let patience = limits.operation_timeout();
        async move { Ok(process::Remote::start("sqlite", child?, patience).await?) }
    });
    drop(folder);
    exit
}

fn child(
    file: &std::ffi::OsStr,
    operation: Duration,
    heartbeat: Duration,
) -> std::io::Result<Command> {
    let mut child = Command::new(env::current_exe()?);
    child
        .env(FILE, file)
        .env(OPERATION, operation.as_millis().to_string())
        .env(HEARTBEAT, heartbeat.as_millis().to_string());
    Ok(child)
}

fn millis(name: &str) -> Result<Duration, BoxError> {
    Ok(Duration::from_millis(env::var(name)?.parse()?))
}
