//! All data of the reference, and the steps on them.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use mcp_adapter_core::{
    InstanceId, PrincipalKey, RpcId, SessionKey, StreamId, WaiterToken,
    storage::{
        Append, Appended, Cursor, Entered, Held, Hold, Names, NewSession, OpenStream, Place, Read,
        Target, UpdateSession, Updated, Usage,
    },
};
use tokio::time::Instant;

use super::{Context, request::Request, stream::Stream};

/// How long a deleted session is remembered: longer than any command is held up
/// on its way.
const TOMBSTONE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone)]
pub(super) struct Session {
    principal: PrincipalKey,
    creator: WaiterToken,
    record: Bytes,
    revision: u64,
    /// The last updates that won: the last one made the revision.
    updates: Names,
    idle: Duration,
    hard: Option<Instant>,
    deadline: Instant,
    born: u32,
    /// Appends so far: the age of events.
    appends: u64,
    /// The last epoch of a standalone stream that is gone.
    former: u32,
    pub(super) streams: BTreeMap<StreamId, Stream>,
    pub(super) requests: BTreeMap<RpcId, Request>,
}

impl Session {
    fn touch(&mut self, now: Instant) {
        let slid = now + self.idle;
        self.deadline = self.hard.map_or(slid, |hard| slid.min(hard));
    }

    fn bytes(&self) -> u64 {
        self.streams.values().map(Stream::bytes).sum()
    }

    /// The standalone stream, made where it is not there.
    fn standalone(&mut self, id: &StreamId) -> &mut Stream {
        let former = self.former;
        self.streams
            .entry(id.clone())
            .or_insert_with(|| Stream::shared(former))
    }

    fn remove_streams(&mut self, remove: impl Fn(&StreamId, &Stream) -> bool) {
        let former = &mut self.former;
        self.streams.retain(|id, stream| {
            let removed = remove(id, stream);
            if removed && id.is_standalone() {
                *former = (*former).max(stream.epoch());
            }
            !removed
        });
    }

    pub(super) fn pending(&self) -> usize {
        self.requests
            .values()
            .filter(|request| request.is_pending())
            .count()
    }
}

/// All that is stored.
#[derive(Debug, Clone, Default)]
pub(crate) struct Data {
    pub(super) sessions: BTreeMap<SessionKey, Session>,
    /// Creators of deleted sessions, and until when they are remembered.
    deleted: BTreeMap<(SessionKey, u128), Instant>,
    pub(super) beats: BTreeMap<InstanceId, (u64, Instant)>,
}

impl Data {
    /// Removes and ends what is past its deadline: first of all in every step,
    /// so that nothing expired is ever seen.
    pub(super) fn purge(&mut self, now: Instant) {
        self.sessions.retain(|_, session| now < session.deadline);
        self.deleted.retain(|_, until| now < *until);
        self.beats.retain(|_, (_, until)| now < *until);
        for session in self.sessions.values_mut() {
            session.remove_streams(|_, stream| stream.expires.is_some_and(|at| at <= now));
            for request in session.requests.values_mut() {
                request.time_out(now);
            }
            session
                .requests
                .retain(|_, request| request.forget.is_none_or(|at| now < at));
        }
    }

    /// Calls' streams that nobody has ended.
    pub(crate) fn open_calls(&self) -> Vec<StreamId> {
        let streams = self.sessions.values().flat_map(|session| &session.streams);
        let open = streams.filter(|(_, stream)| stream.is_open_call());
        open.map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn create(&mut self, context: &Context, new: &NewSession) -> bool {
        if let Some(session) = self.sessions.get(&new.session) {
            return session.creator == new.creator;
        }
        if self.deleted.contains_key(&(new.session, new.creator.0)) {
            return false;
        }
        let mut session = Session {
            principal: new.principal,
            creator: new.creator,
            record: new.record.clone(),
            revision: 1,
            idle: new.idle_ttl,
            hard: new.absolute_ttl.map(|ttl| context.now + ttl),
            deadline: context.now,
            born: context.generation,
            appends: 0,
            former: 0,
            updates: Names::default(),
            streams: BTreeMap::new(),
            requests: BTreeMap::new(),
        };
        session.touch(context.now);
        self.sessions.insert(new.session, session);
        true
    }

    pub(super) fn enter(
        &mut self,
        context: &Context,
        key: &SessionKey,
        principal: &PrincipalKey,
        open: Option<&OpenStream>,
    ) -> Entered {
        let theirs = self.sessions.values().filter(|s| s.principal == *principal);
        let bytes: u64 = theirs.map(Session::bytes).sum();
        let session = self.sessions.get_mut(key);
        let Some(session) = session.filter(|session| session.principal == *principal) else {
            return Entered::NoSession;
        };
        if let Some(open) = open.filter(|open| !session.streams.contains_key(&open.stream)) {
            let running = session
                .streams
                .values()
                .filter(|stream| stream.is_open_call());
            if running.count() >= open.max_open {
                return Entered::TooManyStreams;
            }
            if bytes > open.max_principal_bytes {
                return Entered::PrincipalQuota;
            }
            session
                .streams
                .insert(open.stream.clone(), Stream::owned(open));
        }
        session.touch(context.now);
        Entered::Session {
            record: session.record.clone(),
            revision: session.revision,
        }
    }

    pub(super) fn update(&mut self, context: &Context, update: &UpdateSession) -> Updated {
        let session = self.sessions.get_mut(&update.session);
        let Some(session) = session.filter(|session| session.principal == update.principal) else {
            return Updated::NoSession;
        };
        let age = session.updates.age(update.attempt);
        let by_content = session.revision == update.revision + 1 && session.record == update.record;
        let age = if context.defects.updates_by_content {
            by_content.then_some(0)
        } else {
            age
        };
        if let Some(age) = age.filter(|_| !context.defects.no_repeat_safety) {
            return Updated::Done(session.revision - age);
        }
        if session.revision != update.revision {
            return Updated::Conflict;
        }
        session.record = update.record.clone();
        session.revision += 1;
        session.updates.push(update.attempt);
        Updated::Done(session.revision)
    }

    pub(super) fn delete(
        &mut self,
        context: &Context,
        key: &SessionKey,
        principal: &PrincipalKey,
    ) -> Option<Vec<InstanceId>> {
        self.sessions
            .get(key)
            .filter(|session| session.principal == *principal)?;
        let session = self.sessions.remove(key)?;
        if !context.defects.no_tombstones {
            let until = context.now + TOMBSTONE;
            self.deleted.insert((*key, session.creator.0), until);
        }
        let mut parties = Vec::new();
        for stream in session.streams.values() {
            parties.extend(stream.owner.filter(|_| stream.end.is_none()));
            parties.extend(stream.holder.map(|holder| holder.instance));
        }
        let waiting = session
            .requests
            .values()
            .filter(|request| request.is_pending());
        parties.extend(waiting.map(|request| request.owner));
        parties.sort();
        parties.dedup();
        Some(parties)
    }

    pub(super) fn append(&mut self, context: &mut Context, append: &Append) -> Appended {
        let Some(session) = self.sessions.get_mut(&append.session) else {
            return Appended::NoSession;
        };
        if matches!(append.place, Place::Shared { .. }) {
            session.standalone(&append.stream);
        }
        session.appends += 1;
        let (born, age) = (session.born, session.appends);
        let Some(stream) = session.streams.get_mut(&append.stream) else {
            return Appended::NoStream;
        };
        let mut appended = stream.append(context, append, born, age);
        if let Appended::Stored { usage, .. } = &mut appended {
            *usage = Usage {
                session_bytes: session.bytes(),
                principal_bytes: 0,
            };
            session.touch(context.now);
            let target = Target::Stream(append.stream.clone());
            context.wake(append.wake, &append.session, target);
        }
        appended
    }

    pub(super) fn read(&mut self, context: &Context, cursor: &Cursor) -> Read {
        let Some(session) = self.sessions.get_mut(&cursor.session) else {
            return Read::NoSession;
        };
        if cursor.touch {
            session.touch(context.now);
        }
        session
            .streams
            .get(&cursor.stream)
            .map_or(Read::NoStream, |stream| Read::Page {
                events: stream.page(cursor),
                state: context.defects.shown(stream.state()),
            })
    }

    pub(super) fn hold(
        &mut self,
        context: &Context,
        key: &SessionKey,
        stream: &StreamId,
        me: InstanceId,
        hold: Hold,
    ) -> Held {
        let Some(session) = self.sessions.get_mut(key) else {
            return Held::NoSession;
        };
        if stream.is_standalone() {
            session.standalone(stream);
        }
        let stream = session.streams.get_mut(stream);
        stream.map_or(Held::NoStream, |stream| {
            stream.hold(me, hold, context.defects)
        })
    }

    pub(super) fn shrink(&mut self, key: &SessionKey, max_bytes: u64) -> u64 {
        let Some(session) = self.sessions.get_mut(key) else {
            return 0;
        };
        while session.bytes() > max_bytes {
            let streams = || session.streams.iter();
            let ended = streams().filter(|(_, stream)| stream.end.is_some());
            let ended = ended.min_by_key(|(_, stream)| stream.expires);
            let aged = streams().filter_map(|(id, stream)| Some((stream.age()?, id)));
            if let Some(first) = ended.map(|(id, _)| id.clone()) {
                session.remove_streams(|id, _| *id == first);
            } else if let Some(oldest) = aged.min().map(|(_, id)| id.clone()) {
                let stream = session.streams.get_mut(&oldest);
                stream.map(Stream::evict);
            } else {
                break;
            }
        }
        session.bytes()
    }

    pub(super) fn stats(&self) -> [u64; 5] {
        let streams = || {
            self.sessions
                .values()
                .flat_map(|session| session.streams.values())
        };
        [
            self.sessions.len() as u64,
            streams().count() as u64,
            streams().map(Stream::events).sum(),
            streams().map(Stream::bytes).sum(),
            self.sessions
                .values()
                .map(|session| session.pending() as u64)
                .sum(),
        ]
    }
}
