//! A Postgres server of our own.

use std::{
    fs,
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{ServerError, ask, find};
use crate::faults::{
    Program, Signal, free_port,
    program::{Recipe, User, own_folder},
};

const MISSING: &str = "there is no Postgres server for this test. Install one that provides \
    `initdb` and `postgres` (Debian: apt-get install postgresql), or set \
    MCP_ADAPTER_TEST_POSTGRES_URL";

/// A `postgres` of this machine, on a free port, with a cluster of its own. By
/// default it does not wait for the disk.
#[derive(Debug)]
pub struct Postgres(Program);

impl Postgres {
    /// Starts one with further settings, such as `["fsync=on"]`.
    ///
    /// # Errors
    /// Where none is installed, or it does not start.
    pub fn start(settings: &[&str]) -> Result<Self, ServerError> {
        let versions = versions();
        let initdb = find("initdb", &versions).ok_or_else(|| ServerError::new(MISSING))?;
        // Of the same version, wherever links lead.
        let initdb = fs::canonicalize(initdb).map_err(ServerError::new)?;
        let postgres = initdb.with_file_name("postgres");
        let user = unprivileged()?;
        let mut last = None;
        // Somebody may take the port in between.
        for _ in 0..3 {
            let port = free_port().map_err(ServerError::new)?;
            let folder = own_folder("postgres", user).map_err(ServerError::new)?;
            let data = folder.join("data");
            if let Err(error) = init(&initdb, &data, user) {
                let _ = fs::remove_dir_all(&folder);
                return Err(error);
            }
            let mut args = vec![
                "-D".to_owned(),
                data.display().to_string(),
                "-p".into(),
                port.to_string(),
            ];
            let own = [
                "listen_addresses=127.0.0.1",
                "unix_socket_directories=",
                "max_connections=300",
                "fsync=off",
                "synchronous_commit=on",
                "full_page_writes=off",
                "max_prepared_transactions=0",
                "wal_level=minimal",
                "max_wal_senders=0",
            ];
            for setting in own.iter().chain(settings) {
                args.extend(["-c".to_owned(), (*setting).to_owned()]);
            }
            let recipe = Recipe {
                name: "postgres",
                program: postgres.clone(),
                args,
                user,
                stop: Signal::Interrupt,
                is_ready,
            };
            match Program::start(recipe, folder, port) {
                Ok(program) => return Ok(Self(program)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| ServerError::new(MISSING), ServerError::new))
    }

    /// Its URL; the user `postgres` needs no password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.0.addr())
    }

    /// Its process.
    pub fn program(&mut self) -> &mut Program {
        &mut self.0
    }
}

/// Where Debian has its versions, the newest first.
fn versions() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/usr/lib/postgresql") else {
        return Vec::new();
    };
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((version(&path)?, path.join("bin")))
        })
        .collect();
    found.sort_unstable_by(|one, other| other.cmp(one));
    found.into_iter().map(|(_, path)| path).collect()
}

/// Postgres does not run as root: then it runs as the user `postgres`.
pub(super) fn unprivileged() -> Result<Option<User>, ServerError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").map_err(ServerError::new)?;
    let fields = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&"postgres"));
    let id = |at: usize| fields.as_ref()?.get(at)?.parse().ok();
    match (id(2), id(3)) {
        (Some(uid), Some(gid)) => Ok(Some(User { uid, gid })),
        _ => Err(ServerError::new(
            "Postgres does not run as root, and there is no user `postgres` to run it as",
        )),
    }
}

fn init(initdb: &Path, data: &Path, user: Option<User>) -> Result<(), ServerError> {
    let mut command = Command::new(initdb);
    command
        .arg("--pgdata")
        .arg(data)
        .args(["--username=postgres", "--auth=trust", "--encoding=UTF8"])
        .args(["--no-locale", "--no-sync"])
        .current_dir("/")
        .stdin(Stdio::null());
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    let output = command.output().map_err(ServerError::new)?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(ServerError::new(format!("initdb failed: {text}")))
}

/// A start-up packet of protocol 3.0; a server that is not ready answers with an
/// error, one that is with `R`, the authentication.
pub(super) fn is_ready(addr: SocketAddr) -> bool {
    const PARAMETERS: &[u8] = b"user\0postgres\0database\0postgres\0\0";
    let mut packet = Vec::new();
    let length = u32::try_from(PARAMETERS.len() + 8).unwrap_or(0);
    packet.extend(length.to_be_bytes());
    packet.extend(196_608_u32.to_be_bytes());
    packet.extend(PARAMETERS);
    let mut answer = [0; 1];
    ask(addr, &packet, &mut answer).is_ok_and(|read| answer[..read] == *b"R")
}
