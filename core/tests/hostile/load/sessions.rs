//! Sessions: created, used, written to by many, deleted.

use std::sync::Arc;

use futures::future::join_all;
use mcp_adapter_core::{ErrorKind, SessionAdapter, SessionRecord, StreamId};
use tokio::time::Instant;

use super::{
    Client, Group, Load, pause,
    readers::{Habits, Start},
};
use crate::{
    fleet::{Bound, Instance},
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
    /// In 1000: how often two listeners share its standalone stream.
    pub(crate) shared: u64,
}

impl Load {
    /// A session, or nothing where nobody could create it. An id of which it is
    /// unknown whether it was created is not used, as a server would not.
    pub(crate) async fn open(
        self: &Arc<Self>,
        rivals: bool,
        shared: bool,
        mut rng: Rng,
    ) -> Option<Client> {
        for _ in 0..20 {
            let (no, standalone) = (self.number(), self.number());
            let id = format!("session-{}-{no}", self.seed).parse().ok()?;
            let client = Client {
                no,
                id,
                standalone,
                shared,
            };
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
    async fn create(&self, client: &Client, instance: Arc<Instance>) -> bool {
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
        let shared = rng.chance(business.shared);
        let Some(client) = self.open(!deleted, shared, rng.fork("open", 0)).await else {
            return;
        };
        let stream = (client.standalone, StreamId::standalone());
        let habits = Habits {
            cuts: 500,
            patience: None,
        };
        if shared {
            self.listen(&client, &rng);
        }
        let readers = rng.within(1, 3);
        for number in 0..if shared { 0 } else { readers } {
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
                load.count(&client, rng, business.updates, left).await;
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
        let Some(client) = self.open(false, false, rng.fork("open", 0)).await else {
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
                let (load, client) = (Arc::clone(self), client.clone());
                let rng = Rng::new(rng.next());
                let name = format!("append to {}", client.standalone);
                let append = async move { load.append(&client, rng).await };
                if burst > 1 {
                    self.spawn(Group::Work, name, append);
                } else {
                    append.await;
                }
            }
        }
    }

    /// One event for the standalone stream.
    pub(crate) async fn append(&self, client: &Client, mut rng: Rng) {
        let instance = self.fleet.pick(&mut rng);
        let (event, data) = self.event(&mut rng);
        let Some(engine) = instance.engine() else {
            return;
        };
        let stream = client.standalone;
        self.history.push(What::Append {
            stream,
            event,
            terminal: false,
            bytes: data.len(),
        });
        let began = self.history.now();
        let append = engine.append(&client.id, data);
        let Some(done) = instance.run("append", Bound::Operation, append).await else {
            return;
        };
        match &done {
            Ok(_) => self.found(client, began, true, true),
            Err(error) => self.missed(client, began, error),
        }
        let done = Written::of(done.as_ref(), |id| id.position);
        self.history.push(What::Appended {
            stream,
            event,
            done,
        });
    }

    /// The session's counter, counted up by several at once: all read it, and all
    /// write the same.
    async fn count(self: &Arc<Self>, client: &Client, mut rng: Rng, times: u64, left: u64) {
        for _ in 0..times {
            pause(&mut rng, 0, 2 * left / times.max(1)).await;
            let rivals = (0..rng.within(1, 3)).map(|_| self.count_up(client, Rng::new(rng.next())));
            join_all(rivals.collect::<Vec<_>>()).await;
        }
    }

    /// Until it has won or the session cannot be read: a conflict is tried again.
    async fn count_up(&self, client: &Client, mut rng: Rng) {
        for _ in 0..8 {
            let instance = self.fleet.pick(&mut rng);
            let Some(engine) = instance.engine() else {
                return;
            };
            let Some((revision, record)) = self.read_count(client, &instance).await else {
                return;
            };
            let mut next = SessionRecord::clone(&record);
            next.state = (count_of(&record) + 1).into();
            let begun = self.history.now();
            let update = engine.update(&client.id, revision, next);
            let updated = instance.run("update", Bound::Operation, update).await;
            if let Some(Err(error)) = &updated {
                self.missed(client, begun, error);
            }
            // Who dies meanwhile may have won.
            let done = updated.map_or(Written::Unknown(ErrorKind::Closed), |updated| {
                Written::of(updated.as_ref(), |revision| *revision)
            });
            self.history.push(What::Updated {
                session: client.no,
                begun,
                from: revision,
                done,
            });
            if done != Written::Refused(ErrorKind::Conflict) {
                return;
            }
        }
    }

    async fn read_count(
        &self,
        client: &Client,
        instance: &Instance,
    ) -> Option<(u64, Arc<SessionRecord>)> {
        let engine = instance.engine()?;
        let began = self.history.now();
        let entering = engine.enter(&client.id, None, None);
        match instance.run("enter", Bound::Operation, entering).await? {
            Ok(entered) => {
                self.found(client, began, true, true);
                let (revision, record) = (entered.session.revision, entered.session.record);
                let count = count_of(&record);
                self.history.push(What::Counted {
                    session: client.no,
                    revision,
                    count,
                });
                Some((revision, record))
            }
            Err(error) => {
                self.missed(client, began, &error);
                None
            }
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
        self.read_count(client, &instance).await.is_some()
    }
}

fn count_of(record: &SessionRecord) -> u64 {
    record.state.as_u64().unwrap_or(0)
}
