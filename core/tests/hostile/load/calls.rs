//! Calls: a stream with one writer, from the first event to the terminal one.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use mcp_adapter_core::{
    Cancelled, ErrorKind, Position, Revocation, RpcId, SessionAdapter, StreamWriter,
};

use super::{
    Client, Group, Load,
    readers::{Habits, Start},
};
use crate::{
    fleet::{Bound, Instance},
    history::{No, What, Written},
    rng::Rng,
};

struct Call {
    load: Arc<Load>,
    client: Client,
    instance: Arc<Instance>,
    stream: No,
    writer: Box<dyn StreamWriter>,
    rng: Rng,
}

/// What a call does when its next piece of work is done.
enum Go {
    On,
    Stop,
}

impl Load {
    pub(crate) async fn call(self: Arc<Self>, client: Client, mut rng: Rng) {
        let stream = self.number();
        let instance = self.fleet.pick(&mut rng);
        let Some(engine) = instance.engine() else {
            return;
        };
        let began = self.history.now();
        let rpc = RpcId::Number(stream.into());
        let entering = engine.enter(&client.id, None, Some(&rpc));
        let entered = match instance.run("enter", Bound::Operation, entering).await {
            Some(Ok(entered)) => entered,
            Some(Err(error)) => return self.missed(&client, began, &error),
            None => return,
        };
        drop(engine);
        self.found(&client, began, true, true);
        let Some(writer) = entered.writer else {
            return;
        };
        self.history.push(What::Opened {
            stream,
            session: client.no,
            owner: Some(instance.no),
        });
        let id = writer.stream().clone();
        self.calls.lock().push((client.clone(), stream, id.clone()));
        let start = if rng.chance(650) {
            self.history
                .push(What::Fault(format!("reader of {stream} is attached")));
            Start::Attached(Arc::clone(&instance), writer.attach())
        } else {
            Start::First
        };
        let habits = Habits {
            cuts: 450,
            patience: None,
        };
        let reader = rng.fork("reader", 0);
        self.read(Group::Work, &client, (stream, id), start, habits, reader);
        let call = Call {
            load: self,
            client,
            instance,
            stream,
            writer,
            rng,
        };
        call.run().await;
    }
}

impl Call {
    async fn run(mut self) {
        let cancelled = self.rng.chance(200);
        if cancelled {
            let (load, client, stream) = (Arc::clone(&self.load), self.client.clone(), self.stream);
            let (after, rng) = (self.rng.millis(0, 20_000), self.rng.fork("cancel", 0));
            load.spawn(Group::Work, format!("cancel of {stream}"), {
                let load = Arc::clone(&load);
                async move {
                    tokio::time::sleep(after).await;
                    load.cancel(client, stream, rng).await;
                }
            });
        }
        let events = match self.rng.below(10) {
            0..=2 => 0,
            3..=7 => self.rng.within(1, 8),
            _ => self.rng.within(8, 40),
        };
        for _ in 0..events {
            if matches!(self.append().await, Go::Stop) {
                return self.abandon();
            }
            if self.rng.chance(500) {
                let most = if self.rng.chance(150) { 15_000 } else { 400 };
                let pause = self.rng.millis(0, most);
                if self.waits(pause).await.is_none() {
                    return;
                }
            }
        }
        if cancelled {
            // It goes on until it is told to stop, which it must be, unless the
            // backend has forgotten the cancel.
            let patience = if self.load.lossy { 60 } else { 86_400 };
            let revoked =
                tokio::time::timeout(Duration::from_secs(patience), self.writer.revoked());
            match self
                .instance
                .run("cancelled call", Bound::Watched, revoked)
                .await
            {
                Some(Ok(why)) => self.revoked(why),
                Some(Err(_)) => {}
                None => return,
            }
        }
        self.finish().await;
    }

    async fn waits(&self, pause: Duration) -> Option<()> {
        let sleeping = tokio::time::sleep(pause);
        self.instance.run("pause", Bound::Watched, sleeping).await
    }

    fn revoked(&self, why: Revocation) {
        let stream = self.stream;
        self.load.history.push(What::Revoked { stream, why });
        if why == Revocation::SessionEnded {
            let now = self.load.history.now();
            self.load.found(&self.client, now, false, false);
        }
    }

    async fn append(&mut self) -> Go {
        let (event, data) = self.load.event(&mut self.rng);
        let large = self.rng.chance(10);
        let data = if large {
            Bytes::from(vec![b'x'; 5000])
        } else {
            data
        };
        let (load, stream, client) = (Arc::clone(&self.load), self.stream, self.client.clone());
        // Its place is fixed when this has run.
        let begun = async {
            load.history.push(What::Append {
                stream,
                event,
                terminal: false,
                bytes: data.len(),
            });
            (load.history.now(), self.writer.append(data))
        };
        let Some((began, ack)) = self.instance.run("append", Bound::Operation, begun).await else {
            return Go::Stop;
        };
        let instance = Arc::clone(&self.instance);
        let stored = async move {
            let Some(done) = instance.run("append", Bound::Operation, ack).await else {
                return true;
            };
            if let Err(error) = &done {
                load.missed(&client, began, error);
            } else {
                load.found(&client, began, true, true);
            }
            let done = Written::of(done.as_ref(), |id| id.position);
            load.history.push(What::Appended {
                stream,
                event,
                done,
            });
            matches!(
                done,
                Written::Refused(
                    ErrorKind::Fenced | ErrorKind::SessionNotFound | ErrorKind::Finished
                )
            )
        };
        if self.rng.chance(400) {
            if stored.await {
                return Go::Stop;
            }
        } else {
            let name = format!("append of {event} to {stream}");
            self.load.spawn(Group::Work, name, async move {
                stored.await;
            });
        }
        Go::On
    }

    async fn finish(mut self) {
        if self.rng.chance(100) {
            return self.abandon();
        }
        let (load, stream, client) = (Arc::clone(&self.load), self.stream, self.client.clone());
        let bare = self.rng.chance(100);
        let (event, data) = load.event(&mut self.rng);
        let begun = async {
            if bare {
                load.history.push(What::Finish {
                    stream,
                    abandoned: false,
                });
            } else {
                load.history.push(What::Append {
                    stream,
                    event,
                    terminal: true,
                    bytes: data.len(),
                });
            }
            (
                load.history.now(),
                self.writer.finish((!bare).then_some(data)),
            )
        };
        let bound = Bound::Outage(load.fleet.limits.max_outage());
        let Some((began, ack)) = self.instance.run("finish", bound, begun).await else {
            return;
        };
        let Some(done) = self.instance.run("finish", bound, ack).await else {
            return;
        };
        if let Err(error) = &done {
            load.missed(&client, began, error);
        } else {
            load.found(&client, began, true, true);
        }
        load.history.push(if bare {
            let done = Written::of(done.as_ref(), |_| ());
            What::Finished { stream, done }
        } else {
            let position = |id: &Option<mcp_adapter_core::EventId>| {
                id.as_ref().map_or(Position::START, |id| id.position)
            };
            let done = Written::of(done.as_ref(), position);
            What::Appended {
                stream,
                event,
                done,
            }
        });
    }

    /// Its writer is dropped.
    fn abandon(self) {
        let stream = self.stream;
        let abandoned = true;
        self.load.history.push(What::Finish { stream, abandoned });
    }
}

impl Load {
    /// Repeats the cancel until it is told that it is marked or that nothing
    /// runs: a client would, too.
    async fn cancel(self: Arc<Self>, client: Client, stream: No, mut rng: Rng) {
        loop {
            let instance = self.fleet.pick(&mut rng);
            let began = self.history.now();
            if let Some(engine) = instance.engine() {
                self.history.push(What::Cancel { stream });
                let rpc = RpcId::Number(stream.into());
                let cancel = SessionAdapter::cancel(&engine, &client.id, &rpc);
                if let Some(done) = instance.run("cancel", Bound::Operation, cancel).await {
                    if let Err(error) = &done {
                        self.missed(&client, began, error);
                    }
                    let done = Written::of(done.as_ref(), Cancelled::clone);
                    self.history.push(What::CancelDone {
                        stream,
                        done: done.clone(),
                    });
                    let over = matches!(
                        done,
                        Written::Done(Cancelled::Marked(_) | Cancelled::NotRunning)
                            | Written::Refused(ErrorKind::SessionNotFound)
                    );
                    if over {
                        return;
                    }
                }
            }
            tokio::time::sleep(rng.millis(200, 1500)).await;
        }
    }
}
