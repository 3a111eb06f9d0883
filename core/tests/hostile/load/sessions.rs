//! Sessions: created, used, written to by many, deleted.

use std::sync::Arc;

use futures::future::join_all;
use mcp_adapter_core::{SessionAdapter, SessionRecord, StreamId};
use tokio::time::Instant;

use super::{
    Client, Group, Load, pause,
    readers::{Habits, Start},
};
use crate::{
    fleet::Bound,
    history::{What, Written},
    rng::Rng,
};

/// What happens in one session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Business {
    pub(crate) calls: u64,
    pub(crate) requests: u64,
    pub(crate) appends: u64,
    pub(crate) updates: u64,
    /// In 1000: how often it is deleted before the end.
    pub(crate) deleted: u64,
}

impl Load {
    /// A session, or nothing where nobody could create it. An id of which it is
    /// unknown whether it was created is not used, as a server would not.
    pub(crate) async fn open(self: &Arc<Self>, rivals: bool, mut rng: Rng) -> Option<Client> {
        for _ in 0..20 {
            let (no, standalone) = (self.number(), self.number());
            let id = format!("session-{}-{no}", self.seed).parse().ok()?;
            let client = Client { no, id, standalone };
            // Sometimes several create it at once: one of them does.
            let rivals = if rivals && rng.chance(200) { 2 } else { 1 };
            let all: Vec<_> = (0..rivals)
                .map(|_| self.create(&client, self.fleet.pick(&mut rng)))
                .collect();
            if join_all(all).await.into_iter().any(|created| created) {
                self.history.push(What::Opened {
                    stream: standalone,
                    session: client.no,
                    owner: None,
                });
                self.clients.lock().push(client.clone());
                return Some(client);
            }
            pause(&mut rng, 100, 1000).await;
        }
        None
    }

    /// Whether it is there now.
    async fn create(&self, client: &Client, instance: Arc<crate::fleet::Instance>) -> bool {
        let Some(engine) = instance.engine() else {
            return false;
        };
        let began = self.history.now();
        self.history.push(What::Create { session: client.no });
        let creating = engine.create(&client.id, SessionRecord::default());
        let Some(created) = instance.run("create", Bound::Operation, creating).await else {
            return false;
        };
        let done = Written::of(created.as_ref(), |_| ());
        self.history.push(What::Created {
            session: client.no,
            done,
        });
        match created {
            Ok(_) => {
                self.found(client, began, true, true);
                true
            }
            Err(_) => false,
        }
    }

    /// All business of one session until the end of the run.
    pub(crate) async fn session(self: Arc<Self>, business: Business, mut rng: Rng) {
        let deleted = rng.chance(business.deleted);
        let Some(client) = self.open(!deleted, rng.fork("open", 0)).await else {
            return;
        };
        let stream = (client.standalone, StreamId::standalone());
        let habits = Habits {
            cuts: 500,
            patience: None,
        };
        for number in 0..rng.within(1, 3) {
            let rng = rng.fork("reader", number);
            self.read(
                Group::Session,
                &client,
                stream.clone(),
                Start::Standalone,
                habits,
                rng,
            );
        }
        let left = self
            .until
            .saturating_duration_since(Instant::now())
            .as_millis();
        let left = u64::try_from(left).unwrap_or(0);
        for number in 0..business.calls {
            let (after, load) = (rng.millis(0, left), Arc::clone(&self));
            let (client, rng) = (client.clone(), rng.fork("call", number));
            self.spawn(
                Group::Work,
                format!("a call of session {}", client.no),
                async move {
                    tokio::time::sleep(after).await;
                    load.call(client, rng).await;
                },
            );
        }
        for number in 0..business.requests {
            let (after, load) = (rng.millis(0, left), Arc::clone(&self));
            let (client, rng) = (client.clone(), rng.fork("request", number));
            self.spawn(
                Group::Work,
                format!("a request of session {}", client.no),
                async move {
                    tokio::time::sleep(after).await;
                    load.ask(client, rng).await;
                },
            );
        }
        for writer in 0..2 {
            let (rng, load) = (rng.fork("writer", writer), Arc::clone(&self));
            let client = client.clone();
            let name = format!("writer {writer} of session {}", client.no);
            self.spawn(Group::Work, name, async move {
                load.write(&client, rng, business.appends, left).await;
            });
        }
        for author in 0..2 {
            let (rng, load) = (rng.fork("author", author), Arc::clone(&self));
            let client = client.clone();
            let name = format!("author {author} of session {}", client.no);
            self.spawn(Group::Work, name, async move {
                load.update(&client, rng, business.updates, left).await;
            });
        }
        if deleted {
            pause(&mut rng, left / 3, left).await;
            self.delete(&client, &mut rng).await;
            // Late requests must not bring it back.
            for _ in 0..6 {
                pause(&mut rng, 0, 4000).await;
                self.visit(&client, &mut rng).await;
            }
        }
    }

    /// A session that is deleted soon: what was held up on its way must not
    /// bring it back.
    pub(crate) async fn brief(self: Arc<Self>, mut rng: Rng) {
        let left = self
            .until
            .saturating_duration_since(Instant::now())
            .as_millis();
        pause(&mut rng, 0, u64::try_from(left).unwrap_or(0)).await;
        let Some(client) = self.open(false, rng.fork("open", 0)).await else {
            return;
        };
        pause(&mut rng, 0, 2000).await;
        self.delete(&client, &mut rng).await;
        for _ in 0..8 {
            pause(&mut rng, 0, 3000).await;
            self.visit(&client, &mut rng).await;
        }
    }

    /// Appends to the standalone stream, at several instances.
    async fn write(self: &Arc<Self>, client: &Client, mut rng: Rng, appends: u64, left: u64) {
        for _ in 0..appends {
            pause(&mut rng, 0, 2 * left / appends.max(1)).await;
            let burst = if rng.chance(200) { rng.within(2, 6) } else { 1 };
            for _ in 0..burst {
                let instance = self.fleet.pick(&mut rng);
                let (event, data) = self.event(&mut rng);
                let (load, client) = (Arc::clone(self), client.clone());
                let append = async move {
                    let Some(engine) = instance.engine() else {
                        return;
                    };
                    let (stream, terminal) = (client.standalone, false);
                    load.history.push(What::Append {
                        stream,
                        event,
                        terminal,
                    });
                    let began = load.history.now();
                    let append = engine.append(&client.id, data);
                    let Some(done) = instance.run("append", Bound::Operation, append).await else {
                        return;
                    };
                    match &done {
                        Ok(_) => load.found(&client, began, true, true),
                        Err(error) => load.missed(&client, began, error),
                    }
                    let done = Written::of(done.as_ref(), |id| id.position);
                    load.history.push(What::Appended {
                        stream,
                        event,
                        done,
                    });
                };
                if burst > 1 {
                    self.spawn(Group::Work, format!("append of {event}"), append);
                } else {
                    append.await;
                }
            }
        }
    }

    /// Compare-and-set of the record, against another author.
    async fn update(&self, client: &Client, mut rng: Rng, updates: u64, left: u64) {
        for _ in 0..updates {
            pause(&mut rng, 0, 2 * left / updates.max(1)).await;
            let instance = self.fleet.pick(&mut rng);
            let Some(engine) = instance.engine() else {
                continue;
            };
            let began = self.history.now();
            let entering = engine.enter(&client.id, None, None);
            let session = match instance.run("enter", Bound::Operation, entering).await {
                Some(Ok(entered)) => entered.session,
                Some(Err(error)) => {
                    self.missed(client, began, &error);
                    continue;
                }
                None => continue,
            };
            self.found(client, began, true, true);
            let mut record = SessionRecord::clone(&session.record);
            record.state = self.number().into();
            let began = self.history.now();
            let update = engine.update(&client.id, session.revision, record);
            let Some(done) = instance.run("update", Bound::Operation, update).await else {
                continue;
            };
            if let Err(error) = &done {
                self.missed(client, began, error);
            }
            let done = Written::of(done.as_ref(), |revision| *revision);
            self.history.push(What::Updated {
                session: client.no,
                done,
            });
        }
    }

    /// Repeated until it is answered, as a client would.
    pub(crate) async fn delete(&self, client: &Client, rng: &mut Rng) {
        for _ in 0..50 {
            let instance = self.fleet.pick(rng);
            if let Some(engine) = instance.engine() {
                self.history.push(What::Delete { session: client.no });
                let deleting = engine.delete(&client.id, None);
                if let Some(done) = instance.run("delete", Bound::Operation, deleting).await {
                    let done = Written::of(done.as_ref(), |done| *done);
                    self.history.push(What::Deleted {
                        session: client.no,
                        done,
                    });
                    if matches!(done, Written::Done(_)) {
                        return;
                    }
                }
            }
            pause(rng, 100, 1000).await;
        }
        let text = format!("session {} cannot be deleted", client.no);
        self.history.push(What::Hung(text));
    }

    /// A request that does no more than look whether the session is there.
    pub(crate) async fn visit(&self, client: &Client, rng: &mut Rng) -> bool {
        let instance = self.fleet.pick(rng);
        let Some(engine) = instance.engine() else {
            return false;
        };
        let began = self.history.now();
        let entering = engine.enter(&client.id, None, None);
        match instance.run("enter", Bound::Operation, entering).await {
            Some(Ok(_)) => {
                self.found(client, began, true, true);
                true
            }
            Some(Err(error)) => {
                self.missed(client, began, &error);
                false
            }
            None => false,
        }
    }
}
