//! The stream of one call of a raw client: read, cut, resumed, judged.

use std::{sync::Arc, time::Instant};

use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Duration};

use super::{
    answer::Answer,
    check::{self, End, Expect, Seen},
    http::{Events, Next, NoReply},
    raw::RawSession,
    sse::SseEvent,
    world::{Backoff, Trouble},
};

/// How long a stream may stay open after its answer before it is let go.
const LINGER: Duration = Duration::from_secs(1);

/// How far to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// To the answer and the end of the stream behind it.
    Answer,
    /// To this number of the count.
    Progress(u64),
    /// To the end of the stream, which a cancel brings without an answer.
    StreamEnd,
}

/// One call and what has come of it.
#[derive(Debug)]
pub(super) struct CallStream {
    session: Arc<RawSession>,
    what: String,
    expect: Expect,
    events: Option<Events>,
    /// Who serves `events`.
    source: Option<String>,
    seen: Vec<Seen>,
    last_event_id: Option<String>,
    progress: u64,
    /// The instance that runs the call.
    owner: Option<String>,
    began: Instant,
    answer: Option<(Instant, Value)>,
    answering: JoinSet<Result<Option<String>, Trouble>>,
    answer_sent: Option<Instant>,
}

impl CallStream {
    /// Sends the call.
    pub(super) async fn open(
        session: &Arc<RawSession>,
        tool: &str,
        arguments: &Value,
        expect: Expect,
    ) -> Result<Self, Trouble> {
        let mut params = json!({ "name": tool, "arguments": arguments });
        if let Some((token, _)) = &expect.progress {
            params["_meta"] = json!({ "progressToken": token });
        }
        let message = json!({
            "jsonrpc": "2.0",
            "id": expect.id,
            "method": "tools/call",
            "params": params,
        });
        let began = Instant::now();
        let reply = session
            .world
            .endpoint
            .post(Some(&session.id), &message)
            .await
            .map_err(Trouble::NoReply)?;
        if !reply.ok() {
            return Err(Trouble::refused(tool, reply).await);
        }
        Ok(Self {
            session: Arc::clone(session),
            what: format!("{} {tool} {} {arguments}", session.label, expect.id),
            expect,
            source: reply.instance.clone(),
            owner: reply.instance.clone(),
            events: Some(reply.events()),
            seen: Vec::new(),
            last_event_id: None,
            progress: 0,
            began,
            answer: None,
            answering: JoinSet::new(),
            answer_sent: None,
        })
    }

    /// The same call, read again from the event of number `after` of its count.
    pub(super) fn again_after(&self, after: u64) -> Option<Self> {
        let cursor = self
            .seen
            .iter()
            .find(|seen| check::whole(&seen.message["params"]["progress"]) == Some(after))?;
        Some(Self {
            session: Arc::clone(&self.session),
            what: format!("{} replayed", self.what),
            expect: Expect {
                after,
                ..self.expect.clone()
            },
            events: None,
            source: None,
            seen: Vec::new(),
            last_event_id: cursor.event_id.clone(),
            progress: after,
            owner: self.owner.clone(),
            began: self.began,
            answer: None,
            answering: JoinSet::new(),
            answer_sent: None,
        })
    }

    /// The id under which the call was sent at last.
    pub(super) fn id(&self) -> &Value {
        &self.expect.id
    }

    pub(super) fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// Breaks the connection, as a lost network would.
    pub(super) fn cut(&mut self) {
        self.events = None;
    }

    /// Reads on, over as many connections as it takes.
    pub(super) async fn read(&mut self, stop: Stop) -> Result<(), Trouble> {
        let session = Arc::clone(&self.session);
        session.world.within(self.read_on(stop)).await
    }

    async fn read_on(&mut self, stop: Stop) -> Result<(), Trouble> {
        let mut backoff = Backoff::new();
        loop {
            // It ended before it came to the number at which it was to be cut:
            // with its instance.
            if stop != Stop::StreamEnd && self.answer.is_some() {
                return self.join_answers().await;
            }
            let Some(events) = &mut self.events else {
                self.resume().await?;
                continue;
            };
            match events.next().await {
                Next::Event(event) => {
                    self.take(event);
                    match stop {
                        Stop::Progress(wanted) if self.progress >= wanted => return Ok(()),
                        // A stop that never comes must not outlive the call.
                        Stop::Answer | Stop::Progress(_) if self.answer.is_some() => {
                            self.linger().await;
                            return self.join_answers().await;
                        }
                        _ => {}
                    }
                }
                Next::End => {
                    self.events = None;
                    if stop == Stop::StreamEnd {
                        return Ok(());
                    }
                    // The server may end a stream early and expects a resume.
                    backoff.pause().await;
                }
                Next::Broken(reason) => {
                    self.events = None;
                    let world = &self.session.world;
                    if !world.outages.excuse(self.source.as_deref(), self.began) {
                        world
                            .tally
                            .error(format_args!("{}: broken: {reason}", self.what));
                    }
                }
            }
        }
    }

    /// What follows the answer must be nothing; whatever it is, it is recorded.
    async fn linger(&mut self) {
        let Some(mut events) = self.events.take() else {
            return;
        };
        let rest = async {
            while let Next::Event(event) = events.next().await {
                self.take(event);
            }
        };
        // A stream that stays open is allowed, if unkind.
        let _ = tokio::time::timeout(LINGER, rest).await;
    }

    async fn resume(&mut self) -> Result<(), Trouble> {
        let session = Arc::clone(&self.session);
        let world = &session.world;
        let Some(cursor) = self.last_event_id.clone() else {
            return Err(Trouble::NoReply(NoReply {
                instance: self.source.clone(),
                reason: "the stream ended before its first event id".into(),
            }));
        };
        let reply = world
            .insist(|| world.endpoint.get(&session.id, Some(&cursor)))
            .await?;
        if !reply.ok() {
            return Err(Trouble::refused("resume", reply).await);
        }
        world.tally.count(|counts| {
            counts.resumes += 1;
            counts.cross_instance_resumes += u64::from(reply.instance != self.owner);
        });
        self.source = reply.instance.clone();
        self.events = Some(reply.events());
        Ok(())
    }

    fn take(&mut self, event: SseEvent) {
        if let Some(id) = &event.id {
            self.last_event_id = Some(id.clone());
        }
        let message = if event.data.trim().is_empty() {
            Value::Null
        } else {
            match serde_json::from_str(&event.data) {
                Ok(message) => message,
                Err(error) => {
                    let world = &self.session.world;
                    world
                        .tally
                        .wrong(format_args!("{}: no JSON: {error}", self.what));
                    Value::Null
                }
            }
        };
        match message["method"].as_str() {
            Some("notifications/progress") => {
                self.progress = check::whole(&message["params"]["progress"]).unwrap_or_default();
            }
            Some("elicitation/create") => self.reply_to(&message),
            // Some servers send logs on the stream of the call.
            Some("notifications/message") => {
                self.session.logged(Seen {
                    event_id: event.id,
                    message,
                });
                return;
            }
            Some(_) => {}
            None if message["id"] == self.expect.id && self.answer.is_none() => {
                self.answer = Some((Instant::now(), message.clone()));
            }
            None => {}
        }
        self.seen.push(Seen {
            event_id: event.id,
            message,
        });
    }

    /// Answers a question beside the reading, as the result may overtake the reply.
    fn reply_to(&mut self, request: &Value) {
        let question = request["params"]["message"].as_str().unwrap_or_default();
        let answer = json!({
            "jsonrpc": "2.0",
            "id": request["id"],
            "result": Answer::to(question).to_result(),
        });
        let session = Arc::clone(&self.session);
        session.world.tally.count(|counts| counts.elicitations += 1);
        self.answer_sent = Some(Instant::now());
        self.answering.spawn(async move {
            let world = &session.world;
            let sent = world
                .insist(|| world.endpoint.post(Some(&session.id), &answer))
                .await?;
            if sent.ok() {
                Ok(sent.instance)
            } else {
                Err(Trouble::refused("answer", sent).await)
            }
        });
    }

    async fn join_answers(&mut self) -> Result<(), Trouble> {
        let tally = &self.session.world.tally;
        while let Some(sent) = self.answering.join_next().await {
            match sent {
                Ok(Ok(instance)) => {
                    let crossed = instance != self.owner;
                    tally.count(|counts| {
                        counts.cross_instance_elicitations += u64::from(crossed);
                    });
                }
                Ok(Err(trouble)) => return Err(trouble),
                Err(error) => tally.error(format_args!("{}: {error}", self.what)),
            }
        }
        Ok(())
    }

    /// Judges the finished call. `ended` is what reading it to the end gave.
    pub(super) fn judge(self, ended: &Result<(), Trouble>, end: End) {
        let world = &self.session.world;
        let failed = self
            .answer
            .as_ref()
            .and_then(|(_, message)| message.get("error"));
        let end = match (ended, failed) {
            (Ok(()), None) => end,
            (Ok(()), Some(error)) => {
                if world.outages.excuse(self.owner(), self.began) {
                    world.tally.count(|counts| counts.expected_errors += 1);
                } else {
                    world.tally.error(format_args!("{}: {error}", self.what));
                }
                End::Broken
            }
            (Err(trouble), _) => {
                world.count(trouble, &self.what, self.owner(), self.began);
                End::Broken
            }
        };
        if let (Some((at, _)), Some(sent), End::Answered) = (&self.answer, self.answer_sent, end) {
            world.tally.elicit_took(sent, *at);
        }
        let verdict = check::call(&self.expect, &self.seen, end);
        world.tally.judge(verdict, || {
            let shown: Vec<_> = self
                .seen
                .iter()
                .map(|seen| seen.message.to_string())
                .collect();
            format!("{}: {}", self.what, shown.join(" | "))
        });
    }

    /// Text of the result, once there is one.
    pub(super) fn text(&self) -> Option<&str> {
        check::result_text(&self.answer.as_ref()?.1)
    }

    /// When the answer came.
    pub(super) fn answered_at(&self) -> Option<Instant> {
        self.answer.as_ref().map(|(at, _)| *at)
    }
}
