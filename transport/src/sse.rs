//! The body of a stream's HTTP response: a reader of a [`Tail`] and nothing
//! more. A call outlives it, and is never slowed down by it.
//!
//! Events are written as they are stored, byte for byte. They do not take the
//! way through rmcp's types, where fields that rmcp does not know get lost.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, future::BoxFuture, task::AtomicWaker};
use http_body::{Body, Frame};
use mcp_adapter_core::{EndReason, EventId, Position, RpcId, SessionId, StreamId, Tail, TailEvent};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::{
    config::Backends,
    message, orphans,
    registry::Standing,
    resume::{Mark, ResumeId},
    wire,
};

/// What fits into one frame before it is handed on.
const FRAME_BYTES: usize = 32 * 1024;

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

/// What is known of the client that reads a body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader {
    /// Whether it reads an event without data.
    pub(crate) primed: bool,
    /// Whether it takes log messages of level `warning`.
    pub(crate) warned: bool,
    /// Whether it can come back. Not to the answer to a batch, which is of
    /// several streams: its events have no ids.
    pub(crate) resumes: bool,
    /// How often a comment is sent on a silent stream.
    pub(crate) keep_alive: Option<Duration>,
    /// When it should come back after the stream was closed on purpose.
    pub(crate) retry: Option<Duration>,
}

/// The body of a response of type `text/event-stream`.
pub(crate) struct EventBody {
    tail: Option<Tail>,
    pending: BytesMut,
    reader: Reader,
    /// Whose stream this is, if it is a call's: for whom an error is meant that
    /// ends it.
    call: Option<RpcId>,
    /// The last id that the client has.
    cursor: Option<ResumeId>,
    /// Whether the client has given the call up and is told nothing of it.
    given_up: bool,
    /// What that error says.
    failure: Option<&'static str>,
    /// Where to look for requests of the call that are void with it.
    asked_in: Option<(Arc<Backends>, SessionId)>,
    /// What has to be said of them before anything is said of the call's end.
    void: Option<BoxFuture<'static, Vec<Bytes>>>,
    aside: Option<Arc<Aside>>,
    closing: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    timer: Option<Pin<Box<Sleep>>>,
    _standing: Option<Standing>,
}

impl std::fmt::Debug for EventBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EventBody")
    }
}

impl EventBody {
    pub(crate) fn new(tail: Tail, reader: Reader) -> Self {
        metrics::gauge!("mcp_transport_sse_streams").increment(1);
        Self {
            tail: Some(tail),
            pending: BytesMut::new(),
            reader,
            call: None,
            cursor: None,
            given_up: false,
            failure: None,
            asked_in: None,
            void: None,
            aside: None,
            closing: None,
            timer: None,
            _standing: None,
        }
    }

    /// Of a call, from its start. It begins with an event without data, so that
    /// a client whose connection breaks before the first message can resume.
    pub(crate) fn of_call(mut self, stream: &StreamId, request: RpcId) -> Self {
        let start = EventId::new(stream.clone(), Position::START);
        self.call = Some(request);
        self.begin(start.into());
        self
    }

    /// Of a stream that the client has up to this id; of a call, if it is told
    /// which one.
    pub(crate) fn resumed(mut self, after: ResumeId, call: Option<RpcId>) -> Self {
        self.call = call;
        self.cursor = Some(after);
        self
    }

    /// The client has cancelled the call: where nothing is left of it, nothing
    /// is said.
    pub(crate) fn given_up(mut self, given_up: bool) -> Self {
        self.given_up = given_up;
        self
    }

    /// Where the client requests of a call are stored.
    pub(crate) fn asked_in(mut self, backends: &Arc<Backends>, session: &SessionId) -> Self {
        self.asked_in = (self.call.as_ref()).map(|_| (Arc::clone(backends), session.clone()));
        self
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

    /// Everything after this id follows.
    fn begin(&mut self, after: ResumeId) {
        self.cursor = Some(after);
        self.write_cursor();
    }

    /// Moves the client's cursor to where it is for us.
    fn write_cursor(&mut self) {
        if self.reader.primed && self.reader.resumes {
            let id = self.cursor.as_ref().map(|id| id as _);
            wire::write_empty(&mut self.pending, id, None);
        }
    }

    /// Writes a message. With an id the client's cursor moves there.
    fn write(&mut self, id: Option<ResumeId>, data: &[u8]) {
        let id = id.filter(|_| self.reader.resumes);
        wire::write_event(&mut self.pending, id.as_ref().map(|id| id as _), data);
        if id.is_some() {
            self.cursor = id;
        }
    }

    /// An id that says of the place where the client is that nothing follows.
    fn last(&self) -> Option<ResumeId> {
        let cursor = self.cursor.as_ref()?;
        Some(ResumeId::last(cursor.event.clone()))
    }

    fn has_last(&self) -> bool {
        (self.cursor.as_ref()).is_some_and(|cursor| cursor.mark == Some(Mark::Last))
    }

    fn end(&mut self, reason: EndReason) {
        self.tail = None;
        // Nobody else is left to tell of what the dead instance has asked.
        if let (EndReason::OwnerLost, Some(cursor), Some((backends, session))) =
            (reason, &self.cursor, self.asked_in.take())
        {
            let stream = cursor.event.stream.clone();
            let void = orphans::void_requests(backends, session, stream);
            self.void = Some(Box::pin(void));
            return;
        }
        self.say_end(reason);
    }

    fn say_end(&mut self, reason: EndReason) {
        match reason {
            EndReason::SessionEnded => self.failure = Some("the session has ended"),
            EndReason::OwnerLost | EndReason::StreamGone if self.given_up => self.conclude(),
            EndReason::OwnerLost => {
                self.failure = Some("the server instance that ran this call is gone");
            }
            EndReason::StreamGone => self.failure = Some("this call is no longer known"),
            EndReason::Finished | EndReason::Cancelled => self.conclude(),
            // Somebody else reads on, or the client can come back and read on.
            _ => {}
        }
    }

    /// Lets the client know that it need not come back, where no message of the
    /// call has done so.
    fn conclude(&mut self) {
        if self.call.is_some() && !self.has_last() {
            self.cursor = self.last();
            self.write_cursor();
        }
    }

    /// Closes the connection on purpose; the client may come back.
    fn close(&mut self, retry: Option<Duration>) {
        self.tail = None;
        if !self.reader.resumes {
            return;
        }
        if self.reader.primed {
            // Without an id: there is none that was not given before.
            wire::write_empty(&mut self.pending, None, retry);
        } else {
            wire::write_retry(&mut self.pending, retry);
        }
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
                // What it was about to say of the end is not so.
                let unsaid = self.void.take().is_some() || self.failure.take().is_some();
                if self.tail.take().is_some() || unsaid {
                    self.write(self.last(), &response);
                }
            }
            Some(Told::Close(retry)) if open => self.close(retry),
            _ => {}
        }
        if let Some(void) = &mut self.void {
            let Poll::Ready(void) = void.as_mut().poll(context) else {
                return;
            };
            self.void = None;
            for message in void {
                self.write(None, &message);
            }
            self.say_end(EndReason::OwnerLost);
        }
        if let Some(text) = self.failure.take()
            && let Some(request) = self.call.take()
        {
            metrics::counter!("mcp_transport_calls_ended_by_error_total").increment(1);
            self.write(self.last(), &message::error(&request, text));
        }
        if let Some(closing) = &mut self.closing
            && self.tail.is_some()
            && closing.as_mut().poll(context).is_ready()
        {
            self.close(self.reader.retry);
        }
    }

    fn read(&mut self, context: &mut Context<'_>, limit: usize) {
        while self.pending.len() < limit
            && let Some(tail) = &mut self.tail
        {
            match Pin::new(tail).poll_next(context) {
                Poll::Ready(Some(TailEvent::Begins { after, hold })) => {
                    self.begin(ResumeId::held(after, hold));
                }
                Poll::Ready(Some(TailEvent::Event { id, data, last })) => {
                    let id = if last { ResumeId::last(id) } else { id.into() };
                    self.write(Some(id), &data);
                }
                // Whoever comes back from it has had the outcome (clause F1).
                Poll::Ready(Some(TailEvent::Unstored { data })) => self.write(self.last(), &data),
                Poll::Ready(Some(TailEvent::Gap { .. })) => self.gap(),
                Poll::Ready(Some(TailEvent::End(reason))) => self.end(reason),
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) => self.tail = None,
                Poll::Pending => return,
            }
        }
    }

    /// Shows that messages are missing here, and moves no cursor.
    fn gap(&mut self) {
        metrics::counter!("mcp_transport_gaps_total").increment(1);
        tracing::warn!("events are missing from a stream");
        wire::write_comment(&mut self.pending, "messages are missing here");
        if self.reader.warned {
            self.write(None, &message::gap());
        }
    }

    fn poll_keep_alive(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(interval) = self.reader.keep_alive else {
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
            if let (Some(timer), Some(interval)) = (&mut this.timer, this.reader.keep_alive) {
                timer.as_mut().reset(Instant::now() + interval);
            }
            return Poll::Ready(Some(Ok(Frame::data(this.pending.split().freeze()))));
        }
        if this.tail.is_none() && this.void.is_none() {
            return Poll::Ready(None);
        }
        if this.poll_keep_alive(context).is_ready() {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(wire::KEEP_ALIVE)))));
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
