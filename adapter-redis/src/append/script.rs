//! Appends by `append.lua`: what the native command cannot decide.

use std::time::Duration;

use mcp_adapter_core::{
    InstanceId, Position, Result,
    storage::{Append, Appended, Place, StreamEnd, Usage},
};
use redis::Value;
use tokio::time::Instant;

use super::{Group, OPERATION, millis_of, wake_of};
use crate::{
    cache::{Native, ServerClock},
    error,
    keys::{instance_of, place, position_of},
    script::Script,
    server::Call,
    storage::RedisStorage,
    value::{integer, text},
};

fn end_code(end: StreamEnd) -> &'static str {
    match end {
        StreamEnd::Finished => "f",
        StreamEnd::OwnerLost => "l",
    }
}

impl RedisStorage {
    pub(super) fn script_call(&self, batch: &[Append], group: &Group<'_>) -> Call {
        let mut call = self.session_script(Script::Append, group.session);
        call.command
            .arg(group.stream.as_str())
            .arg(&wake_of(group)[..])
            .arg(group.appends.len());
        let mut last = None;
        for number in &group.appends {
            let append = &batch[*number];
            let (at, writer) = match append.place {
                Place::Owned { owner, position } => (place(position), ('o', owner)),
                Place::Shared { writer, tag } => (tag.to_string(), ('w', writer)),
            };
            // Nearly always the same in the whole batch.
            match last.replace(writer) {
                Some(last) if last == writer => call.command.arg(""),
                _ => call.command.arg(format!("{}{}", writer.0, writer.1)),
            };
            let prev = append.event.as_ref().and_then(|event| event.prev);
            let command = call
                .command
                .arg(at)
                .arg(prev.map_or_else(String::new, place));
            match &append.event {
                Some(event) => command.arg(1).arg(&event.data[..]),
                None => command.arg(0).arg(""),
            };
            let finish = append.finish.map(millis_of);
            command
                .arg(finish.map_or_else(String::new, |ttl| ttl.to_string()))
                .arg(end_code(append.end))
                .arg(append.keep_events)
                .arg(append.keep_bytes)
                .arg(append.trim.map_or_else(String::new, place))
                .arg(
                    append
                        .wake
                        .map_or_else(String::new, |wake| wake.to_string()),
                );
        }
        call.generation = true;
        call
    }

    /// What the script has answered to the appends of a stream.
    pub(super) fn scripted(
        &self,
        batch: &[Append],
        group: &Group<'_>,
        answer: &Value,
        sent: Instant,
        results: &mut [Appended],
    ) -> Result<()> {
        let all = match answer {
            Value::ServerError(refused) => return Err(error::server(OPERATION, refused)),
            Value::Int(-1) => Some(Appended::NoSession),
            Value::Int(-2) => Some(Appended::NoStream),
            _ => None,
        };
        if let Some(all) = all {
            for number in &group.appends {
                results[*number] = all;
            }
            self.cache.told(group.session, group.stream, None, sent);
            return Ok(());
        }
        // The server has read its clock about half way.
        let half = sent.elapsed() / 2;
        let parsed = Scripted::parse(answer, group.appends.len(), sent + half);
        let scripted = parsed.ok_or_else(|| error::odd(OPERATION))?;
        let mut writer = None;
        for (number, one) in group.appends.iter().zip(&scripted.each) {
            let append = &batch[*number];
            results[*number] = match one {
                Ok((position, repeat)) => {
                    if let Place::Owned { owner, .. } = append.place {
                        writer = Some(owner);
                    }
                    Appended::Stored {
                        position: *position,
                        holder: scripted.holder,
                        usage: scripted.usage,
                        repeat: *repeat,
                    }
                }
                Err(refused) => *refused,
            };
        }
        let native = writer.filter(|_| scripted.there).map(|owner| Native {
            owner,
            last: scripted.top,
            events: scripted.events,
            bytes: scripted.bytes,
            holder: scripted.holder,
            holds: scripted.holds,
            key: self
                .router
                .names
                .events(group.session, &scripted.life, group.stream)
                .into(),
            knock: wake_of(group),
            clock: scripted.clock,
        });
        let fresh = sent + scripted.fresh;
        self.cache.told(group.session, group.stream, native, fresh);
        Ok(())
    }
}

/// The answer of `append.lua`.
struct Scripted {
    holder: Option<InstanceId>,
    usage: Usage,
    fresh: Duration,
    events: u64,
    bytes: u64,
    there: bool,
    holds: u64,
    clock: ServerClock,
    /// Is in the keys of the session's events.
    life: String,
    top: Position,
    /// Where each is, and whether it was stored before.
    each: Vec<Result<(Position, bool), Appended>>,
}

impl Scripted {
    fn parse(answer: &Value, appends: usize, read: Instant) -> Option<Self> {
        let fields = answer.as_sequence()?;
        let number = |at: usize| {
            fields
                .get(at)
                .and_then(integer)
                .map(|n| u64::try_from(n).unwrap_or(0))
        };
        let mut each = Vec::with_capacity(appends);
        for append in 0..appends {
            let at = text(fields.get(12 + 2 * append)?)?;
            each.push(match number(11 + 2 * append)? {
                code @ (0 | 3) => Ok((position_of(at)?, code == 3)),
                1 => Err(Appended::Fenced),
                2 => Err(Appended::Finished),
                4 => Err(Appended::NoStream),
                _ => return None,
            });
        }
        Some(Self {
            holder: instance_of(text(fields.first()?)?),
            usage: Usage {
                session_bytes: number(1)?,
                principal_bytes: number(2)?,
            },
            fresh: Duration::from_millis(number(3)?),
            events: number(4)?,
            bytes: number(5)?,
            there: number(6)? == 1,
            holds: text(fields.get(7)?)?.parse().ok()?,
            clock: ServerClock::new(number(8)?, read),
            life: text(fields.get(9)?)?.to_owned(),
            top: position_of(text(fields.get(10)?)?)?,
            each,
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mcp_adapter_core::{SessionKey, StreamId, storage::NewEvent};
    use redis::Arg;

    use super::{super::native_call, *};

    /// The clocks of two writers may be hours apart; what one has stored after the
    /// other is younger all the same (E4).
    #[tokio::test(start_paused = true)]
    async fn the_age_of_an_event_is_the_servers() {
        // A server that was started a second after the beginning of time.
        let answer = [
            "", "0", "0", "0", "1", "1", "1", "7", "1000", "", "1-1", "0", "1-1",
        ];
        let answer = answer.map(|field| Value::BulkString(field.into()));
        let told = Scripted::parse(&Value::Array(answer.into()), 1, Instant::now()).unwrap();
        let mut native = Native {
            owner: InstanceId(1),
            last: told.top,
            events: told.events,
            bytes: told.bytes,
            holder: told.holder,
            holds: told.holds,
            key: "key".into(),
            knock: Bytes::new(),
            clock: told.clock,
        };
        tokio::time::advance(Duration::from_secs(5)).await;
        let append = Append {
            session: SessionKey([1; 32]),
            stream: StreamId::standalone(),
            place: Place::Owned {
                owner: InstanceId(1),
                position: Position::new(1, 2),
            },
            event: Some(NewEvent {
                prev: None,
                data: Bytes::from_static(b"x"),
            }),
            finish: None,
            end: StreamEnd::Finished,
            keep_events: 9,
            keep_bytes: 9,
            trim: None,
            wake: None,
        };
        let (session, now) = (append.session, Instant::now());
        let call = native_call(&[append], &[0], &session, &mut native, 1, now);
        let Some(Arg::Simple(record)) = call.command.args_iter().last() else {
            panic!("the record is the last argument");
        };
        // After version, flags, number, place, events and bytes.
        assert_eq!(record[30..38], 6000_u64.to_be_bytes());
    }
}
