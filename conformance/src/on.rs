//! What belongs to an instance runs on the runtime of that instance.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::Stream;

use crate::fleet::Node;

/// A future or stream of an instance. It is polled, and dropped, as if on the
/// instance's own runtime, so that timers and connections belong to it. Of a
/// killed instance nothing is polled and nothing is dropped: a killed process
/// runs no destructors.
pub(crate) struct On<T> {
    inner: Option<T>,
    node: Arc<Node>,
}

impl<T> On<T> {
    pub(crate) fn new(node: &Arc<Node>, inner: T) -> Self {
        Self {
            inner: Some(inner),
            node: Arc::clone(node),
        }
    }

    /// Calls something that does not wait.
    pub(crate) fn call<R>(&self, call: impl FnOnce(&T) -> R) -> R {
        let _runtime = self.node.enter();
        call(self.get())
    }

    /// For what needs no runtime.
    pub(crate) fn get(&self) -> &T {
        #[expect(clippy::expect_used, reason = "it is taken by `drop` alone")]
        self.inner.as_ref().expect("there until it is dropped")
    }

    fn poll<R>(&mut self, poll: impl FnOnce(&mut T) -> Poll<R>) -> Poll<R> {
        match &mut self.inner {
            Some(inner) if self.node.is_alive() => {
                let _runtime = self.node.enter();
                poll(inner)
            }
            _ => Poll::Pending,
        }
    }
}

impl<T: Future + Unpin> Future for On<T> {
    type Output = T::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T::Output> {
        let this = &mut *self;
        On::poll(this, |inner| Pin::new(inner).poll(context))
    }
}

impl<T: Stream + Unpin> Stream for On<T> {
    type Item = T::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T::Item>> {
        let this = &mut *self;
        On::poll(this, |inner| Pin::new(inner).poll_next(context))
    }
}

impl<T> Unpin for On<T> {}

impl<T> Drop for On<T> {
    fn drop(&mut self) {
        let inner = self.inner.take();
        if self.node.is_alive() {
            let _runtime = self.node.enter();
            drop(inner);
        } else {
            Box::leak(Box::new(inner));
        }
    }
}
