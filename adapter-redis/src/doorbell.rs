//! The wake-up link: one connection, or one to each master of a Cluster.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use mcp_adapter_core::{Applied, Error, ErrorKind, InstanceId, Result, storage::Knock};
use redis::{Client, ConnectionInfo, ProtocolVersion, PushInfo, PushKind, Value};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    connect::greet,
    error,
    keys::Partition,
    server::{Lane, Node},
    storage::RedisStorage,
    value::bytes,
    wire,
};

const OPERATION: &str = "doorbell";
/// Messages that wait to be looked at. Beyond it they are dropped, and one knock
/// at everything stands for all of them.
const QUEUE: usize = 4096;
/// Probes of the link itself have numbers of their own.
const OWN: u64 = 1 << 63;

/// A message, and the number of the server that it came from.
type Message = (usize, Bytes);

enum Turn {
    Came(Option<Message>),
    Gone(&'static str),
    Look,
}

/// Where messages are put, without ever waiting.
#[derive(Clone)]
struct Inbox {
    queue: mpsc::Sender<Message>,
    /// Messages were dropped.
    overflow: Arc<AtomicBool>,
    gone: Arc<watch::Sender<Option<&'static str>>>,
}

impl Inbox {
    fn put(&self, server: usize, payload: Bytes) {
        if self.queue.try_send((server, payload)).is_err() {
            self.overflow.store(true, Ordering::Release);
        }
    }

    fn gone(&self, why: &'static str) {
        self.gone.send_replace(Some(why));
    }

    fn push(&self, server: usize, info: PushInfo) {
        let PushInfo { kind, mut data } = info;
        match kind {
            PushKind::Message | PushKind::SMessage => {
                if let Some(payload) = data.pop().and_then(bytes) {
                    self.put(server, payload);
                }
            }
            PushKind::Disconnection => self.gone("the server has hung up"),
            // Nobody here unsubscribes: the slot has moved.
            PushKind::SUnsubscribe | PushKind::Unsubscribe => {
                self.gone("the slot of a channel has moved");
            }
            _ => {}
        }
    }
}

/// Keeps the connections open.
enum Kept {
    Pushes {
        _connection: redis::aio::MultiplexedConnection,
    },
    Reader(tokio::task::AbortHandle),
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Self::Reader(task) = self {
            task.abort();
        }
    }
}

/// When each server was heard last: what one of them says hides no other's silence
/// (clause F2).
struct Signs {
    servers: Vec<Sign>,
    probe_after: Duration,
    probe_timeout: Duration,
}

#[derive(Clone, Copy)]
struct Sign {
    heard: Instant,
    /// Since when it is asked for a sign of life.
    asked: Option<Instant>,
}

impl Signs {
    fn new(servers: usize, probe_after: Duration, probe_timeout: Duration) -> Self {
        let sign = Sign {
            heard: Instant::now(),
            asked: None,
        };
        Self {
            servers: vec![sign; servers],
            probe_after,
            probe_timeout,
        }
    }

    fn heard(&mut self, server: usize) {
        self.servers[server] = Sign {
            heard: Instant::now(),
            asked: None,
        };
    }

    fn due(&self, sign: &Sign) -> Instant {
        match sign.asked {
            Some(asked) => asked + self.probe_timeout,
            None => sign.heard + self.probe_after,
        }
    }

    fn next_look(&self) -> Instant {
        let due = self.servers.iter().map(|sign| self.due(sign)).min();
        due.unwrap_or_else(|| Instant::now() + self.probe_after)
    }

    /// The servers that are to be asked now.
    fn look(&mut self) -> Result<Vec<usize>, &'static str> {
        let now = Instant::now();
        let mut silent = Vec::new();
        for server in 0..self.servers.len() {
            if self.due(&self.servers[server]) > now {
                continue;
            }
            if self.servers[server].asked.replace(now).is_some() {
                return Err("nothing comes from a server of the Cluster");
            }
            silent.push(server);
        }
        Ok(silent)
    }
}

struct Bell {
    storage: RedisStorage,
    me: InstanceId,
    servers: Vec<Arc<Node>>,
    queue: mpsc::Receiver<Message>,
    inbox: Inbox,
    gone: watch::Receiver<Option<&'static str>>,
    strangers: watch::Receiver<u64>,
    _kept: Vec<Kept>,
    ready: VecDeque<Knock>,
    /// Servers from which the engine's present probe has come.
    probed: (u64, HashSet<usize>),
    signs: Signs,
    ended: bool,
}

pub(crate) async fn open(
    storage: RedisStorage,
    me: InstanceId,
) -> Result<BoxStream<'static, Result<Knock>>> {
    let patience = storage.router.settings.connect;
    timeout(patience, open_all(storage, me))
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, OPERATION)))
}

async fn open_all(
    storage: RedisStorage,
    me: InstanceId,
) -> Result<BoxStream<'static, Result<Knock>>> {
    let (sender, queue) = mpsc::channel(QUEUE);
    let (gone_sender, gone) = watch::channel(None);
    let inbox = Inbox {
        queue: sender,
        overflow: Arc::default(),
        gone: Arc::new(gone_sender),
    };
    let servers = storage.router.nodes();
    let mut kept = Vec::with_capacity(servers.len());
    for (number, node) in servers.iter().enumerate() {
        kept.push(subscribe(&storage, me, number, node, &inbox).await?);
    }
    let signs = Signs::new(
        servers.len(),
        storage.limits.probe_after(),
        storage.limits.probe_timeout(),
    );
    let strangers = storage.attached.strangers();
    let bell = Bell {
        storage,
        me,
        servers,
        queue,
        inbox,
        gone,
        strangers,
        _kept: kept,
        ready: VecDeque::new(),
        probed: (0, HashSet::new()),
        signs,
        ended: false,
    };
    // It is moved with each knock.
    Ok(stream::unfold(Box::new(bell), |mut bell| async move {
        let knock = bell.next().await?;
        Some((knock, bell))
    })
    .boxed())
}

async fn subscribe(
    storage: &RedisStorage,
    me: InstanceId,
    number: usize,
    node: &Arc<Node>,
    inbox: &Inbox,
) -> Result<Kept> {
    let settings = &storage.router.settings;
    let names = &storage.router.names;
    let info: ConnectionInfo = node.target.resolve(settings).await?;
    let failed = |error| error::link(OPERATION, error).with_applied(Applied::No);
    let client = Client::open(info.clone()).map_err(failed)?;
    let mut channels = Vec::new();
    if names.cluster {
        for partition in storage.router.partitions_of(node) {
            channels.push(names.door(partition, me));
            if partition == Partition::Number(0) {
                channels.push(names.all_doors());
            }
        }
    } else {
        channels.push(names.door(Partition::Number(0), me));
        channels.push(names.all_doors());
    }
    if info.redis_settings().protocol() == ProtocolVersion::RESP2 {
        let mut pubsub = client.get_async_pubsub().await.map_err(failed)?;
        pubsub.subscribe(&channels).await.map_err(failed)?;
        let inbox = inbox.clone();
        let mut messages = pubsub.into_on_message();
        let reader = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                if let Ok(payload) = message.get_payload::<Vec<u8>>() {
                    inbox.put(number, payload.into());
                }
            }
            inbox.gone("the server has hung up");
        });
        return Ok(Kept::Reader(reader.abort_handle()));
    }
    let pushes = inbox.clone();
    let config = settings.config().set_push_sender(move |info: PushInfo| {
        pushes.push(number, info);
        Ok::<(), redis::aio::SendError>(())
    });
    let mut connection = client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .map_err(failed)?;
    greet(connection.clone()).await?;
    let mut commands = redis::pipe();
    for channel in &channels {
        let name = if names.cluster {
            "SSUBSCRIBE"
        } else {
            "SUBSCRIBE"
        };
        commands.cmd(name).arg(channel);
    }
    let answers = connection
        .send_packed_commands(&commands, 0, commands.len())
        .await
        .map_err(failed)?;
    for answer in answers {
        if let Value::ServerError(refused) = answer {
            if error::refusal(&refused) == error::Refusal::Moved {
                // The next try has the new map.
                let _ = storage.router.refresh().await;
            }
            return Err(error::server(OPERATION, &refused));
        }
    }
    Ok(Kept::Pushes {
        _connection: connection,
    })
}

impl Bell {
    async fn next(&mut self) -> Option<Result<Knock>> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(knock) = self.ready.pop_front() {
                return Some(Ok(knock));
            }
            let several = self.servers.len() > 1;
            let turn = tokio::select! {
                message = self.queue.recv() => Turn::Came(message),
                gone = self.gone.wait_for(Option::is_some) => {
                    Turn::Gone(gone.ok().and_then(|why| *why).unwrap_or("the link has ended"))
                }
                _ = self.strangers.changed() => Turn::Gone("the server is another one"),
                () = sleep_until(self.signs.next_look()), if several => Turn::Look,
            };
            let gone = match turn {
                Turn::Came(Some((server, payload))) => {
                    self.came(server, payload);
                    continue;
                }
                Turn::Came(None) => "the link has ended",
                Turn::Gone(why) => why,
                Turn::Look => match self.look_at_servers() {
                    Ok(()) => continue,
                    Err(why) => why,
                },
            };
            self.ended = true;
            return Some(Err(
                Error::unavailable(OPERATION, Applied::No).with_message(gone)
            ));
        }
    }

    fn came(&mut self, server: usize, payload: Bytes) {
        self.signs.heard(server);
        if self.inbox.overflow.swap(false, Ordering::AcqRel) {
            self.ready.push_back(Knock::Everything);
        }
        for knock in wire::decode_all(payload) {
            match knock {
                Knock::Probe(number) if number >= OWN => {}
                // It came through when it has come from all.
                Knock::Probe(number) => {
                    if self.probed.0 != number {
                        self.probed = (number, HashSet::new());
                    }
                    self.probed.1.insert(server);
                    if self.probed.1.len() == self.servers.len() {
                        self.probed = (0, HashSet::new());
                        self.ready.push_back(Knock::Probe(number));
                    }
                }
                knock => self.ready.push_back(knock),
            }
        }
    }

    /// The engine takes any knock for a sign of life; here each server has to
    /// give one. A link may be well and lead to a server that nobody publishes
    /// at, so the sign is a message that was published as all others are.
    fn look_at_servers(&mut self) -> Result<(), &'static str> {
        let silent = self.signs.look()?;
        let message = wire::encode(&Knock::Probe(OWN));
        let calls: Vec<_> = silent
            .into_iter()
            .filter_map(|server| {
                let node = &self.servers[server];
                let partition = *self.storage.router.partitions_of(node).first()?;
                let channel = self.storage.router.names.door(partition, self.me);
                Some(self.storage.publish(partition, &channel, &message))
            })
            .collect();
        let storage = self.storage.clone();
        tokio::spawn(async move {
            // What does not arrive is noticed where it is awaited.
            let _ = storage.router.run(Lane::Control, OPERATION, calls).await;
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_noticed_within_seven_seconds_whatever_the_others_say() {
        let (after, patience) = (Duration::from_secs(5), Duration::from_secs(2));
        // Whenever it was heard last, before or after a look at the others.
        for millis in [0, 100, 2500, 4999, 5000, 6200] {
            let mut signs = Signs::new(3, after, patience);
            let last = Instant::now() + Duration::from_millis(millis);
            // Until then all answer, as soon as they are asked.
            while signs.next_look() < last {
                sleep_until(signs.next_look()).await;
                for server in signs.look().unwrap() {
                    signs.heard(server);
                }
            }
            sleep_until(last).await;
            signs.heard(1);
            let noticed = loop {
                sleep_until(signs.next_look()).await;
                match signs.look() {
                    Ok(asked) => {
                        for server in asked.into_iter().filter(|server| *server != 1) {
                            signs.heard(server);
                        }
                    }
                    Err(_) => break Instant::now(),
                }
            };
            assert_eq!(noticed - last, after + patience, "heard at {millis} ms");
        }
    }
}
