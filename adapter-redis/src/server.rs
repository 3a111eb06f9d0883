//! Connections of a server: opened when they are needed, and replaced when they are
//! broken or silent.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use mcp_adapter_core::{Applied, Error, Result};
use parking_lot::RwLock;
use redis::{AsyncConnectionConfig, Cmd, RedisError, Value, aio::MultiplexedConnection};
use tokio::time::Instant;

use crate::{
    attached::Attached,
    connect::{Target, connect},
    error,
    options::AddressMap,
    script,
};

/// How connections are opened.
#[derive(Clone)]
pub(crate) struct Settings {
    /// A server that is silent for so long is given up.
    pub(crate) patience: Duration,
    pub(crate) connect: Duration,
    pub(crate) map: Option<Arc<AddressMap>>,
}

impl Settings {
    pub(crate) fn map(&self, host: &str, port: u16) -> (String, u16) {
        match &self.map {
            Some(map) => map(host, port),
            None => (host.to_owned(), port),
        }
    }

    pub(crate) fn config(&self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect))
            .set_response_timeout(Some(self.patience))
            .set_pipeline_buffer_size(1024)
            .set_write_backpressure_boundary(256 << 10)
    }
}

/// What a server says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// Names this run of this server's process.
    pub(crate) run: Arc<str>,
    /// The first bytes of it, as scripts get it.
    pub(crate) generation: [u8; 8],
    pub(crate) master: bool,
    pub(crate) cluster: bool,
    pub(crate) version: String,
    pub(crate) recent: bool,
    pub(crate) eviction: String,
}

impl Identity {
    pub(crate) fn read(info: &str) -> Option<Self> {
        let field = |name: &str| {
            info.lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.trim())
        };
        let run = field("run_id")?;
        let mut generation = [0; 8];
        for (place, byte) in generation.iter_mut().zip(run.bytes()) {
            *place = byte;
        }
        let redis = field("redis_version").unwrap_or("0");
        let (name, version) = match field("valkey_version") {
            Some(version) => ("Valkey", version),
            None => ("Redis", redis),
        };
        let major = version.split('.').next()?.parse::<u32>().ok()?;
        Some(Self {
            run: run.into(),
            generation,
            master: field("role") == Some("master"),
            cluster: field("cluster_enabled") == Some("1"),
            version: format!("{name} {version}"),
            recent: major >= 7,
            eviction: field("maxmemory_policy").unwrap_or_default().to_owned(),
        })
    }
}

/// One connection, to one run of one server.
#[derive(Clone)]
pub(crate) struct Conn(Arc<Inner>);

struct Inner {
    mux: MultiplexedConnection,
    identity: Identity,
    broken: AtomicBool,
    opened: Instant,
    /// Since when nothing has come back although something was asked, in
    /// milliseconds after `opened` plus one; 0 where nothing is outstanding.
    silent: AtomicU64,
}

impl Conn {
    pub(crate) fn new(mux: MultiplexedConnection, identity: Identity) -> Self {
        Self(Arc::new(Inner {
            mux,
            identity,
            broken: AtomicBool::new(false),
            opened: Instant::now(),
            silent: AtomicU64::new(0),
        }))
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.0.identity
    }

    fn is_usable(&self, patience: Duration) -> bool {
        let silent = self.0.silent.load(Ordering::Relaxed);
        let quiet =
            silent != 0 && self.0.opened.elapsed() >= Duration::from_millis(silent) + patience;
        !quiet && !self.0.broken.load(Ordering::Relaxed)
    }

    /// It will not be used again.
    pub(crate) fn give_up(&self) {
        self.0.broken.store(true, Ordering::Relaxed);
    }

    /// Sends commands in one piece and returns an answer to each. Callers may
    /// stop waiting: then the silence goes on until somebody gets an answer.
    pub(crate) async fn send(&self, commands: &redis::Pipeline) -> Result<Vec<Value>, RedisError> {
        let now = u64::try_from(self.0.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        let _ = self.0.silent.compare_exchange(
            0,
            now.saturating_add(1),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        let mut mux = self.0.mux.clone();
        let answer = mux.send_packed_commands(commands, 0, commands.len()).await;
        match &answer {
            Ok(_) => self.0.silent.store(0, Ordering::Relaxed),
            Err(_) => self.give_up(),
        }
        answer
    }
}

/// One connection at a time, opened by whoever needs it first.
pub(crate) struct Slot {
    current: RwLock<Option<Conn>>,
    opening: tokio::sync::Mutex<()>,
}

impl Slot {
    fn new() -> Self {
        Self {
            current: RwLock::new(None),
            opening: tokio::sync::Mutex::new(()),
        }
    }

    fn usable(&self, patience: Duration) -> Option<Conn> {
        let current = self.current.read();
        current
            .as_ref()
            .filter(|conn| conn.is_usable(patience))
            .cloned()
    }

    async fn get(&self, target: &Target, settings: &Settings) -> Result<Conn> {
        if let Some(conn) = self.usable(settings.patience) {
            return Ok(conn);
        }
        let _opening = self.opening.lock().await;
        if let Some(conn) = self.usable(settings.patience) {
            return Ok(conn);
        }
        let conn = connect(target, settings).await?;
        *self.current.write() = Some(conn.clone());
        Ok(conn)
    }
}

/// What a connection is for: large pages must not hold up appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Appends.
    Data,
    /// Everything else.
    Control,
    /// The same, where the run of the server does not matter: over the
    /// application's pool, if there is one.
    Pool,
}

/// A server and the connections of this instance to it.
pub(crate) struct Node {
    pub(crate) target: Target,
    /// Host and port, as the Cluster names it.
    pub(crate) name: (String, u16),
    data: Slot,
    control: Slot,
    #[cfg(feature = "pool")]
    pool: Option<deadpool_redis::Pool>,
}

impl Node {
    pub(crate) fn new(target: Target, name: (String, u16)) -> Arc<Self> {
        Arc::new(Self {
            target,
            name,
            data: Slot::new(),
            control: Slot::new(),
            #[cfg(feature = "pool")]
            pool: None,
        })
    }

    #[cfg(feature = "pool")]
    pub(crate) fn with_pool(target: Target, pool: deadpool_redis::Pool) -> Arc<Self> {
        Arc::new(Self {
            target,
            name: (String::new(), 0),
            data: Slot::new(),
            control: Slot::new(),
            pool: Some(pool),
        })
    }

    pub(crate) async fn conn(&self, lane: Lane, settings: &Settings) -> Result<Conn> {
        let slot = match lane {
            Lane::Data => &self.data,
            Lane::Control | Lane::Pool => &self.control,
        };
        slot.get(&self.target, settings).await
    }

    /// Sends commands in one piece; they may name the run of the server that
    /// they are sent to, for a connection never leads to another one. `known`: only
    /// to one of these.
    pub(crate) async fn send(
        &self,
        lane: Lane,
        settings: &Settings,
        operation: &'static str,
        known: Option<&Attached>,
        commands: impl FnOnce([u8; 8]) -> redis::Pipeline,
    ) -> Result<Vec<Value>> {
        #[cfg(feature = "pool")]
        if let (Some(pool), Lane::Pool) = (&self.pool, lane) {
            let commands = &commands([0; 8]);
            let timeout = settings.patience;
            let sent = tokio::time::timeout(timeout, async {
                let mut conn = pool.get().await.map_err(|error| {
                    Error::unavailable(operation, Applied::No).with_source(error)
                })?;
                let sent = conn.send_packed_commands(commands, 0, commands.len()).await;
                sent.map_err(|error| error::link(operation, error))
            });
            return sent.await.unwrap_or_else(|_| {
                Err(Error::new(mcp_adapter_core::ErrorKind::Timeout, operation)
                    .with_applied(Applied::Unknown))
            });
        }
        let conn = self.conn(lane, settings).await?;
        if known.is_some_and(|known| !known.knows(conn.identity())) {
            return Err(Error::unavailable(operation, Applied::No)
                .with_message("the server is another one than before"));
        }
        let answers = conn.send(&commands(conn.identity().generation)).await;
        let answers = answers.map_err(|error| error::link(operation, error))?;
        let demoted = |answer: &Value| {
            matches!(answer, Value::ServerError(refused)
                if error::refusal(refused) == error::Refusal::NotMaster)
        };
        if answers.iter().any(demoted) {
            conn.give_up();
        }
        Ok(answers)
    }

    /// Asks who is there, over the connections that are in use.
    pub(crate) async fn identify(&self, settings: &Settings) -> Result<Identity> {
        let mut ask = redis::pipe();
        ask.cmd("INFO").arg("replication");
        let mut identity = None;
        for lane in [Lane::Control, Lane::Data] {
            let conn = self.conn(lane, settings).await?;
            let answers = conn.send(&ask).await;
            let answers = answers.map_err(|error| error::link("attach", error))?;
            let role: String = answers
                .into_iter()
                .next()
                .and_then(|answer| redis::from_redis_value(answer).ok())
                .unwrap_or_default();
            if !role.contains("role:master") {
                conn.give_up();
                return Err(Error::unavailable("attach", Applied::No)
                    .with_message("the server is a replica by now"));
            }
            identity = Some(conn.identity().clone());
        }
        identity.ok_or_else(|| error::odd("attach"))
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").finish_non_exhaustive()
    }
}

/// A command and the partition that it goes to.
pub(crate) struct Call {
    pub(crate) partition: crate::keys::Partition,
    pub(crate) command: Cmd,
    /// Loaded again where the server has forgotten it.
    pub(crate) script: Option<script::Script>,
    /// Its last argument is the generation of the server that it is sent to.
    pub(crate) generation: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_tell_who_they_are() {
        let redis = "redis_version:7.0.15\r\nrun_id:0123456789abcdef\r\nrole:master\r\ncluster_enabled:0\r\n";
        let redis = Identity::read(redis).unwrap();
        assert_eq!(&redis.generation, b"01234567");
        assert!(redis.recent && redis.master && !redis.cluster);
        let valkey = "redis_version:7.2.4\nvalkey_version:8.1.0\nrun_id:f\nrole:slave\n";
        let valkey = Identity::read(valkey).unwrap();
        assert_eq!(valkey.version, "Valkey 8.1.0");
        assert!(!valkey.master);
        assert!(
            !Identity::read("redis_version:6.2.1\nrun_id:f\n")
                .unwrap()
                .recent
        );
        assert!(Identity::read("").is_none());
    }
}
