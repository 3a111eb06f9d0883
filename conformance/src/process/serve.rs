//! The child: runs the steps that come in.

use std::{
    collections::HashMap,
    io::{self, BufReader, BufWriter, Write as _},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use mcp_adapter_core::{
    Applied, Cancelled, Error, ErrorKind, InstanceId, PrincipalKey, Result, RpcId, SessionKey,
    Stats, StreamId,
    storage::{
        Append, Appended, Beat, Claim, Cursor, Dead, Door, Entered, Generation, Held, Hold, Knock,
        NewSession, OpenStream, Put, PutRequest, Read, RequestKey, RequestState, Settle, Settled,
        Storage, Swept, UpdateSession, Updated,
    },
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use super::{
    frame::{self, Failure, Hello, LENGTH, Reply, Request, decode, encode},
    step::Argument,
};
use crate::{fleet::BoxError, storage::storage_steps};

/// Steps at once; further ones wait in the pipe.
const STEPS: usize = 256;
/// Frames that wait to be written.
const FRAMES: usize = 256;
/// Doorbells that are open at once.
const DOORS: usize = 64;

/// Serves a storage on the input and the output of this process until the input
/// ends: the `main` of a child of [`Remote`](super::Remote). `open` is called on
/// a runtime of one thread.
///
/// Nothing else may be written to the output. A storage that does not open is told
/// on the standard error.
#[must_use = "it is the exit code of the child"]
pub fn serve<S: Storage>(open: impl FnOnce() -> Result<S, BoxError>) -> ExitCode {
    let served = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let served = runtime.block_on(async {
            let storage = open()?;
            serve_on(storage, io::stdin(), io::stdout()).await?;
            Ok::<_, BoxError>(())
        });
        // A step may wait in a thread, for what nobody wants any more.
        runtime.shutdown_background();
        served
    };
    match served() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "a child of the suite ends: {}",
                crate::wait::chain(error.as_ref())
            );
            ExitCode::FAILURE
        }
    }
}

/// As [`serve`], on any two ends of pipes.
///
/// Each is read or written by a thread of its own, which outlives this where the
/// pipe does.
///
/// # Errors
/// Where no thread can be started, and where something comes in that is no frame.
pub async fn serve_on<S: Storage>(
    storage: S,
    input: impl io::Read + Send + 'static,
    output: impl io::Write + Send + 'static,
) -> io::Result<()> {
    let (replies, written) = mpsc::channel(FRAMES);
    let (requests, mut read) = mpsc::channel(1);
    std::thread::Builder::new()
        .name("frames-out".into())
        .spawn(move || write_all(output, written))?;
    std::thread::Builder::new()
        .name("frames-in".into())
        .spawn(move || read_all(input, &requests))?;
    let hello = frame::frame(&Reply::Hello(Hello::of(&storage.profile())))?;
    // Where nobody reads any more, the input ends, too.
    let _ = replies.send(hello).await;

    let served = Arc::new(Served { storage, replies });
    let steps = Arc::new(Semaphore::new(STEPS));
    let mut tasks = JoinSet::new();
    let mut doors: HashMap<u64, AbortHandle> = HashMap::new();
    while let Some(request) = read.recv().await {
        while tasks.try_join_next().is_some() {}
        match request? {
            Request::Call {
                id,
                step,
                arguments,
                patience,
            } => {
                let Ok(permit) = Arc::clone(&steps).acquire_owned().await else {
                    break;
                };
                let served = Arc::clone(&served);
                tasks.spawn(async move {
                    let done = served.step(&step, &arguments);
                    let outcome = in_time(patience, "step", done).await;
                    served.answer(id, outcome).await;
                    drop(permit);
                });
            }
            Request::Open { id, me, patience } => {
                doors.retain(|_, door| !door.is_finished());
                let served = Arc::clone(&served);
                if doors.len() >= DOORS {
                    let full = Error::new(ErrorKind::Overloaded, "doorbell");
                    served.answer(id, Err(full)).await;
                    continue;
                }
                let door = tasks.spawn(async move { served.listen(id, me, patience).await });
                doors.insert(id, door);
            }
            Request::HangUp { id } => {
                if let Some(door) = doors.remove(&id) {
                    door.abort();
                }
            }
        }
    }
    Ok(())
}

fn read_all(input: impl io::Read, requests: &mpsc::Sender<io::Result<Request>>) {
    let mut input = BufReader::new(input);
    loop {
        let request = match read_one(&mut input) {
            Ok(Some(request)) => Ok(request),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let is_last = request.is_err();
        if requests.blocking_send(request).is_err() || is_last {
            return;
        }
    }
}

/// `None` where the other side is gone.
fn read_one(input: &mut impl io::Read) -> io::Result<Option<Request>> {
    let mut prefix = [0; LENGTH];
    match input.read_exact(&mut prefix) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let mut body = vec![0; frame::length(prefix)?];
    match input.read_exact(&mut body) {
        // It was killed in the middle.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    decode(&body).map(Some)
}

/// Ends where nobody reads: then the input ends, too.
fn write_all(output: impl io::Write, mut frames: mpsc::Receiver<Vec<u8>>) {
    let mut output = BufWriter::new(output);
    while let Some(frame) = frames.blocking_recv() {
        let mut written = output.write_all(&frame);
        while let Ok(frame) = frames.try_recv() {
            written = written.and_then(|()| output.write_all(&frame));
        }
        if written.and_then(|()| output.flush()).is_err() {
            return;
        }
    }
}

async fn in_time<T>(
    patience: Duration,
    operation: &'static str,
    step: impl Future<Output = Result<T>>,
) -> Result<T> {
    timeout(patience, step).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Timeout, operation).with_applied(Applied::Unknown))
    })
}

struct Served<S> {
    storage: S,
    replies: mpsc::Sender<Vec<u8>>,
}

impl<S: Storage> Served<S> {
    /// `false` where nobody reads any more.
    async fn send(&self, frame: io::Result<Vec<u8>>) -> bool {
        match frame {
            Ok(frame) => self.replies.send(frame).await.is_ok(),
            Err(_) => false,
        }
    }

    async fn answer(&self, id: u64, outcome: Result<Bytes>) {
        let framed = |outcome: Result<Bytes>| {
            let outcome = outcome.map_err(Failure::from);
            frame::frame(&Reply::Answer { id, outcome })
        };
        let frame = framed(outcome).or_else(|error| framed(Err(unsaid(error))));
        self.send(frame).await;
    }

    async fn listen(&self, id: u64, me: InstanceId, patience: Duration) {
        let mut knocks = match in_time(patience, "doorbell", self.storage.doorbell(me)).await {
            Ok(knocks) => knocks,
            Err(error) => return self.answer(id, Err(error)).await,
        };
        self.answer(id, Ok(Bytes::new())).await;
        loop {
            let knock = knocks.next().await;
            let is_last = knock.is_none();
            let knock = knock.map(|knock| knock.map_err(Failure::from));
            let frame = frame::frame(&Reply::Knock { id, knock });
            if !self.send(frame).await || is_last {
                return;
            }
        }
    }
}

/// Nothing was done.
fn undecodable(error: io::Error) -> Error {
    Error::new(ErrorKind::Corrupt, "frame").with_source(error)
}

/// It was done, and the answer cannot be told.
fn unsaid(error: io::Error) -> Error {
    undecodable(error).with_applied(Applied::Unknown)
}

macro_rules! steps {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)+) => {
        impl<S: Storage> Served<S> {
            async fn step(&self, name: &str, arguments: &[u8]) -> Result<Bytes> {
                match name {
                    $(stringify!($name) => {
                        let owned: ($(<$type as Argument<'_>>::Owned,)*) =
                            decode(arguments).map_err(undecodable)?;
                        let ($($argument,)*) = owned;
                        let answer: $answer = self
                            .storage
                            .$name($(<$type as Argument<'_>>::lend(&$argument)),*)
                            .await?;
                        encode(&answer).map_err(unsaid)
                    })+
                    _ => Err(Error::new(ErrorKind::InvalidArgument, "step")
                        .with_message("there is no step of this name")),
                }
            }
        }
    };
}

storage_steps!(steps);
