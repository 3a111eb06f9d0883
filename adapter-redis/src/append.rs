//! The data path: one native command per stream and batch, and a script for what
//! it cannot decide.
//!
//! Events of one stream in one batch are one entry: an entry is there whole or
//! not at all, so that no failure in the middle of a batch leaves a hole behind
//! an event that was acknowledged.

mod script;

use std::{collections::HashMap, hash::BuildHasherDefault, time::Duration};

use bytes::Bytes;
use mcp_adapter_core::{
    InstanceId, Position, Result, SessionKey, StreamId,
    storage::{Append, Appended, Cursor, Place, Read, Usage},
};
use redis::{Cmd, RedisWrite as _, Value};
use tokio::time::Instant;

use crate::{
    cache::{BySession, Native},
    error::{self, Refusal, refusal},
    keys::{Partition, place},
    server::{Call, Lane},
    storage::RedisStorage,
    value::text,
    wire::{self, Entry},
};

const OPERATION: &str = "append";
/// What is before the floor is trimmed with every so many events, for it costs the
/// server more than the event itself; and with each event of so many bytes.
const TRIM_EVERY: u64 = 16;
const TRIM_BYTES: u64 = 1024;

/// Appends of a batch to one stream, by their places in it.
struct Group<'a> {
    session: &'a SessionKey,
    stream: &'a StreamId,
    appends: Vec<usize>,
    native: Option<Native>,
    bytes: u64,
    /// Another group of the session.
    before: Option<usize>,
}

/// The batch by streams, each in its order.
fn groups(batch: &[Append]) -> Vec<Group<'_>> {
    // The newest group of each session; each knows the one before it.
    let mut index: BySession<&SessionKey, usize> =
        BySession::with_capacity_and_hasher(batch.len(), BuildHasherDefault::default());
    let mut groups: Vec<Group<'_>> = Vec::with_capacity(batch.len());
    for (number, append) in batch.iter().enumerate() {
        let newest = index.get(&append.session).copied();
        let mut found = newest;
        while let Some(group) = found {
            if *groups[group].stream == append.stream {
                break;
            }
            found = groups[group].before;
        }
        let group = found.unwrap_or_else(|| {
            groups.push(Group {
                session: &append.session,
                stream: &append.stream,
                appends: Vec::with_capacity(1),
                native: None,
                bytes: 0,
                before: newest,
            });
            index.insert(&append.session, groups.len() - 1);
            groups.len() - 1
        });
        groups[group].appends.push(number);
        groups[group].bytes += append
            .event
            .as_ref()
            .map_or(0, |event| event.data.len() as u64);
    }
    groups
}

/// Whether the appends are events in a row of one epoch of this stream, above all that
/// it has, and nothing else. The server compares the last of them only.
fn is_plain(batch: &[Append], appends: &[usize], native: &Native) -> bool {
    let mut last: Option<Position> = None;
    appends.iter().all(|number| {
        let append = &batch[*number];
        let (Place::Owned { owner, position }, Some(event), None) =
            (append.place, &append.event, append.finish)
        else {
            return false;
        };
        let next = match last.replace(position) {
            Some(last) => last.seq.checked_add(1) == Some(position.seq),
            None => position.seq > native.last.seq,
        };
        next && owner == native.owner && position.epoch == native.last.epoch && event.prev.is_none()
    })
}

/// The message that wakes the holder of one stream.
fn wake_of(group: &Group<'_>) -> Bytes {
    let mut payload = wire::wake_stream(group.session);
    payload.extend_from_slice(group.stream.as_str().as_bytes());
    payload.into()
}

/// Adds one entry to a stream that is there; `native` is what is known of the
/// stream afterwards.
fn native_call(
    batch: &[Append],
    appends: &[usize],
    session: &SessionKey,
    native: &mut Native,
    bytes: u64,
    now: Instant,
) -> Call {
    let mut payloads = Vec::with_capacity(appends.len());
    let (mut first, mut last) = (None, Position::START);
    let mut floor = Position::START;
    for number in appends {
        let append = &batch[*number];
        if let (Place::Owned { position, .. }, Some(event)) = (append.place, &append.event) {
            first.get_or_insert(position.seq);
            last = position;
            payloads.push(&event.data);
            native.events += 1;
            native.bytes += event.data.len() as u64;
        }
        floor = append.trim.unwrap_or(floor).max(floor);
    }
    native.last = last;
    let entry = Entry {
        first: first.unwrap_or(last.seq),
        events: native.events,
        bytes: native.bytes,
        at: native.clock.at(now),
        floor,
        prev: None,
        payloads: &payloads,
    };
    let mut command = Cmd::with_capacity(8, entry.size() + 256);
    command.arg("XADD").arg(&*native.key).arg("NOMKSTREAM");
    let first = entry.first;
    let trims = bytes >= TRIM_BYTES || first.div_ceil(TRIM_EVERY) * TRIM_EVERY <= last.seq;
    if trims && floor > Position::START {
        let keep = Position::new(floor.epoch, floor.seq.saturating_add(1));
        command.arg("MINID").arg("=").arg(place(keep));
    }
    command.arg(place(last)).arg("d");
    entry.write(&mut command.bufmut_for_next_arg(entry.size()));
    Call {
        partition: Partition::of(session),
        command,
        script: None,
        generation: false,
    }
}

impl RedisStorage {
    pub(crate) async fn append_batch(&self, batch: &[Append]) -> Result<Vec<Appended>> {
        let mut groups = groups(batch);
        let now = Instant::now();
        for group in &mut groups {
            let native = self
                .cache
                .native(group.session, group.stream, group.bytes, now);
            group.native = native.filter(|native| is_plain(batch, &group.appends, native));
        }
        let sent = self.send_groups(batch, &mut groups, now).await;
        if sent.is_err() {
            // What was stored is not known; the repeat asks the scripts.
            for group in &groups {
                self.cache.forget(group.session, group.stream);
            }
        }
        sent
    }

    async fn send_groups(
        &self,
        batch: &[Append],
        groups: &mut [Group<'_>],
        now: Instant,
    ) -> Result<Vec<Appended>> {
        let mut calls: Vec<Call> = groups
            .iter_mut()
            .map(|group| match &mut group.native {
                Some(native) => {
                    let (session, bytes) = (group.session, group.bytes);
                    native_call(batch, &group.appends, session, native, bytes, now)
                }
                None => self.script_call(batch, group),
            })
            .collect();
        self.knock_calls(batch, groups, &mut calls);
        let versions = self.version_calls(groups, &mut calls);
        let mut answers = self.run_appends(calls).await?;
        let mut holds: HashMap<Partition, u64> = HashMap::new();
        let last = answers.split_off(answers.len().saturating_sub(versions.len()));
        for (partition, value) in versions.into_iter().zip(last) {
            holds.insert(
                partition,
                text(&value).and_then(|text| text.parse().ok()).unwrap_or(0),
            );
        }
        let mut results = vec![Appended::NoSession; batch.len()];
        let mut again: Vec<usize> = Vec::new();
        let mut look: Vec<usize> = Vec::new();
        for (number, (group, answer)) in groups.iter_mut().zip(answers).enumerate() {
            let Some(native) = &group.native else {
                self.scripted(batch, group, &answer, now, &mut results)?;
                continue;
            };
            match &answer {
                Value::BulkString(_) | Value::SimpleString(_) => {
                    let known = holds.get(&self.holds_partition(group.session)).copied();
                    if known != Some(native.holds) {
                        look.push(number);
                        continue;
                    }
                    self.natively_stored(batch, group, &mut results);
                }
                Value::Nil => again.push(number),
                Value::ServerError(refused) if refusal(refused) == Refusal::Position => {
                    again.push(number);
                }
                Value::ServerError(refused) => return Err(error::server(OPERATION, refused)),
                _ => return Err(error::odd(OPERATION)),
            }
        }
        if !look.is_empty() {
            self.look_at_holders(batch, groups, &look, &holds, &mut results)
                .await?;
        }
        if !again.is_empty() {
            let calls: Vec<_> = again
                .iter()
                .map(|number| self.script_call(batch, &groups[*number]))
                .collect();
            let now = Instant::now();
            let answers = self.run_appends(calls).await?;
            for (number, answer) in again.iter().zip(answers) {
                self.scripted(batch, &groups[*number], &answer, now, &mut results)?;
            }
        }
        Ok(results)
    }

    async fn run_appends(&self, calls: Vec<Call>) -> Result<Vec<Value>> {
        let sent = self
            .router
            .run_known(&self.attached, Lane::Data, OPERATION, calls);
        sent.await
    }

    /// One message for each instance that is woken natively, whatever the number
    /// of its streams; in Cluster, one at each server.
    fn knock_calls(&self, batch: &[Append], groups: &[Group<'_>], calls: &mut Vec<Call>) {
        let mut wakes: HashMap<(InstanceId, usize), (Partition, Vec<Bytes>)> = HashMap::new();
        for group in groups {
            let last = group.appends.iter().rev();
            let wake = last.filter_map(|number| batch[*number].wake).next();
            let (Some(native), Some(wake)) = (&group.native, wake) else {
                continue;
            };
            let partition = Partition::of(group.session);
            let server = self.router.index_of(partition);
            let (_, payloads) = wakes
                .entry((wake, server))
                .or_insert_with(|| (partition, Vec::new()));
            payloads.push(native.knock.clone());
        }
        for ((instance, _), (partition, payloads)) in wakes {
            let channel = self.router.names.door(partition, instance);
            let message = wire::encode_all(&payloads);
            calls.push(self.publish(partition, &channel, &message));
        }
    }

    fn holds_partition(&self, session: &SessionKey) -> Partition {
        if self.router.names.cluster {
            Partition::of(session)
        } else {
            Partition::Number(0)
        }
    }

    /// After the entries: whoever became a holder before this is answered, and
    /// whoever becomes one later reads what was stored.
    fn version_calls(&self, groups: &[Group<'_>], calls: &mut Vec<Call>) -> Vec<Partition> {
        let mut partitions: Vec<Partition> = Vec::new();
        for group in groups.iter().filter(|group| group.native.is_some()) {
            let partition = self.holds_partition(group.session);
            if !partitions.contains(&partition) {
                partitions.push(partition);
            }
        }
        for partition in &partitions {
            let mut command = Cmd::new();
            command.arg("GET").arg(self.router.names.holds(*partition));
            calls.push(Call {
                partition: *partition,
                command,
                script: None,
                generation: false,
            });
        }
        partitions
    }

    fn natively_stored(&self, batch: &[Append], group: &mut Group<'_>, results: &mut [Appended]) {
        let Some(native) = group.native.take() else {
            return;
        };
        for number in &group.appends {
            if let Place::Owned { position, .. } = batch[*number].place {
                results[*number] = Appended::Stored {
                    position,
                    holder: native.holder,
                    usage: Usage::default(),
                    repeat: false,
                };
            }
        }
        self.cache
            .added(group.session, group.stream, native, group.bytes);
    }

    /// Somebody became a holder somewhere: asks who holds these streams.
    async fn look_at_holders(
        &self,
        batch: &[Append],
        groups: &mut [Group<'_>],
        look: &[usize],
        holds: &HashMap<Partition, u64>,
        results: &mut [Appended],
    ) -> Result<()> {
        let cursors: Vec<_> = look
            .iter()
            .map(|number| {
                let group = &groups[*number];
                Cursor::state_of(*group.session, group.stream.clone())
            })
            .collect();
        let states = self.read_pages(Lane::Data, OPERATION, &cursors).await?;
        for (number, read) in look.iter().zip(states) {
            let group = &mut groups[*number];
            let version = holds.get(&self.holds_partition(group.session)).copied();
            if let (Read::Page { state, .. }, Some(native)) = (read, &mut group.native) {
                native.holder = state.holder.map(|holder| holder.instance);
                native.holds = version.unwrap_or(0);
            }
            self.natively_stored(batch, group, results);
        }
        Ok(())
    }
}

pub(crate) fn millis_of(duration: Duration) -> u64 {
    // At least one: nothing is without a deadline, and none has passed already.
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .clamp(1, 1 << 48)
}
