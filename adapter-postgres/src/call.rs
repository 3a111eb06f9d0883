//! Calls of our functions in the database.

use std::sync::Arc;

use mcp_adapter_core::{Error, Position, Result};
use sqlx::{
    Arguments, Decode, Encode, Postgres, Row, Type,
    error::BoxDynError,
    postgres::{PgArguments, PgRow},
};

use crate::error::corrupt;

macro_rules! functions {
    ($($name:ident $function:literal $arguments:literal;)+) => {
        /// The calls, written once per schema.
        #[derive(Debug)]
        pub(crate) struct Functions { $(pub(crate) $name: Arc<str>,)+ }

        impl Functions {
            pub(crate) fn of(schema: &str) -> Self {
                Self { $($name: call(schema, $function, $arguments),)+ }
            }
        }
    };
}

functions! {
    attach "attach_v1" 3;
    create "create_v1" 7;
    enter "enter_v1" 8;
    update "update_v1" 5;
    delete "delete_v1" 3;
    append "append_v1" 36;
    append_quick "append_quick_v1" 9;
    read "read_v1" 7;
    hold "hold_v1" 9;
    let_through "let_through_v1" 2;
    shrink "shrink_v1" 2;
    put "put_v1" 7;
    settle "settle_v1" 10;
    requests "requests_v1" 3;
    cancel "cancel_v1" 3;
    heartbeat "heartbeat_v1" 3;
    claim "claim_v1" 7;
    sweep "sweep_v1" 6;
    tidy "tidy_v1" 2;
    stats "stats_v1" 0;
    account "account_v1" 3;
    knock "knock_v1" 3;
    door "door_v1" 3;
    poll "poll_v1" 1;
}

fn call(schema: &str, function: &str, arguments: usize) -> Arc<str> {
    let places: Vec<_> = (1..=arguments).map(|place| format!("${place}")).collect();
    let places = places.join(", ");
    format!("SELECT * FROM \"{schema}\".{function}({places})").into()
}

/// The arguments of a call.
#[derive(Default)]
pub(crate) struct Given {
    arguments: PgArguments,
    error: Option<BoxDynError>,
}

impl Given {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn bind<'q, T>(mut self, value: T) -> Self
    where
        T: Encode<'q, Postgres> + Type<Postgres>,
    {
        if let Err(error) = self.arguments.add(value) {
            self.error.get_or_insert(error);
        }
        self
    }

    pub(crate) fn finish(self) -> Result<PgArguments, sqlx::Error> {
        match self.error {
            None => Ok(self.arguments),
            Some(error) => Err(sqlx::Error::Encode(error)),
        }
    }
}

/// A column of an answer.
pub(crate) fn get<'r, T>(operation: &'static str, row: &'r PgRow, column: usize) -> Result<T>
where
    T: Decode<'r, Postgres> + Type<Postgres>,
{
    row.try_get(column)
        .map_err(|error| corrupt(operation, error))
}

pub(crate) fn odd(operation: &'static str) -> Error {
    corrupt(operation, "an answer that is not of the form agreed upon")
}

/// Numbers beyond the signed range are kept as their bits: only those that are
/// compared in the database have to keep their order, and those are smaller.
pub(crate) fn bits(number: u64) -> i64 {
    number.cast_signed()
}

/// Where to begin to read: a place beyond all that can be stored is one.
pub(crate) fn after(position: Position) -> (i64, i64) {
    let seq = i64::try_from(position.seq).unwrap_or(i64::MAX);
    (i64::from(position.epoch), seq)
}

pub(crate) fn position(
    operation: &'static str,
    epoch: Option<i64>,
    seq: Option<i64>,
) -> Result<Option<Position>> {
    match (epoch, seq) {
        (Some(epoch), Some(seq)) => {
            let epoch = u32::try_from(epoch).map_err(|error| corrupt(operation, error))?;
            Ok(Some(Position::new(epoch, seq.cast_unsigned())))
        }
        _ => Ok(None),
    }
}

/// A count for the database; what is larger is as good as without bound.
pub(crate) fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn micros(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Where an answer's row belongs in its batch: rows are numbered from 1.
pub(crate) fn index(operation: &'static str, number: i64, of: usize) -> Result<usize> {
    usize::try_from(number - 1)
        .ok()
        .filter(|index| *index < of)
        .ok_or_else(|| odd(operation))
}

/// All of a batch, each answered once.
pub(crate) fn all<T>(operation: &'static str, answers: Vec<Option<T>>) -> Result<Vec<T>> {
    answers
        .into_iter()
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| odd(operation))
}
