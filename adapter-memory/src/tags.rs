//! How repeats are recognised where any instance may write.

use std::collections::VecDeque;

use mcp_adapter_core::{InstanceId, Position};

#[derive(Debug)]
struct Writer {
    instance: InstanceId,
    last: u64,
    /// Its last event that is no longer kept.
    evicted: Option<(u64, Position)>,
}

/// Who wrote the events of a shared stream, under which number.
#[derive(Debug, Default)]
pub(crate) struct Tags {
    /// One per instance that ever wrote.
    writers: Vec<Writer>,
    /// Writer and number of each event that the stream keeps, in its order.
    events: VecDeque<(usize, u64)>,
}

/// Where an event is that was stored before.
pub(crate) enum Stored {
    /// Kept, at this index.
    Kept(usize),
    /// No longer kept. Of those only the last one's place is known: it stands
    /// for all of its writer.
    Evicted(Position),
}

impl Tags {
    fn writer(&self, instance: InstanceId) -> Option<usize> {
        self.writers
            .iter()
            .position(|writer| writer.instance == instance)
    }

    pub(crate) fn find(&self, instance: InstanceId, tag: u64) -> Option<Stored> {
        let index = self.writer(instance)?;
        let writer = &self.writers[index];
        if tag > writer.last {
            return None;
        }
        match writer.evicted {
            Some((evicted, position)) if tag <= evicted => Some(Stored::Evicted(position)),
            _ => self
                .events
                .iter()
                .rposition(|event| *event == (index, tag))
                .map(Stored::Kept),
        }
    }

    /// The stream has a new event.
    pub(crate) fn push(&mut self, instance: InstanceId, tag: u64) {
        let index = self.writer(instance).unwrap_or_else(|| {
            self.writers.push(Writer {
                instance,
                last: tag,
                evicted: None,
            });
            self.writers.len() - 1
        });
        let writer = &mut self.writers[index];
        writer.last = writer.last.max(tag);
        self.events.push_back((index, tag));
    }

    /// The stream has lost its oldest event, which stood at `position`.
    pub(crate) fn evict(&mut self, position: Position) {
        if let Some((index, tag)) = self.events.pop_front() {
            self.writers[index].evicted = Some((tag, position));
        }
    }
}
