//! One stream of the reference.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use mcp_adapter_core::{
    InstanceId, Position, RpcId,
    storage::{
        Append, Appended, Cursor, Held, Hold, HoldStart, Holder, OpenStream, Place, REMEMBERED,
        StoredEvent, StreamEnd, StreamState,
    },
};
use tokio::time::Instant;

use super::{Context, Defects};

#[derive(Debug, Clone)]
struct Event {
    position: Position,
    prev: Option<Position>,
    data: Bytes,
    /// Its place in the order of all appends to the session.
    age: u64,
    /// Of a shared stream: by whom, and under which number.
    tag: Option<(InstanceId, u64)>,
}

/// What is known of a writer of a shared stream beside its events.
#[derive(Debug, Clone, Copy)]
struct Writer {
    /// Its highest number.
    last: u64,
    /// Its last event that is no longer there.
    evicted: Option<(u64, Position)>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Stream {
    pub(super) owner: Option<InstanceId>,
    pub(super) request: Option<RpcId>,
    pub(super) cancelled: bool,
    pub(super) end: Option<StreamEnd>,
    /// Set with the end.
    pub(super) expires: Option<Instant>,
    top: Position,
    events: Vec<Event>,
    /// Of a shared stream: all who ever wrote.
    writers: BTreeMap<InstanceId, Writer>,
    /// Of a shared stream: the last epoch of one that is gone.
    former: u32,
    pub(super) holder: Option<Holder>,
    number: u64,
    /// Where the present hold began.
    began: Position,
    /// Where the last holder let go.
    released: Option<Position>,
    /// Of the standalone stream.
    holds: Vec<HoldStart>,
}

enum Admission {
    New(Position, Option<Position>),
    Repeat(Position),
    Refused(Appended),
}

impl Stream {
    pub(super) fn owned(open: &OpenStream) -> Self {
        Self {
            owner: Some(open.owner),
            request: Some(open.request.clone()),
            holder: Some(Holder {
                instance: open.owner,
                number: 1,
            }),
            number: 1,
            ..Self::default()
        }
    }

    /// The standalone stream; `former`: the last epoch of one that is gone, or 0.
    pub(super) fn shared(former: u32) -> Self {
        Self {
            former,
            ..Self::default()
        }
    }

    /// The highest epoch that it has used, or one before it.
    pub(super) fn epoch(&self) -> u32 {
        self.top.epoch.max(self.former)
    }

    /// The age of its oldest event.
    pub(super) fn age(&self) -> Option<u64> {
        self.events.first().map(|event| event.age)
    }

    pub(super) fn is_open_call(&self) -> bool {
        self.owner.is_some() && self.end.is_none()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.events
            .iter()
            .map(|event| event.data.len() as u64)
            .sum()
    }

    pub(super) fn events(&self) -> u64 {
        self.events.len() as u64
    }

    /// Drops the oldest event, of which there must be one.
    pub(super) fn evict(&mut self) {
        let event = self.events.remove(0);
        if let Some((instance, tag)) = event.tag
            && let Some(writer) = self.writers.get_mut(&instance)
        {
            writer.evicted = Some((tag, event.position));
        }
    }

    /// The stream of a dead owner: a new epoch, so that whatever the owner
    /// still writes is behind it.
    pub(super) fn lose_owner(&mut self, expires: Instant) {
        self.end = Some(StreamEnd::OwnerLost);
        self.expires = Some(expires);
        // Writers begin with epoch 1, whether they have written or not.
        self.top = Position::new(self.top.epoch.max(1) + 1, 0);
    }

    /// `born`: the generation in which its session was created.
    pub(super) fn append(
        &mut self,
        context: &Context,
        append: &Append,
        born: u32,
        age: u64,
    ) -> Appended {
        let admission = match append.place {
            Place::Owned { owner, position } => self.admit_owned(context, append, owner, position),
            Place::Shared { writer, tag } => self.admit_shared(context, append, writer, tag, born),
        };
        let repeat = matches!(admission, Admission::Repeat(_));
        let position = match admission {
            Admission::Refused(refused) => return refused,
            Admission::Repeat(position) => position,
            Admission::New(position, prev) => {
                if let Some(event) = &append.event {
                    let tag = match append.place {
                        Place::Shared { writer, tag } => Some((writer, tag)),
                        Place::Owned { .. } => None,
                    };
                    self.store(Event {
                        position,
                        prev,
                        data: event.data.clone(),
                        age,
                        tag,
                    });
                    while self.events.len() > 1
                        && (self.events.len() > append.keep_events
                            || self.bytes() > append.keep_bytes as u64)
                    {
                        self.evict();
                    }
                }
                if let Some(ttl) = append.finish {
                    self.finish(append.end, context.now, ttl);
                }
                if append.event.is_some() {
                    position
                } else {
                    // What the writer has written beyond the top is lost: so
                    // its readers see that something is missing at the end.
                    self.top = self.top.max(position);
                    self.top
                }
            }
        };
        Appended::Stored {
            position,
            holder: self.holder.map(|holder| holder.instance),
            usage: Default::default(),
            repeat,
        }
    }

    fn finish(&mut self, end: StreamEnd, now: Instant, ttl: Duration) {
        self.end = Some(end);
        self.expires = Some(now + ttl);
    }

    fn store(&mut self, event: Event) {
        self.top = event.position;
        if let Some((instance, tag)) = event.tag {
            let writer = self.writers.entry(instance).or_insert(Writer {
                last: 0,
                evicted: None,
            });
            writer.last = writer.last.max(tag);
        }
        self.events.push(event);
    }

    fn has(&self, position: Position) -> bool {
        self.events.iter().any(|event| event.position == position)
    }

    fn admit_owned(
        &self,
        context: &Context,
        append: &Append,
        owner: InstanceId,
        position: Position,
    ) -> Admission {
        let fencing = !context.defects.no_fencing;
        if self.owner != Some(owner) && fencing {
            return Admission::Refused(Appended::Fenced);
        }
        let stored = if position.epoch == self.top.epoch {
            position.seq <= self.top.seq
        } else {
            self.has(position)
        };
        if append.event.is_some() && stored {
            if context.defects.no_repeat_safety && self.end.is_none() {
                let again = Position::new(self.top.epoch, self.top.seq + 1);
                return Admission::New(again, None);
            }
            return Admission::Repeat(position);
        }
        if position.epoch < self.top.epoch && fencing {
            return Admission::Refused(Appended::Fenced);
        }
        match self.end {
            Some(_) if append.event.is_none() => Admission::Repeat(self.top),
            Some(StreamEnd::OwnerLost) if fencing => Admission::Refused(Appended::Fenced),
            Some(StreamEnd::Finished) => Admission::Refused(Appended::Finished),
            _ => {
                let prev = append.event.as_ref().and_then(|event| event.prev);
                Admission::New(position, prev)
            }
        }
    }

    fn admit_shared(
        &self,
        context: &Context,
        append: &Append,
        writer: InstanceId,
        tag: u64,
        born: u32,
    ) -> Admission {
        if self.owner.is_some() {
            return Admission::Refused(Appended::Fenced);
        }
        let stored = self.stored_as(writer, tag);
        if let Some(position) = stored.filter(|_| !context.defects.no_repeat_safety) {
            return Admission::Repeat(position);
        }
        if self.end.is_some() {
            return if append.event.is_none() {
                Admission::Repeat(self.top)
            } else {
                Admission::Refused(Appended::Finished)
            };
        }
        // The epoch is the generation: a history that was lost has used other
        // ones. What it gave out last nobody knows, so everybody who has
        // followed the stream before is told of a gap.
        let (epoch, prev) = if context.defects.epochs_from_data {
            (1, None)
        } else {
            let epoch = context.generation.max(self.former + 1);
            let unknown = Position::new(epoch - 1, u64::MAX);
            let others = born < context.generation || self.former > 0;
            (epoch, others.then_some(unknown))
        };
        if self.top.epoch >= epoch {
            Admission::New(Position::new(self.top.epoch, self.top.seq + 1), None)
        } else {
            Admission::New(Position::new(epoch, 1), prev)
        }
    }

    /// Where this number was stored; once that event is evicted, where the last
    /// one of its writer was. One that came after a higher one is taken for a
    /// repeat.
    fn stored_as(&self, instance: InstanceId, tag: u64) -> Option<Position> {
        let writer = self.writers.get(&instance)?;
        let kept = self.events.iter().find(|e| e.tag == Some((instance, tag)));
        let evicted = writer.evicted.map(|(_, position)| position);
        let gone = || evicted.unwrap_or(Position::START);
        let position = kept.map_or_else(gone, |event| event.position);
        (tag <= writer.last).then_some(position)
    }

    pub(super) fn page(&self, cursor: &Cursor) -> Vec<StoredEvent> {
        let mut bytes = 0;
        let mut page = Vec::new();
        for event in self.events.iter().filter(|e| e.position > cursor.after) {
            // An empty event counts, too: only the first one is free.
            bytes += event.data.len().max(1);
            if page.len() >= cursor.max_events || (!page.is_empty() && bytes > cursor.max_bytes) {
                break;
            }
            page.push(StoredEvent {
                position: event.position,
                prev: event.prev,
                data: Some(event.data.clone()),
            });
        }
        page
    }

    pub(super) fn state(&self) -> StreamState {
        StreamState {
            top: self.top,
            oldest: self.events.first().map(|event| event.position),
            end: self.end,
            owner: self.owner,
            holder: self.holder,
            cancelled: self.cancelled,
            holds: self.holds.clone(),
        }
    }

    pub(super) fn hold(&mut self, me: InstanceId, hold: Hold, defects: Defects) -> Held {
        let mut held = self.held_by(me, hold);
        if let Held::Done { state, .. } = &mut held {
            *state = defects.shown(state.clone());
        }
        held
    }

    fn held_by(&mut self, me: InstanceId, hold: Hold) -> Held {
        match (hold, self.holder) {
            (Hold::TakeFrom(from), Some(holder)) if from != Some(holder) => {
                if holder.instance == me {
                    self.held(holder.number, None, self.began)
                } else {
                    Held::Busy(holder)
                }
            }
            (Hold::Continue { number }, former) if number > 0 && number == self.number => {
                let former = former.map(|holder| holder.instance);
                self.holds_as(me, true);
                self.held(self.number, former, self.began)
            }
            (Hold::Continue { .. }, Some(holder)) if holder.instance == me => {
                self.held(holder.number, None, self.began)
            }
            (Hold::Continue { .. }, _) => Held::Past,
            (Hold::Take | Hold::TakeFrom(_), former) => {
                let former = former.map(|holder| holder.instance);
                if former != Some(me) {
                    self.began = match self.number {
                        0 => Position::START,
                        _ => self.released.unwrap_or(self.top),
                    };
                }
                self.holds_as(me, former == Some(me));
                self.held(self.number, former, self.began)
            }
            (Hold::Release { number, cursor }, holder) => {
                let mine = Holder {
                    instance: me,
                    number,
                };
                if holder == Some(mine) {
                    self.holder = None;
                    self.released = Some(cursor.min(self.top));
                }
                self.held(number, None, cursor)
            }
        }
    }

    /// Under the next number, of the same hold or of a new one.
    fn holds_as(&mut self, me: InstanceId, same: bool) {
        self.released = None;
        self.number += 1;
        let (number, began) = (self.number, self.began);
        self.holder = Some(Holder {
            instance: me,
            number,
        });
        if self.owner.is_some() {
            return;
        }
        if same {
            self.holds.pop();
        } else if self.holds.len() == REMEMBERED {
            self.holds.remove(0);
        }
        self.holds.push(HoldStart { number, began });
    }

    fn held(&self, number: u64, former: Option<InstanceId>, cursor: Position) -> Held {
        Held::Done {
            number,
            former,
            cursor,
            state: self.state(),
        }
    }
}
