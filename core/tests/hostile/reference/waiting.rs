//! The steps on client requests, and on what belongs to the dead.

use std::time::Duration;

use bytes::Bytes;
use mcp_adapter_core::{
    Cancelled, OutcomeKind, RpcId, SessionKey,
    storage::{
        Beat, Claim, Dead, Put, PutRequest, RequestKey, RequestState, Settle, Settled, Swept,
        Target,
    },
};

use super::{Context, Data, request::Request, stream::Stream};

impl Data {
    fn is_dead(&self, dead: &Dead) -> bool {
        self.beats.get(&dead.instance).map(|(count, _)| *count) == dead.beat
    }

    pub(super) fn put(&mut self, context: &Context, put: &PutRequest) -> Put {
        let Some(session) = self.sessions.get_mut(&put.session) else {
            return Put::NoSession;
        };
        let former = session.requests.get(&put.id);
        if former.is_some_and(|former| former.is_repeated_by(put)) {
            return Put::Done;
        }
        let replaced = former
            .filter(|former| former.is_pending())
            .map(|former| former.owner);
        if session.pending() - usize::from(replaced.is_some()) >= put.max_pending {
            return Put::TooMany;
        }
        let request = Request::new(put, former, context.now);
        session.requests.insert(put.id.clone(), request);
        replaced.map_or(Put::Done, Put::Replaced)
    }

    pub(super) fn settle(&mut self, context: &mut Context, settle: &Settle) -> Settled {
        let dead = settle.dead.map(|dead| self.is_dead(&dead));
        let session = self.sessions.get_mut(&settle.session);
        let Some(request) = session.and_then(|session| session.requests.get_mut(&settle.id)) else {
            return Settled::Unknown;
        };
        let theirs = settle
            .dead
            .is_none_or(|dead| dead.instance == request.owner);
        let alive = !theirs || dead == Some(false);
        let settled = request.settle(settle, alive, context.now);
        if context.defects.no_repeat_safety {
            request.forget_attempts();
        }
        if settled == Settled::Won {
            // Backends of both kinds are played: those that send the outcome along
            // and those that wake.
            let (owner, knock) = (request.owner, request.outcome_knock(settle));
            match knock.filter(|_| settle.attempt.0 & 1 == 0) {
                Some(knock) => context.knocks.push((owner, knock)),
                None => {
                    let target = Target::Request(settle.id.clone());
                    context.wake(Some(owner), &settle.session, target);
                }
            }
        }
        settled
    }

    pub(super) fn request(&self, key: &RequestKey) -> RequestState {
        let Some(session) = self.sessions.get(&key.session) else {
            return RequestState::NoSession;
        };
        let request = session.requests.get(&key.id);
        request.map_or(RequestState::Missing, |request| request.state(key.token))
    }

    pub(super) fn mark_cancel(
        &mut self,
        context: &mut Context,
        key: &SessionKey,
        id: &RpcId,
    ) -> Option<Cancelled> {
        let session = self.sessions.get_mut(key)?;
        let named = |stream: &Stream| stream.is_open_call() && stream.request.as_ref() == Some(id);
        let mut running: Vec<_> = session
            .streams
            .iter_mut()
            .filter(|(_, stream)| named(stream))
            .collect();
        Some(match running.as_mut_slice() {
            [] => Cancelled::NotRunning,
            [(name, stream)] => {
                stream.cancelled = true;
                context.wake(stream.owner, key, Target::Stream(name.clone()));
                Cancelled::Marked(name.clone())
            }
            _ => Cancelled::Ambiguous,
        })
    }

    pub(super) fn heartbeat(&mut self, context: &Context, me: Beat, ttl: Duration) -> Vec<Beat> {
        let kept = self.beats.entry(me.instance).or_insert((0, context.now));
        *kept = (me.count.max(kept.0), context.now + ttl);
        let beats = self.beats.iter();
        beats
            .map(|(instance, (count, _))| Beat {
                instance: *instance,
                count: *count,
            })
            .collect()
    }

    pub(super) fn claim(&mut self, context: &mut Context, claim: &Claim) -> bool {
        if !self.is_dead(&claim.dead) {
            return false;
        }
        let session = self.sessions.get_mut(&claim.session);
        let stream = session.and_then(|session| session.streams.get_mut(&claim.stream));
        let theirs = |stream: &&mut Stream| {
            stream.end.is_none() && stream.owner == Some(claim.dead.instance)
        };
        let Some(stream) = stream.filter(theirs) else {
            return false;
        };
        stream.lose_owner(context.now + claim.finished_ttl);
        let holder = stream.holder.map(|holder| holder.instance);
        context.wake(holder, &claim.session, Target::Stream(claim.stream.clone()));
        true
    }

    /// What has expired is gone already; here the dead lose what they had.
    pub(super) fn sweep(
        &mut self,
        context: &mut Context,
        budget: usize,
        dead: &[Dead],
        finished_ttl: Duration,
    ) -> Swept {
        let dead: Vec<_> = dead.iter().filter(|dead| self.is_dead(dead)).collect();
        let is_dead = |owner| dead.iter().any(|dead| dead.instance == owner);
        let mut removed = 0;
        for (key, session) in &mut self.sessions {
            for (id, stream) in &mut session.streams {
                if stream.end.is_none() && stream.owner.is_some_and(is_dead) && removed < budget {
                    stream.lose_owner(context.now + finished_ttl);
                    let holder = stream.holder.map(|holder| holder.instance);
                    context.wake(holder, key, Target::Stream(id.clone()));
                    removed += 1;
                }
            }
            for request in session.requests.values_mut() {
                if request.is_pending() && is_dead(request.owner) && removed < budget {
                    request.end_as(context.now, OutcomeKind::OwnerLost, Bytes::new());
                    removed += 1;
                }
            }
        }
        let more = removed >= budget;
        Swept { removed, more }
    }
}
