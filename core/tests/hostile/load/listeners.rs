//! Two clients that share the standalone stream of a session: each comes back with
//! what it had last, as an `EventSource` does, wherever the load balancer sends it.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use mcp_adapter_core::{EndReason, ErrorKind, SessionAdapter, Tail, TailEvent, TailFrom};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Client, Group, Load, number_in, pause};
use crate::{
    fleet::{Bound, Instance},
    history::{No, What},
    rng::Rng,
};

/// How often a connection is lost, in 1000.
const LOST: u64 = 700;

struct Listener {
    load: Arc<Load>,
    client: Client,
    no: No,
    from: TailFrom,
    /// What came last was a gap.
    gap: bool,
    rng: Rng,
}

/// How a connection ended.
enum Over {
    /// For good.
    Session,
    /// The client comes back.
    Connection,
    /// The client has lost it, and the server may not know that yet.
    Client,
}

impl Load {
    pub(crate) fn listen(self: &Arc<Self>, client: &Client, rng: &Rng) {
        for number in 0..2 {
            let no = self.number();
            self.history.push(What::Listens {
                reader: no,
                stream: client.standalone,
                ghost: false,
            });
            let listener = Listener {
                load: Arc::clone(self),
                client: client.clone(),
                no,
                from: TailFrom::Standalone,
                gap: false,
                rng: rng.fork("listener", number),
            };
            let name = format!("listener {no} of session {}", client.no);
            self.spawn(Group::Session, name, listener.run());
        }
    }

    /// Appends some more when all is quiet, and waits until those who listen must
    /// have them.
    pub(crate) async fn settle(self: &Arc<Self>, client: &Client, rng: &mut Rng) {
        for _ in 0..2 {
            for _ in 0..rng.within(1, 3) {
                self.append(client, Rng::new(rng.next())).await;
            }
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        self.history.push(What::Settled {
            stream: client.standalone,
        });
    }
}

impl Listener {
    fn push(&self, what: What) {
        self.load.history.push(what);
    }

    async fn run(mut self) {
        loop {
            match self.connect().await {
                Over::Session => return,
                Over::Connection | Over::Client => pause(&mut self.rng, 500, 1500).await,
            }
        }
    }

    async fn connect(&mut self) -> Over {
        let instance = self.load.fleet.pick(&mut self.rng);
        let began = self.load.history.now();
        let Some(engine) = instance.engine() else {
            return Over::Connection;
        };
        let reader = self.no;
        let tail = engine.tail(&self.client.id, self.from.clone());
        let mut tail = match instance.run("tail", Bound::Operation, tail).await {
            Some(Ok(tail)) => tail,
            Some(Err(error)) => {
                let kind = error.kind();
                self.push(What::NoTail { reader, kind });
                self.load.missed(&self.client, began, &error);
                return match kind {
                    ErrorKind::SessionNotFound => Over::Session,
                    _ => Over::Connection,
                };
            }
            None => return Over::Connection,
        };
        drop(engine);
        let after = match &self.from {
            TailFrom::Returning { after, .. } => Some(*after),
            _ => None,
        };
        self.push(What::Read {
            reader,
            stream: self.client.standalone,
            instance: instance.no,
            after,
        });
        let over = self.hear(&instance, &mut tail).await;
        if matches!(over, Over::Client) {
            self.hang_up(instance, tail).await;
        }
        over
    }

    /// Reads until the connection is over.
    async fn hear(&mut self, instance: &Instance, tail: &mut Tail) -> Over {
        let reader = self.no;
        let mut left = self.rng.chance(LOST / 2).then(|| self.rng.within(0, 6));
        let lost = self.rng.chance(LOST).then(|| self.rng.millis(0, 12_000));
        let lost = lost
            .map(|after| Instant::now() + after)
            .filter(|at| *at < self.load.until);
        let lost = lost.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400));
        loop {
            // A client does not stand still with the instance.
            let next = instance.run("tail", Bound::Watched, tail.next());
            let Ok(next) = timeout_at(lost, next).await else {
                return Over::Client;
            };
            let Some(item) = next else {
                self.push(What::Cut { reader });
                return Over::Connection;
            };
            match item {
                Some(TailEvent::End(why)) => {
                    self.push(What::Ended { reader, why });
                    if why == EndReason::SessionEnded {
                        let now = self.load.history.now();
                        self.load.found(&self.client, now, false, false);
                        return Over::Session;
                    }
                    return Over::Connection;
                }
                Some(item) => self.got(item),
                None => {
                    let text = format!("listener {reader}: its tail stopped without saying why");
                    self.push(What::Hung(text));
                    return Over::Session;
                }
            }
            if Instant::now() < self.load.until {
                left = match left {
                    Some(0) => return Over::Client,
                    left => left.map(|left| left - 1),
                };
            }
        }
    }

    fn got(&mut self, item: TailEvent) {
        let reader = self.no;
        self.gap = matches!(item, TailEvent::Gap { .. });
        match item {
            TailEvent::Begins { after, hold } => {
                let after = after.position;
                self.push(What::Begins {
                    reader,
                    after,
                    hold,
                });
                let hold = Some(hold);
                self.from = TailFrom::Returning { after, hold };
            }
            TailEvent::Event { id, data, .. } => {
                let at = id.position;
                self.push(match number_in(&data, 'e') {
                    Some(event) if id.stream.is_standalone() => What::Got { reader, at, event },
                    _ => What::Garbled { reader, at },
                });
                let (after, hold) = (at, None);
                self.from = TailFrom::Returning { after, hold };
            }
            TailEvent::Gap { .. } => self.push(What::Gap { reader }),
            other => {
                let text = format!("listener {reader}: {other:?}");
                self.push(What::Hung(text));
            }
        }
    }

    /// The client's connection is gone: with what was under way, or while the
    /// server goes on writing to nobody for a while.
    async fn hang_up(&mut self, instance: Arc<Instance>, mut tail: Tail) {
        let reader = self.no;
        match self.rng.below(3) {
            0 => {}
            1 => {
                for _ in 0..self.rng.within(1, 3) {
                    let under_way = instance.run("tail", Bound::Watched, tail.next());
                    match timeout(Duration::ZERO, under_way).await {
                        Ok(Some(Some(TailEvent::Event { .. }))) => {}
                        Ok(Some(Some(item @ TailEvent::Begins { .. }))) => {
                            // Of a hold that it never heard of a client can tell
                            // nothing.
                            self.got(item);
                            break;
                        }
                        _ => break,
                    }
                }
            }
            _ => {
                let lives = Instant::now() + self.rng.millis(500, 20_000);
                self.haunt(instance, tail, lives.min(self.load.until));
            }
        }
        self.push(What::Cut { reader });
    }

    fn haunt(&self, instance: Arc<Instance>, mut tail: Tail, until: Instant) {
        let no = self.load.number();
        let stream = self.client.standalone;
        self.push(What::Listens {
            reader: no,
            stream,
            ghost: true,
        });
        let after = match &self.from {
            TailFrom::Returning { after, .. } => Some(*after),
            _ => None,
        };
        self.push(What::Read {
            reader: no,
            stream,
            instance: instance.no,
            after,
        });
        if self.gap {
            self.push(What::Gap { reader: no });
        }
        let mut ghost = Self {
            load: Arc::clone(&self.load),
            client: self.client.clone(),
            no,
            from: self.from.clone(),
            gap: self.gap,
            rng: self.rng.fork("ghost", 0),
        };
        let name = format!("listener {no}, a ghost, of stream {stream}");
        self.load.spawn(Group::Session, name, async move {
            loop {
                let next = instance.run("tail", Bound::Watched, tail.next());
                match timeout_at(until, next).await {
                    Ok(Some(Some(TailEvent::End(why)))) => {
                        ghost.push(What::Ended { reader: no, why });
                        return;
                    }
                    Ok(Some(Some(item))) => ghost.got(item),
                    Ok(Some(None) | None) | Err(_) => break,
                }
            }
            ghost.push(What::Cut { reader: no });
        });
    }
}
