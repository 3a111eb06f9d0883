//! Wake-ups: by LISTEN, or by polling where that does not work.

use std::{collections::VecDeque, fmt::Write as _, sync::Arc, time::Duration};

use futures::{StreamExt, stream, stream::BoxStream};
use mcp_adapter_core::{
    Applied, Error, ErrorKind, InstanceId, Result,
    storage::{Door, Knock},
};
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    call::{Given, get, micros},
    codec,
    error::of_connecting,
    options::Wake,
    pool::Who,
    start::lock_key,
    storage::Inner,
};

const OPERATION: &str = "doorbell";
/// How long a door is known; its owner's heartbeat renews it.
const DOOR: Duration = Duration::from_secs(600);
/// How long a notification to oneself may take.
const SELF_TEST: Duration = Duration::from_secs(2);
/// Polling slows down while nothing comes.
const POLL: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(200));
/// How long to poll before listening is tried again, where it was to be found out.
const POLL_UNTIL_RETRY: Duration = Duration::from_secs(600);

/// A connection that listens.
struct Listener {
    listener: PgListener,
    pending: VecDeque<Knock>,
    histories: watch::Receiver<u64>,
    failed: bool,
}

/// What was put before our door, as long as nobody listens there.
struct Poller {
    inner: Arc<Inner>,
    me: InstanceId,
    pending: VecDeque<Knock>,
    histories: watch::Receiver<u64>,
    wait: Duration,
    until: Option<Instant>,
    failed: bool,
}

/// Whether notifications arrive.
enum Heard {
    Yes(Box<Listener>),
    /// The connection works, and nothing came through.
    No,
}

fn parse(payload: &str, knocks: &mut VecDeque<Knock>) {
    for line in payload.split('\n') {
        match codec::knock(line) {
            Some(knock) => knocks.push_back(knock),
            None => metrics::counter!("mcp_adapter_postgres_knocks_unknown_total").increment(1),
        }
    }
}

fn hex(number: i64) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write!(text, "{number:016x}");
    text
}

impl Inner {
    /// One channel per instance; its name says nothing of the id.
    fn channel(&self, me: InstanceId) -> String {
        let name = [b"door", &me.0.to_be_bytes()[..]].concat();
        format!("mcp_adapter_{}", hex(lock_key(&self.place.schema, &name)))
    }

    /// The channel of all instances.
    fn common(&self) -> String {
        format!("mcp_adapter_{}", hex(lock_key(&self.place.schema, b"all")))
    }

    async fn open_door(&self, me: InstanceId, channel: Option<&str>, ttl: Duration) -> Result<()> {
        let given = Given::new()
            .bind(me.0.to_be_bytes())
            .bind(channel)
            .bind(micros(ttl));
        let sql = &self.functions().door;
        self.run(OPERATION, Who::Engine, sql, given).await.map(drop)
    }

    /// Listens, and proves it by a notification to itself.
    async fn listen(&self, me: InstanceId, ttl: Duration) -> Result<Heard> {
        let histories = self.histories.subscribe();
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(SELF_TEST * 2)
            .connect_lazy_with(self.place.listen.clone());
        let failed = |error| of_connecting(OPERATION, error);
        let mut listener = PgListener::connect_with(&pool).await.map_err(failed)?;
        listener.eager_reconnect(false);
        let (mine, common) = (self.channel(me), self.common());
        listener
            .listen_all([mine.as_str(), common.as_str()])
            .await
            .map_err(failed)?;
        self.open_door(me, Some(&mine), ttl).await?;
        let token = lock_key("self test", &InstanceId::generate().0.to_be_bytes());
        let test = codec::self_test(token.cast_unsigned());
        self.send(vec![Some(me)], vec![test.clone()]).await?;
        let until = Instant::now() + SELF_TEST;
        let mut pending = VecDeque::new();
        loop {
            match timeout_at(until, listener.try_recv()).await {
                Ok(Ok(Some(heard))) if heard.payload() == test => {
                    return Ok(Heard::Yes(Box::new(Listener {
                        listener,
                        pending,
                        histories,
                        failed: false,
                    })));
                }
                Ok(Ok(Some(heard))) => parse(heard.payload(), &mut pending),
                Ok(Ok(None)) => return Err(Error::unavailable(OPERATION, Applied::No)),
                Ok(Err(error)) => return Err(failed(error)),
                Err(_) => return Ok(Heard::No),
            }
        }
    }

    /// Whether notifications arrive over the direct connection.
    pub(crate) async fn can_listen(&self) -> Result<bool> {
        let heard = self.listen(InstanceId::generate(), SELF_TEST).await?;
        Ok(matches!(heard, Heard::Yes(_)))
    }

    pub(crate) async fn doorbell(
        self: &Arc<Self>,
        me: InstanceId,
    ) -> Result<BoxStream<'static, Result<Knock>>> {
        let poll = self.place.wake == Wake::Poll || self.place.polls;
        if !poll {
            match self.listen(me, DOOR).await? {
                Heard::Yes(listener) => return Ok(listener.knocks()),
                Heard::No if self.place.wake == Wake::Listen => {
                    return Err(Error::new(ErrorKind::Unavailable, OPERATION)
                        .with_message("notifications do not arrive"));
                }
                Heard::No => tracing::warn!(
                    "notifications do not arrive over the direct connection: polling instead"
                ),
            }
        }
        metrics::counter!("mcp_adapter_postgres_polling_total").increment(1);
        let retries = self.place.wake == Wake::Auto && !self.place.polls;
        self.open_door(me, None, DOOR).await?;
        let poller = Poller {
            inner: Arc::clone(self),
            me,
            pending: VecDeque::new(),
            histories: self.histories.subscribe(),
            wait: POLL.0,
            until: retries.then(|| Instant::now() + POLL_UNTIL_RETRY),
            failed: false,
        };
        Ok(poller.knocks())
    }

    /// Sends payloads to doors; `None` is all of them.
    async fn send(&self, to: Vec<Option<InstanceId>>, payloads: Vec<String>) -> Result<()> {
        let to: Vec<_> = to
            .into_iter()
            .map(|door| door.map(|door| door.0.to_be_bytes()))
            .collect();
        let given = Given::new().bind(self.common()).bind(to).bind(payloads);
        let sql = &self.functions().knock;
        self.run("knock", Who::Engine, sql, given).await.map(drop)
    }

    pub(crate) async fn knock(&self, knocks: &[(Door, Knock)]) -> Result<()> {
        let mut doors: Vec<(Door, Vec<String>)> = Vec::new();
        for (door, knock) in knocks {
            let line = codec::line(knock);
            match doors.last_mut() {
                Some((last, lines)) if last == door => lines.push(line),
                _ => doors.push((*door, vec![line])),
            }
        }
        let (mut to, mut payloads) = (Vec::new(), Vec::new());
        for (door, lines) in doors {
            let door = match door {
                Door::Of(instance) => Some(instance),
                Door::All => None,
            };
            for payload in codec::payloads(lines) {
                to.push(door);
                payloads.push(payload);
            }
        }
        self.send(to, payloads).await
    }
}

impl Listener {
    fn knocks(self: Box<Self>) -> BoxStream<'static, Result<Knock>> {
        stream::unfold(self, |mut listener| async move {
            listener.next().await.map(|knock| (knock, listener))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Result<Knock>> {
        loop {
            if let Some(knock) = self.pending.pop_front() {
                return Some(Ok(knock));
            }
            if self.failed {
                return None;
            }
            let heard = tokio::select! {
                _ = self.histories.changed() => return None,
                heard = self.listener.try_recv() => heard,
            };
            match heard {
                Ok(Some(heard)) => parse(heard.payload(), &mut self.pending),
                // The connection is lost, and with it what was sent meanwhile.
                Ok(None) => return None,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(of_connecting(OPERATION, error)));
                }
            }
        }
    }
}

impl Poller {
    fn knocks(self) -> BoxStream<'static, Result<Knock>> {
        stream::unfold(Box::new(self), |mut poller| async move {
            poller.next().await.map(|knock| (knock, poller))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Result<Knock>> {
        loop {
            if let Some(knock) = self.pending.pop_front() {
                return Some(Ok(knock));
            }
            let over = self.until.is_some_and(|until| until <= Instant::now());
            if self.failed || over || self.histories.has_changed().unwrap_or(true) {
                return None;
            }
            let given = Given::new().bind(self.me.0.to_be_bytes());
            let sql = &self.inner.functions().poll;
            let poll = self.inner.run(OPERATION, Who::Engine, sql, given);
            let taken = match timeout(SELF_TEST * 2, poll).await {
                Ok(taken) => taken,
                Err(_) => Err(Error::new(ErrorKind::Timeout, OPERATION)),
            };
            let read = taken.and_then(|rows| {
                for row in &rows {
                    parse(get(OPERATION, row, 0)?, &mut self.pending);
                }
                Ok(rows.len())
            });
            match read {
                Ok(0) => {
                    sleep(self.wait).await;
                    self.wait = (self.wait * 2).min(POLL.1);
                }
                Ok(_) => self.wait = POLL.0,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
    }
}
