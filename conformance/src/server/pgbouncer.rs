//! A pooler of our own between clients and a Postgres server.

use std::{fs, net::SocketAddr, os::unix::fs::chown, path::PathBuf};

use super::{ServerError, find, postgres};
use crate::faults::{
    Program, Signal, free_port,
    program::{Recipe, own_folder},
};

const MISSING: &str = "there is no PgBouncer for this test. Install it (Debian: apt-get install \
    pgbouncer)";

/// A `pgbouncer` of this machine in transaction mode, on a free port, with a folder
/// of its own.
#[derive(Debug)]
pub struct PgBouncer(Program);

impl PgBouncer {
    /// Starts one before the server at `server`, with further settings, such as
    /// `["ignore_startup_parameters = extra_float_digits"]`.
    ///
    /// # Errors
    /// Where none is installed, or it does not start.
    pub fn start(server: SocketAddr, settings: &[&str]) -> Result<Self, ServerError> {
        let program = find("pgbouncer", &[PathBuf::from("/usr/sbin")]);
        let program = program.ok_or_else(|| ServerError::new(MISSING))?;
        // It does not run as root, either.
        let user = postgres::unprivileged()?;
        let mut last = None;
        // Somebody may take the port in between.
        for _ in 0..3 {
            let port = free_port().map_err(ServerError::new)?;
            let folder = own_folder("pgbouncer", user).map_err(ServerError::new)?;
            let users = folder.join("users.txt");
            let config = folder.join("pgbouncer.ini");
            let (host, upstream) = (server.ip(), server.port());
            let text = format!(
                "[databases]\n* = host={host} port={upstream}\n[pgbouncer]\n\
                 listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
                 auth_type = trust\nauth_file = {}\npool_mode = transaction\n\
                 max_client_conn = 2000\ndefault_pool_size = 20\n{}\n",
                users.display(),
                settings.join("\n"),
            );
            let write = |file: &PathBuf, text: &str| {
                fs::write(file, text)?;
                user.map_or(Ok(()), |user| chown(file, Some(user.uid), Some(user.gid)))
            };
            write(&users, "\"postgres\" \"\"\n")
                .and_then(|()| write(&config, &text))
                .map_err(ServerError::new)?;
            let recipe = Recipe {
                name: "pgbouncer",
                program: program.clone(),
                args: vec![config.display().to_string()],
                user,
                stop: Signal::Terminate,
                is_ready: postgres::is_ready,
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
