//! Three handles on one file, driven at random, against the reference backend:
//! each step must answer the same, whichever handle does it. What one handle
//! remembers, another one changes.

#![allow(clippy::unwrap_used, reason = "a step that fails ends the test")]

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use mcp_adapter_core::{
    Cancelled, InstanceId, OutcomeKind, Position, PrincipalKey, RpcId, SessionKey, StreamId,
    WaiterToken,
    storage::{
        Append, Appended, Beat, Claim, Cursor, Dead, Entered, Generation, Held, Hold, NewEvent,
        NewSession, OpenStream, Place, Put, PutRequest, Read, RequestKey, Settle, Settled, Storage,
        StreamEnd, StreamState, UpdateSession, Updated,
    },
};
use mcp_adapter_memory::MemoryStorage;
use mcp_adapter_sqlite::{SqliteOptions, SqliteStorage};

const LONG: Duration = Duration::from_secs(600);
const ME: PrincipalKey = PrincipalKey([7; 32]);
const SESSIONS: u8 = 3;
const STREAMS: [&str; 4] = ["a", "b", "c", "standalone"];
const INSTANCES: [InstanceId; 3] = [InstanceId(1), InstanceId(2), InstanceId(3)];

struct World {
    random: fastrand::Rng,
    model: MemoryStorage,
    handles: Vec<SqliteStorage>,
    /// How far epochs of shared streams in the file are above those of the model.
    ahead: u32,
    step: u64,
    /// Streams that were ended, or tried to be.
    ends: u64,
    tags: [u64; 3],
    beats: [Option<u64>; 3],
    tokens: u128,
    updates: Vec<UpdateSession>,
    holds: Vec<(SessionKey, StreamId, InstanceId, Hold)>,
    puts: Vec<PutRequest>,
    settles: Vec<Settle>,
    shared: Vec<Append>,
    /// For so many steps one handle does all that is done to one stream: the
    /// others do not see everything that comes and goes meanwhile.
    burst: u8,
    last: (usize, SessionKey, StreamId),
    /// What came about, see [`ALL`].
    seen: BTreeSet<&'static str>,
}

/// What must come about in the seeds that are run: steps that are rare, and answers
/// that need more than what a row says now.
const ALL: [&str; 17] = [
    "an append is new",
    "an append is a repeat",
    "the repeat of an event that was evicted",
    "an append comes twice in a batch",
    "a shared stream is made again",
    "an update is a repeat",
    "an update of a former revision is a repeat",
    "an update conflicts",
    "a hold is continued",
    "a hold is past",
    "a waiter of long ago",
    "an answer of long ago",
    "an answer wins",
    "a waiter is replaced",
    "a call is cancelled",
    "a cancel is ambiguous",
    "a dead owner's stream is ended",
];

impl World {
    fn session(&mut self) -> SessionKey {
        if self.burst > 0 {
            return self.last.1;
        }
        SessionKey([self.random.u8(..SESSIONS); 32])
    }

    fn stream(&mut self) -> StreamId {
        if self.burst > 0 {
            return self.last.2.clone();
        }
        let name = STREAMS[self.random.usize(..STREAMS.len())];
        name.parse().unwrap()
    }

    fn instance(&mut self) -> (usize, InstanceId) {
        let index = self.random.usize(..INSTANCES.len());
        (index, INSTANCES[index])
    }

    fn handle(&mut self) -> SqliteStorage {
        let index = if self.burst > 0 {
            self.last.0
        } else {
            self.random.usize(..self.handles.len())
        };
        self.handles[index].clone()
    }

    /// How long an ended stream is kept: no two expire at once, and those that end
    /// first expire first.
    fn kept(&mut self) -> Duration {
        self.ends += 1;
        LONG + Duration::from_millis(self.ends)
    }

    fn token(&mut self) -> WaiterToken {
        self.tokens += 1;
        WaiterToken(self.tokens)
    }

    fn data(&mut self) -> Bytes {
        let length = self.random.usize(..40);
        Bytes::from(vec![b'0' + (self.step % 10) as u8; length])
    }

    /// What a shared stream answers, in the words of the model.
    fn plain(&self, answer: &impl std::fmt::Debug) -> String {
        const EPOCH: &str = "epoch: ";
        let text = format!("{answer:?}");
        let mut parts = text.split(EPOCH);
        let mut plain = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let end = part.find(',').unwrap();
            let epoch: u32 = part[..end].parse().unwrap();
            let epoch = epoch.checked_sub(self.ahead).unwrap_or(epoch);
            plain += &format!("{EPOCH}{epoch}{}", &part[end..]);
        }
        plain
    }

    fn to_file(&self, position: Position, stream: &StreamId) -> Position {
        if stream.is_standalone() && position.epoch > 0 {
            Position::new(position.epoch + self.ahead, position.seq)
        } else {
            position
        }
    }

    /// One of the last that came.
    fn late<'a, T>(&self, all: &'a [T]) -> Option<&'a T> {
        let last = all.len().checked_sub(1)?;
        all.get(last.saturating_sub(self.random.clone().usize(..12)))
    }

    async fn model_state(&self, session: SessionKey, stream: &StreamId) -> Option<StreamState> {
        let cursor = Cursor::state_of(session, stream.clone());
        match self.model.read(&[cursor]).await.unwrap().pop() {
            Some(Read::Page { state, .. }) => Some(state),
            _ => None,
        }
    }

    async fn open_streams_of(&self, owner: InstanceId) -> Vec<(SessionKey, StreamId)> {
        let mut open = Vec::new();
        for session in (0..SESSIONS).map(|session| SessionKey([session; 32])) {
            for stream in STREAMS.map(|name| name.parse::<StreamId>().unwrap()) {
                let state = self.model_state(session, &stream).await;
                if state.is_some_and(|state| state.end.is_none() && state.owner == Some(owner)) {
                    open.push((session, stream));
                }
            }
        }
        open
    }

    async fn append(&mut self) -> Append {
        let (session, stream) = (self.session(), self.stream());
        let state = self.model_state(session, &stream).await;
        let top = state.as_ref().map_or(Position::START, |state| state.top);
        let owner = state.as_ref().and_then(|state| state.owner);
        let (index, instance) = self.instance();
        let data = self.data();
        let event = NewEvent { prev: None, data };
        let mut append = Append {
            session,
            place: Place::Owned {
                owner: if self.random.u8(..10) > 0 {
                    owner.unwrap_or(instance)
                } else {
                    instance
                },
                position: match self.random.u8(..12) {
                    0 => Position::new(top.epoch.max(1), self.random.u64(..=top.seq)),
                    1 => Position::new(top.epoch.max(1) + 1, 1),
                    2 => Position::new(1, top.seq + 1),
                    _ => Position::new(top.epoch.max(1), top.seq + 1),
                },
            },
            event: Some(event),
            finish: (self.random.u8(..12) == 0).then(|| self.kept()),
            end: StreamEnd::Finished,
            keep_events: 6,
            keep_bytes: 120,
            trim: None,
            wake: None,
            stream,
        };
        if append.stream.is_standalone() {
            if self.random.u8(..5) == 0 && !self.shared.is_empty() {
                // A late repeat.
                let index = self.random.usize(..self.shared.len());
                return self.shared[index].clone();
            }
            self.tags[index] += 1;
            append.place = Place::Shared {
                writer: instance,
                tag: self.tags[index],
            };
            // It goes when the session is to shrink, and is made again.
            append.finish = (self.random.u8(..40) == 0).then(|| self.kept());
            self.shared.push(append.clone());
        } else {
            if let Place::Owned { position, .. } = append.place
                && position.epoch > top.epoch
                && let Some(event) = &mut append.event
            {
                event.prev = Some(top);
            }
            if self.random.u8(..20) == 0 {
                append.event = None;
                append.finish = Some(self.kept());
                let lost = self.random.u64(..3);
                append.place = Place::Owned {
                    owner: owner.unwrap_or(instance),
                    position: Position::new(top.epoch, top.seq + lost),
                };
            }
        }
        append
    }

    async fn appends(&mut self) {
        let mut batch = Vec::new();
        // What depends on the state goes alone.
        for _ in 0..self.random.usize(1..4) {
            let append = self.append().await;
            let twice =
                |other: &Append| (other.session, &other.stream) == (append.session, &append.stream);
            if !batch.iter().any(twice) {
                batch.push(append);
            } else if append.stream.is_standalone() {
                // A number that was never stored does not come later.
                self.shared.retain(|other| other.place != append.place);
            }
        }
        if self.random.u8(..6) == 0 {
            // It comes twice at once.
            let again = self.random.usize(..batch.len());
            batch.push(batch[again].clone());
        }
        let handle = self.handle();
        let mut found = handle.append(&batch).await.unwrap();
        let mut expected = self.model.append(&batch).await.unwrap();
        for (append, answer) in batch.iter().zip(&found) {
            if append.stream.is_standalone() && !matches!(answer, Appended::Stored { .. }) {
                self.shared.retain(|other| other.place != append.place);
            }
        }
        for (index, append) in batch.iter().enumerate() {
            let (found, expected) = (&mut found[index], &expected[index]);
            let earlier = batch[..index].iter();
            let twice = { earlier }.any(|other| {
                let place = (other.session, &other.stream, other.place);
                place == (append.session, &append.stream, append.place)
            });
            match *expected {
                Appended::Stored { repeat: true, .. } if twice => {
                    self.seen.insert("an append comes twice in a batch");
                }
                Appended::Stored { repeat: true, .. } => {
                    self.seen.insert("an append is a repeat");
                }
                Appended::Stored { position, .. } => {
                    self.seen.insert("an append is new");
                    if append.stream.is_standalone() && position.epoch > 1 {
                        self.seen.insert("a shared stream is made again");
                    }
                }
                _ => {}
            }
            let (Appended::Stored { position, .. }, Appended::Stored { position: told, .. }) =
                (found, expected)
            else {
                continue;
            };
            // The repeat of an event that was evicted: any place before what is
            // kept will do.
            let state = self.model_state(append.session, &append.stream).await;
            let oldest = state.and_then(|state| state.oldest);
            if append.stream.is_standalone()
                && let Some(epoch) = position.epoch.checked_sub(self.ahead)
                && oldest.is_none_or(|oldest| {
                    Position::new(epoch, position.seq) < oldest && *told < oldest
                })
            {
                *position = self.to_file(*told, &append.stream);
                self.seen.insert("the repeat of an event that was evicted");
            }
        }
        for answer in found.iter_mut().chain(&mut expected) {
            if let Appended::Stored { usage, .. } = answer {
                // Not told by the file.
                usage.principal_bytes = 0;
            }
        }
        assert_eq!(self.plain(&found), self.plain(&expected), "{batch:?}");
    }

    async fn read(&mut self) {
        let (session, stream) = (self.session(), self.stream());
        let top = self.model_state(session, &stream).await;
        let top = top.map_or(Position::START, |state| state.top);
        let cursor = Cursor {
            session,
            after: match self.random.u32(..=top.epoch) {
                0 => Position::START,
                epoch => Position::new(epoch, self.random.u64(..=top.seq + 1)),
            },
            max_events: self.random.usize(..5),
            max_bytes: self.random.usize(..80),
            touch: self.random.bool(),
            stream,
        };
        let expected = self
            .model
            .read(std::slice::from_ref(&cursor))
            .await
            .unwrap();
        let handle = self.handle();
        let asked = Cursor {
            after: self.to_file(cursor.after, &cursor.stream),
            ..cursor.clone()
        };
        let found = handle.read(&[asked]).await.unwrap();
        assert_eq!(self.plain(&found), self.plain(&expected), "{cursor:?}");
    }

    async fn new_hold(&mut self) -> (SessionKey, StreamId, InstanceId, Hold) {
        let (session, stream) = (self.session(), self.stream());
        let (_, me) = self.instance();
        let state = self.model_state(session, &stream).await;
        let holder = state.as_ref().and_then(|state| state.holder);
        let holds = state.as_ref().map(|state| &state.holds[..]);
        let last = holds.and_then(|holds| Some(holds.last()?.number));
        let number = holder.map(|holder| holder.number).or(last).unwrap_or(1);
        let top = state.map_or(Position::START, |state| state.top);
        let hold = match self.random.u8(..6) {
            0 => Hold::Take,
            1 => Hold::TakeFrom(None),
            2 => Hold::TakeFrom(holder),
            3 => Hold::Continue {
                number: (number + 1).saturating_sub(self.random.u64(..3)),
            },
            4 => Hold::Continue { number },
            _ => Hold::Release {
                number,
                // Up to there it was yielded; or it says too much.
                cursor: match top.epoch {
                    0 => Position::START,
                    epoch => {
                        Position::new(epoch, (top.seq + 2).saturating_sub(self.random.u64(..4)))
                    }
                },
            },
        };
        let me = match (hold, holder) {
            (Hold::Release { .. }, Some(holder)) => holder.instance,
            _ => me,
        };
        (session, stream, me, hold)
    }

    async fn hold(&mut self) {
        let repeat = self.random.u8(..4) == 0;
        let last = self.holds.last().cloned().filter(|_| repeat);
        let one = match last {
            Some(last) => last,
            None => self.new_hold().await,
        };
        self.holds.push(one.clone());
        let (session, stream, me, hold) = one;
        let expected = self.model.hold(&session, &stream, me, hold).await.unwrap();
        let asked = match hold {
            Hold::Release { number, cursor } => Hold::Release {
                number,
                cursor: self.to_file(cursor, &stream),
            },
            hold => hold,
        };
        let handle = self.handle();
        let found = handle.hold(&session, &stream, me, asked).await.unwrap();
        if let Hold::Continue { number } = hold {
            match expected {
                Held::Done { number: new, .. } if new == number + 1 => {
                    self.seen.insert("a hold is continued");
                }
                Held::Past => {
                    self.seen.insert("a hold is past");
                }
                _ => {}
            }
        }
        assert_eq!(self.plain(&found), self.plain(&expected), "{hold:?}");
    }

    /// A new update, or a late repeat of any.
    async fn new_update(&mut self, session: SessionKey) -> UpdateSession {
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

    async fn update(&mut self) {
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

    async fn sessions(&mut self) {
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

    async fn enter(&mut self) {
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

    async fn requests(&mut self) {
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

    async fn others(&mut self) {
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

    async fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step += 1;
            if self.burst > 0 {
                self.burst -= 1;
                self.appends().await;
                continue;
            }
            if self.random.u8(..40) == 0 {
                let handle = self.random.usize(..self.handles.len());
                self.last = (handle, self.session(), self.stream());
                self.burst = self.random.u8(5..20);
            }
            match self.random.u8(..22) {
                0..8 => self.appends().await,
                8..12 => self.read().await,
                12 | 13 => self.hold().await,
                14 => self.sessions().await,
                15 | 16 => self.enter().await,
                17 | 18 => self.requests().await,
                _ => self.others().await,
            }
        }
        for session in 0..SESSIONS {
            for stream in STREAMS {
                let cursor = Cursor {
                    session: SessionKey([session; 32]),
                    stream: stream.parse().unwrap(),
                    after: Position::START,
                    max_events: 1000,
                    max_bytes: 1 << 20,
                    touch: false,
                };
                let expected = self
                    .model
                    .read(std::slice::from_ref(&cursor))
                    .await
                    .unwrap();
                for handle in &self.handles {
                    let found = handle.read(std::slice::from_ref(&cursor)).await.unwrap();
                    assert_eq!(self.plain(&found), self.plain(&expected));
                }
            }
        }
    }
}

/// Everything that is stored is reached from somewhere.
fn check_file(path: &std::path::Path) {
    let conn = rusqlite::Connection::open(path).unwrap();
    let integrity: String = conn
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(integrity, "ok");
    for (what, sql) in [
        ("events", "SELECT count(*) FROM mcp_event"),
        ("heads", "SELECT count(*) FROM mcp_head"),
        ("streams", "SELECT count(*) FROM mcp_stream"),
        ("writers", "SELECT count(*) FROM mcp_writer"),
        ("requests", "SELECT count(*) FROM mcp_request"),
        ("uses", "SELECT count(*) FROM mcp_used"),
        ("principals", "SELECT count(*) FROM mcp_principal"),
        (
            "counts",
            "SELECT sessions + streams + abs(events) + abs(bytes) + pending FROM mcp_total",
        ),
    ] {
        let left: i64 = conn.query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(left, 0, "{what} that belong to nothing");
    }
}

async fn one(seed: u64, steps: u64) -> BTreeSet<&'static str> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mcp.sqlite");
    let options = SqliteOptions::new(&path);
    let handles = (0..3).map(|_| SqliteStorage::new(options.clone()).unwrap());
    let handles: Vec<_> = handles.collect();
    let Generation(history) = handles[0].attach(INSTANCES[0]).await.unwrap();
    let (_, epoch) = history.rsplit_once('-').unwrap();
    // Shared streams begin with it, in the model with 1.
    let ahead = epoch.parse::<u32>().unwrap() - 1;
    let mut world = World {
        random: fastrand::Rng::with_seed(seed),
        model: MemoryStorage::new(),
        handles,
        ahead,
        step: 0,
        ends: 0,
        tags: [0; 3],
        beats: [None; 3],
        tokens: 0,
        updates: Vec::new(),
        holds: Vec::new(),
        puts: Vec::new(),
        settles: Vec::new(),
        shared: Vec::new(),
        burst: 0,
        last: (0, SessionKey([0; 32]), StreamId::standalone()),
        seen: BTreeSet::new(),
    };
    world.run(steps).await;
    world.burst = 0;
    for session in 0..SESSIONS {
        let handle = world.handle();
        handle
            .delete(&SessionKey([session; 32]), &ME)
            .await
            .unwrap();
    }
    for handle in &world.handles {
        while handle.sweep(1000, &[], LONG).await.unwrap().more {}
    }
    check_file(&path);
    world.seen
}

#[tokio::test]
async fn every_handle_answers_as_the_reference_does() {
    // MCP_SEED runs one seed alone.
    if let Ok(seed) = std::env::var("MCP_SEED") {
        one(seed.parse().unwrap(), 1500).await;
        return;
    }
    let mut seen = BTreeSet::new();
    for seed in 0..12 {
        println!("seed {seed}");
        seen.append(&mut one(seed, 1500).await);
    }
    let missing: Vec<_> = ALL.iter().filter(|what| !seen.contains(*what)).collect();
    assert!(missing.is_empty(), "it never happened: {missing:?}");
}
