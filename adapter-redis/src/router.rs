//! Which server has a partition, and what to do where it is another one by now.
//!
//! In Cluster a batch goes to each node in one piece, whatever its slots: the
//! servers judge each command on its own. What was redirected is sent again, and
//! nothing else. While a slot moves, what concerns it waits: the servers refuse
//! each script as a whole, `ASK` is not followed, and the engine repeats.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::future::join_all;
use mcp_adapter_core::{Applied, Error, ErrorKind, Result};
use parking_lot::RwLock;
use redis::{Cmd, ConnectionInfo, Value};

use crate::{
    attached::Attached,
    connect::{Target, connect},
    error::{self, Refusal, refusal},
    keys::{Names, PARTITIONS, Partition, slot},
    options::{at, resp3},
    script::Script,
    server::{Call, Identity, Lane, Node, Settings},
};

/// Times that a command follows redirections.
const ROUNDS: usize = 5;

pub(crate) struct Router {
    pub(crate) settings: Settings,
    pub(crate) names: Names,
    kind: Kind,
}

enum Kind {
    One(Arc<Node>),
    Cluster {
        seeds: Vec<ConnectionInfo>,
        map: RwLock<Arc<Map>>,
        refreshing: tokio::sync::Mutex<()>,
    },
}

/// The masters of a Cluster and the slots of the partitions.
pub(crate) struct Map {
    pub(crate) nodes: Vec<Arc<Node>>,
    of: HashMap<Partition, usize>,
}

impl Router {
    pub(crate) fn one(node: Arc<Node>, prefix: &str, settings: Settings) -> Self {
        Self {
            settings,
            names: Names::new(prefix, false),
            kind: Kind::One(node),
        }
    }

    pub(crate) async fn cluster(
        seeds: Vec<ConnectionInfo>,
        prefix: &str,
        settings: Settings,
    ) -> Result<Self> {
        let names = Names::new(prefix, true);
        let seeds: Vec<_> = seeds.iter().map(resp3).collect();
        let map = discover(&seeds, &[], &names, &settings).await?;
        Ok(Self {
            settings,
            names,
            kind: Kind::Cluster {
                seeds,
                map: RwLock::new(Arc::new(map)),
                refreshing: tokio::sync::Mutex::new(()),
            },
        })
    }

    /// The servers that have partitions.
    pub(crate) fn nodes(&self) -> Vec<Arc<Node>> {
        match &self.kind {
            Kind::One(node) => vec![Arc::clone(node)],
            Kind::Cluster { map, .. } => map.read().nodes.clone(),
        }
    }

    pub(crate) fn node(&self, partition: Partition) -> Arc<Node> {
        match &self.kind {
            Kind::One(node) => Arc::clone(node),
            Kind::Cluster { map, .. } => {
                let map = map.read();
                let index = map.of.get(&partition).copied().unwrap_or(0);
                Arc::clone(&map.nodes[index])
            }
        }
    }

    /// Tells servers apart while the map is the same.
    pub(crate) fn index_of(&self, partition: Partition) -> usize {
        match &self.kind {
            Kind::One(_) => 0,
            Kind::Cluster { map, .. } => map.read().of.get(&partition).copied().unwrap_or(0),
        }
    }

    /// The partitions of a server.
    pub(crate) fn partitions_of(&self, node: &Arc<Node>) -> Vec<Partition> {
        Partition::all()
            .filter(|partition| Arc::ptr_eq(&self.node(*partition), node))
            .collect()
    }

    /// Asks who has which slots.
    pub(crate) async fn refresh(&self) -> Result<()> {
        let Kind::Cluster {
            seeds,
            map,
            refreshing,
        } = &self.kind
        else {
            return Ok(());
        };
        let before = Arc::clone(&map.read());
        let _one = refreshing.lock().await;
        if !Arc::ptr_eq(&before, &map.read()) {
            return Ok(()); // somebody else was faster
        }
        let found = discover(seeds, &before.nodes, &self.names, &self.settings).await?;
        *map.write() = Arc::new(found);
        metrics::counter!("mcp_adapter_redis_topology_refreshed_total").increment(1);
        Ok(())
    }

    /// Runs commands, each at its server, and returns an answer to each, in
    /// order. An answer may be an error of the server.
    pub(crate) async fn run(
        &self,
        lane: Lane,
        operation: &'static str,
        calls: Vec<Call>,
    ) -> Result<Vec<Value>> {
        self.run_at(None, lane, operation, calls).await
    }

    /// As [`run`](Self::run), but only at servers that are attached.
    pub(crate) async fn run_known(
        &self,
        known: &Attached,
        lane: Lane,
        operation: &'static str,
        calls: Vec<Call>,
    ) -> Result<Vec<Value>> {
        self.run_at(Some(known), lane, operation, calls).await
    }

    async fn run_at(
        &self,
        known: Option<&Attached>,
        lane: Lane,
        operation: &'static str,
        mut calls: Vec<Call>,
    ) -> Result<Vec<Value>> {
        let (mut answers, mut left, mut load);
        if let Kind::One(node) = &self.kind {
            // Nothing is redirected here: only scripts may be sent again.
            let build = |generation| {
                let mut pipeline = redis::Pipeline::with_capacity(calls.len());
                for call in &mut calls {
                    pipeline.add_command(match call.script {
                        Some(_) => call.command(generation),
                        None => call.command.take(),
                    });
                }
                pipeline
            };
            answers = node
                .send(lane, &self.settings, operation, known, build)
                .await?;
            if answers.len() != calls.len() {
                return Err(error::odd(operation));
            }
            let forgotten = |answer: &Value| {
                matches!(answer, Value::ServerError(refused)
                    if refusal(refused) == Refusal::NoScript)
            };
            let numbered = answers.iter().enumerate();
            left = numbered
                .filter(|(_, answer)| forgotten(answer))
                .map(|(index, _)| index)
                .collect::<Vec<_>>();
            if left.is_empty() {
                return Ok(answers);
            }
            load = true;
        } else {
            answers = vec![Value::Nil; calls.len()];
            left = (0..calls.len()).collect();
            load = false;
        }
        let calls = &calls[..];
        for round in 0..ROUNDS {
            let batches = self.batches(calls, &left);
            let sent = batches.into_iter().map(|(node, indexes)| async move {
                let build = |generation| self.pipeline(calls, &indexes, load, generation);
                let sent = node
                    .send(lane, &self.settings, operation, known, build)
                    .await;
                let last =
                    |mut all: Vec<Value>| all.split_off(all.len().saturating_sub(indexes.len()));
                let sent = sent.map(last);
                (indexes, sent)
            });
            let results = join_all(sent).await;
            left.clear();
            let (mut moved, mut failed) = (false, None);
            for (indexes, result) in results {
                let values = match result {
                    Ok(values) if values.len() == indexes.len() => values,
                    Ok(_) => {
                        failed = Some(error::odd(operation));
                        continue;
                    }
                    Err(error) => {
                        failed = Some(error);
                        continue;
                    }
                };
                for (index, value) in indexes.into_iter().zip(values) {
                    let why = match &value {
                        Value::ServerError(refused) => refusal(refused),
                        _ => Refusal::Other,
                    };
                    match why {
                        Refusal::NoScript => {
                            load = true;
                            left.push(index);
                        }
                        Refusal::Moved => {
                            moved = true;
                            left.push(index);
                        }
                        Refusal::NotMaster | Refusal::Position | Refusal::Other => {
                            answers[index] = value;
                        }
                    }
                }
            }
            if let Some(failed) = failed {
                if self.names.cluster && failed.kind() != ErrorKind::Corrupt {
                    // It may have failed over.
                    let _ = self.refresh().await;
                }
                return Err(failed);
            }
            if moved {
                self.refresh().await?;
            }
            if left.is_empty() {
                return Ok(answers);
            }
            if moved && round > 0 {
                // The servers do not agree yet.
                tokio::time::sleep(Duration::from_millis(20 << round)).await;
            }
            left.sort_unstable();
        }
        Err(Error::unavailable(operation, Applied::Unknown)
            .with_message("the servers do not agree on who has the slot"))
    }

    fn batches(&self, calls: &[Call], left: &[usize]) -> Vec<(Arc<Node>, Vec<usize>)> {
        match &self.kind {
            Kind::One(node) => vec![(Arc::clone(node), left.to_vec())],
            Kind::Cluster { map, .. } => {
                let map = Arc::clone(&map.read());
                let mut batches: Vec<Vec<usize>> = vec![Vec::new(); map.nodes.len()];
                for index in left {
                    let node = map.of.get(&calls[*index].partition).copied();
                    batches[node.unwrap_or(0)].push(*index);
                }
                let nodes = map.nodes.iter().cloned().zip(batches);
                nodes.filter(|(_, batch)| !batch.is_empty()).collect()
            }
        }
    }

    fn pipeline(
        &self,
        calls: &[Call],
        indexes: &[usize],
        load: bool,
        generation: [u8; 8],
    ) -> redis::Pipeline {
        let mut pipeline = redis::Pipeline::with_capacity(indexes.len());
        if load {
            let mut scripts: Vec<Script> = Vec::new();
            for script in indexes.iter().filter_map(|index| calls[*index].script) {
                if !scripts.contains(&script) {
                    scripts.push(script);
                    pipeline
                        .cmd("SCRIPT")
                        .arg("LOAD")
                        .arg(&script.source().text);
                }
            }
        }
        for index in indexes {
            pipeline.add_command(calls[*index].command(generation));
        }
        pipeline
    }

    /// As [`run`](Self::run), of one command; an error of the server is one.
    pub(crate) async fn one_answer(&self, operation: &'static str, call: Call) -> Result<Value> {
        let lane = if call.generation {
            Lane::Control
        } else {
            Lane::Pool
        };
        let mut answers = self.all(lane, operation, vec![call]).await?;
        answers.pop().ok_or_else(|| error::odd(operation))
    }

    /// As [`run`](Self::run); an error of the server to one is one of all.
    pub(crate) async fn all(
        &self,
        lane: Lane,
        operation: &'static str,
        calls: Vec<Call>,
    ) -> Result<Vec<Value>> {
        let answers = self.run(lane, operation, calls).await?;
        for answer in &answers {
            if let Value::ServerError(refused) = answer {
                return Err(error::server(operation, refused));
            }
        }
        Ok(answers)
    }

    /// Who serves the store, over connections that were tried just now.
    pub(crate) async fn identify(&self) -> Result<Vec<Identity>> {
        // Only at the start and where the link was in doubt: another node may
        // be the master by now.
        self.refresh().await?;
        let nodes = self.nodes();
        let all = nodes.iter().map(|node| node.identify(&self.settings));
        join_all(all).await.into_iter().collect()
    }

    /// A call of a script, its first arguments and its root key given.
    pub(crate) fn script(&self, script: Script, partition: Partition, key: &str) -> Call {
        let mut command = Cmd::new();
        command.arg("EVALSHA").arg(&script.source().hash);
        if self.names.cluster {
            let never = self.names.of(partition, "-");
            command.arg(2).arg(key).arg(never).arg("c");
        } else {
            command.arg(1).arg(key).arg("s");
        }
        Call {
            partition,
            command,
            script: Some(script),
            generation: false,
        }
    }
}

impl Call {
    fn command(&self, generation: [u8; 8]) -> Cmd {
        let mut command = self.command.clone();
        if self.generation {
            command.arg(&generation);
        }
        command
    }
}

/// Asks the nodes that are known, and then the seeds, for the map of the slots.
async fn discover(
    seeds: &[ConnectionInfo],
    known: &[Arc<Node>],
    names: &Names,
    settings: &Settings,
) -> Result<Map> {
    let mut last = None;
    for node in known {
        let ask = |_| {
            let mut ask = redis::pipe();
            ask.cmd("CLUSTER").arg("SLOTS");
            ask
        };
        let asked = node
            .send(Lane::Control, settings, "cluster", None, ask)
            .await;
        match asked.and_then(|mut all| map_of(all.pop(), seeds, known, names, settings)) {
            Ok(map) => return Ok(map),
            Err(error) => last = Some(error),
        }
    }
    for seed in seeds {
        let asked = async {
            let conn = connect(&Target::Server(seed.clone()), settings).await?;
            let mut ask = redis::pipe();
            ask.cmd("CLUSTER").arg("SLOTS");
            let mut all = conn
                .send(&ask)
                .await
                .map_err(|error| error::link("cluster", error))?;
            map_of(all.pop(), seeds, known, names, settings)
        };
        match asked.await {
            Ok(map) => return Ok(map),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| error::unusable("a Cluster needs at least one node")))
}

fn map_of(
    answer: Option<Value>,
    seeds: &[ConnectionInfo],
    known: &[Arc<Node>],
    names: &Names,
    settings: &Settings,
) -> Result<Map> {
    if let Some(Value::ServerError(refused)) = &answer {
        return Err(error::server("cluster", refused));
    }
    let odd = || error::odd("cluster").with_applied(Applied::No);
    let seed = seeds.first().ok_or_else(odd)?;
    let ranges = answer.and_then(|answer| answer.into_sequence().ok());
    let mut nodes: Vec<Arc<Node>> = Vec::new();
    let mut slots: Vec<(u16, u16, usize)> = Vec::new();
    for range in ranges.ok_or_else(odd)? {
        let parts = range.into_sequence().map_err(|_| odd())?;
        let [first, last, master, ..] = &parts[..] else {
            return Err(odd());
        };
        let number = |value: &Value| redis::from_redis_value_ref::<u16>(value).ok();
        let master = master.as_sequence().ok_or_else(odd)?;
        let [host, port, ..] = master else {
            return Err(odd());
        };
        let host: Option<String> = redis::from_redis_value_ref(host).ok();
        // A server that does not know its own address means the one asked.
        let host = host
            .filter(|host| !host.is_empty())
            .unwrap_or_else(|| match seed.addr() {
                redis::ConnectionAddr::Tcp(host, _) => host.to_string(),
                redis::ConnectionAddr::TcpTls { host, .. } => host.to_string(),
                _ => String::new(),
            });
        let (Some(first), Some(last), Some(port)) = (number(first), number(last), number(port))
        else {
            return Err(odd());
        };
        let name = (host, port);
        let index = match nodes.iter().position(|node| node.name == name) {
            Some(index) => index,
            None => {
                let same = known.iter().find(|node| node.name == name);
                nodes.push(same.map_or_else(
                    || {
                        let info = at(seed, settings.map(&name.0, name.1));
                        Node::new(Target::Server(info), name.clone())
                    },
                    Arc::clone,
                ));
                nodes.len() - 1
            }
        };
        slots.push((first, last, index));
    }
    let mut of = HashMap::with_capacity(usize::from(PARTITIONS) + 2);
    for partition in Partition::all().chain([Partition::Beats, Partition::Check]) {
        let slot = slot(&names.tag(partition));
        let node = slots
            .iter()
            .find(|(first, last, _)| (*first..=*last).contains(&slot));
        let (_, _, index) = node.ok_or_else(|| {
            Error::unavailable("cluster", Applied::No)
                .with_message("the Cluster does not cover all slots")
        })?;
        of.insert(partition, *index);
    }
    Ok(Map { nodes, of })
}
