//! Writers keep what they wrote last, and write it again where the backend has
//! lost it although it had acknowledged it (clause E5): after a failover to a
//! replica that lagged behind, or where the server has evicted a stream.
//!
//! Each event goes where it was, so that what is still there is a repeat, and a
//! reader that has seen it goes on behind it. Events of the standalone stream have
//! many writers and places that the backend chose: what is lost of them is a gap.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{Shared, append::Reopened, interest::Owned, retry::within};
use crate::{
    error::Result,
    id::Position,
    storage::{Append, Appended, NewEvent, Place, Storage, StreamEnd},
};

/// What is kept of one stream, and of all.
const STREAM_EVENTS: usize = 64;
const STREAM_BYTES: usize = 64 << 10;
const ALL_BYTES: usize = 16 << 20;
/// What an event takes beside its payload.
const OVERHEAD: usize = 128;

struct Kept {
    position: Position,
    prev: Option<Position>,
    data: Bytes,
}

impl Kept {
    fn size(&self) -> usize {
        self.data.len() + OVERHEAD
    }
}

/// The last events of a stream, acknowledged or on their way.
pub(super) struct Recent {
    events: VecDeque<Kept>,
    bytes: usize,
    /// How the stream was ended, and whether by the last event.
    end: Option<(StreamEnd, bool)>,
    all: Arc<AtomicUsize>,
}

impl Recent {
    /// `all` counts the bytes of all that are kept in this instance.
    pub(super) fn new(all: &Arc<AtomicUsize>) -> Self {
        Self {
            events: VecDeque::new(),
            bytes: 0,
            end: None,
            all: Arc::clone(all),
        }
    }

    pub(super) fn push(&mut self, position: Position, prev: Option<Position>, data: &Bytes) {
        let event = Kept {
            position,
            prev,
            data: data.clone(),
        };
        let size = event.size();
        // One that is not kept must not leave a hole behind it.
        if size > STREAM_BYTES || self.all.load(Ordering::Relaxed) + size > ALL_BYTES {
            self.clear();
            return;
        }
        while self.events.len() >= STREAM_EVENTS || self.bytes + size > STREAM_BYTES {
            let oldest = self.events.pop_front();
            self.count(0, oldest.as_ref().map_or(0, Kept::size));
        }
        self.count(size, 0);
        self.events.push_back(event);
    }

    pub(super) fn end(&mut self, end: StreamEnd, by_event: bool) {
        self.end = Some((end, by_event));
    }

    /// The last push, and the end that came with it, did not happen.
    pub(super) fn undo(&mut self, was_event: bool) {
        self.end = None;
        if was_event {
            let last = self.events.pop_back();
            self.count(0, last.as_ref().map_or(0, Kept::size));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    fn clear(&mut self) {
        self.events.clear();
        self.count(0, self.bytes);
    }

    fn count(&mut self, more: usize, less: usize) {
        self.bytes = self.bytes + more - less;
        self.all.fetch_add(more, Ordering::Relaxed);
        self.all.fetch_sub(less, Ordering::Relaxed);
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        self.clear();
    }
}

/// What is kept beyond the streams that are being written.
pub(super) struct Repair {
    bytes: Arc<AtomicUsize>,
    /// Streams that ended lately.
    finished: Mutex<VecDeque<(Instant, Arc<Owned>)>>,
    /// While events are written again nothing new is: it would stand before them.
    running: watch::Sender<bool>,
}

impl Repair {
    pub(super) fn new() -> Self {
        Self {
            bytes: Arc::default(),
            finished: Mutex::default(),
            running: watch::Sender::new(false),
        }
    }

    pub(super) fn recent(&self) -> Recent {
        Recent::new(&self.bytes)
    }

    /// Keeps a stream that has ended. What is kept of such streams never takes the
    /// room of those that run.
    fn keep(&self, owned: &Arc<Owned>) {
        let mut finished = self.finished.lock();
        finished.push_back((Instant::now(), Arc::clone(owned)));
        while self.bytes.load(Ordering::Relaxed) > ALL_BYTES / 2
            && let Some((_, oldest)) = finished.pop_front()
        {
            // Others may have it still.
            oldest.state.lock().recent.clear();
        }
    }

    /// Forgets streams that ended longer ago than this.
    pub(super) fn forget(&self, age: Duration) {
        let now = Instant::now();
        self.finished
            .lock()
            .retain(|(since, _)| now - *since <= age);
    }

    fn finished(&self) -> Vec<Arc<Owned>> {
        let finished = self.finished.lock();
        finished
            .iter()
            .map(|(_, owned)| Arc::clone(owned))
            .collect()
    }
}

/// As long as this is there, lanes wait.
pub(super) struct Pause<'a>(&'a watch::Sender<bool>);

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

impl<S: Storage> Shared<S> {
    /// For how long a stream that has ended is kept: the backend must not have
    /// removed it for its age when it is written again.
    pub(super) fn kept_for(&self) -> Duration {
        self.limits.finished_ttl() / 2
    }

    /// The finish of this stream was acknowledged.
    pub(super) fn keep_finished(&self, owned: &Arc<Owned>) {
        if self.profile.repair && !owned.state.lock().recent.is_empty() {
            self.repair.keep(owned);
        }
    }

    pub(super) fn pause(&self) -> Pause<'_> {
        self.repair.running.send_replace(true);
        Pause(&self.repair.running)
    }

    /// Completes when nothing is being written again.
    pub(super) async fn unpaused(&self) {
        if *self.repair.running.borrow() {
            let mut running = self.repair.running.subscribe();
            // The sender lives as long as `self`.
            let _ = running.wait_for(|running| !running).await;
        }
    }

    /// The backend has come back with another history: writes the last events of
    /// all streams again, within the time of one operation. What is not there in
    /// time is a gap.
    pub(super) async fn repair_all(&self) {
        let until = self.deadline();
        let mut streams = self.interests.snapshot(Duration::MAX).owned;
        self.repair.forget(self.kept_for());
        streams.extend(self.repair.finished());
        streams.retain(|owned| !owned.state.lock().recent.is_empty());
        if streams.is_empty() {
            return;
        }
        metrics::counter!("mcp_adapter_streams_repaired_total").increment(streams.len() as u64);
        let repaired = timeout_at(until, self.write_again(&streams)).await;
        match repaired {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "what the backend lost stays lost"),
            Err(_) => tracing::warn!("what the backend lost stays lost: there was no time"),
        }
    }

    /// Writes what is kept of these streams once more.
    pub(super) async fn write_again(&self, streams: &[Arc<Owned>]) -> Result<()> {
        let mut batch: Vec<(usize, Append)> = Vec::new();
        let mut bytes = 0;
        for (number, owned) in streams.iter().enumerate() {
            for append in self.kept_of(owned) {
                let size = append.event.as_ref().map_or(0, |event| event.data.len());
                let full = batch.len() >= self.profile.batch_events
                    || bytes + size > self.profile.batch_bytes;
                if full && !batch.is_empty() {
                    self.send_again(streams, std::mem::take(&mut batch)).await?;
                    bytes = 0;
                }
                bytes += size;
                batch.push((number, append));
            }
        }
        self.send_again(streams, batch).await
    }

    async fn send_again(
        &self,
        streams: &[Arc<Owned>],
        mut batch: Vec<(usize, Append)>,
    ) -> Result<()> {
        // Once more for streams that were lost as a whole, and are open again.
        for _ in 0..2 {
            if batch.is_empty() {
                break;
            }
            let appends: Vec<_> = batch.iter().map(|(_, append)| append.clone()).collect();
            let sent = within("repair", self.deadline(), self.storage.append(&appends)).await;
            self.note(&sent);
            let mut reopened = Reopened::default();
            let mut again = Vec::new();
            for ((number, append), answer) in batch.into_iter().zip(sent?) {
                // Anything else is a repeat, or the end of its stream in some way
                // that its writer finds out by itself.
                let owned = &streams[number];
                if answer != Appended::NoStream || self.may_have_lost(owned) {
                    continue;
                }
                if reopened.once(owned, self.reopen(owned)).await {
                    again.push((number, append));
                }
            }
            batch = again;
        }
        Ok(())
    }

    fn kept_of(&self, owned: &Owned) -> Vec<Append> {
        let state = owned.state.lock();
        let recent = &state.recent;
        let append = |position, event, end: Option<StreamEnd>| Append {
            session: owned.session,
            stream: owned.stream.clone(),
            place: Place::Owned {
                owner: self.me,
                position,
            },
            event,
            finish: end.map(|_| self.limits.finished_ttl()),
            end: end.unwrap_or(StreamEnd::Finished),
            keep_events: self.limits.stream_events(),
            keep_bytes: self.limits.stream_bytes(),
            trim: None,
            wake: state.remote,
        };
        let last = recent.events.back().map(|event| event.position);
        let mut appends = Vec::with_capacity(recent.events.len() + 1);
        for Kept {
            position,
            prev,
            data,
        } in &recent.events
        {
            let by_event = recent.end.filter(|(_, by_event)| *by_event);
            let end = by_event.filter(|_| Some(*position) == last);
            let event = NewEvent {
                prev: *prev,
                data: data.clone(),
            };
            appends.push(append(*position, Some(event), end.map(|(end, _)| end)));
        }
        if let (Some((end, false)), Some(last)) = (recent.end, last) {
            appends.push(append(last, None, Some(end)));
        }
        appends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seq: u64) -> Position {
        Position::new(1, seq)
    }

    #[test]
    fn no_more_is_kept_than_the_bounds_allow() {
        let all = Arc::new(AtomicUsize::new(0));
        let mut recent = Recent::new(&all);
        for seq in 1..=200 {
            recent.push(at(seq), None, &Bytes::from_static(b"x"));
        }
        assert_eq!(recent.events.len(), STREAM_EVENTS);
        assert_eq!(recent.events[0].position, at(137), "the newest are kept");
        assert_eq!(all.load(Ordering::Relaxed), STREAM_EVENTS * (OVERHEAD + 1));
        recent.undo(true);
        assert_eq!(
            recent.events.back().map(|last| last.position),
            Some(at(199))
        );
        recent.push(at(200), None, &Bytes::from(vec![0; STREAM_BYTES / 2]));
        assert!(recent.bytes <= STREAM_BYTES);
        recent.push(at(201), None, &Bytes::from(vec![0; STREAM_BYTES]));
        assert!(recent.is_empty(), "nothing before one that is too large");
        recent.push(at(202), None, &Bytes::from_static(b"x"));
        drop(recent);
        assert_eq!(all.load(Ordering::Relaxed), 0);
        all.store(ALL_BYTES, Ordering::Relaxed);
        let mut recent = Recent::new(&all);
        recent.push(at(1), None, &Bytes::from_static(b"x"));
        assert!(recent.is_empty(), "no room");
    }
}
