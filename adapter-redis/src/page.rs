//! States and pages of streams, as `state()` of the scripts and `read.lua` tell them.

use mcp_adapter_core::{
    Position,
    storage::{Cursor, Held, HoldStart, Holder, Read, StreamEnd, StreamState},
};
use redis::Value;

use crate::{
    keys::{instance_of, position_of},
    value::{bytes, integer, text, unsigned},
    wire,
};

/// Fields of a state, and what follows it.
const STATE: usize = 9;

/// The state that `state()` of the scripts makes, and its floor.
fn state_of(fields: &[Value]) -> Option<(StreamState, Position)> {
    let [
        top,
        oldest,
        end,
        owner,
        holder,
        number,
        cancelled,
        floor,
        holds,
        ..,
    ] = fields
    else {
        return None;
    };
    let state = StreamState {
        top: position_of(text(top)?)?,
        oldest: position_of(text(oldest)?),
        end: match text(end)? {
            "" => None,
            "l" => Some(StreamEnd::OwnerLost),
            _ => Some(StreamEnd::Finished),
        },
        owner: instance_of(text(owner)?),
        holder: match instance_of(text(holder)?) {
            Some(instance) => Some(Holder {
                instance,
                number: unsigned(number)?,
            }),
            None => None,
        },
        cancelled: integer(cancelled)? == 1,
        holds: holds_of(text(holds)?)?,
    };
    Some((state, position_of(text(floor)?)?))
}

/// As `state()` writes them.
fn holds_of(holds: &str) -> Option<Vec<HoldStart>> {
    let holds = holds.split(',').filter(|hold| !hold.is_empty());
    holds
        .map(|hold| {
            let (number, began) = hold.split_once(' ')?;
            Some(HoldStart {
                number: number.parse().ok()?,
                began: position_of(began)?,
            })
        })
        .collect()
}

pub(crate) fn page(cursor: &Cursor, answer: Value) -> Option<Read> {
    match answer {
        Value::Int(-1) => return Some(Read::NoSession),
        Value::Int(-2) => return Some(Read::NoStream),
        _ => {}
    }
    let mut fields = answer.into_sequence().ok()?;
    let (state, floor) = state_of(&fields)?;
    let mut events = Vec::new();
    let mut left = cursor.max_bytes;
    let mut entries = fields.drain(STATE..);
    while let (Some(id), Some(record)) = (entries.next(), entries.next()) {
        let last = position_of(text(&id)?)?;
        for event in wire::events_of(last, bytes(record)?) {
            if event.position <= cursor.after || event.position <= floor {
                continue;
            }
            // An empty event counts, too: only the first one is free.
            let size = event.data.as_ref().map_or(1, |data| data.len().max(1));
            if events.len() >= cursor.max_events || (size > left && !events.is_empty()) {
                drop(entries);
                return Some(Read::Page { events, state });
            }
            left = left.saturating_sub(size);
            events.push(event);
        }
    }
    drop(entries);
    Some(Read::Page { events, state })
}

pub(crate) fn held(answer: &Value) -> Option<Held> {
    let fields = answer.as_sequence()?;
    let [number, second, third, state @ ..] = fields else {
        return None;
    };
    if text(number) == Some("") {
        return Some(Held::Busy(Holder {
            instance: instance_of(text(second)?)?,
            number: unsigned(third)?,
        }));
    }
    let (state, _) = state_of(state)?;
    Some(Held::Done {
        number: unsigned(number)?,
        former: instance_of(text(second)?),
        cursor: position_of(text(third)?)?,
        state,
    })
}
