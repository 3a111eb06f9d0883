//! A history, sorted by what it is about.

use std::collections::BTreeMap;

use mcp_adapter_core::{Delivery, ErrorKind, Limits, OutcomeKind, Position, Revocation};

use crate::history::{Entry, No, What, Written};

/// An entry about one thing, with its time.
pub(super) type At<T> = (u64, T);

#[derive(Debug, Default)]
pub(super) struct Event {
    pub(super) begun: u64,
    pub(super) terminal: bool,
    pub(super) bytes: usize,
    pub(super) done: Option<At<Written<Position>>>,
}

#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) session: No,
    pub(super) opened: u64,
    pub(super) owner: Option<No>,
    pub(super) events: BTreeMap<No, Event>,
    /// A finish without an event, or that its writer was dropped.
    pub(super) finish: Option<At<bool>>,
    pub(super) finished: Option<At<Written<()>>>,
    pub(super) revoked: Option<At<Revocation>>,
    pub(super) cancel: Option<u64>,
    /// All that its readers saw: reader, time, entry.
    pub(super) seen: BTreeMap<No, Vec<Entry>>,
    /// Who shares it, and whether that is a ghost.
    pub(super) listeners: BTreeMap<No, bool>,
    /// When they had the time to get all of it.
    pub(super) settled: Option<u64>,
}

impl Stream {
    /// Events that may be stored by then.
    fn written(&self, by: u64) -> impl Iterator<Item = &Event> {
        let refused = move |event: &&Event| {
            let too_large = Written::Refused(ErrorKind::TooLarge);
            event.begun <= by && event.done.is_none_or(|(_, done)| done != too_large)
        };
        self.events.values().filter(refused)
    }
}

#[derive(Debug, Default)]
pub(super) struct Wait {
    pub(super) instance: No,
    pub(super) begun: u64,
    pub(super) done: Option<At<Written<()>>>,
    pub(super) outcome: Vec<At<(OutcomeKind, Option<No>)>>,
    pub(super) withdrawn: bool,
}

#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) begun: u64,
    pub(super) done: Option<At<Written<Delivery>>>,
}

#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) session: No,
    pub(super) waits: BTreeMap<No, Wait>,
    pub(super) answers: BTreeMap<No, Answer>,
    pub(super) revokes: Vec<At<Option<Written<Option<OutcomeKind>>>>>,
}

/// One try to count the session's counter up by one.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) begun: u64,
    pub(super) at: u64,
    pub(super) from: u64,
    pub(super) done: Written<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) created: Vec<At<Written<()>>>,
    /// When, when it began, whether it was found, whether it was used.
    pub(super) found: Vec<At<(u64, bool, bool)>>,
    pub(super) delete: Vec<u64>,
    pub(super) deleted: Vec<At<Written<bool>>>,
    pub(super) updated: Vec<Update>,
    /// Revision and counter.
    pub(super) counted: Vec<At<(u64, u64)>>,
    pub(super) kept: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Instance {
    pub(super) started: u64,
    pub(super) died: Option<u64>,
    pub(super) beats: Vec<u64>,
}

pub(super) struct Facts<'a> {
    pub(super) limits: &'a Limits,
    pub(super) streams: BTreeMap<No, Stream>,
    pub(super) requests: BTreeMap<No, Request>,
    pub(super) sessions: BTreeMap<No, Session>,
    instances: BTreeMap<No, Instance>,
    /// When data were lost, and since when.
    losses: Vec<At<u64>>,
    restarts: Vec<u64>,
    jumps: Vec<At<u64>>,
    /// From when on nothing goes wrong.
    pub(super) calm: Option<u64>,
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl<'a> Facts<'a> {
    #[expect(clippy::too_many_lines, reason = "one arm for each kind of entry")]
    pub(super) fn of(history: &[Entry], limits: &'a Limits) -> Self {
        let mut facts = Self {
            limits,
            streams: BTreeMap::new(),
            requests: BTreeMap::new(),
            sessions: BTreeMap::new(),
            instances: BTreeMap::new(),
            losses: Vec::new(),
            restarts: Vec::new(),
            jumps: Vec::new(),
            calm: None,
        };
        // To whom a number of a reader, a wait or an answer belongs.
        let (mut readers, mut waits, mut answers) =
            (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for entry in history {
            let at = entry.at;
            match &entry.what {
                What::Lost { after } => facts.losses.push((at, *after)),
                What::Restarted => facts.restarts.push(at),
                What::Jumped { millis } => facts.jumps.push((at, *millis)),
                What::Shrunk
                | What::Fault(_)
                | What::Hung(_)
                | What::Leftover(_)
                | What::Create { .. } => {}
                What::Started { instance } => {
                    facts.instances.entry(*instance).or_default().started = at;
                }
                What::Died { instance } => {
                    let instance = facts.instances.entry(*instance).or_default();
                    instance.died.get_or_insert(at);
                }
                What::Beat { instance } => {
                    facts.instances.entry(*instance).or_default().beats.push(at);
                }
                What::Created { session, done } => {
                    facts.session(*session).created.push((at, *done));
                }
                What::Found {
                    session,
                    began,
                    found,
                    used,
                } => {
                    facts
                        .session(*session)
                        .found
                        .push((at, (*began, *found, *used)));
                }
                What::Kept { session } => facts.session(*session).kept = Some(at),
                What::Delete { session } => facts.session(*session).delete.push(at),
                What::Deleted { session, done } => {
                    facts.session(*session).deleted.push((at, *done));
                }
                What::Updated {
                    session,
                    begun,
                    from,
                    done,
                } => {
                    facts.session(*session).updated.push(Update {
                        begun: *begun,
                        at,
                        from: *from,
                        done: *done,
                    });
                }
                What::Counted {
                    session,
                    revision,
                    count,
                } => {
                    let counted = &mut facts.session(*session).counted;
                    counted.push((at, (*revision, *count)));
                }
                What::Calm => facts.calm = Some(at),
                What::Settled { stream } => facts.stream(*stream).settled = Some(at),
                What::Listens {
                    reader,
                    stream,
                    ghost,
                } => {
                    facts.stream(*stream).listeners.insert(*reader, *ghost);
                }
                What::Opened {
                    stream,
                    session,
                    owner,
                } => {
                    let stream = facts.stream(*stream);
                    (stream.session, stream.owner, stream.opened) = (*session, *owner, at);
                }
                What::Append {
                    stream,
                    event,
                    terminal,
                    bytes,
                } => {
                    let event = facts.stream(*stream).events.entry(*event).or_default();
                    (event.begun, event.terminal, event.bytes) = (at, *terminal, *bytes);
                }
                What::Appended {
                    stream,
                    event,
                    done,
                } => {
                    let event = facts.stream(*stream).events.entry(*event).or_default();
                    event.done = Some((at, *done));
                }
                What::Finish { stream, abandoned } => {
                    facts.stream(*stream).finish = Some((at, *abandoned));
                }
                What::Finished { stream, done } => {
                    facts.stream(*stream).finished = Some((at, *done));
                }
                What::Revoked { stream, why } => {
                    facts.stream(*stream).revoked = Some((at, *why));
                }
                What::Cancel { stream } => {
                    facts.stream(*stream).cancel.get_or_insert(at);
                }
                What::CancelDone { .. } => {}
                What::Read { reader, stream, .. } => {
                    readers.insert(*reader, *stream);
                    facts.saw(*stream, *reader, entry);
                }
                What::Got { reader, .. }
                | What::Begins { reader, .. }
                | What::Garbled { reader, .. }
                | What::Unstored { reader, .. }
                | What::Gap { reader }
                | What::Ended { reader, .. }
                | What::Cut { reader }
                | What::Quiet { reader }
                | What::NoTail { reader, .. } => {
                    if let Some(stream) = readers.get(reader) {
                        facts.saw(*stream, *reader, entry);
                    }
                }
                What::Ask {
                    request,
                    wait,
                    session,
                    instance,
                } => {
                    waits.insert(*wait, *request);
                    let of = facts.requests.entry(*request).or_default();
                    of.session = *session;
                    let wait = of.waits.entry(*wait).or_default();
                    (wait.instance, wait.begun) = (*instance, at);
                }
                What::Asked { wait, done } => {
                    facts.wait(&waits, *wait, |wait| wait.done = Some((at, *done)));
                }
                What::Outcome { wait, kind, answer } => {
                    facts.wait(&waits, *wait, |wait| {
                        wait.outcome.push((at, (*kind, *answer)))
                    });
                }
                What::Withdrawn { wait } => {
                    facts.wait(&waits, *wait, |wait| wait.withdrawn = true);
                }
                What::Answer { request, answer } => {
                    answers.insert(*answer, *request);
                    let of = facts.requests.entry(*request).or_default();
                    of.answers.entry(*answer).or_default().begun = at;
                }
                What::Answered { answer, done } => {
                    let request = answers.get(answer).copied().unwrap_or_default();
                    let of = facts.requests.entry(request).or_default();
                    of.answers.entry(*answer).or_default().done = Some((at, *done));
                }
                What::Revoke { request } => {
                    let of = facts.requests.entry(*request).or_default();
                    of.revokes.push((at, None));
                }
                What::RevokeDone { request, done } => {
                    let of = facts.requests.entry(*request).or_default();
                    of.revokes.push((at, Some(*done)));
                }
            }
        }
        facts
    }

    fn session(&mut self, no: No) -> &mut Session {
        self.sessions.entry(no).or_default()
    }

    fn stream(&mut self, no: No) -> &mut Stream {
        self.streams.entry(no).or_default()
    }

    fn saw(&mut self, stream: No, reader: No, entry: &Entry) {
        let seen = self.stream(stream).seen.entry(reader).or_default();
        seen.push(entry.clone());
    }

    fn wait(&mut self, waits: &BTreeMap<No, No>, wait: No, change: impl FnOnce(&mut Wait)) {
        let request = waits.get(&wait).copied().unwrap_or_default();
        let of = self.requests.entry(request).or_default();
        change(of.waits.entry(wait).or_default());
    }

    /// Whether what was asked for at `begun` and answered at `done` may have
    /// been lost since: the loss took all that came after `after`.
    pub(super) fn may_be_lost(&self, begun: u64, done: u64) -> bool {
        self.losses
            .iter()
            .any(|(at, after)| begun <= *at && done >= *after)
    }

    /// Whether the backend has lost anything between these times.
    pub(super) fn lost_between(&self, from: u64, to: u64) -> bool {
        self.losses
            .iter()
            .any(|(at, after)| *at >= from && *after <= to)
    }

    pub(super) fn lossless(&self) -> bool {
        self.losses.is_empty()
    }

    /// Whether the backend came back between these times, with its data or
    /// without some.
    pub(super) fn restarted_between(&self, from: u64, to: u64) -> bool {
        let within = |at: &u64| (from..=to).contains(at);
        self.restarts.iter().any(within) || self.losses.iter().any(|(at, _)| within(at))
    }

    /// Whether the instance was dead, or stood still for a whole lease, at some
    /// time until `to`. Suspending everybody proves nothing about anybody, once
    /// it is long enough to be noticed.
    pub(super) fn stood_still(&self, instance: No, to: u64) -> bool {
        let Some(instance) = self.instances.get(&instance) else {
            return true;
        };
        if instance.died.is_some_and(|died| died <= to) {
            return true;
        }
        let lease = millis(self.limits.lease());
        let mut last = instance.started;
        let beats = instance.beats.iter().copied().filter(|beat| *beat <= to);
        for beat in beats.chain([to]) {
            let jumped = |(at, jump): &At<u64>| {
                (*at >= last && *at <= beat && *jump > lease / 2).then_some(*jump)
            };
            let jumps: u64 = self.jumps.iter().filter_map(jumped).sum();
            if (beat - last).saturating_sub(jumps) >= lease {
                return true;
            }
            last = beat;
        }
        false
    }

    /// Whether any instance was dead, or stood still for a whole lease, until `to`.
    pub(super) fn anybody_stood_still(&self, to: u64) -> bool {
        self.instances.keys().any(|no| self.stood_still(*no, to))
    }

    /// Whether somebody deletes the session, or it is gone otherwise, by then.
    pub(super) fn is_deleted(&self, session: No, by: u64) -> bool {
        self.sessions.get(&session).is_some_and(|session| {
            let gone = |(at, (_, found, _)): &At<(u64, bool, bool)>| !found && *at <= by;
            session.delete.iter().any(|begun| *begun <= by) || session.found.iter().any(gone)
        })
    }

    /// Whether events of the stream may have been evicted by then.
    pub(super) fn evicted(&self, stream: &Stream, by: u64) -> bool {
        let count = stream.written(by).count();
        let bytes: usize = stream.written(by).map(|event| event.bytes).sum();
        count > self.limits.stream_events()
            || bytes > self.limits.stream_bytes()
            || self.shrunk(stream.session, by)
    }

    /// Whether the session may have been over its bytes by then.
    pub(super) fn shrunk(&self, session: No, by: u64) -> bool {
        let streams = self.streams.values().filter(|of| of.session == session);
        let events = streams.flat_map(|stream| stream.written(by));
        events.map(|event| event.bytes).sum::<usize>() > self.limits.session_bytes()
    }

    /// Milliseconds of `finished_ttl`, `idle_ttl` and `result_ttl`.
    pub(super) fn ttls(&self) -> (u64, u64, u64) {
        (
            millis(self.limits.finished_ttl()),
            millis(self.limits.idle_ttl()),
            millis(self.limits.result_ttl()),
        )
    }

    pub(super) fn max_outage(&self) -> u64 {
        millis(self.limits.max_outage())
    }
}
