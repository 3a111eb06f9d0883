//! A Redis server of our own.

use std::net::SocketAddr;

use super::{ServerError, ask, find};
use crate::faults::{
    Program, Signal, free_port,
    program::{Recipe, own_folder},
};

const MISSING: &str = "there is no Redis server for this test. Install one that provides \
    `redis-server` or `valkey-server` (Debian: apt-get install redis-server), or set \
    MCP_ADAPTER_TEST_REDIS_URL";

/// A `redis-server` of this machine, on a free port, with a folder of its own.
/// It writes nothing to disk unless it is told to.
#[derive(Debug)]
pub struct Redis(Program);

impl Redis {
    /// Starts one with further arguments, such as `["--appendonly", "yes"]`.
    ///
    /// # Errors
    /// Where none is installed, or it does not start.
    pub fn start(args: &[&str]) -> Result<Self, ServerError> {
        let program = find("redis-server", &[]).or_else(|| find("valkey-server", &[]));
        let program = program.ok_or_else(|| ServerError::new(MISSING))?;
        let mut last = None;
        // Somebody may take the port in between.
        for _ in 0..3 {
            let port = free_port().map_err(ServerError::new)?;
            let folder = own_folder("redis", None).map_err(ServerError::new)?;
            let mut all = vec![
                "--port".to_owned(),
                port.to_string(),
                "--bind".into(),
                "127.0.0.1".into(),
                "--dir".into(),
                folder.display().to_string(),
                "--save".into(),
                String::new(),
            ];
            all.extend(args.iter().map(|arg| (*arg).to_owned()));
            let recipe = Recipe {
                name: "redis-server",
                program: program.clone(),
                args: all,
                user: None,
                stop: Signal::Terminate,
                is_ready,
            };
            match Program::start(recipe, folder, port) {
                Ok(program) => return Ok(Self(program)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| ServerError::new(MISSING), ServerError::new))
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.0.addr())
    }

    /// Its process.
    pub fn program(&mut self) -> &mut Program {
        &mut self.0
    }
}

fn is_ready(addr: SocketAddr) -> bool {
    let mut answer = [0; 7];
    ask(addr, b"PING\r\n", &mut answer).is_ok_and(|read| answer[..read].starts_with(b"+PONG"))
}
