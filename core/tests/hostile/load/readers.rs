//! Clients that follow a stream, are cut off, and go on somewhere else.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use mcp_adapter_core::{
    EndReason, ErrorKind, EventId, Position, SessionAdapter, StreamId, Tail, TailEvent, TailFrom,
};

use tokio::time::Instant;

use super::{Client, Group, Load, START, number_in, pause};
use crate::{
    fleet::{Bound, Instance},
    history::{No, What},
    rng::Rng,
};

/// Where a reader begins.
pub(crate) enum Start {
    /// At the socket of the call.
    Attached(Arc<Instance>, Tail),
    /// At the first event.
    First,
    /// The standalone stream, wherever it is.
    Standalone,
}

/// How a reader behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Habits {
    /// In 1000: how often it is cut off in the middle.
    pub(crate) cuts: u64,
    /// It stops when nothing has come for so long.
    pub(crate) patience: Option<Duration>,
}

struct Reader {
    load: Arc<Load>,
    client: Client,
    no: No,
    stream: No,
    id: StreamId,
    last: Option<EventId>,
    from_first: bool,
    /// What came last was a gap.
    gap: bool,
    /// What came last was the begin of a hold.
    began: Option<(Position, u64)>,
    /// What came last was a result without an id.
    unstored: bool,
    rng: Rng,
    habits: Habits,
}

enum Next {
    Over,
    GoOn,
}

impl Load {
    pub(crate) fn read(
        self: &Arc<Self>,
        group: Group,
        client: &Client,
        (stream, id): (No, StreamId),
        start: Start,
        habits: Habits,
        rng: Rng,
    ) {
        let no = self.number();
        let reader = Reader {
            load: Arc::clone(self),
            client: client.clone(),
            no,
            stream,
            id,
            last: None,
            from_first: !matches!(start, Start::Standalone),
            gap: false,
            began: None,
            unstored: false,
            rng,
            habits,
        };
        let name = format!("reader {no} of stream {stream}");
        self.spawn(group, name, reader.run(start, group));
    }
}

impl Load {
    /// Reads all that is stored of the standalone stream.
    pub(crate) async fn replay(self: &Arc<Self>, client: &Client, mut rng: Rng) {
        let (no, id) = (self.number(), StreamId::standalone());
        let mut reader = Reader {
            load: Arc::clone(self),
            client: client.clone(),
            no,
            stream: client.standalone,
            id: id.clone(),
            last: None,
            from_first: true,
            gap: false,
            began: None,
            unstored: false,
            rng: rng.fork("replay", 0),
            habits: Habits {
                cuts: 0,
                patience: None,
            },
        };
        loop {
            let instance = self.fleet.pick(&mut rng);
            let Some(engine) = instance.engine() else {
                continue;
            };
            let began = self.history.now();
            let start = EventId::new(id.clone(), START);
            let after = reader.last.clone().unwrap_or(start);
            let replay = engine.replay(&client.id, &after, 50);
            match instance.run("replay", Bound::Operation, replay).await {
                Some(Ok(replay)) => {
                    self.history.push(What::Read {
                        reader: no,
                        stream: client.standalone,
                        instance: instance.no,
                        after: Some(after.position),
                    });
                    // It has no turn to wait for.
                    self.history.push(What::Begins {
                        reader: no,
                        after: after.position,
                        hold: 0,
                    });
                    replay.events.into_iter().for_each(|item| reader.got(item));
                    if !replay.more {
                        self.history.push(What::Quiet { reader: no });
                        return;
                    }
                }
                Some(Err(error)) => {
                    self.history.push(What::NoTail {
                        reader: no,
                        kind: error.kind(),
                    });
                    self.missed(client, began, &error);
                    return;
                }
                None => {}
            }
        }
    }
}

impl Reader {
    async fn run(mut self, start: Start, group: Group) {
        let mut attached = match start {
            Start::Attached(instance, tail) => Some((instance, tail)),
            Start::First | Start::Standalone => None,
        };
        loop {
            let (instance, tail) = match attached.take() {
                Some(attached) => attached,
                None => match self.attach().await {
                    Ok(attached) => attached,
                    Err(Next::Over) => return,
                    Err(Next::GoOn) => {
                        pause(&mut self.rng, 100, 1500).await;
                        continue;
                    }
                },
            };
            match self.follow(&instance, tail, group).await {
                Next::Over => return,
                Next::GoOn => pause(&mut self.rng, 0, 800).await,
            }
        }
    }

    fn from(&self) -> TailFrom {
        match &self.last {
            Some(last) => TailFrom::After(last.clone()),
            None if self.from_first => TailFrom::After(EventId::new(self.id.clone(), START)),
            None => TailFrom::Standalone,
        }
    }

    async fn attach(&mut self) -> Result<(Arc<Instance>, Tail), Next> {
        let instance = self.load.fleet.pick(&mut self.rng);
        let began = self.load.history.now();
        let Some(engine) = instance.engine() else {
            return Err(Next::GoOn);
        };
        let tail = instance
            .run(
                "tail",
                Bound::Operation,
                engine.tail(&self.client.id, self.from()),
            )
            .await;
        match tail {
            Some(Ok(tail)) => {
                let after = self.last.as_ref().map(|last| last.position);
                self.load.history.push(What::Read {
                    reader: self.no,
                    stream: self.stream,
                    instance: instance.no,
                    after: after.or(self.from_first.then_some(START)),
                });
                Ok((instance, tail))
            }
            Some(Err(error)) => {
                let kind = error.kind();
                self.load.history.push(What::NoTail {
                    reader: self.no,
                    kind,
                });
                self.load.missed(&self.client, began, &error);
                Err(match kind {
                    ErrorKind::SessionNotFound | ErrorKind::StreamGone => Next::Over,
                    _ => Next::GoOn,
                })
            }
            None => Err(Next::GoOn),
        }
    }

    async fn follow(&mut self, instance: &Arc<Instance>, mut tail: Tail, group: Group) -> Next {
        self.began = None;
        let mut left = self
            .rng
            .chance(self.habits.cuts)
            .then(|| self.rng.within(0, 12));
        let hangs_up = self
            .rng
            .chance(self.habits.cuts)
            .then(|| self.rng.millis(0, 15_000));
        let hangs_up = hangs_up
            .or(self.habits.patience)
            .unwrap_or(Duration::from_secs(86_400));
        loop {
            let next = tokio::time::timeout(hangs_up, tail.next());
            let Some(next) = instance.run("tail", Bound::Watched, next).await else {
                self.push(What::Cut { reader: self.no });
                return Next::GoOn;
            };
            let Ok(item) = next else {
                if self.habits.patience.is_some() {
                    self.push(What::Quiet { reader: self.no });
                    return Next::Over;
                }
                self.let_go(instance, tail, group);
                return Next::GoOn;
            };
            match item {
                Some(TailEvent::End(why)) => return self.ended(why),
                Some(item) => self.got(item),
                None => {
                    self.load.history.push(What::Hung(format!(
                        "reader {}: its tail stopped without saying why",
                        self.no
                    )));
                    return Next::Over;
                }
            }
            if self.rng.chance(50) {
                pause(&mut self.rng, 0, 600).await;
            }
            left = match left {
                Some(0) => {
                    self.let_go(instance, tail, group);
                    return Next::GoOn;
                }
                left => left.map(|left| left - 1),
            };
        }
    }

    fn push(&self, what: What) {
        self.load.history.push(what);
    }

    fn got(&mut self, item: TailEvent) {
        let reader = self.no;
        self.gap = matches!(item, TailEvent::Gap { .. });
        self.unstored = matches!(item, TailEvent::Unstored { .. });
        match item {
            TailEvent::Event { id, data, .. } => {
                let at = id.position;
                let event = number_in(&data, 'e').filter(|_| id.stream == self.id);
                self.push(match event {
                    Some(event) => What::Got { reader, at, event },
                    None => What::Garbled { reader, at },
                });
                self.last = Some(id);
                self.began = None;
            }
            TailEvent::Unstored { data } => {
                let event = number_in(&data, 'e').unwrap_or(0);
                self.push(What::Unstored { reader, event });
            }
            TailEvent::Gap { .. } => self.push(What::Gap { reader }),
            TailEvent::Begins { after, hold } => {
                let after = after.position;
                self.began = Some((after, hold));
                self.push(What::Begins {
                    reader,
                    after,
                    hold,
                });
            }
            other => self.push(What::Fault(format!("reader {reader}: {other:?}"))),
        }
    }

    fn ended(&mut self, why: EndReason) -> Next {
        self.push(What::Ended {
            reader: self.no,
            why,
        });
        match why {
            // Two clients that take a stream from each other for ever prove nothing.
            EndReason::Superseded
                if self.id.is_standalone()
                    && (Instant::now() > self.load.until || self.rng.chance(500)) =>
            {
                Next::Over
            }
            EndReason::Superseded | EndReason::Outage | EndReason::Closed => Next::GoOn,
            EndReason::SessionEnded => {
                let now = self.load.history.now();
                self.load.found(&self.client, now, false, false);
                Next::Over
            }
            _ => Next::Over,
        }
    }

    /// The client's connection is gone. Sometimes the server does not know yet
    /// and goes on writing into the void.
    fn let_go(&mut self, instance: &Arc<Instance>, tail: Tail, group: Group) {
        self.push(What::Cut { reader: self.no });
        // After a result nothing is left for a ghost to see.
        if !self.rng.chance(300) || self.unstored {
            drop(tail);
            return;
        }
        let no = self.load.number();
        self.push(What::Read {
            reader: no,
            stream: self.stream,
            instance: instance.no,
            after: self
                .last
                .as_ref()
                .map(|last| last.position)
                .or(self.from_first.then_some(START)),
        });
        if let Some((after, hold)) = self.began {
            self.push(What::Begins {
                reader: no,
                after,
                hold,
            });
        }
        if self.gap {
            self.push(What::Gap { reader: no });
        }
        let mut ghost = Self {
            load: Arc::clone(&self.load),
            client: self.client.clone(),
            no,
            stream: self.stream,
            id: self.id.clone(),
            last: self.last.clone(),
            from_first: self.from_first,
            gap: self.gap,
            began: self.began,
            unstored: false,
            rng: self.rng.fork("ghost", 0),
            habits: Habits {
                cuts: 0,
                patience: None,
            },
        };
        let instance = Arc::clone(instance);
        let name = format!("reader {no}, a ghost, of stream {}", self.stream);
        self.load.spawn(group, name, async move {
            // A ghost that was superseded does not come back.
            let _ = Box::pin(ghost.follow(&instance, tail, group)).await;
        });
    }
}
