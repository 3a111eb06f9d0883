//! The steps of the seam: each is handed to the thread of a connection.

use std::{
    fmt, io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use mcp_adapter_core::{
    Cancelled, Capabilities, InstanceId, PrincipalKey, Result, RpcId, SessionKey, Stats, StreamId,
    storage::{
        Append, Appended, Beat, Claim, Cursor, Dead, Door, Entered, Generation, Held, Hold, Knock,
        NewSession, OpenStream, Profile, Put, PutRequest, Read, RequestKey, RequestState, Settle,
        Settled, Storage, Swept, UpdateSession, Updated,
    },
};

use crate::{
    doorbell,
    error::SqliteError,
    options::SqliteOptions,
    reader::Reader,
    rows::Session,
    sweep,
    worker::{Shared, Worker},
    writer::Writer,
};

/// Batches that the engine prepares at once. There is one writer; a second
/// batch is made ready while the first is written, and both go into one
/// transaction where they wait together.
const LANES: usize = 2;

struct Inner {
    options: SqliteOptions,
    shared: Arc<Shared>,
    writer: Worker<Writer>,
    reader: Worker<Reader>,
}

/// One handle on a file: a thread and a connection that write, a thread and a
/// connection that read. Clones are the same handle.
///
/// The file is opened by the first step. Where a step fails, the
/// [source](std::error::Error::source) of its error is a [`SqliteError`].
///
/// Time is the wall clock of the host, which all processes on the file share, in
/// milliseconds. A clock that is set forward lets everything expire by as much
/// too early, one that is set back too late; nobody is held dead by it (clause
/// F3), for that is told by counters.
#[derive(Clone)]
pub struct SqliteStorage(Arc<Inner>);

impl SqliteStorage {
    /// A handle. Nothing is opened yet.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn new(options: SqliteOptions) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let patience = options.patience();
        let (to_write, to_read) = (options.clone(), options.clone());
        let (of_writer, of_reader) = (Arc::clone(&shared), Arc::clone(&shared));
        Ok(Self(Arc::new(Inner {
            options,
            writer: Worker::start("mcp-sqlite-write", patience, move || {
                Writer::new(to_write, of_writer)
            })?,
            reader: Worker::start("mcp-sqlite-read", patience, move || {
                Reader::new(to_read, of_reader)
            })?,
            shared,
        })))
    }

    async fn write<T: Send + 'static>(
        &self,
        operation: &'static str,
        step: impl FnMut(&mut Writer) -> crate::error::Done<T> + Send + 'static,
    ) -> Result<T> {
        self.0.writer.call(operation, step).await
    }

    /// Slides the expiry of those that are there.
    async fn touch(&self, sessions: Vec<SessionKey>) -> Result<()> {
        self.write("touch", move |writer| {
            let conn = writer.conn()?;
            for key in &sessions {
                let live = Session::live(&conn, &writer.tail, key, writer.now)?;
                if let Some(session) = live {
                    writer.touch(session.id)?;
                }
            }
            Ok(())
        })
        .await
    }
}

impl fmt::Debug for SqliteStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStorage")
            .field("path", &self.0.options.path)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Storage for SqliteStorage {
    fn profile(&self) -> Profile {
        let capabilities = Capabilities::server(Duration::from_millis(1));
        Profile::remote("sqlite", capabilities, LANES)
    }

    async fn attach(&self, _: InstanceId) -> Result<Generation> {
        self.0.writer.attach(|writer| writer.generation()).await
    }

    async fn doorbell(&self, me: InstanceId) -> Result<BoxStream<'static, Result<Knock>>> {
        doorbell::open(&self.0.options, &self.0.shared, me).await
    }

    async fn create(&self, session: &NewSession) -> Result<bool> {
        let session = session.clone();
        self.write("create", move |writer| writer.create(&session))
            .await
    }

    async fn enter(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
        open: Option<&OpenStream>,
    ) -> Result<Entered> {
        let (session, principal, open) = (*session, *principal, open.cloned());
        self.write("enter", move |writer| {
            writer.enter(&session, &principal, open.as_ref())
        })
        .await
    }

    async fn update(&self, update: &UpdateSession) -> Result<Updated> {
        let update = update.clone();
        self.write("update", move |writer| writer.update(&update))
            .await
    }

    async fn delete(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
    ) -> Result<Option<Vec<InstanceId>>> {
        let (session, principal) = (*session, *principal);
        self.write("delete", move |writer| writer.delete(&session, &principal))
            .await
    }

    async fn append(&self, batch: &[Append]) -> Result<Vec<Appended>> {
        let batch = batch.to_vec();
        self.write("append", move |writer| writer.append(&batch))
            .await
    }

    async fn read(&self, cursors: &[Cursor]) -> Result<Vec<Read>> {
        let touched = cursors.iter().filter(|cursor| cursor.touch);
        let touched: Vec<_> = touched.map(|cursor| cursor.session).collect();
        if !touched.is_empty() {
            self.touch(touched).await?;
        }
        let cursors = cursors.to_vec();
        let reader = &self.0.reader;
        reader
            .call("read", move |reader| reader.read(&cursors))
            .await
    }

    async fn hold(
        &self,
        session: &SessionKey,
        stream: &StreamId,
        me: InstanceId,
        hold: Hold,
    ) -> Result<Held> {
        let (session, stream) = (*session, stream.clone());
        self.write("hold", move |writer| {
            writer.hold(&session, &stream, me, hold)
        })
        .await
    }

    async fn shrink(&self, session: &SessionKey, max_bytes: u64) -> Result<u64> {
        let session = *session;
        self.write("shrink", move |writer| writer.shrink(&session, max_bytes))
            .await
    }

    async fn put_requests(&self, batch: &[PutRequest]) -> Result<Vec<Put>> {
        let batch = batch.to_vec();
        self.write("put_requests", move |writer| {
            batch.iter().map(|put| writer.put(put)).collect()
        })
        .await
    }

    async fn settle(&self, batch: &[Settle]) -> Result<Vec<Settled>> {
        let batch = batch.to_vec();
        self.write("settle", move |writer| {
            batch.iter().map(|settle| writer.settle(settle)).collect()
        })
        .await
    }

    async fn requests(&self, keys: &[RequestKey]) -> Result<Vec<RequestState>> {
        let keys = keys.to_vec();
        let reader = &self.0.reader;
        reader
            .call("requests", move |reader| reader.requests(&keys))
            .await
    }

    async fn mark_cancel(&self, session: &SessionKey, id: &RpcId) -> Result<Option<Cancelled>> {
        let (session, id) = (*session, id.clone());
        self.write("mark_cancel", move |writer| {
            writer.mark_cancel(&session, &id)
        })
        .await
    }

    async fn heartbeat(&self, me: Beat, ttl: Duration) -> Result<Vec<Beat>> {
        self.write("heartbeat", move |writer| writer.heartbeat(me, ttl))
            .await
    }

    async fn claim(&self, batch: &[Claim]) -> Result<usize> {
        let batch = batch.to_vec();
        self.write("claim", move |writer| writer.claim(&batch))
            .await
    }

    async fn sweep(&self, budget: usize, dead: &[Dead], finished_ttl: Duration) -> Result<Swept> {
        let dead = dead.to_vec();
        let suspects = dead.clone();
        let reader = &self.0.reader;
        let due = reader
            .call("sweep", move |reader| {
                sweep::is_due(&*reader.conn()?, reader.now(), &suspects)
            })
            .await?;
        let doomed = self.0.shared.doomed.load(Ordering::Relaxed) > 0;
        if budget == 0 || !(due || doomed) {
            return Ok(Swept::default());
        }
        self.write("sweep", move |writer| {
            writer.sweep(budget, &dead, finished_ttl)
        })
        .await
    }

    async fn stats(&self) -> Result<Stats> {
        self.0.reader.call("stats", Reader::stats).await
    }

    async fn knock(&self, knocks: &[(Door, Knock)]) -> Result<()> {
        let knocks = knocks.to_vec();
        self.write("knock", move |writer| {
            for (door, knock) in &knocks {
                let door = match door {
                    Door::Of(instance) => Some(*instance),
                    Door::All => None,
                };
                writer.knock(door, knock.clone());
            }
            Ok(())
        })
        .await
    }
}

/// Opens the file, or says why it cannot be.
pub(crate) async fn ready(storage: &SqliteStorage) -> Result<()> {
    let attached = storage.0.writer.attach(|writer| writer.generation());
    attached.await.map(drop).map_err(|error| {
        let source = std::error::Error::source(&error)
            .and_then(|source| source.downcast_ref::<SqliteError>());
        match source {
            Some(source) => source.clone().into_error("open", error.applied()),
            None => error,
        }
    })
}
