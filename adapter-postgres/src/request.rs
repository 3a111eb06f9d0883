//! Steps on client requests.

use bytes::Bytes;
use mcp_adapter_core::{
    Result,
    storage::{Knock, Put, PutRequest, RequestKey, RequestState, Settle, Settled, Target},
};

use crate::{
    call::{Given, all, bits, count, get, index, micros, odd},
    codec,
    pool::Who,
    storage::Inner,
};

/// An outcome goes along with its notification where the line is no longer: several
/// lines share one, which may have 8000 bytes.
const TOLD: usize = 900;

/// The order in which all batches take their rows. Stable: what has one key stays in
/// the order of the batch.
fn sorted<T, K: Ord>(batch: &[T], key: impl Fn(&T) -> K) -> Vec<usize> {
    let mut order: Vec<_> = (0..batch.len()).collect();
    order.sort_by_cached_key(|index| key(&batch[*index]));
    order
}

impl Inner {
    pub(crate) async fn put_requests(&self, batch: &[PutRequest]) -> Result<Vec<Put>> {
        const OPERATION: &str = "put";
        // By session alone: of one session's requests the first come first, and the
        // others may be too many.
        let order = sorted(batch, |put| put.session.0);
        let column = |of: fn(&PutRequest) -> i64| -> Vec<_> {
            order.iter().map(|index| of(&batch[*index])).collect()
        };
        let bytes = |of: fn(&PutRequest) -> Vec<u8>| -> Vec<_> {
            order.iter().map(|index| of(&batch[*index])).collect()
        };
        let given = Given::new()
            .bind(bytes(|put| put.session.0.to_vec()))
            .bind(bytes(|put| codec::id_bytes(&put.id)))
            .bind(bytes(|put| put.token.0.to_be_bytes().to_vec()))
            .bind(bytes(|put| put.owner.0.to_be_bytes().to_vec()))
            .bind(column(|put| micros(put.timeout)))
            .bind(column(|put| micros(put.result_ttl)))
            .bind(column(|put| count(put.max_pending)));
        let sql = &self.functions().put;
        let rows = self.run(OPERATION, Who::Engine, sql, given).await?;
        let mut answers = vec![None; batch.len()];
        for row in &rows {
            let at = order[index(OPERATION, get(OPERATION, row, 0)?, batch.len())?];
            answers[at] = Some(match get::<i16>(OPERATION, row, 1)? {
                0 => Put::Done,
                1 => {
                    let owner: &[u8] = get(OPERATION, row, 2)?;
                    Put::Replaced(codec::instance(owner).ok_or_else(|| odd(OPERATION))?)
                }
                2 => Put::TooMany,
                3 => Put::NoSession,
                _ => return Err(odd(OPERATION)),
            });
        }
        all(OPERATION, answers)
    }

    pub(crate) async fn settle(&self, batch: &[Settle]) -> Result<Vec<Settled>> {
        const OPERATION: &str = "settle";
        // By id as well, for each locks its own row. Those of one id stay in order.
        let order = sorted(batch, |settle| {
            (settle.session.0, codec::id_bytes(&settle.id))
        });
        let entries: Vec<&Settle> = order.iter().map(|index| &batch[*index]).collect();
        let knock = |settle: &&Settle| {
            let Settle { session, id, .. } = settle;
            if settle.payload.len() < TOLD {
                let line = codec::outcome(session, id, settle.outcome, &settle.payload);
                if line.len() <= TOLD {
                    return line;
                }
            }
            codec::line(&Knock::Wake(*session, Target::Request(id.clone())))
        };
        let instance = |settle: &&Settle| settle.dead.map(|dead| dead.instance.0.to_be_bytes());
        let beat = |settle: &&Settle| settle.dead.and_then(|dead| dead.beat).map(bits);
        let given = |ring| {
            let entries = || entries.iter();
            Given::new()
                .bind(entries().map(|s| s.session.0).collect::<Vec<_>>())
                .bind(
                    entries()
                        .map(|s| codec::id_bytes(&s.id))
                        .collect::<Vec<_>>(),
                )
                .bind(
                    entries()
                        .map(|s| s.token.map(|token| token.0.to_be_bytes()))
                        .collect::<Vec<_>>(),
                )
                .bind(
                    entries()
                        .map(|s| codec::outcome_number(s.outcome))
                        .collect::<Vec<_>>(),
                )
                .bind(entries().map(|s| &s.payload[..]).collect::<Vec<_>>())
                .bind(entries().map(instance).collect::<Vec<_>>())
                .bind(entries().map(beat).collect::<Vec<_>>())
                .bind(
                    entries()
                        .map(|s| s.attempt.0.to_be_bytes())
                        .collect::<Vec<_>>(),
                )
                .bind(entries().map(knock).collect::<Vec<_>>())
                .bind(ring)
        };
        let sql = &self.functions().settle;
        let rows = self.run_ringing(OPERATION, Who::Engine, sql, given).await?;
        let mut answers = vec![None; batch.len()];
        for row in &rows {
            let at = order[index(OPERATION, get(OPERATION, row, 0)?, batch.len())?];
            answers[at] = Some(match get::<i16>(OPERATION, row, 1)? {
                0 => Settled::Won,
                1 => {
                    let number = get(OPERATION, row, 2)?;
                    let outcome = codec::outcome_of(number).ok_or_else(|| odd(OPERATION))?;
                    Settled::Already(outcome)
                }
                2 => Settled::Alive,
                3 => Settled::Unknown,
                _ => return Err(odd(OPERATION)),
            });
        }
        all(OPERATION, answers)
    }

    pub(crate) async fn requests(&self, keys: &[RequestKey]) -> Result<Vec<RequestState>> {
        const OPERATION: &str = "read request";
        let sessions: Vec<_> = keys.iter().map(|key| key.session.0).collect();
        let ids: Vec<_> = keys.iter().map(|key| codec::id_bytes(&key.id)).collect();
        let token = |key: &RequestKey| key.token.map(|token| token.0.to_be_bytes());
        let tokens: Vec<_> = keys.iter().map(token).collect();
        let given = Given::new().bind(sessions).bind(ids).bind(tokens);
        let sql = &self.functions().requests;
        let rows = self.run(OPERATION, Who::Caller, sql, given).await?;
        let mut answers = vec![None; keys.len()];
        for row in &rows {
            let at = index(OPERATION, get(OPERATION, row, 0)?, keys.len())?;
            let owner: Option<&[u8]> = get(OPERATION, row, 2)?;
            answers[at] = Some(match (get(OPERATION, row, 1)?, owner) {
                (false, _) => RequestState::NoSession,
                (true, None) => RequestState::Missing,
                (true, Some(owner)) => match get::<Option<i16>>(OPERATION, row, 3)? {
                    None => RequestState::Pending {
                        owner: codec::instance(owner).ok_or_else(|| odd(OPERATION))?,
                    },
                    Some(number) => {
                        let payload: Option<Vec<u8>> = get(OPERATION, row, 4)?;
                        let payload = Bytes::from(payload.unwrap_or_default());
                        let outcome = codec::outcome_of(number).ok_or_else(|| odd(OPERATION))?;
                        RequestState::Ended(outcome, payload)
                    }
                },
            });
        }
        all(OPERATION, answers)
    }
}
