//! What was read, in order, with every hole (clause E5).

use std::collections::VecDeque;

use crate::{
    engine::follow::Passed,
    id::{EventId, Position, StreamId},
    session::TailEvent,
    storage::{StoredEvent, StreamEnd, StreamState},
};

/// Puts what was read in order and shows every hole (clause E5).
#[derive(Debug)]
pub(super) struct Sequence {
    stream: StreamId,
    pub(super) cursor: Position,
    pub(super) out: VecDeque<TailEvent>,
}

impl Sequence {
    pub(super) fn new(stream: StreamId, cursor: Position) -> Self {
        Self {
            stream,
            cursor,
            out: VecDeque::new(),
        }
    }

    /// Begins to hold the stream at `cursor`.
    pub(super) fn begin(&mut self, cursor: Position, hold: u64) {
        self.cursor = cursor;
        self.out.push_back(TailEvent::Begins {
            after: EventId::new(self.stream.clone(), cursor),
            hold,
        });
    }

    pub(super) fn gap(&mut self, oldest: Option<Position>) {
        // One gap says all: two in a row have nothing between them.
        if !matches!(self.out.back(), Some(TailEvent::Gap { .. })) {
            metrics::counter!("mcp_adapter_gaps_total").increment(1);
        } else {
            self.out.pop_back();
        }
        self.out.push_back(TailEvent::Gap {
            oldest: oldest.map(|position| EventId::new(self.stream.clone(), position)),
        });
    }

    pub(super) fn event(&mut self, event: StoredEvent) {
        if event.position <= self.cursor {
            return;
        }
        let next = event.position.follows(event.prev, self.cursor);
        self.cursor = event.position;
        match event.data {
            Some(data) => {
                if !next {
                    self.gap(Some(event.position));
                }
                self.out.push_back(TailEvent::Event {
                    id: EventId::new(self.stream.clone(), event.position),
                    data,
                    last: false,
                });
            }
            None => {
                metrics::counter!("mcp_adapter_undecodable_total").increment(1);
                self.gap(None);
            }
        }
    }

    /// What follows the cursor, and the state of the same instant. Whether the
    /// stream is finished, and all of it is in `out`.
    pub(super) fn page(&mut self, events: Vec<StoredEvent>, state: &StreamState) -> bool {
        let complete = events.is_empty();
        for event in events {
            self.event(event);
        }
        if !complete && state.end == Some(StreamEnd::Finished) && self.cursor == state.top {
            if let Some(TailEvent::Event { last, .. }) = self.out.back_mut() {
                *last = true;
            }
            return true;
        }
        // Nothing is left of what was stored after the cursor. A top with
        // sequence 0 is an epoch without an event: nothing is missing.
        if complete && state.top.seq > 0 && state.top > self.cursor {
            self.gap(None);
            self.cursor = state.top;
        }
        false
    }

    /// What is left of the events up to `until`, which is another's where they end.
    /// Whether that is all.
    pub(super) fn owed(&mut self, events: Vec<StoredEvent>, until: Position) -> bool {
        let mut events = events.into_iter().peekable();
        let mut any = false;
        while let Some(event) = events.next_if(|event| event.position <= until) {
            self.event(event);
            any = true;
        }
        let all = events.peek().is_some() || self.cursor >= until || !any;
        if all && self.cursor < until {
            self.gap(None);
            self.cursor = until;
        }
        all
    }

    /// An event that came without a read, where it is the very next one and
    /// nothing is in `out`.
    #[inline]
    pub(super) fn passed(&mut self, event: Passed, last: bool) -> Option<TailEvent> {
        if !event.position.follows(event.prev, self.cursor) {
            return None;
        }
        self.cursor = event.position;
        Some(TailEvent::Event {
            id: EventId::new(self.stream.clone(), event.position),
            data: event.data,
            last,
        })
    }
}
