//! Group commit without a timer: the flush in flight is the clock, and what
//! arrives meanwhile is the next batch.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, ErrorKind, Result};

/// A job and where its answer goes.
pub(super) struct Job<T, R> {
    pub(super) item: T,
    bytes: usize,
    answer: oneshot::Sender<Result<R>>,
}

impl<T, R> Job<T, R> {
    /// The same job with another item, and what is split off.
    pub(super) fn split<A, B>(self, split: impl FnOnce(T) -> (A, B)) -> (A, Job<B, R>) {
        let (off, item) = split(self.item);
        let job = Job {
            item,
            bytes: self.bytes,
            answer: self.answer,
        };
        (off, job)
    }

    /// Nobody may be waiting any more; the work is done all the same.
    pub(super) fn answer(self, answer: Result<R>) {
        let _ = self.answer.send(answer);
    }
}

/// Bounds on all that is queued in one instance (clause F4).
#[derive(Debug)]
pub(super) struct Budget {
    jobs: AtomicUsize,
    bytes: AtomicUsize,
    max_jobs: usize,
    max_bytes: usize,
}

impl Budget {
    pub(super) fn new(max_jobs: usize, max_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            jobs: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            max_jobs,
            max_bytes,
        })
    }

    fn take(&self, bytes: usize) -> bool {
        let jobs = self.jobs.fetch_add(1, Ordering::Relaxed) + 1;
        let total = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if jobs <= self.max_jobs && total <= self.max_bytes {
            return true;
        }
        self.give_back(1, bytes);
        false
    }

    fn give_back(&self, jobs: usize, bytes: usize) {
        self.jobs.fetch_sub(jobs, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The sending side of a lane. Jobs are flushed in the order in which they
/// were queued, one batch at a time.
pub(super) struct Lane<T, R> {
    queue: mpsc::UnboundedSender<Job<T, R>>,
    budget: Arc<Budget>,
}

impl<T, R> fmt::Debug for Lane<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("budget", &self.budget)
            .finish()
    }
}

/// The receiving side, to be run by one task.
pub(super) struct LaneQueue<T, R> {
    queue: mpsc::UnboundedReceiver<Job<T, R>>,
    next: Option<Job<T, R>>,
    budget: Arc<Budget>,
    max_jobs: usize,
    max_bytes: usize,
}

/// A lane of batches of at most `max_jobs` and `max_bytes`. What is queued is
/// bounded by `budget`.
pub(super) fn lane<T, R>(
    budget: &Arc<Budget>,
    max_jobs: usize,
    max_bytes: usize,
) -> (Lane<T, R>, LaneQueue<T, R>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (
        Lane {
            queue: sender,
            budget: Arc::clone(budget),
        },
        LaneQueue {
            queue: receiver,
            next: None,
            budget: Arc::clone(budget),
            max_jobs,
            max_bytes,
        },
    )
}

impl<T, R> Lane<T, R> {
    /// Queues a job; its place is fixed when this returns.
    pub(super) fn push(
        &self,
        operation: &'static str,
        item: T,
        bytes: usize,
    ) -> Result<oneshot::Receiver<Result<R>>> {
        if !self.budget.take(bytes) {
            metrics::counter!("mcp_adapter_overloaded_total", "operation" => operation)
                .increment(1);
            return Err(Error::new(ErrorKind::Overloaded, operation));
        }
        let (answer, answered) = oneshot::channel();
        let job = Job {
            item,
            bytes,
            answer,
        };
        if self.queue.send(job).is_err() {
            self.budget.give_back(1, bytes);
            return Err(Error::new(ErrorKind::Closed, operation));
        }
        Ok(answered)
    }
}

impl<T, R> LaneQueue<T, R> {
    /// Waits for the next batch; `None` when the lane is closed and empty.
    pub(super) async fn batch(&mut self) -> Option<Vec<Job<T, R>>> {
        let first = match self.next.take() {
            Some(job) => job,
            None => self.queue.recv().await?,
        };
        let mut bytes = first.bytes;
        let mut batch = vec![first];
        while batch.len() < self.max_jobs {
            let Ok(job) = self.queue.try_recv() else {
                break;
            };
            if bytes + job.bytes > self.max_bytes {
                self.next = Some(job);
                break;
            }
            bytes += job.bytes;
            batch.push(job);
        }
        self.budget.give_back(batch.len(), bytes);
        Some(batch)
    }
}

impl<T, R> Drop for LaneQueue<T, R> {
    fn drop(&mut self) {
        self.queue.close();
        let mut left = self.next.take();
        while let Some(job) = left.take().or_else(|| self.queue.try_recv().ok()) {
            self.budget.give_back(1, job.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_arrives_during_a_flush_is_the_next_batch() {
        let budget = Budget::new(100, 1000);
        let (lane, mut queue) = lane::<u32, ()>(&budget, 4, 10);
        for item in 0..6 {
            drop(lane.push("test", item, 1).unwrap());
        }
        let items = |batch: Option<Vec<Job<u32, ()>>>| {
            batch
                .unwrap()
                .iter()
                .map(|job| job.item)
                .collect::<Vec<_>>()
        };
        assert_eq!(items(queue.batch().await), [0, 1, 2, 3]);
        drop(lane.push("test", 6, 9).unwrap());
        // 4 and 5 have 2 bytes, and 9 more are over the bound of 10.
        assert_eq!(items(queue.batch().await), [4, 5]);
        assert_eq!(items(queue.batch().await), [6]);
    }

    #[tokio::test]
    async fn a_full_queue_is_overloaded_and_takes_jobs_again() {
        let budget = Budget::new(2, 100);
        let (lane, mut queue) = lane::<u32, ()>(&budget, 4, 1000);
        drop(lane.push("test", 1, 50).unwrap());
        let kind = |result: Result<_>| result.map(|_: oneshot::Receiver<_>| ()).unwrap_err().kind();
        assert_eq!(kind(lane.push("test", 2, 51)), ErrorKind::Overloaded);
        drop(lane.push("test", 2, 50).unwrap());
        assert_eq!(kind(lane.push("test", 3, 0)), ErrorKind::Overloaded);
        assert_eq!(queue.batch().await.unwrap().len(), 2);
        drop(lane.push("test", 3, 100).unwrap());
        drop(queue);
        assert_eq!(kind(lane.push("test", 4, 1)), ErrorKind::Closed);
        assert_eq!(budget.jobs.load(Ordering::Relaxed), 0);
        assert_eq!(budget.bytes.load(Ordering::Relaxed), 0);
    }
}
