//! A Redis server of our own.

use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use super::{ServerError, ask, find};
use crate::faults::{
    Program, Signal, free_port,
    program::{Recipe, own_folder, pause},
};

const MISSING: &str = "there is no Redis server for this test. Install one that provides \
    `redis-server` or `valkey-server` (Debian: apt-get install redis-server), or set \
    MCP_ADAPTER_TEST_REDIS_URL";

/// What it has acknowledged outlives its process.
pub(super) const LOG: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "no"];

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
            if args.contains(&"--sentinel") {
                // It keeps what it knows there.
                let file = folder.join("sentinel.conf");
                let settings = format!("port {port}\nbind 127.0.0.1\ndir {}\n", folder.display());
                std::fs::write(&file, settings).map_err(ServerError::new)?;
                all = vec![file.display().to_string()];
            }
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

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.0.addr()
    }

    /// Sends one command and returns the answer as the server wrote it, for
    /// commands with a short answer. An error of the server is an error.
    ///
    /// # Errors
    /// Where the server does not answer, or refuses.
    pub fn command(&self, words: &[&str]) -> Result<String, ServerError> {
        command(self.addr(), words)
    }

    /// Its process.
    pub fn program(&mut self) -> &mut Program {
        &mut self.0
    }
}

/// Sends one command to a server.
pub(super) fn command(addr: SocketAddr, words: &[&str]) -> Result<String, ServerError> {
    use std::io::{Read, Write};
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    let timeout = Duration::from_secs(10);
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&addr, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = vec![0; 64 << 10];
        let mut read = stream.read(&mut answer)?;
        // A bulk string tells its length.
        loop {
            let text = String::from_utf8_lossy(&answer[..read]);
            let bulk = text
                .strip_prefix('$')
                .and_then(|rest| rest.split_once("\r\n"));
            let Some((length, body)) = bulk else { break };
            if length
                .parse::<usize>()
                .is_ok_and(|length| body.len() < length)
            {
                read += stream.read(&mut answer[read..])?;
            } else {
                break;
            }
        }
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer[..read]).into_owned())
    };
    let answer = ask().map_err(ServerError::new)?;
    match answer.strip_prefix('-') {
        Some(refused) => Err(ServerError::new(refused.trim())),
        None => Ok(answer),
    }
}

pub(super) fn is_ready(addr: SocketAddr) -> bool {
    let mut answer = [0; 7];
    ask(addr, b"PING\r\n", &mut answer).is_ok_and(|read| answer[..read].starts_with(b"+PONG"))
}

/// How long servers may take to agree.
const AGREED: Duration = Duration::from_secs(30);

fn until(what: &str, mut probe: impl FnMut() -> bool) -> Result<(), ServerError> {
    let end = Instant::now() + AGREED;
    while !probe() {
        if Instant::now() > end {
            return Err(ServerError::new(format!("{what}: not within {AGREED:?}")));
        }
        pause(Duration::from_millis(20));
    }
    Ok(())
}

const CLUSTER_NODE: [&str; 6] = [
    "--cluster-enabled",
    "yes",
    "--cluster-node-timeout",
    "2000",
    "--repl-diskless-sync-delay",
    "0",
];

fn start_node() -> Result<Redis, ServerError> {
    Redis::start(&[&CLUSTER_NODE[..], &LOG].concat())
}

/// The name of a node in its Cluster.
fn node_id(node: &Redis) -> Result<String, ServerError> {
    let answer = node.command(&["CLUSTER", "MYID"])?;
    let id = answer.lines().nth(1).map(str::to_owned);
    id.ok_or_else(|| ServerError::new("a node does not tell its id"))
}

/// A Redis Cluster of masters on this machine, each with a share of the slots.
#[derive(Debug)]
pub struct RedisCluster(Vec<Redis>);

impl RedisCluster {
    /// Starts so many masters and waits until they agree.
    ///
    /// # Errors
    /// Where no server is installed, or they do not agree.
    pub fn start(masters: u16) -> Result<Self, ServerError> {
        const SLOTS: u16 = 16_384;
        let mut nodes = Vec::new();
        for _ in 0..masters {
            nodes.push(start_node()?);
        }
        for (number, node) in (0_u16..).zip(&nodes) {
            let first = u32::from(SLOTS) * u32::from(number) / u32::from(masters);
            let next = u32::from(SLOTS) * (u32::from(number) + 1) / u32::from(masters);
            let (first, last) = (first.to_string(), (next - 1).to_string());
            node.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last])?;
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()])?;
        }
        let port = nodes[0].addr().port().to_string();
        for node in &nodes[1..] {
            node.command(&["CLUSTER", "MEET", "127.0.0.1", &port])?;
        }
        let cluster = Self(nodes);
        cluster.wait_until_agreed()?;
        Ok(cluster)
    }

    /// Starts a replica of one of the masters, as the last of the nodes, and waits
    /// until it has all and can take over.
    ///
    /// # Errors
    /// Where it does not start, or the nodes do not agree.
    pub fn add_replica(&mut self, of: usize) -> Result<(), ServerError> {
        let replica = start_node()?;
        let master = &self.0[of];
        let port = master.addr().port().to_string();
        replica.command(&["CLUSTER", "MEET", "127.0.0.1", &port])?;
        let id = node_id(master)?;
        // It has to have heard of its master.
        until("the replica's master", || {
            replica.command(&["CLUSTER", "REPLICATE", &id]).is_ok()
        })?;
        until("the replica", || {
            let info = replica.command(&["INFO", "replication"]);
            info.is_ok_and(|info| info.contains("master_link_status:up"))
        })?;
        caught_up(master)?;
        self.0.push(replica);
        self.wait_until_agreed()
    }

    /// Waits until each node knows all slots and all others.
    ///
    /// # Errors
    /// Where that takes too long.
    pub fn wait_until_agreed(&self) -> Result<(), ServerError> {
        until("the Cluster", || {
            self.0.iter().all(|node| {
                node.command(&["CLUSTER", "INFO"]).is_ok_and(|info| {
                    info.contains("cluster_state:ok")
                        && info.contains(&format!("cluster_known_nodes:{}", self.0.len()))
                })
            })
        })
    }

    /// Waits until the replica of a node has all that the node has by now.
    ///
    /// # Errors
    /// Where that takes too long.
    pub fn wait_until_replicated(&self, node: usize) -> Result<(), ServerError> {
        caught_up(&self.0[node])
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Redis] {
        &self.0
    }

    /// Its nodes, to be stopped and killed.
    pub fn nodes_mut(&mut self) -> &mut [Redis] {
        &mut self.0
    }

    /// Moves a slot with its keys from one node to another, a few keys at a
    /// time, so that commands meet it half moved.
    ///
    /// # Errors
    /// Where a node refuses.
    pub fn move_slot(&self, slot: u16, from: usize, to: usize) -> Result<(), ServerError> {
        let (source, target) = (&self.0[from], &self.0[to]);
        let (source_id, target_id) = (node_id(source)?, node_id(target)?);
        let slot = slot.to_string();
        target.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source_id])?;
        source.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target_id])?;
        let port = target.addr().port().to_string();
        loop {
            let answer = source.command(&["CLUSTER", "GETKEYSINSLOT", &slot, "3"])?;
            let keys: Vec<_> = answer
                .lines()
                .filter(|line| !line.starts_with(['*', '$']))
                .collect();
            if keys.is_empty() {
                break;
            }
            let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            migrate.extend(&keys);
            source.command(&migrate)?;
        }
        for node in [target, source] {
            node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &target_id])?;
        }
        for node in &self.0 {
            node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &target_id])?;
        }
        Ok(())
    }

    /// What an adapter connects to.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.0.iter().map(|node| node.addr().to_string()).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }
}

/// Waits until a replica has acknowledged all that its master has by now. One whose
/// link is up may still get nothing: the master begins with its first report.
fn caught_up(master: &Redis) -> Result<(), ServerError> {
    let info = || master.command(&["INFO", "replication"]);
    let offset_of = |info: &str| field(info, "master_repl_offset:")?.parse::<u64>().ok();
    let wanted = offset_of(&info()?).ok_or_else(|| ServerError::new("no replication offset"))?;
    until("the replica has all", || {
        info().is_ok_and(|info| {
            let replica = field(&info, "slave0:").filter(|slave| slave.contains("state=online"));
            let offset = replica.and_then(|slave| {
                slave
                    .split(',')
                    .find_map(|part| part.strip_prefix("offset="))
            });
            offset.is_some_and(|offset| offset.parse().is_ok_and(|at: u64| at >= wanted))
        })
    })
}

/// The rest of the line that begins with `name`.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::trim)
}

/// A master with a replica, watched by Sentinels, on this machine.
#[derive(Debug)]
pub struct RedisSentinel {
    /// The first master and its replica.
    pub servers: [Redis; 2],
    /// The Sentinels.
    pub sentinels: Vec<Redis>,
}

impl RedisSentinel {
    /// The master's name.
    pub const MASTER: &'static str = "main";

    /// Starts a master, a replica and one Sentinel, and waits until they know
    /// each other.
    ///
    /// # Errors
    /// Where no server is installed, or they do not agree.
    pub fn start() -> Result<Self, ServerError> {
        let master = Redis::start(&["--repl-diskless-sync-delay", "0"])?;
        let port = master.addr().port().to_string();
        let replica = Redis::start(&["--replicaof", "127.0.0.1", &port])?;
        until("the replica", || {
            let info = replica.command(&["INFO", "replication"]);
            info.is_ok_and(|info| info.contains("master_link_status:up"))
        })?;
        caught_up(&master)?;
        let sentinel = Redis::start(&["--sentinel"])?;
        sentinel.command(&["SENTINEL", "MONITOR", Self::MASTER, "127.0.0.1", &port, "1"])?;
        for (name, value) in [
            ("down-after-milliseconds", "5000"),
            ("failover-timeout", "10000"),
        ] {
            sentinel.command(&["SENTINEL", "SET", Self::MASTER, name, value])?;
        }
        until("the Sentinel", || {
            let info = sentinel.command(&["INFO", "sentinel"]);
            info.is_ok_and(|info| info.contains("slaves=1") && info.contains("status=ok"))
        })?;
        Ok(Self {
            servers: [master, replica],
            sentinels: vec![sentinel],
        })
    }

    /// Has the Sentinel make the replica the master, with nothing lost, and waits
    /// until it is and has a replica in turn.
    ///
    /// # Errors
    /// Where that takes too long.
    pub fn fail_over(&self) -> Result<(), ServerError> {
        let before = self.master()?;
        let sentinel = &self.sentinels[0];
        until("the failover begins", || {
            sentinel
                .command(&["SENTINEL", "FAILOVER", Self::MASTER])
                .is_ok()
        })?;
        until("the failover", || {
            let after = self.master();
            after.is_ok_and(|after| after != before)
        })?;
        until("the new replica", || {
            self.servers.iter().any(|server| {
                let info = server.command(&["INFO", "replication"]);
                info.is_ok_and(|info| info.contains("master_link_status:up"))
            })
        })
    }

    /// Waits until the first master's replica has all that the master has by now.
    ///
    /// # Errors
    /// Where that takes too long.
    pub fn wait_until_replicated(&self) -> Result<(), ServerError> {
        caught_up(&self.servers[0])
    }

    /// Where the master is, as the first Sentinel says.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn master(&self) -> Result<SocketAddr, ServerError> {
        let answer =
            self.sentinels[0].command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::MASTER])?;
        let lines: Vec<_> = answer
            .lines()
            .filter(|line| !line.starts_with(['*', '$']))
            .collect();
        let [host, port] = &lines[..] else {
            return Err(ServerError::new("the Sentinel knows no master"));
        };
        format!("{host}:{port}").parse().map_err(ServerError::new)
    }

    /// What an adapter connects to.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self
            .sentinels
            .iter()
            .map(|sentinel| sentinel.addr().to_string())
            .collect();
        format!("redis+sentinel://{}/{}", hosts.join(","), Self::MASTER)
    }
}
