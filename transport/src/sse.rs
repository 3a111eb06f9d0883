//! The body of a stream's HTTP response: a reader of a [`Tail`] and nothing
//! more. A call outlives it, and is never slowed down by it.
//!
//! Events are written as they are stored, byte for byte. They do not take the
//! way through rmcp's types, where fields that rmcp does not know get lost.

use std::{
    convert::Infallible,
    fmt::Write as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, task::AtomicWaker};
use http_body::{Body, Frame};
use mcp_adapter_core::{EndReason, EventId, Position, RpcId, StreamId, Tail, TailEvent};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::{message, registry::Standing};

/// What fits into one frame before it is handed on.
const FRAME_BYTES: usize = 32 * 1024;

/// The position of an error that ends a call in place of what is stored: past
/// all events. Whoever resumes from it has been told, and is not told again.
pub(crate) const TOLD: Position = Position::new(u32::MAX, u64::MAX);

/// What a call tells the socket of the request that started it, past the
/// stream.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    told: Mutex<Option<Told>>,
    waker: AtomicWaker,
}

#[derive(Debug)]
enum Told {
    /// A response that could not be stored.
    Response(Bytes),
    /// Close; the client may come back after so long.
    Close(Option<Duration>),
}

impl Aside {
    /// Hands over a response that the backend does not take (clause F1). The
    /// socket gets it without an id, unless it has read it from the stream.
    pub(crate) fn respond(&self, response: Bytes) {
        *self.told.lock() = Some(Told::Response(response));
        self.waker.wake();
    }

    /// Closes the socket; the stream goes on.
    pub(crate) fn close(&self, retry: Option<Duration>) {
        self.told.lock().get_or_insert(Told::Close(retry));
        self.waker.wake();
    }

    fn poll(&self, context: &mut Context<'_>) -> Option<Told> {
        self.waker.register(context.waker());
        self.told.lock().take()
    }
}

/// The body of a response of type `text/event-stream`.
pub(crate) struct EventBody {
    tail: Option<Tail>,
    pending: BytesMut,
    /// The call whose stream this is: for whom an error is meant that ends it.
    call: Option<(StreamId, RpcId)>,
    /// What that error says.
    failure: Option<&'static str>,
    aside: Option<Arc<Aside>>,
    /// Where the tail begins is told with this hint on when to come back.
    primes: Option<Option<Duration>>,
    closing: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    keep_alive: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    _standing: Option<Standing>,
}

impl std::fmt::Debug for EventBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EventBody")
    }
}

impl EventBody {
    pub(crate) fn new(
        tail: Tail,
        call: Option<(StreamId, RpcId)>,
        keep_alive: Option<Duration>,
    ) -> Self {
        metrics::gauge!("mcp_transport_sse_streams").increment(1);
        Self {
            tail: Some(tail),
            pending: BytesMut::new(),
            call,
            failure: None,
            aside: None,
            primes: None,
            closing: None,
            keep_alive,
            timer: None,
            _standing: None,
        }
    }

    pub(crate) fn with_aside(mut self, aside: Arc<Aside>) -> Self {
        self.aside = Some(aside);
        self
    }

    /// Ends the body, and nothing else, when the future is ready.
    pub(crate) fn closing(mut self, closing: WaitForCancellationFutureOwned) -> Self {
        self.closing = Some(Box::pin(closing));
        self
    }

    pub(crate) fn standing(mut self, standing: Standing) -> Self {
        self._standing = Some(standing);
        self
    }

    /// Begins with an event without data whose id is the start of `stream`, so
    /// that a client whose connection breaks before the first event can resume.
    pub(crate) fn priming(mut self, stream: &StreamId, retry: Option<Duration>) -> Self {
        let start = EventId::new(stream.clone(), Position::START);
        write_priming(&mut self.pending, &start, retry);
        self
    }

    /// As [`priming`](Self::priming), from where the tail says that it begins:
    /// it may have to wait for its turn.
    pub(crate) fn priming_in_turn(mut self, retry: Option<Duration>) -> Self {
        self.primes = Some(retry);
        self
    }

    /// Begins with a hint on when to come back. Without data it is no event.
    pub(crate) fn retry(mut self, retry: Option<Duration>) -> Self {
        write_retry(&mut self.pending, retry);
        self
    }

    fn end(&mut self, reason: EndReason) {
        self.tail = None;
        self.failure = match reason {
            EndReason::SessionEnded => Some("the session has ended"),
            EndReason::OwnerLost => Some("the server instance that ran this call is gone"),
            EndReason::StreamGone => Some("this call is no longer known"),
            // All was said, somebody else reads on, or the client can come
            // back and read on.
            _ => None,
        };
    }

    /// Moves what is there into `pending`.
    fn fill(&mut self, context: &mut Context<'_>) {
        let open = self.tail.is_some();
        self.read(context, FRAME_BYTES);
        let told = self.aside.as_ref().and_then(|aside| aside.poll(context));
        match told {
            Some(Told::Response(response)) => {
                // The stream first: what can be had with its id is.
                self.read(context, usize::MAX);
                if self.tail.take().is_some() || self.failure.take().is_some() {
                    write_event(&mut self.pending, None, &response);
                }
            }
            Some(Told::Close(retry)) if open => {
                self.tail = None;
                write_retry(&mut self.pending, retry);
            }
            _ => {}
        }
        if let Some(text) = self.failure.take()
            && let Some((stream, request)) = self.call.take()
        {
            metrics::counter!("mcp_transport_calls_ended_by_error_total").increment(1);
            let id = EventId::new(stream, TOLD);
            write_event(
                &mut self.pending,
                Some(&id),
                &message::error(&request, text),
            );
        }
        if let Some(closing) = &mut self.closing
            && self.tail.is_some()
            && closing.as_mut().poll(context).is_ready()
        {
            self.tail = None;
        }
    }

    fn read(&mut self, context: &mut Context<'_>, limit: usize) {
        while self.pending.len() < limit
            && let Some(tail) = &mut self.tail
        {
            match Pin::new(tail).poll_next(context) {
                Poll::Ready(Some(TailEvent::Begins { after, .. })) => {
                    if let Some(retry) = self.primes.take() {
                        write_priming(&mut self.pending, &after, retry);
                    }
                }
                Poll::Ready(Some(TailEvent::Event { id, data, .. })) => {
                    write_event(&mut self.pending, Some(&id), &data);
                }
                Poll::Ready(Some(TailEvent::Unstored { data })) => {
                    write_event(&mut self.pending, None, &data);
                }
                Poll::Ready(Some(TailEvent::Gap { .. })) => {
                    metrics::counter!("mcp_transport_gaps_total").increment(1);
                    tracing::warn!("events are missing from a stream");
                }
                Poll::Ready(Some(TailEvent::End(reason))) => self.end(reason),
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) => self.tail = None,
                Poll::Pending => return,
            }
        }
    }

    fn poll_keep_alive(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(interval) = self.keep_alive else {
            return Poll::Pending;
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(interval)));
        let ready = timer.as_mut().poll(context);
        if ready.is_ready() {
            timer.as_mut().reset(Instant::now() + interval);
        }
        ready
    }
}

impl Drop for EventBody {
    fn drop(&mut self) {
        metrics::gauge!("mcp_transport_sse_streams").decrement(1);
    }
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        this.fill(context);
        if !this.pending.is_empty() {
            if let (Some(timer), Some(interval)) = (&mut this.timer, this.keep_alive) {
                timer.as_mut().reset(Instant::now() + interval);
            }
            return Poll::Ready(Some(Ok(Frame::data(this.pending.split().freeze()))));
        }
        if this.tail.is_none() {
            return Poll::Ready(None);
        }
        if this.poll_keep_alive(context).is_ready() {
            // A comment, never an event: an event would move the client's cursor.
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b":\n\n")))));
        }
        Poll::Pending
    }
}

fn write_priming(out: &mut BytesMut, id: &EventId, retry: Option<Duration>) {
    // Writing to a `BytesMut` does not fail.
    let _ = writeln!(out, "id: {id}");
    if let Some(retry) = retry {
        let _ = writeln!(out, "retry: {}", retry.as_millis());
    }
    out.put_slice(b"data: \n\n");
}

fn write_event(out: &mut BytesMut, id: Option<&EventId>, data: &[u8]) {
    if let Some(id) = id {
        let _ = writeln!(out, "id: {id}");
    }
    out.reserve(data.len() + 8);
    // Ours has no line breaks; what others append through the adapter may.
    for line in data.split(|byte| *byte == b'\n') {
        out.put_slice(b"data: ");
        out.put_slice(line);
        out.put_u8(b'\n');
    }
    out.put_u8(b'\n');
}

fn write_retry(out: &mut BytesMut, retry: Option<Duration>) {
    if let Some(retry) = retry {
        let _ = write!(out, "retry: {}\n\n", retry.as_millis());
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};
    use http_body_util::BodyExt;

    use super::*;

    fn event(seq: u64, data: &'static str) -> TailEvent {
        let stream = "s".parse().unwrap();
        TailEvent::Event {
            id: EventId::new(stream, Position::new(1, seq)),
            data: Bytes::from_static(data.as_bytes()),
            last: false,
        }
    }

    async fn text(body: EventBody) -> String {
        let bytes = body.collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn events_are_written_with_their_ids() {
        let events = [
            event(1, "{}"),
            event(2, "a\nb"),
            TailEvent::End(EndReason::Finished),
        ];
        let tail = Tail::new(stream::iter(events).boxed());
        let body = EventBody::new(tail, None, None)
            .priming(&"s".parse().unwrap(), Some(Duration::from_millis(1500)));
        assert_eq!(
            text(body).await,
            "id: s.0.0\nretry: 1500\ndata: \n\nid: s.1.1\ndata: {}\n\nid: s.1.2\ndata: a\ndata: b\n\n"
        );
    }

    #[tokio::test]
    async fn a_stream_is_primed_where_it_begins() {
        let events = || {
            let after = EventId::new("s".parse().unwrap(), Position::new(1, 4));
            let events = [TailEvent::Begins { after, hold: 1 }, event(5, "{}")];
            Tail::new(stream::iter(events).boxed())
        };
        let body = EventBody::new(events(), None, None).priming_in_turn(None);
        assert_eq!(
            text(body).await,
            "id: s.1.4\ndata: \n\nid: s.1.5\ndata: {}\n\n"
        );
        let unprimed = EventBody::new(events(), None, None);
        assert_eq!(text(unprimed).await, "id: s.1.5\ndata: {}\n\n");
    }

    #[tokio::test]
    async fn a_call_whose_owner_died_ends_with_an_error() {
        let tail = Tail::new(stream::iter([TailEvent::End(EndReason::OwnerLost)]).boxed());
        let call = ("s".parse().unwrap(), RpcId::Number(7));
        let text = text(EventBody::new(tail, Some(call), None)).await;
        let (id, data) = text.split_once('\n').unwrap();
        let id: EventId = id.strip_prefix("id: ").unwrap().parse().unwrap();
        assert_eq!(id.position, TOLD);
        assert!(data.contains(r#""id":7"#), "{text}");
    }

    #[tokio::test]
    async fn a_response_told_aside_comes_once() {
        let aside = Arc::new(Aside::default());
        aside.respond(Bytes::from_static(b"{}"));
        let quiet = Tail::new(stream::pending().boxed());
        let body = EventBody::new(quiet, None, None).with_aside(Arc::clone(&aside));
        assert_eq!(text(body).await, "data: {}\n\n");

        aside.respond(Bytes::from_static(b"{}"));
        let stored = [event(1, "{}"), TailEvent::End(EndReason::Finished)];
        let stored = Tail::new(stream::iter(stored).boxed());
        let body = EventBody::new(stored, None, None).with_aside(aside);
        assert_eq!(text(body).await, "id: s.1.1\ndata: {}\n\n");
    }
}
