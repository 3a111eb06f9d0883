//! The steps of the seam.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use mcp_adapter_core::{
    Applied, Cancelled, Capabilities, InstanceId, Limits, PrincipalKey, Result, RpcId, SessionKey,
    Stats, StreamId,
    storage::{
        Append, Appended, Beat, Claim, Cursor, Dead, Door, Entered, Generation, Held, Hold, Knock,
        NewSession, OpenStream, Profile, Put, PutRequest, Read, RequestKey, RequestState, Settle,
        Settled, Storage, Swept, UpdateSession, Updated,
    },
};
use redis::{Cmd, Value};

use crate::{
    append::millis_of,
    attached::Attached,
    cache::Cache,
    doorbell,
    error::odd,
    keys::{PARTITIONS, Partition, instance_of, place, request_name},
    page::{held, page},
    principal::Shares,
    router::Router,
    script::Script,
    server::{Call, Lane},
    sweep::Search,
    value::{bytes, integer, text, unsigned},
    wire,
};

/// How long a deleted session's creator is remembered: longer than any command
/// is held up on its way.
const TOMBSTONE: Duration = Duration::from_secs(600);
/// Batches of appends under way at once, so that neither the server nor this
/// instance waits for the other.
const LANES: usize = 4;
/// Events in one page, whatever is asked for.
const MAX_PAGE: usize = 1 << 20;

/// A store in Redis or Valkey. Clones share their connections.
#[derive(Clone)]
pub struct RedisStorage {
    pub(crate) router: Arc<Router>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) limits: Limits,
    pub(crate) shares: Arc<Shares>,
    pub(crate) search: Arc<tokio::sync::Mutex<Search>>,
    pub(crate) attached: Arc<Attached>,
}

impl RedisStorage {
    pub(crate) fn new(router: Arc<Router>, limits: &Limits) -> Self {
        // Often enough for the bytes of a session to be bounded closely, and
        // seldom enough to cost nothing.
        let allowance = (limits.session_bytes() as u64 / 16).min(1 << 20);
        Self {
            router,
            cache: Arc::new(Cache::new(allowance)),
            limits: limits.clone(),
            shares: Arc::default(),
            search: Arc::default(),
            attached: Arc::default(),
        }
    }

    pub(crate) fn session_script(&self, script: Script, session: &SessionKey) -> Call {
        let root = self.router.names.root(session);
        self.router.script(script, Partition::of(session), &root)
    }

    pub(crate) fn publish(&self, partition: Partition, channel: &str, message: &[u8]) -> Call {
        let mut command = Cmd::new();
        command
            .arg(if self.router.names.cluster {
                "SPUBLISH"
            } else {
                "PUBLISH"
            })
            .arg(channel)
            .arg(message);
        Call {
            partition,
            command,
            script: None,
            generation: false,
        }
    }

    pub(crate) async fn read_pages(
        &self,
        lane: Lane,
        operation: &'static str,
        cursors: &[Cursor],
    ) -> Result<Vec<Read>> {
        let calls: Vec<_> = cursors
            .iter()
            .map(|cursor| {
                let mut call = self.session_script(Script::Read, &cursor.session);
                call.command
                    .arg(cursor.stream.as_str())
                    .arg(place(cursor.after))
                    .arg(cursor.max_events.min(MAX_PAGE))
                    .arg(cursor.max_bytes.max(1))
                    .arg(u8::from(cursor.touch));
                call
            })
            .collect();
        let answers = self.router.all(lane, operation, calls).await?;
        let reads = cursors.iter().zip(answers);
        reads
            .map(|(cursor, answer)| page(cursor, answer).ok_or_else(|| odd(operation)))
            .collect()
    }

    /// Whether the one counter of all still is this. In Cluster the scripts see
    /// a copy only.
    pub(crate) async fn still_dead(&self, dead: &[Dead]) -> Result<Vec<bool>> {
        if !self.router.names.cluster || dead.is_empty() {
            return Ok(vec![true; dead.len()]);
        }
        let key = self.router.names.of(Partition::Beats, "h");
        let calls: Vec<_> = dead
            .iter()
            .map(|dead| {
                let mut command = Cmd::new();
                command.arg("HGET").arg(&key).arg(dead.instance.to_string());
                Call {
                    partition: Partition::Beats,
                    command,
                    script: None,
                    generation: false,
                }
            })
            .collect();
        let answers = self.router.all(Lane::Pool, "claim", calls).await?;
        let stored = answers.iter().map(unsigned);
        Ok(stored
            .zip(dead)
            .map(|(stored, dead)| stored == dead.beat)
            .collect())
    }

    pub(crate) async fn living_dead(&self, dead: &[Dead]) -> Result<Vec<Dead>> {
        let still = self.still_dead(dead).await?;
        let dead = dead.iter().zip(still);
        Ok(dead
            .filter(|(_, still)| *still)
            .map(|(dead, _)| *dead)
            .collect())
    }
}

impl fmt::Debug for RedisStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStorage")
            .field("cluster", &self.router.names.cluster)
            .finish_non_exhaustive()
    }
}

pub(crate) fn beat_text(beat: Option<u64>) -> String {
    beat.map_or_else(String::new, |beat| beat.to_string())
}

#[async_trait]
impl Storage for RedisStorage {
    fn profile(&self) -> Profile {
        let capabilities = Capabilities::server(Duration::from_millis(1));
        if self.router.names.cluster {
            // A partition is on one master, whatever slots have moved.
            Profile::remote("redis", capabilities, 1)
                .with_shards(PARTITIONS.into())
                .with_repair()
        } else {
            Profile::remote("redis", capabilities, LANES).with_repair()
        }
    }

    fn shard_of(&self, session: &SessionKey) -> usize {
        match Partition::of(session) {
            Partition::Number(number) if self.router.names.cluster => number.into(),
            _ => 0,
        }
    }

    async fn attach(&self, _: InstanceId) -> Result<Generation> {
        let mut runs: Vec<_> = self
            .router
            .identify()
            .await?
            .into_iter()
            .map(|identity| identity.run)
            .collect();
        runs.sort();
        let generation = Generation(runs.join("+").into());
        if self.attached.are_others(&runs) {
            self.cache.forget_all();
        }
        self.attached.set(runs);
        Ok(generation)
    }

    async fn doorbell(&self, me: InstanceId) -> Result<BoxStream<'static, Result<Knock>>> {
        doorbell::open(self.clone(), me).await
    }

    async fn create(&self, session: &NewSession) -> Result<bool> {
        let mut call = self.session_script(Script::Create, &session.session);
        call.command
            .arg(&session.principal.0)
            .arg(&session.creator.0.to_be_bytes())
            .arg(&session.record[..])
            .arg(millis_of(session.idle_ttl))
            .arg(
                session
                    .absolute_ttl
                    .map_or_else(String::new, |ttl| millis_of(ttl).to_string()),
            );
        call.generation = true;
        let answer = self.router.one_answer("create", call).await?;
        integer(&answer)
            .map(|created| created == 1)
            .ok_or_else(|| odd("create"))
    }

    async fn enter(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
        open: Option<&OpenStream>,
    ) -> Result<Entered> {
        let mut call = self.session_script(Script::Enter, session);
        call.command.arg(&principal.0);
        match open {
            Some(open) => {
                let stored = self.bytes_of(principal);
                call.command
                    .arg(open.stream.as_str())
                    .arg(open.owner.to_string())
                    .arg(request_name(&open.request))
                    .arg(open.max_open)
                    // As a float it is far above anything that can be stored.
                    .arg(open.max_principal_bytes)
                    .arg(stored);
            }
            None => {
                call.command.arg("");
            }
        }
        let answer = self.router.one_answer("enter", call).await?;
        match integer(&answer) {
            Some(0) => return Ok(Entered::NoSession),
            Some(1) => return Ok(Entered::TooManyStreams),
            Some(2) => return Ok(Entered::PrincipalQuota),
            _ => {}
        }
        let mut fields = answer
            .into_sequence()
            .map_err(|_| odd("enter"))?
            .into_iter();
        let record = fields.next().and_then(bytes);
        let revision = fields.next().as_ref().and_then(unsigned);
        let (Some(record), Some(revision)) = (record, revision) else {
            return Err(odd("enter"));
        };
        Ok(Entered::Session { record, revision })
    }

    async fn update(&self, update: &UpdateSession) -> Result<Updated> {
        let mut call = self.session_script(Script::Update, &update.session);
        call.command
            .arg(&update.principal.0)
            .arg(update.revision)
            .arg(&update.attempt.0.to_be_bytes())
            .arg(&update.record[..]);
        let answer = self.router.one_answer("update", call).await?;
        match integer(&answer) {
            Some(-1) => Ok(Updated::NoSession),
            Some(0) => Ok(Updated::Conflict),
            Some(revision) => Ok(Updated::Done(revision.unsigned_abs())),
            None => Err(odd("update")),
        }
    }

    async fn delete(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
    ) -> Result<Option<Vec<InstanceId>>> {
        let mut call = self.session_script(Script::Delete, session);
        call.command.arg(&principal.0).arg(millis_of(TOMBSTONE));
        let answer = self.router.one_answer("delete", call).await?;
        match answer {
            Value::Int(0) => Ok(None),
            answer => {
                let parties = answer.into_sequence().map_err(|_| odd("delete"))?;
                let parties = parties
                    .iter()
                    .map(|party| text(party).and_then(instance_of));
                let parties: Option<Vec<_>> = parties.collect();
                parties.map(Some).ok_or_else(|| odd("delete"))
            }
        }
    }

    async fn append(&self, batch: &[Append]) -> Result<Vec<Appended>> {
        self.append_batch(batch).await
    }

    async fn read(&self, cursors: &[Cursor]) -> Result<Vec<Read>> {
        self.read_pages(Lane::Pool, "read", cursors).await
    }

    async fn hold(
        &self,
        session: &SessionKey,
        stream: &StreamId,
        me: InstanceId,
        hold: Hold,
    ) -> Result<Held> {
        let mut call = self.session_script(Script::Hold, session);
        let command = call.command.arg(stream.as_str()).arg(me.to_string());
        match hold {
            Hold::Take => command.arg("t").arg("").arg("").arg(""),
            Hold::TakeFrom(from) => {
                let instance = from.map_or_else(String::new, |from| from.instance.to_string());
                let number = from.map_or(0, |from| from.number);
                command.arg("f").arg(instance).arg(number).arg("")
            }
            Hold::Continue { number } => command.arg("c").arg("").arg(number).arg(""),
            Hold::Release { number, cursor } => {
                command.arg("r").arg("").arg(number).arg(place(cursor))
            }
        };
        call.generation = true;
        let answer = self.router.one_answer("hold", call).await?;
        match answer {
            Value::Int(-1) => return Ok(Held::NoSession),
            Value::Int(-2) => return Ok(Held::NoStream),
            Value::Int(-3) => return Ok(Held::Past),
            _ => {}
        }
        held(&answer).ok_or_else(|| odd("hold"))
    }

    async fn shrink(&self, session: &SessionKey, max_bytes: u64) -> Result<u64> {
        let mut call = self.session_script(Script::Shrink, session);
        call.command.arg(max_bytes);
        let answer = self.router.one_answer("shrink", call).await?;
        unsigned(&answer).ok_or_else(|| odd("shrink"))
    }

    async fn put_requests(&self, batch: &[PutRequest]) -> Result<Vec<Put>> {
        self.put_all(batch).await
    }

    async fn settle(&self, batch: &[Settle]) -> Result<Vec<Settled>> {
        self.settle_all(batch).await
    }

    async fn requests(&self, keys: &[RequestKey]) -> Result<Vec<RequestState>> {
        self.states_of(keys).await
    }

    async fn mark_cancel(&self, session: &SessionKey, id: &RpcId) -> Result<Option<Cancelled>> {
        let mut call = self.session_script(Script::Cancel, session);
        call.command
            .arg(request_name(id))
            .arg(wire::wake_stream(session));
        let answer = self.router.one_answer("mark_cancel", call).await?;
        match answer {
            Value::Int(-1) => Ok(None),
            Value::Int(0) => Ok(Some(Cancelled::NotRunning)),
            Value::Int(2) => Ok(Some(Cancelled::Ambiguous)),
            other => {
                let stream = text(&other).and_then(|name| name.parse().ok());
                let stream = stream.ok_or_else(|| odd("mark_cancel"))?;
                Ok(Some(Cancelled::Marked(stream)))
            }
        }
    }

    async fn heartbeat(&self, me: Beat, ttl: Duration) -> Result<Vec<Beat>> {
        let key = self.router.names.of(Partition::Beats, "h");
        let mut call = self.router.script(Script::Beat, Partition::Beats, &key);
        call.command
            .arg(me.instance.to_string())
            .arg(me.count)
            .arg(millis_of(ttl));
        let answer = self.router.one_answer("heartbeat", call).await?;
        if self.router.names.cluster {
            // The one counter of all first: a copy is never ahead of it, and no
            // copy is behind once the heartbeat is acknowledged.
            self.copy_beat(me, ttl).await?;
        }
        let fields = answer.into_sequence().map_err(|_| odd("heartbeat"))?;
        let beats = fields.chunks(2).map(|pair| {
            let [instance, count] = pair else {
                return None;
            };
            Some(Beat {
                instance: instance_of(text(instance)?)?,
                count: unsigned(count)?,
            })
        });
        let beats: Option<Vec<_>> = beats.collect();
        beats.ok_or_else(|| odd("heartbeat"))
    }

    async fn claim(&self, batch: &[Claim]) -> Result<usize> {
        let dead: Vec<_> = batch.iter().map(|claim| claim.dead).collect();
        let still = self.still_dead(&dead).await?;
        let calls: Vec<_> = batch
            .iter()
            .zip(still)
            .filter(|(_, still)| *still)
            .map(|(claim, _)| {
                let mut call = self.session_script(Script::Claim, &claim.session);
                call.command
                    .arg(claim.stream.as_str())
                    .arg(claim.dead.instance.to_string())
                    .arg(beat_text(claim.dead.beat))
                    .arg(millis_of(claim.finished_ttl))
                    .arg(wire::wake_stream(&claim.session));
                call
            })
            .collect();
        let answers = self.router.all(Lane::Pool, "claim", calls).await?;
        Ok(answers
            .iter()
            .filter(|answer| integer(answer) == Some(1))
            .count())
    }

    async fn sweep(&self, budget: usize, dead: &[Dead], finished_ttl: Duration) -> Result<Swept> {
        self.sweep_step(budget, dead, finished_ttl).await
    }

    async fn stats(&self) -> Result<Stats> {
        self.count_all().await
    }

    async fn knock(&self, knocks: &[(Door, Knock)]) -> Result<()> {
        let mut calls = Vec::with_capacity(knocks.len());
        for (door, knock) in knocks {
            let message = wire::encode(knock);
            match (door, knock) {
                (Door::All, _) => {
                    let channel = self.router.names.all_doors();
                    calls.push(self.publish(Partition::Number(0), &channel, &message));
                }
                // Each server has its own link, and all of them are asked.
                (Door::Of(instance), Knock::Probe(_)) => {
                    for node in self.router.nodes() {
                        if let Some(partition) = self.router.partitions_of(&node).first() {
                            let channel = self.router.names.door(*partition, *instance);
                            calls.push(self.publish(*partition, &channel, &message));
                        }
                    }
                }
                (Door::Of(instance), knock) => {
                    let partition = match knock {
                        Knock::Wake(session, _) => Partition::of(session),
                        _ => Partition::Number(0),
                    };
                    let channel = self.router.names.door(partition, *instance);
                    calls.push(self.publish(partition, &channel, &message));
                }
            }
        }
        // A knock that failed is as one that was lost.
        let knocked = self.router.all(Lane::Pool, "knock", calls).await;
        knocked
            .map(drop)
            .map_err(|error| error.with_applied(Applied::Unknown))
    }
}
