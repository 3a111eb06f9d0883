//! Event ids as clients see them: the adapter's, and what this transport marks
//! on them.

use std::{fmt, str::FromStr};

use mcp_adapter_core::{Error, ErrorKind, EventId};

/// What an id says beside the place in its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Nothing follows: whoever has this id has had the call's outcome, or is
    /// to hear none.
    Last,
    /// The standalone stream, as it was held by the hold of this number.
    Hold(u64),
}

/// `<event id>`, `<event id>-last` or `<event id>-h<number>`: at most 128 bytes
/// of `[A-Za-z0-9._-]` (clause E3). The last part of an event id is a number in
/// base 36, so no mark is ever read as part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResumeId {
    pub(crate) event: EventId,
    pub(crate) mark: Option<Mark>,
}

impl ResumeId {
    pub(crate) fn held(event: EventId, hold: u64) -> Self {
        Self {
            event,
            mark: Some(Mark::Hold(hold)),
        }
    }

    pub(crate) fn last(event: EventId) -> Self {
        Self {
            event,
            mark: Some(Mark::Last),
        }
    }
}

impl From<EventId> for ResumeId {
    fn from(event: EventId) -> Self {
        Self { event, mark: None }
    }
}

impl fmt::Display for ResumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.event.fmt(f)?;
        match self.mark {
            None => Ok(()),
            Some(Mark::Last) => f.write_str("-last"),
            Some(Mark::Hold(number)) => write!(f, "-h{number}"),
        }
    }
}

impl FromStr for ResumeId {
    type Err = Error;

    /// # Errors
    /// [`ErrorKind::StreamGone`], as for ids of streams that are not there.
    fn from_str(text: &str) -> Result<Self, Error> {
        let malformed = || Error::new(ErrorKind::StreamGone, "event id");
        if text.len() > EventId::MAX_BYTES {
            return Err(malformed());
        }
        // Names of streams may contain hyphens, numbers do not.
        let number = text.rfind('.').map_or(text.len(), |dot| dot + 1);
        let Some(hyphen) = text[number..].find('-').map(|at| number + at) else {
            return text.parse().map(|event| Self { event, mark: None });
        };
        let mark = match &text[hyphen + 1..] {
            "last" => Mark::Last,
            hold => {
                let number = hold.strip_prefix('h').ok_or_else(malformed)?;
                // One spelling for each: no sign, no leading zero.
                let parsed: u64 = number.parse().map_err(|_| malformed())?;
                if parsed.to_string() != number {
                    return Err(malformed());
                }
                Mark::Hold(parsed)
            }
        };
        Ok(Self {
            event: text[..hyphen].parse()?,
            mark: Some(mark),
        })
    }
}

#[cfg(test)]
mod tests {
    use mcp_adapter_core::{Position, RpcId, StreamId};

    use super::*;

    const END: Position = Position::new(u32::MAX, u64::MAX);

    #[test]
    fn ids_round_trip_at_their_longest() {
        let longest = RpcId::String("\u{7f}".repeat(StreamId::MAX_CARRIED_ID).into());
        let streams = [
            StreamId::standalone(),
            StreamId::for_request(&RpcId::Number(i64::MIN)),
            StreamId::for_request(&longest),
        ];
        for stream in streams {
            let holds = [0, 7, u64::MAX].map(|number| Some(Mark::Hold(number)));
            let holds = holds.into_iter().filter(|_| stream.is_standalone());
            for mark in [None, Some(Mark::Last)].into_iter().chain(holds) {
                for position in [Position::START, END] {
                    let event = EventId::new(stream.clone(), position);
                    let id = ResumeId { event, mark };
                    let text = id.to_string();
                    assert!(text.len() <= EventId::MAX_BYTES, "{text}");
                    assert_eq!(text.parse::<ResumeId>().unwrap(), id);
                }
            }
        }
    }

    /// "last" and "h2" are numbers in base 36.
    #[test]
    fn no_event_id_looks_like_a_marked_one() {
        for text in ["n-1.n7.1.last", "standalone.1.h2", "a-last.1.2", "a-h1.1.2"] {
            let id: ResumeId = text.parse().unwrap();
            assert_eq!(id, ResumeId::from(text.parse::<EventId>().unwrap()));
        }
    }

    #[test]
    fn malformed_ids_are_one_error() {
        for bad in [
            "",
            "-last",
            "a-last",
            "a.1-last",
            "a.1.2-",
            "a.1.2-Last",
            "a.1.2-last-last",
            "a.1.2-last.3",
            "a.1.2-h",
            "a.1.2-h-1",
            "a.1.2-h+1",
            "a.1.2-h01",
            "a.1.2-h18446744073709551616",
            "a.1.2-h1-last",
            "a.1.-last",
            &format!("{}.1.2-last", "a".repeat(200)),
        ] {
            let error = bad.parse::<ResumeId>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StreamGone, "{bad}");
        }
    }
}
