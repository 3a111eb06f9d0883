//! One stream: its events, its end, its holder.

use std::collections::VecDeque;

use bytes::Bytes;
use mcp_adapter_core::{
    InstanceId, Position, RpcId,
    storage::{
        Append, Appended, Cursor, Held, Hold, HoldStart, Holder, NewEvent, OpenStream, Place,
        REMEMBERED, StoredEvent, StreamEnd, StreamState,
    },
};

use crate::tags::{Stored, Tags};

/// Small, for a busy store has millions: what few events need is elsewhere.
#[derive(Debug)]
struct Event {
    seq: u64,
    epoch: u32,
    /// Its place in the order of all appends to the session.
    age: u32,
    data: Bytes,
}

impl Event {
    fn position(&self) -> Position {
        Position::new(self.epoch, self.seq)
    }
}

/// What came in and what went, for the counts of all that it belongs to.
#[derive(Debug, Default, Clone, Copy)]
#[must_use = "it is to be counted"]
pub(crate) struct Change {
    pub(crate) events_in: u64,
    pub(crate) bytes_in: u64,
    pub(crate) events_out: u64,
    pub(crate) bytes_out: u64,
}

/// How an append is received.
#[derive(Debug)]
pub(crate) enum Admission {
    /// The event is to be stored here.
    New(Position),
    /// It is stored already.
    Repeat(Position),
    /// It is refused.
    Refused(Appended),
}

#[derive(Debug)]
pub(crate) struct Stream {
    top: Position,
    end: Option<StreamEnd>,
    owner: Option<InstanceId>,
    request: Option<RpcId>,
    cancelled: bool,
    holder: Option<Holder>,
    /// The last number given to a holder.
    number: u64,
    /// Where the present hold began.
    began: Position,
    /// Where the last holder let go, until the next one takes it up.
    released: Option<Position>,
    bytes: u64,
    events: VecDeque<Event>,
    /// First events of epochs, and the positions that they follow.
    prevs: Vec<(Position, Position)>,
    /// For shared streams.
    shared: Option<Box<Shared>>,
}

/// What only the standalone stream has.
#[derive(Debug, Default)]
struct Shared {
    tags: Tags,
    /// Where its last holds began.
    holds: Vec<HoldStart>,
}

impl Stream {
    /// The stream of a call; its owner is holder number 1.
    pub(crate) fn owned(open: &OpenStream) -> Self {
        Self {
            owner: Some(open.owner),
            request: Some(open.request.clone()),
            holder: Some(Holder {
                instance: open.owner,
                number: 1,
            }),
            number: 1,
            shared: None,
            ..Self::shared(0)
        }
    }

    /// The standalone stream, where `epoch` is the last one that is gone, or 0.
    pub(crate) fn shared(epoch: u32) -> Self {
        Self {
            top: match epoch {
                0 => Position::START,
                epoch => Position::new(epoch.saturating_add(1), 0),
            },
            end: None,
            owner: None,
            request: None,
            cancelled: false,
            holder: None,
            number: 0,
            began: Position::START,
            released: None,
            bytes: 0,
            events: VecDeque::new(),
            prevs: Vec::new(),
            shared: Some(Box::default()),
        }
    }

    pub(crate) fn top(&self) -> Position {
        self.top
    }

    pub(crate) fn owner(&self) -> Option<InstanceId> {
        self.owner
    }

    pub(crate) fn holder(&self) -> Option<InstanceId> {
        self.holder.map(|holder| holder.instance)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.end.is_none()
    }

    pub(crate) fn is_open_call(&self, id: &RpcId) -> bool {
        self.is_open() && self.request.as_ref() == Some(id)
    }

    pub(crate) fn cancel(&mut self) {
        self.cancelled = true;
    }

    /// The writer has written up to here, as it knows; what is missing shows as
    /// a gap.
    pub(crate) fn raise_top(&mut self, position: Position) {
        self.top = self.top.max(position);
    }

    pub(crate) fn finish(&mut self, end: StreamEnd) {
        self.end = Some(end);
    }

    /// A new epoch, so that whatever its thawed owner writes is behind it.
    pub(crate) fn lose_owner(&mut self) {
        self.end = Some(StreamEnd::OwnerLost);
        // Writers begin with epoch 1, whether they have written or not.
        self.top = Position::new(self.top.epoch.max(1).saturating_add(1), 0);
    }

    pub(crate) fn admit(&self, append: &Append) -> Admission {
        match append.place {
            Place::Owned { owner, position } => {
                self.admit_owned(owner, position, append.event.is_some())
            }
            Place::Shared { writer, tag } => self.admit_shared(writer, tag, append.event.is_some()),
        }
    }

    fn admit_owned(&self, owner: InstanceId, position: Position, event: bool) -> Admission {
        if self.owner != Some(owner) {
            return Admission::Refused(Appended::Fenced);
        }
        // A finish without an event has no position of its own: that the stream
        // has ended is how its repeat shows, unless others ended it, who raised
        // the epoch.
        if !event && self.end.is_some() && position.epoch >= self.top.epoch {
            return Admission::Repeat(self.top);
        }
        let repeat = event
            && if position.epoch == self.top.epoch {
                position.seq <= self.top.seq
            } else {
                position < self.top && self.has(position)
            };
        if repeat {
            return Admission::Repeat(position);
        }
        if position.epoch < self.top.epoch {
            return Admission::Refused(Appended::Fenced);
        }
        match self.end {
            Some(StreamEnd::OwnerLost) => Admission::Refused(Appended::Fenced),
            Some(StreamEnd::Finished) => Admission::Refused(Appended::Finished),
            None => Admission::New(position),
        }
    }

    fn admit_shared(&self, writer: InstanceId, tag: u64, event: bool) -> Admission {
        let Some(Shared { tags, .. }) = self.shared.as_deref() else {
            return Admission::Refused(Appended::Fenced);
        };
        match tags.find(writer, tag) {
            Some(Stored::Kept(index)) if event => {
                return Admission::Repeat(self.events[index].position());
            }
            Some(Stored::Evicted(position)) if event => return Admission::Repeat(position),
            _ => {}
        }
        match self.end {
            Some(_) if !event => Admission::Repeat(self.top),
            Some(_) => Admission::Refused(Appended::Finished),
            None => Admission::New(Position::new(self.top.epoch.max(1), self.top.seq + 1)),
        }
    }

    fn has(&self, position: Position) -> bool {
        self.events
            .binary_search_by_key(&position, Event::position)
            .is_ok()
    }

    /// Stores an event where [`admit`](Self::admit) said, and drops what the
    /// stream may no longer keep; the new event stays in any case.
    pub(crate) fn push(
        &mut self,
        append: &Append,
        event: &NewEvent,
        at: Position,
        age: u32,
    ) -> Change {
        let bytes = event.data.len() as u64;
        let mut change = Change {
            events_in: 1,
            bytes_in: bytes,
            ..Change::default()
        };
        // First, so that the new event takes the room of the one that goes.
        while self.events.len() >= append.keep_events
            || self.bytes + bytes > append.keep_bytes as u64
        {
            if !self.evict(&mut change) {
                break;
            }
        }
        if let (Some(shared), Place::Shared { writer, tag }) = (&mut self.shared, append.place) {
            shared.tags.push(writer, tag);
            if at.seq == 1 && at.epoch > 1 {
                // What the former stream had is not known any more.
                self.prevs.push((at, Position::new(at.epoch - 1, u64::MAX)));
            }
        } else if let Some(prev) = event.prev {
            self.prevs.push((at, prev));
        }
        // Most streams have one event only, the terminal one.
        if self.events.capacity() == 0 {
            self.events.reserve_exact(1);
        }
        self.events.push_back(Event {
            seq: at.seq,
            epoch: at.epoch,
            age,
            data: event.data.clone(),
        });
        self.top = at;
        self.bytes += bytes;
        change
    }

    /// The age of its oldest event.
    pub(crate) fn age(&self) -> Option<u32> {
        self.events.front().map(|event| event.age)
    }

    /// Drops the oldest event, if there is one.
    pub(crate) fn evict(&mut self, change: &mut Change) -> bool {
        let Some(event) = self.events.pop_front() else {
            return false;
        };
        let bytes = event.data.len() as u64;
        self.bytes -= bytes;
        change.events_out += 1;
        change.bytes_out += bytes;
        let position = event.position();
        if let Some(shared) = &mut self.shared {
            shared.tags.evict(position);
        }
        self.prevs.retain(|(first, _)| *first > position);
        true
    }

    /// All that goes with the stream itself.
    pub(crate) fn all(&self) -> Change {
        Change {
            events_out: self.events.len() as u64,
            bytes_out: self.bytes,
            ..Change::default()
        }
    }

    fn prev_of(&self, position: Position) -> Option<Position> {
        let mut prevs = self.prevs.iter();
        prevs
            .find(|(first, _)| *first == position)
            .map(|(_, prev)| *prev)
    }

    pub(crate) fn page(&self, cursor: &Cursor) -> Vec<StoredEvent> {
        let from = self
            .events
            .partition_point(|event| event.position() <= cursor.after);
        let mut bytes = 0;
        self.events
            .range(from..)
            .take(cursor.max_events)
            .take_while(|event| {
                let first = bytes == 0;
                // An empty event counts, too: only the first one is free.
                bytes += event.data.len().max(1);
                first || bytes <= cursor.max_bytes
            })
            .map(|event| StoredEvent {
                position: event.position(),
                prev: self.prev_of(event.position()),
                data: Some(event.data.clone()),
            })
            .collect()
    }

    pub(crate) fn state(&self) -> StreamState {
        StreamState {
            top: self.top,
            oldest: self.events.front().map(Event::position),
            end: self.end,
            owner: self.owner,
            holder: self.holder,
            cancelled: self.cancelled,
            holds: (self.shared.as_ref()).map_or_else(Vec::new, |shared| shared.holds.clone()),
        }
    }

    pub(crate) fn hold(&mut self, me: InstanceId, hold: Hold) -> Held {
        match hold {
            Hold::Take => self.take(me),
            Hold::TakeFrom(from) => match self.holder {
                Some(holder) if Some(holder) != from => {
                    if holder.instance == me {
                        self.held(holder.number, None, self.began)
                    } else {
                        Held::Busy(holder)
                    }
                }
                _ => self.take(me),
            },
            Hold::Continue { number } if number == self.number && number > 0 => {
                let former = self.holder();
                self.holds_as(me, true);
                self.held(self.number, former, self.began)
            }
            Hold::Continue { .. } => match self.holder {
                Some(holder) if holder.instance == me => self.held(holder.number, None, self.began),
                _ => Held::Past,
            },
            Hold::Release { number, cursor } => {
                let held = Holder {
                    instance: me,
                    number,
                };
                if self.holder == Some(held) {
                    self.holder = None;
                    self.released = Some(cursor.min(self.top));
                }
                self.held(number, None, cursor)
            }
        }
    }

    fn take(&mut self, me: InstanceId) -> Held {
        let former = self.holder();
        // Who takes again may not have got the answer to the first time.
        let again = former == Some(me);
        if !again {
            self.began = if self.number == 0 {
                Position::START
            } else {
                self.released.unwrap_or(self.top)
            };
        }
        self.holds_as(me, again);
        self.held(self.number, former, self.began)
    }

    /// Makes `me` the holder under the next number, of the last hold or of a new one.
    fn holds_as(&mut self, me: InstanceId, same: bool) {
        self.released = None;
        self.number += 1;
        let (number, began) = (self.number, self.began);
        self.holder = Some(Holder {
            instance: me,
            number,
        });
        let Some(Shared { holds, .. }) = self.shared.as_deref_mut() else {
            return;
        };
        match holds.last_mut() {
            Some(last) if same => last.number = number,
            _ => {
                if holds.len() == REMEMBERED {
                    holds.remove(0);
                }
                holds.push(HoldStart { number, began });
            }
        }
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
