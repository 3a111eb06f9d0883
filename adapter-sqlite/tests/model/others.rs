//! Steps on sessions and requests, and those of sweeping.

use bytes::Bytes;
use mcp_adapter_core::{
    Cancelled, OutcomeKind, PrincipalKey, RpcId, SessionKey, StreamId,
    storage::{
        Beat, Claim, Dead, Entered, NewSession, OpenStream, Put, PutRequest, RequestKey, Settle,
        Settled, Storage, UpdateSession, Updated,
    },
};

use crate::world::*;

impl World {
    /// A new update, or a late repeat of any.
    pub(crate) async fn new_update(&mut self, session: SessionKey) -> UpdateSession {
        if self.random.bool() && !self.updates.is_empty() {
            let index = self.random.usize(..self.updates.len());
            return self.updates[index].clone();
        }
        let entered = self.model.enter(&session, &ME, None).await.unwrap();
        let revision = match entered {
            Entered::Session { revision, .. } => revision,
            _ => 1,
        };
        let known = self.random.u8(..8) > 0;
        UpdateSession {
            session,
            principal: if known { ME } else { PrincipalKey([8; 32]) },
            revision: (revision + 1).saturating_sub(self.random.u64(1..3)),
            // Often the same.
            record: Bytes::from(vec![b'r'; self.random.usize(..2)]),
            attempt: self.token(),
        }
    }

    pub(crate) async fn update(&mut self) {
        let session = self.session();
        for _ in 0..self.random.usize(1..5) {
            let update = self.new_update(session).await;
            let handle = self.handle();
            let former = self.model.enter(&session, &ME, None).await.unwrap();
            let found = handle.update(&update).await.unwrap();
            match (former, found) {
                (Entered::Session { revision, .. }, Updated::Done(made)) if made <= revision => {
                    self.seen.insert(if made == revision {
                        "an update is a repeat"
                    } else {
                        "an update of a former revision is a repeat"
                    });
                }
                (_, Updated::Conflict) => {
                    self.seen.insert("an update conflicts");
                }
                _ => {}
            }
            let expected = self.model.update(&update).await.unwrap();
            assert_eq!(found, expected, "{update:?}");
            self.updates.push(update);
        }
    }

    pub(crate) async fn sessions(&mut self) {
        let session = self.session();
        let handle = self.handle();
        match self.random.u8(..6) {
            0 => {
                let found = handle.delete(&session, &ME).await.unwrap();
                let expected = self.model.delete(&session, &ME).await.unwrap();
                assert_eq!(found, expected);
                self.updates.retain(|update| update.session != session);
                self.puts.retain(|put| put.session != session);
                self.settles.retain(|settle| settle.session != session);
                self.shared.retain(|append| append.session != session);
            }
            1 | 2 => self.update().await,
            _ => {
                let new = NewSession {
                    session,
                    principal: ME,
                    record: self.data(),
                    idle_ttl: LONG,
                    absolute_ttl: None,
                    creator: self.token(),
                };
                let found = handle.create(&new).await.unwrap();
                assert_eq!(found, self.model.create(&new).await.unwrap());
            }
        }
    }

    pub(crate) async fn enter(&mut self) {
        let session = self.session();
        let stream = self.stream();
        let open = OpenStream {
            owner: self.instance().1,
            request: RpcId::Number(self.random.i64(0..2)),
            max_open: 3,
            max_principal_bytes: 300,
            stream,
        };
        let open = Some(open).filter(|open| !open.stream.is_standalone());
        let handle = self.handle();
        let found = handle.enter(&session, &ME, open.as_ref()).await.unwrap();
        let expected = self
            .model
            .enter(&session, &ME, open.as_ref())
            .await
            .unwrap();
        assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{open:?}");
    }

    pub(crate) async fn requests(&mut self) {
        let session = self.session();
        // Few, so that one id has many requests, one after another.
        let id = RpcId::Number(self.random.i64(0..2));
        let handle = self.handle();
        match self.random.u8(..3) {
            0 => {
                let repeat = self.random.u8(..4) == 0;
                let last = self.late(&self.puts).cloned().filter(|_| repeat);
                let put = match last {
                    Some(put) => put,
                    None => PutRequest {
                        session,
                        id,
                        token: self.token(),
                        owner: self.instance().1,
                        timeout: LONG,
                        result_ttl: LONG,
                        max_pending: 2,
                    },
                };
                let found = handle.put_requests(std::slice::from_ref(&put)).await;
                let expected = self.model.put_requests(std::slice::from_ref(&put)).await;
                let (found, expected) = (found.unwrap(), expected.unwrap());
                assert_eq!(found, expected, "{put:?}");
                let later = self.puts.iter().rev();
                let later = { later }.take_while(|other| other.token != put.token);
                let same =
                    later.filter(|other| (other.session, &other.id) == (put.session, &put.id));
                if let [Put::Replaced(_)] = expected[..] {
                    self.seen.insert("a waiter is replaced");
                }
                if repeat && expected == [Put::Done] && same.count() > 2 {
                    self.seen.insert("a waiter of long ago");
                }
                self.puts.push(put);
            }
            1 => {
                let repeat = self.random.u8(..4) == 0;
                let last = self.late(&self.settles).cloned().filter(|_| repeat);
                let (index, owner) = self.instance();
                let settle = match last {
                    Some(settle) => settle,
                    None => Settle {
                        session,
                        id,
                        token: None,
                        outcome: OutcomeKind::Answered,
                        payload: self.data(),
                        dead: (self.random.u8(..4) == 0).then(|| Dead {
                            instance: owner,
                            beat: self.beats[index],
                        }),
                        attempt: self.token(),
                    },
                };
                let found = handle.settle(std::slice::from_ref(&settle)).await;
                let expected = self.model.settle(std::slice::from_ref(&settle)).await;
                let (found, expected) = (found.unwrap(), expected.unwrap());
                assert_eq!(found, expected, "{settle:?}");
                let later = self.settles.iter().rev();
                let later = { later }.take_while(|other| other.attempt != settle.attempt);
                if !repeat && expected == [Settled::Won] {
                    self.seen.insert("an answer wins");
                }
                if repeat && expected == [Settled::Won] && later.count() > 2 {
                    self.seen.insert("an answer of long ago");
                }
                self.settles.push(settle);
            }
            _ => {
                let key = RequestKey {
                    session,
                    id,
                    token: None,
                };
                let found = handle.requests(std::slice::from_ref(&key)).await;
                let expected = self.model.requests(std::slice::from_ref(&key)).await;
                assert_eq!(found.unwrap(), expected.unwrap());
            }
        }
    }

    pub(crate) async fn others(&mut self) {
        let (session, stream) = (self.session(), self.stream());
        let (mut index, mut instance) = self.instance();
        let owner = self.model_state(session, &stream).await;
        if let Some(owner) = owner.and_then(|state| state.owner)
            && let Some(at) = INSTANCES.iter().position(|one| *one == owner)
        {
            (index, instance) = (at, owner);
        }
        let handle = self.handle();
        let beat = match self.random.u8(..4) {
            0 => None,
            1 => Some(self.beats[index].unwrap_or(0) + 1),
            _ => self.beats[index],
        };
        let dead = Dead { instance, beat };
        match self.random.u8(..7) {
            0 => {
                let max = self.random.u64(..200);
                let found = handle.shrink(&session, max).await.unwrap();
                assert_eq!(found, self.model.shrink(&session, max).await.unwrap());
                // Numbers of a stream that is gone are not known any more.
                let standalone = StreamId::standalone();
                if self.model_state(session, &standalone).await.is_none() {
                    self.shared.retain(|append| append.session != session);
                }
            }
            1 => {
                let id = RpcId::Number(self.random.i64(0..2));
                let found = handle.mark_cancel(&session, &id).await.unwrap();
                assert_eq!(found, self.model.mark_cancel(&session, &id).await.unwrap());
                match found {
                    Some(Cancelled::Marked(_)) => self.seen.insert("a call is cancelled"),
                    Some(Cancelled::Ambiguous) => self.seen.insert("a cancel is ambiguous"),
                    _ => false,
                };
            }
            2 | 3 => {
                // It begins with 0.
                let former = self.beats[index];
                let count = former.map_or(0, |former| former + self.random.u64(..2));
                self.beats[index] = Some(count);
                let beat = Beat { instance, count };
                let sorted = |mut beats: Vec<Beat>| {
                    beats.sort_by_key(|beat| beat.instance);
                    beats
                };
                let found = handle.heartbeat(beat, LONG).await.unwrap();
                let expected = self.model.heartbeat(beat, LONG).await.unwrap();
                assert_eq!(sorted(found), sorted(expected));
            }
            4 => {
                let claim = [Claim {
                    session,
                    stream,
                    dead,
                    finished_ttl: self.kept(),
                }];
                let found = handle.claim(&claim).await.unwrap();
                assert_eq!(found, self.model.claim(&claim).await.unwrap(), "{claim:?}");
                if found == 1 {
                    self.seen.insert("a dead owner's stream is ended");
                }
            }
            5 => {
                // Which is ended first is nobody's business: until none is left. Of
                // streams it is one, for the order in which they expire is looked at.
                while let [_, (session, stream), ..] = &self.open_streams_of(instance).await[..] {
                    let claim = [Claim {
                        session: *session,
                        stream: stream.clone(),
                        dead: Dead {
                            instance,
                            beat: self.beats[index],
                        },
                        finished_ttl: self.kept(),
                    }];
                    assert_eq!(handle.claim(&claim).await.unwrap(), 1);
                    assert_eq!(self.model.claim(&claim).await.unwrap(), 1);
                }
                let finished = self.kept();
                for _ in 0..100 {
                    let found = handle.sweep(100, &[dead], finished).await.unwrap();
                    let expected = self.model.sweep(100, &[dead], finished).await.unwrap();
                    if found.removed == 0 && expected.removed == 0 && !found.more {
                        break;
                    }
                }
            }
            _ => {
                let found = handle.stats().await.unwrap();
                let expected = self.model.stats().await.unwrap();
                let values = |stats: mcp_adapter_core::Stats| {
                    [
                        stats.sessions,
                        stats.streams,
                        stats.events,
                        stats.bytes,
                        stats.pending_requests,
                    ]
                    .map(mcp_adapter_core::Count::value)
                };
                assert_eq!(values(found), values(expected));
            }
        }
    }
}
