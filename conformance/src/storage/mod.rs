//! The cases over [`Storage`]: a step at a time.

pub(crate) mod again;
pub(crate) mod batch;
pub(crate) mod death;
pub(crate) mod doorbell;
pub(crate) mod durable;
pub(crate) mod existence;
pub(crate) mod format;
pub(crate) mod holds;
pub(crate) mod life;
pub(crate) mod limit;
pub(crate) mod number;
pub(crate) mod payload;
pub(crate) mod race;
pub(crate) mod repeat;
pub(crate) mod rule;
pub(crate) mod slide;
mod speaker;
mod steps;
pub(crate) mod time;
pub(crate) mod twice;
pub(crate) mod unknown;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{FutureExt, future::BoxFuture, stream::BoxStream};
use mcp_adapter_core::{
    Cancelled, Error, ErrorKind, InstanceId, Limits, PrincipalKey, Result, RpcId, SessionKey,
    Stats, StreamId,
    storage::{
        Append, Appended, Beat, Claim, Cursor, Dead, Door, Entered, Generation, Held, Hold, Knock,
        NewSession, OpenStream, Profile, Put, PutRequest, Read, RequestKey, RequestState, Settle,
        Settled, Storage, Swept, UpdateSession, Updated,
    },
};

use crate::{
    fleet::BoxError,
    options::Options,
    restart::{self, Restart},
    wait::{Failure, chain},
};
use speaker::Speaker;

/// Opens a storage.
pub(crate) type OpenStorage =
    dyn Fn(Options) -> BoxFuture<'static, Result<AnyStorage, BoxError>> + Send + Sync;

/// Boxes what opens a storage.
pub(crate) fn storage_opener<S, O, F>(open: O) -> Arc<OpenStorage>
where
    S: Storage,
    O: Fn(Options) -> F + Send + Sync + 'static,
    F: Future<Output = Result<S, BoxError>> + Send + 'static,
{
    Arc::new(move |options| {
        open(options)
            .map(|storage| storage.map(AnyStorage::new))
            .boxed()
    })
}

/// The store of one case.
pub(crate) struct Store {
    open: Arc<OpenStorage>,
    options: Options,
    restart: Option<Restart>,
}

impl Store {
    pub(crate) fn new(open: &Arc<OpenStorage>, namespace: String) -> Self {
        Self {
            open: Arc::clone(open),
            options: Options::new(namespace, Limits::default()),
            restart: None,
        }
    }

    pub(crate) fn with_restart(self, restart: Option<Restart>) -> Self {
        Self { restart, ..self }
    }

    /// Closes the store, of which all handles were dropped.
    pub(crate) async fn restart(&self) -> Result<(), Failure> {
        restart::close(self.restart.as_ref(), &self.options).await
    }

    /// Another handle on the store.
    pub(crate) async fn open(&self) -> Result<AnyStorage, Failure> {
        self.open_with(Limits::default()).await
    }

    /// One handle for each of the instances `A`, `B` and `C`: a handle is one instance.
    pub(crate) async fn handles<const N: usize>(&self) -> Result<[AnyStorage; N], Failure> {
        let mut handles = Vec::with_capacity(N);
        for _ in 0..N {
            handles.push(self.open().await?);
        }
        handles
            .try_into()
            .map_err(|_| Failure::new("as many as were opened"))
    }

    /// So many units of time, far above the backend's granularity.
    pub(crate) fn ticks(&self, storage: &AnyStorage, ticks: u32) -> Duration {
        let precision = storage.profile().capabilities.time_precision;
        precision.max(Duration::from_millis(10)) * ticks
    }

    pub(crate) async fn open_with(&self, limits: Limits) -> Result<AnyStorage, Failure> {
        let options = self.options.for_instance(limits);
        let opened = tokio::time::timeout(Duration::from_secs(60), (self.open)(options)).await;
        opened
            .map_err(|_| Failure::new("a storage did not open in time"))?
            .map_err(|error| {
                let why = chain(error.as_ref());
                Failure::new(format!("a storage could not be opened: {why}"))
            })
    }
}

/// Any storage; clones are the same handle.
#[derive(Clone)]
pub(crate) struct AnyStorage {
    storage: Arc<dyn Storage>,
    speaker: Arc<Speaker>,
}

impl fmt::Debug for AnyStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.storage.fmt(f)
    }
}

/// Hands all steps of the seam that are plain calls to a macro that writes a
/// wrapper of them.
macro_rules! storage_steps {
    ($wrapper:ident) => {
        $wrapper! {
            attach(me: InstanceId) -> Generation;
            create(session: &NewSession) -> bool;
            enter(session: &SessionKey, principal: &PrincipalKey, open: Option<&OpenStream>) -> Entered;
            update(update: &UpdateSession) -> Updated;
            delete(session: &SessionKey, principal: &PrincipalKey) -> Option<Vec<InstanceId>>;
            append(batch: &[Append]) -> Vec<Appended>;
            read(cursors: &[Cursor]) -> Vec<Read>;
            hold(session: &SessionKey, stream: &StreamId, me: InstanceId, hold: Hold) -> Held;
            shrink(session: &SessionKey, max_bytes: u64) -> u64;
            put_requests(batch: &[PutRequest]) -> Vec<Put>;
            settle(batch: &[Settle]) -> Vec<Settled>;
            requests(keys: &[RequestKey]) -> Vec<RequestState>;
            mark_cancel(session: &SessionKey, id: &RpcId) -> Option<Cancelled>;
            heartbeat(me: Beat, ttl: Duration) -> Vec<Beat>;
            claim(batch: &[Claim]) -> usize;
            sweep(budget: usize, dead: &[Dead], finished_ttl: Duration) -> Swept;
            stats() -> Stats;
            knock(knocks: &[(Door, Knock)]) -> ();
        }
    };
}
pub(crate) use storage_steps;

impl AnyStorage {
    fn new(storage: impl Storage) -> Self {
        Self {
            storage: Arc::new(storage),
            speaker: Arc::default(),
        }
    }

    /// What an inline backend promises is checked at every step of every case.
    async fn at_its_word<T>(
        &self,
        operation: &'static str,
        step: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        if !self.storage.profile().inline || operation == "attach" {
            return step.await;
        }
        step.now_or_never().unwrap_or_else(|| {
            let why =
                "the profile says `inline`, but this step does not complete at its first poll";
            Err(Error::new(ErrorKind::InvalidArgument, operation).with_message(why))
        })
    }
}

/// Whether the second and the third see what the first has created.
pub(crate) async fn seen_by(
    a: &AnyStorage,
    b: &AnyStorage,
    apart: &AnyStorage,
) -> std::result::Result<(bool, bool), Failure> {
    let session = steps::session(a).await?;
    let seen = (
        steps::is_there(b, session).await?,
        steps::is_there(apart, session).await?,
    );
    a.delete(&session, &steps::ME).await?;
    Ok(seen)
}

macro_rules! forward {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)+) => {
        // A method that is provided must reach the storage, too.
        #[deny(clippy::missing_trait_methods)]
        #[async_trait]
        impl Storage for AnyStorage {
            fn profile(&self) -> Profile {
                self.storage.profile()
            }

            fn shard_of(&self, session: &SessionKey) -> usize {
                self.storage.shard_of(session)
            }

            fn append_inline(&self, append: &Append) -> Result<Appended> {
                self.speaker.hear("append", &std::slice::from_ref(append))?;
                self.storage.append_inline(append)
            }

            async fn doorbell(&self, me: InstanceId) -> Result<BoxStream<'static, Result<Knock>>> {
                self.speaker.hear("doorbell", &me)?;
                self.storage.doorbell(me).await
            }

            $(async fn $name(&self, $($argument: $type),*) -> Result<$answer> {
                $(self.speaker.hear(stringify!($name), &$argument)?;)*
                let step = self.storage.$name($($argument),*);
                self.at_its_word(stringify!($name), step).await
            })+
        }
    };
}

storage_steps!(forward);
