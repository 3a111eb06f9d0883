//! The steps on one session: each under its shard's lock, from the first look
//! to the last change.

use std::sync::Arc;

use bytes::Bytes;
use mcp_adapter_core::{
    Cancelled, InstanceId, PrincipalKey, RpcId, StreamId,
    storage::{
        Append, Appended, Claim, Cursor, Dead, Entered, Held, Hold, OpenStream, Place, Put,
        PutRequest, Read, RequestKey, RequestState, Settle, Settled, Usage,
    },
};

use crate::{
    beats::Beats,
    clock::Time,
    request::Request,
    shard::Entry,
    stream::{Admission, Stream},
};

impl Entry<'_> {
    pub(crate) fn enter(&mut self, principal: &PrincipalKey, open: Option<&OpenStream>) -> Entered {
        if self.session.principal != *principal {
            return Entered::NoSession;
        }
        if let Some(open) = open {
            let live = self.session.live.as_ref();
            let there = live.is_some_and(|live| live.streams.contains_key(&open.stream));
            if !there {
                if live.map_or(0, |live| live.open) >= open.max_open {
                    return Entered::TooManyStreams;
                }
                if self.principal_bytes() > open.max_principal_bytes {
                    return Entered::PrincipalQuota;
                }
                let live = self.live();
                live.open += 1;
                live.streams
                    .insert(open.stream.clone(), Stream::owned(open));
                self.totals.streams += 1;
            }
        }
        self.touch();
        Entered::Session {
            // Shares the record, whatever its size.
            record: Bytes::from_owner(Arc::clone(&self.session.record)),
            revision: self.session.revision,
        }
    }

    /// Makes the stream of a shared place where there is none yet.
    fn make_shared(&mut self, id: &StreamId) {
        let live = self.live();
        if !live.streams.contains_key(id) {
            let stream = Stream::shared(live.epoch);
            live.streams.insert(id.clone(), stream);
            self.totals.streams += 1;
        }
    }

    pub(crate) fn append(&mut self, append: &Append) -> Appended {
        if matches!(append.place, Place::Shared { .. }) {
            self.make_shared(&append.stream);
        }
        let Some(live) = self.session.live.as_deref_mut() else {
            return Appended::NoStream;
        };
        let Some(stream) = live.streams.get_mut(&append.stream) else {
            return Appended::NoStream;
        };
        let holder = stream.holder();
        let mut retired = None;
        let mut repeat = false;
        let position = match stream.admit(append) {
            Admission::Refused(refused) => return refused,
            Admission::Repeat(position) => {
                repeat = true;
                position
            }
            Admission::New(position) => {
                if let Some(ttl) = append.finish {
                    stream.finish(append.end);
                    let expires = self.now.after(ttl.into());
                    retired = Some((stream.owner().is_some(), expires));
                }
                if let Some(event) = &append.event {
                    let change = stream.push(append, event, position, live.appends);
                    live.appends = live.appends.wrapping_add(1);
                    live.count(change, self.totals);
                    position
                } else {
                    if matches!(append.place, Place::Owned { .. }) {
                        stream.raise_top(position);
                    }
                    stream.top()
                }
            }
        };
        if let Some((call, expires)) = retired {
            live.retire(&append.stream, call, expires);
        }
        let usage = Usage {
            session_bytes: live.bytes,
            principal_bytes: live.account.bytes(),
        };
        if let Some((_, expires)) = retired {
            self.arm(expires);
        }
        self.touch();
        Appended::Stored {
            position,
            holder,
            usage,
            repeat,
        }
    }

    pub(crate) fn read(&mut self, cursor: &Cursor) -> Read {
        if cursor.touch {
            self.touch();
        }
        self.session
            .live
            .as_ref()
            .and_then(|live| live.streams.get(&cursor.stream))
            .map_or(Read::NoStream, |stream| Read::Page {
                events: stream.page(cursor),
                state: stream.state(),
            })
    }

    pub(crate) fn hold(&mut self, stream: &StreamId, me: InstanceId, hold: Hold) -> Held {
        if stream.is_standalone() {
            self.make_shared(stream);
        }
        let live = self.session.live.as_deref_mut();
        live.and_then(|live| live.streams.get_mut(stream))
            .map_or(Held::NoStream, |stream| stream.hold(me, hold))
    }

    pub(crate) fn shrink(&mut self, max_bytes: u64) -> u64 {
        if let Some(live) = &mut self.session.live {
            live.shrink(max_bytes, self.totals);
        }
        self.trim();
        self.session.live.as_ref().map_or(0, |live| live.bytes)
    }

    pub(crate) fn put(&mut self, put: &PutRequest) -> Put {
        let now = self.now;
        let live = self.live();
        let former = live.requests.get(&put.id);
        if former.is_some_and(|former| former.is_repeated_by(put)) {
            return Put::Done;
        }
        let replaced = former
            .filter(|former| former.is_pending())
            .map(Request::owner);
        if live.pending - usize::from(replaced.is_some()) >= put.max_pending {
            return Put::TooMany;
        }
        let request = Request::new(put, former, now);
        let due = request.due();
        live.requests.insert(put.id.clone(), request);
        if replaced.is_none() {
            live.pending += 1;
            self.totals.pending += 1;
        }
        self.arm(due);
        replaced.map_or(Put::Done, Put::Replaced)
    }

    /// Also names the owner to be woken.
    pub(crate) fn settle(
        &mut self,
        settle: &Settle,
        beats: &Beats,
    ) -> (Settled, Option<InstanceId>) {
        let Some(live) = &mut self.session.live else {
            return (Settled::Unknown, None);
        };
        let Some(request) = live.requests.get_mut(&settle.id) else {
            return (Settled::Unknown, None);
        };
        let pending = request.is_pending();
        let settled = request.settle(settle, beats, self.now);
        if settled != Settled::Won {
            return (settled, None);
        }
        let still_pending = request.is_pending();
        let (owner, due) = (request.owner(), request.due());
        if pending && !still_pending {
            live.pending -= 1;
            self.totals.pending -= 1;
            self.arm(due);
        }
        (settled, Some(owner))
    }

    pub(crate) fn request(&self, key: &RequestKey) -> RequestState {
        self.session
            .live
            .as_ref()
            .and_then(|live| live.requests.get(&key.id))
            .map_or(RequestState::Missing, |request| request.state(key.token))
    }

    /// Also names the stream and the owner to be woken.
    pub(crate) fn mark_cancel(
        &mut self,
        id: &RpcId,
    ) -> (Cancelled, Option<(StreamId, InstanceId)>) {
        let Some(live) = &mut self.session.live else {
            return (Cancelled::NotRunning, None);
        };
        let mut running = live
            .streams
            .iter_mut()
            .filter(|(_, stream)| stream.is_open_call(id));
        let Some((name, stream)) = running.next() else {
            return (Cancelled::NotRunning, None);
        };
        if running.next().is_some() {
            return (Cancelled::Ambiguous, None);
        }
        stream.cancel();
        let owner = stream.owner().map(|owner| (name.clone(), owner));
        (Cancelled::Marked(name.clone()), owner)
    }

    /// Whether the stream is ended now, and by whom it is followed.
    pub(crate) fn claim(&mut self, claim: &Claim, beats: &Beats) -> (bool, Option<InstanceId>) {
        let expires = self.now.after(claim.finished_ttl.into());
        let Some(live) = &mut self.session.live else {
            return (false, None);
        };
        let Some(stream) = live.streams.get_mut(&claim.stream) else {
            return (false, None);
        };
        let verdict = beats.verdict(self.now);
        if !stream.is_open()
            || stream.owner() != Some(claim.dead.instance)
            || !verdict.is_dead(claim.dead)
        {
            return (false, None);
        }
        stream.lose_owner();
        let holder = stream.holder();
        live.retire(&claim.stream, true, expires);
        drop(verdict);
        self.arm(expires);
        (true, holder)
    }

    /// Ends what belongs to the dead, see [`Live::bury`](crate::session::Live::bury).
    pub(crate) fn bury(
        &mut self,
        dead: &[Dead],
        beats: &Beats,
        times: (Time, Time),
        budget: usize,
    ) -> (Vec<(StreamId, Option<InstanceId>)>, usize) {
        let Some(live) = &mut self.session.live else {
            return (Vec::new(), 0);
        };
        let buried = live.bury(dead, beats, times, budget, self.totals);
        if !buried.0.is_empty() || buried.1 > 0 {
            let due = live.due();
            self.arm(due);
        }
        buried
    }
}
