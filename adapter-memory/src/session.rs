//! One session with all that belongs to it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use indexmap::IndexMap;
use mcp_adapter_core::{
    InstanceId, PrincipalKey, RpcId, StreamId, WaiterToken,
    storage::{Dead, Names, NewSession, UpdateSession, Updated},
};

use crate::{
    beats::Beats,
    clock::{Span, Time},
    hash::BuildNameHasher,
    principal::Account,
    request::Request,
    stream::{Change, Stream},
};

/// Counts of one shard, kept under its lock.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) streams: u64,
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) pending: u64,
}

/// A session. An idle one must stay small (gate M2): what only busy ones need
/// is in [`Live`].
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) principal: PrincipalKey,
    /// Not `Bytes`, which are twice as large and keep the writer's spare
    /// capacity.
    pub(crate) record: Arc<[u8]>,
    creator: [u8; 16],
    pub(crate) revision: u64,
    /// The updates that won last.
    updates: Option<Box<Names>>,
    idle: Span,
    /// The idle deadline never lies behind it.
    hard: Time,
    pub(crate) deadline: Time,
    /// When to look at the session at the latest: nothing in it has an earlier
    /// deadline. It is listed in the shard under this time.
    pub(crate) armed: Time,
    pub(crate) live: Option<Box<Live>>,
}

impl Session {
    pub(crate) fn new(new: &NewSession, now: Time) -> Self {
        let idle = Span::from(new.idle_ttl);
        let hard = new
            .absolute_ttl
            .map_or(Time::NEVER, |ttl| now.after(ttl.into()));
        let deadline = now.after(idle).min(hard);
        Self {
            principal: new.principal,
            record: Arc::from(&*new.record),
            creator: new.creator.0.to_ne_bytes(),
            revision: 1,
            updates: None,
            idle,
            hard,
            deadline,
            armed: deadline,
            live: None,
        }
    }

    pub(crate) fn is_by(&self, creator: WaiterToken) -> bool {
        self.creator == creator.0.to_ne_bytes()
    }

    pub(crate) fn update(&mut self, update: &UpdateSession) -> Updated {
        if self.principal != update.principal {
            return Updated::NoSession;
        }
        let repeated = self.updates.as_ref();
        if let Some(age) = repeated.and_then(|updates| updates.age(update.attempt)) {
            return Updated::Done(self.revision - age);
        }
        if self.revision != update.revision {
            return Updated::Conflict;
        }
        self.record = Arc::from(&*update.record);
        self.revision += 1;
        self.updates.get_or_insert_default().push(update.attempt);
        Updated::Done(self.revision)
    }

    /// Slides the expiry, never back: callers read the clock before they have
    /// the lock.
    pub(crate) fn touch(&mut self, now: Time) {
        self.deadline = now.after(self.idle).min(self.hard).max(self.deadline);
    }
}

/// Streams and client requests of a session.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) account: Account,
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    /// Streams of running calls.
    pub(crate) open: usize,
    /// Requests that wait.
    pub(crate) pending: usize,
    /// Appends so far, wrapping: the age of the next event.
    pub(crate) appends: u32,
    /// The highest epoch of standalone streams that are gone: the next one begins
    /// above it.
    pub(crate) epoch: u32,
    /// A table that does not hash where there is but one, as there mostly is.
    pub(crate) streams: IndexMap<StreamId, Stream, BuildNameHasher>,
    /// Streams that have ended, the first to expire first; with one and the
    /// same time to live that is the first that ended.
    pub(crate) ended: BTreeSet<(Time, StreamId)>,
    pub(crate) requests: HashMap<RpcId, Request, BuildNameHasher>,
}

impl Live {
    pub(crate) fn new(account: Account) -> Self {
        Self {
            account,
            events: 0,
            bytes: 0,
            open: 0,
            pending: 0,
            appends: 0,
            epoch: 0,
            streams: IndexMap::default(),
            ended: BTreeSet::new(),
            requests: HashMap::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.streams.is_empty() && self.requests.is_empty() && self.epoch == 0
    }

    /// The earliest deadline of a stream or request.
    pub(crate) fn due(&self) -> Time {
        let streams = self.ended.first().map(|(due, _)| *due);
        let requests = self.requests.values().map(Request::due).min();
        streams
            .unwrap_or(Time::NEVER)
            .min(requests.unwrap_or(Time::NEVER))
    }

    pub(crate) fn count(&mut self, change: Change, totals: &mut Totals) {
        self.events = self.events + change.events_in - change.events_out;
        self.bytes = self.bytes + change.bytes_in - change.bytes_out;
        totals.events = totals.events + change.events_in - change.events_out;
        totals.bytes = totals.bytes + change.bytes_in - change.bytes_out;
        self.account.change(change.bytes_in, change.bytes_out);
    }

    /// A stream has ended and is kept until `expires`.
    pub(crate) fn retire(&mut self, id: &StreamId, call: bool, expires: Time) {
        self.ended.insert((expires, id.clone()));
        if call {
            self.open -= 1;
        }
    }

    /// Removes the stream that has ended first.
    pub(crate) fn remove_ended(&mut self, totals: &mut Totals) -> bool {
        let Some((_, id)) = self.ended.pop_first() else {
            return false;
        };
        if let Some(stream) = self.streams.swap_remove(&id) {
            self.count(stream.all(), totals);
            totals.streams -= 1;
            if id.is_standalone() {
                self.epoch = stream.top().epoch;
            }
        }
        true
    }

    /// Removes up to `budget` streams and requests past their time and ends
    /// requests past their deadline; returns how many were removed.
    pub(crate) fn purge(&mut self, now: Time, budget: usize, totals: &mut Totals) -> usize {
        let mut removed = 0;
        while removed < budget && self.ended.first().is_some_and(|(due, _)| *due <= now) {
            self.remove_ended(totals);
            removed += 1;
        }
        let Self {
            requests, pending, ..
        } = self;
        requests.retain(|_, request| {
            if request.due() <= now && request.is_pending() {
                request.time_out();
                *pending -= 1;
                totals.pending -= 1;
            }
            let keep = now < request.due() || removed >= budget;
            removed += usize::from(!keep);
            keep
        });
        if self.streams.len() < self.streams.capacity() / 4 {
            self.streams.shrink_to(self.streams.len() * 2);
        }
        if self.requests.len() < self.requests.capacity() / 4 {
            self.requests.shrink_to(self.requests.len() * 2);
        }
        removed
    }

    /// Brings the events under `max_bytes`: the streams that ended first go
    /// first, then the oldest events of those that are open.
    pub(crate) fn shrink(&mut self, max_bytes: u64, totals: &mut Totals) {
        while self.bytes > max_bytes && self.remove_ended(totals) {}
        while self.bytes > max_bytes {
            let since = |age| self.appends.wrapping_sub(age);
            let oldest = self
                .streams
                .values_mut()
                .filter_map(|stream| stream.age().map(|age| (since(age), stream)))
                .max_by_key(|(since, _)| *since);
            let Some((_, stream)) = oldest else {
                return;
            };
            let mut change = Change::default();
            stream.evict(&mut change);
            self.count(change, totals);
        }
    }

    /// Who owns or follows something of it.
    pub(crate) fn parties(&self) -> Vec<InstanceId> {
        let streams = self.streams.values().flat_map(|stream| {
            let owner = stream.owner().filter(|_| stream.is_open());
            [owner, stream.holder()].into_iter().flatten()
        });
        let requests = self
            .requests
            .values()
            .filter(|request| request.is_pending())
            .map(Request::owner);
        let parties: BTreeSet<_> = streams.chain(requests).collect();
        parties.into_iter().collect()
    }

    /// Ends up to `budget` streams and requests of the dead. Returns the
    /// streams that were ended, with who follows them, and the number of
    /// requests.
    pub(crate) fn bury(
        &mut self,
        dead: &[Dead],
        beats: &Beats,
        (now, expires): (Time, Time),
        budget: usize,
        totals: &mut Totals,
    ) -> (Vec<(StreamId, Option<InstanceId>)>, usize) {
        let beats = beats.verdict(now);
        let is_dead = |owner: InstanceId| {
            dead.iter()
                .any(|dead| dead.instance == owner && beats.is_dead(*dead))
        };
        let mut streams = Vec::new();
        for (id, stream) in &mut self.streams {
            if streams.len() >= budget {
                break;
            }
            if stream.is_open() && stream.owner().is_some_and(is_dead) {
                stream.lose_owner();
                streams.push((id.clone(), stream.holder()));
            }
        }
        for (id, _) in &streams {
            self.retire(id, true, expires);
        }
        let mut requests = 0;
        for request in self.requests.values_mut() {
            if streams.len() + requests >= budget {
                break;
            }
            if request.is_pending() && is_dead(request.owner()) {
                request.lose_owner(now);
                requests += 1;
            }
        }
        self.pending -= requests;
        totals.pending -= requests as u64;
        (streams, requests)
    }
}
