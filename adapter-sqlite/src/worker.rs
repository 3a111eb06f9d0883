//! Threads of their own for what blocks: one per connection, each with a bounded
//! queue. What waits in it goes into one transaction.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use mcp_adapter_core::{Applied, Error, ErrorKind, Result};
use tokio::sync::oneshot;

use crate::{
    error::{Done, SqliteError},
    file::Seal,
};

/// Steps that may wait for a thread.
const QUEUE: usize = 1024;
/// Steps in one transaction.
const GROUP: usize = 64;

/// What the connections of one handle know of each other.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// The file was there once: it is not made again.
    pub(crate) opened: AtomicBool,
    /// The file was lost; until the next `attach` nothing is done to another
    /// one in its place, whose generation nobody has read.
    pub(crate) lost: AtomicBool,
    /// Events that were evicted and wait for their removal.
    pub(crate) doomed: AtomicUsize,
}

/// A connection with what its thread remembers of the file.
pub(crate) trait Side: 'static {
    /// What the connections of the handle know.
    fn shared(&self) -> &Arc<Shared>;
    /// The file as it was when it was opened, if it is open.
    fn seal(&self) -> Option<&Seal>;
    /// Opens the file, and makes it if `create`.
    fn connect(&mut self, create: bool) -> Done<()>;
    /// Opens the file if it is not open. `again`: although it was lost.
    fn open(&mut self, again: bool) -> Done<()> {
        if let Some(seal) = self.seal() {
            if seal.check().is_ok() {
                if again {
                    self.shared().found(again);
                }
                return Ok(());
            }
            let error = SqliteError::Replaced;
            self.abort(&error);
            if !again {
                return Err(error);
            }
        }
        let create = self.shared().may_open(again)?;
        self.connect(create)?;
        self.shared().found(again);
        Ok(())
    }
    /// Begins a transaction, until the deadline.
    fn begin(&mut self, until: Instant) -> Done<()>;
    /// Ends it.
    fn commit(&mut self) -> Done<()>;
    /// Undoes it, and forgets what was remembered of the file.
    fn abort(&mut self, error: &SqliteError);
    /// There is nothing to do.
    fn idle(&mut self) {}
}

trait Job<S>: Send {
    fn run(&mut self, side: &mut S) -> Done<()>;
    fn finish(self: Box<Self>, end: std::result::Result<(), (SqliteError, Applied)>);
    fn until(&self) -> Instant;
    fn is_abandoned(&self) -> bool;
    fn attaches(&self) -> bool;
}

struct Call<T, F> {
    operation: &'static str,
    step: F,
    value: Option<T>,
    reply: oneshot::Sender<Result<T>>,
    until: Instant,
    attaches: bool,
}

impl<S, T: Send, F: FnMut(&mut S) -> Done<T> + Send> Job<S> for Call<T, F> {
    fn run(&mut self, side: &mut S) -> Done<()> {
        self.value = Some((self.step)(side)?);
        Ok(())
    }

    fn finish(self: Box<Self>, end: std::result::Result<(), (SqliteError, Applied)>) {
        let answer = match end {
            Ok(()) => self
                .value
                .ok_or_else(|| Error::new(ErrorKind::Unavailable, self.operation)),
            Err((error, applied)) => Err(error.into_error(self.operation, applied)),
        };
        // Nobody may be waiting any more; what is done is done.
        let _ = self.reply.send(answer);
    }

    fn until(&self) -> Instant {
        self.until
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn attaches(&self) -> bool {
        self.attaches
    }
}

/// The queue of one thread, which ends with it.
pub(crate) struct Worker<S> {
    queue: mpsc::SyncSender<Box<dyn Job<S>>>,
    patience: Duration,
}

impl<S> fmt::Debug for Worker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}

impl<S: Side> Worker<S> {
    /// Starts a thread, on which `make` makes its side.
    pub(crate) fn start(
        name: &str,
        patience: Duration,
        make: impl FnOnce() -> S + Send + 'static,
    ) -> std::io::Result<Self> {
        let (queue, jobs) = mpsc::sync_channel(QUEUE);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&mut make(), &jobs))?;
        Ok(Self { queue, patience })
    }

    /// Does a step in a transaction, with others that wait. It may be run more
    /// than once, and is committed at most once.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        step: impl FnMut(&mut S) -> Done<T> + Send + 'static,
    ) -> Result<T> {
        self.queued(operation, false, step).await
    }

    /// The same, and opens the file again if it was lost.
    pub(crate) async fn attach<T: Send + 'static>(
        &self,
        step: impl FnMut(&mut S) -> Done<T> + Send + 'static,
    ) -> Result<T> {
        self.queued("attach", true, step).await
    }

    async fn queued<T: Send + 'static>(
        &self,
        operation: &'static str,
        attaches: bool,
        step: impl FnMut(&mut S) -> Done<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let call = Call {
            operation,
            step,
            value: None,
            reply,
            until: Instant::now() + self.patience,
            attaches,
        };
        match self.queue.try_send(Box::new(call)) {
            Ok(()) => {}
            Err(mpsc::TrySendError::Full(_)) => {
                metrics::counter!("mcp_adapter_overloaded_total", "operation" => operation)
                    .increment(1);
                return Err(Error::new(ErrorKind::Overloaded, operation));
            }
            Err(mpsc::TrySendError::Disconnected(_)) => {
                return Err(Error::unavailable(operation, Applied::No)
                    .with_message("the thread of the file has ended"));
            }
        }
        // Beyond the deadline of the step the thread itself stands still, in the
        // middle of anything.
        let still = self.patience + self.patience / 8;
        match tokio::time::timeout(still, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::unavailable(operation, Applied::Unknown)
                .with_message("the thread of the file has ended")),
            Err(_) => Err(Error::new(ErrorKind::Timeout, operation)
                .with_applied(Applied::Unknown)
                .with_message("the file system does not answer")),
        }
    }
}

fn run<S: Side>(side: &mut S, jobs: &mpsc::Receiver<Box<dyn Job<S>>>) {
    loop {
        let first = match jobs.try_recv() {
            Ok(job) => job,
            Err(_) => {
                side.idle();
                match jobs.recv() {
                    Ok(job) => job,
                    Err(_) => return,
                }
            }
        };
        let mut group = vec![first];
        while group.len() < GROUP {
            let Ok(job) = jobs.try_recv() else { break };
            group.push(job);
        }
        flush(side, group);
    }
}

type Group<S> = Vec<Box<dyn Job<S>>>;

fn fail<S>(group: Group<S>, error: &SqliteError, applied: Applied) {
    for job in group {
        job.finish(Err((error.clone(), applied)));
    }
}

fn flush<S: Side>(side: &mut S, mut group: Group<S>) {
    loop {
        let now = Instant::now();
        // Who gave up waiting repeats it, or does not want it.
        group.retain(|job| !job.is_abandoned());
        let (late, due): (Vec<_>, Vec<_>) = group.into_iter().partition(|job| job.until() <= now);
        fail(late, &SqliteError::Late, Applied::No);
        group = due;
        let Some(until) = group.iter().map(|job| job.until()).min() else {
            return;
        };
        let again = group.iter().any(|job| job.attaches());
        match side.open(again).and_then(|()| side.begin(until)) {
            Ok(()) => break,
            Err(SqliteError::Locked) => {
                side.abort(&SqliteError::Locked);
                let now = Instant::now();
                let (late, due) = group.into_iter().partition(|job| job.until() <= now);
                group = due;
                fail(late, &SqliteError::Locked, Applied::No);
            }
            Err(error) => {
                side.abort(&error);
                return fail(group, &error, Applied::No);
            }
        }
    }
    let mut failed = None;
    for job in &mut group {
        if let Err(error) = job.run(side) {
            failed = Some(error);
            break;
        }
    }
    match failed {
        None => match side.commit() {
            Ok(()) => {
                for job in group {
                    job.finish(Ok(()));
                }
            }
            Err(error) => {
                side.abort(&error);
                fail(group, &error, error.of_commit());
            }
        },
        Some(error) => {
            side.abort(&error);
            if group.len() == 1 {
                return fail(group, &error, Applied::No);
            }
            // One of them must not take the others along.
            for job in group {
                flush(side, vec![job]);
            }
        }
    }
}

impl Shared {
    /// Whether the file may be opened, and made.
    pub(crate) fn may_open(&self, again: bool) -> Done<bool> {
        if self.lost.load(Ordering::Acquire) && !again {
            return Err(SqliteError::Replaced);
        }
        Ok(!self.opened.load(Ordering::Acquire))
    }

    pub(crate) fn found(self: &Arc<Self>, again: bool) {
        self.opened.store(true, Ordering::Release);
        if again {
            self.lost.store(false, Ordering::Release);
        }
    }

    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }
}
