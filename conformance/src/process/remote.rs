//! The parent: a storage whose steps run in a child.

use std::{
    collections::HashMap,
    fmt, io,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use mcp_adapter_core::{
    Applied, Cancelled, Error, ErrorKind, InstanceId, PrincipalKey, Result, RpcId, SessionKey,
    Stats, StreamId,
    storage::{
        Append, Appended, Beat, Claim, Cursor, Dead, Door, Entered, Generation, Held, Hold, Knock,
        NewSession, OpenStream, Profile, Put, PutRequest, Read, RequestKey, RequestState, Settle,
        Settled, Storage, Swept, UpdateSession, Updated,
    },
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    process::Child,
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};

use super::frame::{self, Failure, LENGTH, Reply, Request, decode, encode};
use crate::storage::storage_steps;

/// For a child to start and to open its storage, on a busy machine.
const STARTING: Duration = Duration::from_secs(30);
/// For a child to end whose input has ended.
const ENDING: Duration = Duration::from_secs(5);
/// Frames that wait to be written.
const FRAMES: usize = 256;
/// Knocks that wait to be taken.
const KNOCKS: usize = 4096;

/// A [`Storage`] in a child process that [`serve`](super::serve)s it.
///
/// The child lives as long as this and its doorbells do, and as the runtime on
/// which it was started: when that ends, the child is killed. Once the child has
/// ended, every step is [`Unavailable`](ErrorKind::Unavailable), as are those
/// that were under way; of these it is unknown whether they took effect.
pub struct Remote {
    profile: Profile,
    patience: Duration,
    link: Arc<Link>,
    pid: Option<u32>,
    shard_of: Option<fn(&SessionKey) -> usize>,
}

impl Remote {
    /// Starts `child`, and waits until its storage is open. `name` is that of the
    /// [`profile`](Storage::profile); the rest of it is the child's. A step that
    /// takes longer than `patience` fails with [`Timeout`](ErrorKind::Timeout).
    ///
    /// # Errors
    /// Where the child cannot be started, or ends, or does not say within 30
    /// seconds that its storage is open.
    pub async fn start(name: &'static str, child: Command, patience: Duration) -> io::Result<Self> {
        let mut child = tokio::process::Command::from(child)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let missing = || io::Error::other("a child has no pipe");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = child.stdout.take().ok_or_else(missing)?;
        Self::over(name, output, input, Some(child), patience).await
    }

    async fn over(
        name: &'static str,
        replies: impl AsyncRead + Send + Unpin + 'static,
        requests: impl AsyncWrite + Send + Unpin + 'static,
        child: Option<Child>,
        patience: Duration,
    ) -> io::Result<Self> {
        let mut replies = BufReader::new(replies);
        let first = timeout(STARTING, read(&mut replies)).await;
        let hello = match first.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
            Some(Reply::Hello(hello)) => hello,
            Some(_) => return Err(frame::invalid("a child does not begin with a hello")),
            None => {
                return Err(io::Error::other(
                    "a child ended before its storage was open",
                ));
            }
        };
        let (frames, written) = mpsc::channel(FRAMES);
        let link = Arc::new(Link {
            waiting: Arc::default(),
            frames,
            last: AtomicU64::new(0),
        });
        let pid = child.as_ref().and_then(Child::id);
        let waiting = Arc::clone(&link.waiting);
        tokio::spawn(async move {
            tokio::select! {
                _ = read_all(replies, &waiting) => {}
                _ = write_all(requests, written) => {}
            }
            waiting.end();
            if let Some(mut child) = child
                && timeout(ENDING, child.wait()).await.is_err()
            {
                // Dropping it would do, but leaves it to others to reap it.
                let _ = child.kill().await;
            }
        });
        Ok(Self {
            profile: hello.profile(name),
            patience,
            link,
            pid,
            shard_of: None,
        })
    }

    /// Tells the parts of a storage with several [`shards`](Profile::shards) apart:
    /// the same function as the child's [`shard_of`](Storage::shard_of), which answers
    /// at once and so cannot ask the child. Without it the storage is one part.
    #[must_use]
    pub fn with_shard_of(mut self, shard_of: fn(&SessionKey) -> usize) -> Self {
        self.shard_of = Some(shard_of);
        self
    }

    /// The id of the child's process, for those that send it
    /// [signals](crate::faults::Signal).
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Sends a request and waits for its answer.
    async fn ask(
        &self,
        operation: &'static str,
        id: u64,
        request: io::Result<Vec<u8>>,
        door: Option<Bell>,
    ) -> Result<Bytes> {
        let gone = |applied| {
            Error::unavailable(operation, applied).with_message("the child process has ended")
        };
        let late = |applied| Error::new(ErrorKind::Timeout, operation).with_applied(applied);
        let link = &self.link;
        let frame = request.map_err(|error| {
            Error::new(ErrorKind::InvalidArgument, operation).with_source(error)
        })?;
        let (answer, answered) = oneshot::channel();
        if !link.waiting.add(id, answer, door) {
            return Err(gone(Applied::No));
        }
        // Whether it is answered or its caller has gone.
        let _call = Called(&link.waiting, id);
        let deadline = Instant::now() + self.patience;
        match timeout_at(deadline, link.frames.send(frame)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(gone(Applied::No)),
            Err(_) => return Err(late(Applied::No)),
        }
        match timeout_at(deadline, answered).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(failure))) => Err(failure.into_error(operation)),
            Ok(Err(_)) => Err(gone(Applied::Unknown)),
            Err(_) => Err(late(Applied::Unknown)),
        }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("profile", &self.profile)
            .finish_non_exhaustive()
    }
}

/// The way to the child; the last one that is dropped ends its input.
struct Link {
    waiting: Arc<Waiting>,
    frames: mpsc::Sender<Vec<u8>>,
    last: AtomicU64,
}

impl Link {
    fn next_id(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed)
    }
}

type Answer = oneshot::Sender<Result<Bytes, Failure>>;

/// Where the knocks of a doorbell go.
#[derive(Clone)]
struct Bell {
    knocks: mpsc::Sender<Result<Knock>>,
    dropped: Arc<AtomicBool>,
}

/// Who waits for the child; nobody any more once it has ended.
struct Waiting(Mutex<Option<Waits>>);

#[derive(Default)]
struct Waits {
    calls: HashMap<u64, Answer>,
    doors: HashMap<u64, Bell>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self(Mutex::new(Some(Waits::default())))
    }
}

impl Waiting {
    /// `false` where the child has ended.
    fn add(&self, id: u64, answer: Answer, door: Option<Bell>) -> bool {
        let mut waits = self.0.lock();
        let Some(waits) = waits.as_mut() else {
            return false;
        };
        waits.calls.insert(id, answer);
        // Knocks may come right behind the answer.
        waits.doors.extend(door.map(|door| (id, door)));
        true
    }

    fn take(&self, id: u64) -> Option<Answer> {
        self.0.lock().as_mut()?.calls.remove(&id)
    }

    fn close(&self, id: u64) {
        if let Some(waits) = self.0.lock().as_mut() {
            waits.doors.remove(&id);
        }
    }

    fn end(&self) {
        *self.0.lock() = None;
    }

    fn tell(&self, reply: Reply) -> io::Result<()> {
        match reply {
            Reply::Hello(_) => return Err(frame::invalid("a second hello")),
            Reply::Answer { id, outcome } => {
                if let Some(answer) = self.take(id) {
                    // Its caller may go at this moment.
                    let _ = answer.send(outcome);
                }
            }
            Reply::Knock { id, knock: None } => self.close(id),
            Reply::Knock {
                id,
                knock: Some(knock),
            } => {
                let mut waits = self.0.lock();
                let bell = waits.as_mut().and_then(|waits| waits.doors.get_mut(&id));
                if let Some(bell) = bell {
                    let knock = knock.map_err(|failure| failure.into_error("doorbell"));
                    if bell.knocks.try_send(knock).is_err() {
                        bell.dropped.store(true, Ordering::Release);
                    }
                }
            }
        }
        Ok(())
    }
}

/// A call that is under way.
struct Called<'a>(&'a Waiting, u64);

impl Drop for Called<'_> {
    fn drop(&mut self) {
        self.0.take(self.1);
    }
}

/// A doorbell that is open, or about to be.
struct Listening {
    link: Arc<Link>,
    id: u64,
    knocks: mpsc::Receiver<Result<Knock>>,
    dropped: Arc<AtomicBool>,
}

impl Listening {
    async fn next(&mut self) -> Option<Result<Knock>> {
        // Some were dropped because the queue was full: what was in it is still
        // to come, so that nobody waits where this is set.
        if self.dropped.swap(false, Ordering::AcqRel) {
            return Some(Ok(Knock::Everything));
        }
        self.knocks.recv().await
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.link.waiting.close(self.id);
        // Where there is no room the child goes on knocking, at nobody.
        if let Ok(frame) = frame::frame(&Request::HangUp { id: self.id }) {
            let _ = self.link.frames.try_send(frame);
        }
    }
}

/// `None` where the child has closed its output.
async fn read(replies: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Reply>> {
    let mut prefix = [0; LENGTH];
    match replies.read_exact(&mut prefix).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let mut body = vec![0; frame::length(prefix)?];
    replies.read_exact(&mut body).await?;
    decode(&body).map(Some)
}

async fn read_all(mut replies: impl AsyncRead + Unpin, waiting: &Waiting) -> io::Result<()> {
    while let Some(reply) = read(&mut replies).await? {
        waiting.tell(reply)?;
    }
    Ok(())
}

async fn write_all(
    mut requests: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    while let Some(frame) = frames.recv().await {
        requests.write_all(&frame).await?;
        requests.flush().await?;
    }
    Ok(())
}

macro_rules! steps {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)+) => {
        // A method that is provided must be thought of, too.
        #[deny(clippy::missing_trait_methods)]
        #[async_trait]
        impl Storage for Remote {
            fn profile(&self) -> Profile {
                match self.shard_of {
                    Some(_) => self.profile,
                    None => self.profile.with_shards(1),
                }
            }

            fn shard_of(&self, session: &SessionKey) -> usize {
                self.shard_of.map_or(0, |shard_of| shard_of(session))
            }

            fn append_inline(&self, _: &Append) -> Result<Appended> {
                let why = "a storage in another process is not inline";
                Err(Error::new(ErrorKind::InvalidArgument, "append").with_message(why))
            }

            async fn doorbell(&self, me: InstanceId) -> Result<BoxStream<'static, Result<Knock>>> {
                self.listen(me).await
            }

            $(async fn $name(&self, $($argument: $type),*) -> Result<$answer> {
                let arguments = encode(&($($argument,)*)).map_err(|error| {
                    Error::new(ErrorKind::InvalidArgument, stringify!($name)).with_source(error)
                })?;
                let answer = self.call(stringify!($name), arguments).await?;
                decode(&answer).map_err(|error| {
                    Error::new(ErrorKind::Corrupt, stringify!($name))
                        .with_applied(Applied::Unknown)
                        .with_source(error)
                })
            })+
        }
    };
}

storage_steps!(steps);

impl Remote {
    async fn call(&self, step: &'static str, arguments: Bytes) -> Result<Bytes> {
        let id = self.link.next_id();
        let request = frame::frame(&Request::Call {
            id,
            step: step.to_owned(),
            arguments,
            patience: self.patience,
        });
        self.ask(step, id, request, None).await
    }

    async fn listen(&self, me: InstanceId) -> Result<BoxStream<'static, Result<Knock>>> {
        let (bell, knocks) = mpsc::channel(KNOCKS);
        let dropped = Arc::<AtomicBool>::default();
        let id = self.link.next_id();
        // From here on: the child may open the door although the caller is gone.
        let listening = Listening {
            link: Arc::clone(&self.link),
            id,
            knocks,
            dropped: Arc::clone(&dropped),
        };
        let bell = Bell {
            knocks: bell,
            dropped,
        };
        let patience = self.patience;
        let request = frame::frame(&Request::Open { id, me, patience });
        self.ask("doorbell", id, request, Some(bell)).await?;
        Ok(Box::pin(futures::stream::unfold(
            listening,
            |mut listening| async move { Some((listening.next().await?, listening)) },
        )))
    }
}

#[cfg(all(test, unix))]
mod tests;
