//! Wake-ups: one bounded queue per instance.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures::Stream;
use mcp_adapter_core::{
    InstanceId, Result,
    storage::{Door, Knock},
};
use parking_lot::{Mutex, RwLock};

/// Knocks that wait at one door. Beyond it they are dropped, and one
/// [`Knock::Everything`] stands for all of them.
pub(crate) const QUEUE: usize = 4096;

#[derive(Default)]
struct Queue {
    knocks: VecDeque<Knock>,
    /// [`Knock::Everything`] is in the queue. Whoever takes it looks at all
    /// that was written until then, so one is enough.
    everything: bool,
    closed: bool,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Bell(Mutex<Queue>);

impl Bell {
    fn knock(&self, knock: Knock) {
        let waker = {
            let mut queue = self.0.lock();
            if queue.knocks.len() < QUEUE {
                queue.everything |= knock == Knock::Everything;
                queue.knocks.push_back(knock);
            } else if !queue.everything {
                queue.everything = true;
                queue.knocks.push_back(Knock::Everything);
            }
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn close(&self) {
        let waker = {
            let mut queue = self.0.lock();
            queue.closed = true;
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The doors of all instances.
#[derive(Default)]
pub(crate) struct Doors(RwLock<HashMap<InstanceId, Arc<Bell>>>);

impl Doors {
    /// Opens the door of `me`; an earlier one is closed.
    pub(crate) fn open(self: &Arc<Self>, me: InstanceId) -> Listener {
        let bell = Arc::new(Bell::default());
        let former = self.0.write().insert(me, Arc::clone(&bell));
        if let Some(former) = former {
            former.close();
        }
        Listener {
            me,
            bell,
            doors: Arc::clone(self),
        }
    }

    pub(crate) fn knock(&self, door: Door, knock: Knock) {
        match door {
            Door::Of(instance) => {
                let bell = self.0.read().get(&instance).map(Arc::clone);
                if let Some(bell) = bell {
                    bell.knock(knock);
                }
            }
            Door::All => {
                let bells: Vec<_> = self.0.read().values().map(Arc::clone).collect();
                for bell in bells {
                    bell.knock(knock.clone());
                }
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.read().len()
    }
}

impl fmt::Debug for Doors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doors").finish_non_exhaustive()
    }
}

/// Who listens at a door. It ends when the same instance opens another one.
pub(crate) struct Listener {
    me: InstanceId,
    bell: Arc<Bell>,
    doors: Arc<Doors>,
}

impl Stream for Listener {
    type Item = Result<Knock>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queue = self.bell.0.lock();
        if queue.closed {
            return Poll::Ready(None);
        }
        if let Some(knock) = queue.knocks.pop_front() {
            queue.everything &= knock != Knock::Everything;
            if queue.knocks.is_empty() && queue.knocks.capacity() > QUEUE / 8 {
                queue.knocks.shrink_to_fit();
            }
            return Poll::Ready(Some(Ok(knock)));
        }
        if !queue
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(context.waker()))
        {
            queue.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut doors = self.doors.0.write();
        if doors
            .get(&self.me)
            .is_some_and(|bell| Arc::ptr_eq(bell, &self.bell))
        {
            doors.remove(&self.me);
        }
    }
}
