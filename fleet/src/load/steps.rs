//! The steps of a raw client's script.

use std::{sync::Arc, time::Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    answer::Answer,
    check::{End, Expect, ExpectedLogs},
    raw::RawSession,
    script::{self, PARALLEL, RAW_DECK, Step},
    stream::{CallStream, Stop},
    world::{Backoff, Trouble},
};

/// Messages of one `log` call.
const LOGS: u64 = 3;

/// Runs a script with this many calls.
pub(super) async fn run(session: &Arc<RawSession>, calls: usize, rng: &mut fastrand::Rng) {
    for step in script::plan(RAW_DECK, calls, rng) {
        match step {
            Step::Echo => echo(session).await,
            Step::WhoAmI => whoami(session).await,
            Step::Count => count(session, 5, 5).await,
            Step::Ask => ask(session).await,
            Step::ParallelAsks => {
                let mut asks = JoinSet::new();
                for _ in 0..PARALLEL {
                    let session = Arc::clone(session);
                    asks.spawn(async move { ask(&session).await });
                }
                asks.join_all().await;
            }
            Step::Log => log(session).await,
            Step::ResumeRunning => resume_running(session, rng.u64(1..=8)).await,
            Step::ResumeFinished => resume_finished(session, rng.u64(1..=4)).await,
            Step::Cancel => cancel(session).await,
            Step::Twins => twins(session).await,
        }
    }
}

/// Calls a tool that may be called again: after a kill it is, under a new id.
/// The stream is open; the caller reads and judges it.
async fn call(
    session: &Arc<RawSession>,
    tool: &str,
    arguments: &Value,
    expect: Expect,
) -> Option<CallStream> {
    let world = &session.world;
    world.tally.count(|counts| counts.calls += 1);
    let began = Instant::now();
    match open(session, tool, arguments, expect).await {
        Ok(stream) => Some(stream),
        Err(trouble) => {
            let what = format!("{} {tool}", session.label);
            world.count(&trouble, &what, None, began);
            world.tally.call_ended();
            None
        }
    }
}

async fn open(
    session: &Arc<RawSession>,
    tool: &str,
    arguments: &Value,
    mut expect: Expect,
) -> Result<CallStream, Trouble> {
    let world = &session.world;
    let attempts = async {
        let mut backoff = Backoff::new();
        loop {
            let since = Instant::now();
            match CallStream::open(session, tool, arguments, expect.clone()).await {
                Err(Trouble::NoReply(none))
                    if world.outages.excuse(none.instance.as_deref(), since) =>
                {
                    world.tally.count(|counts| counts.expected_errors += 1);
                    expect.id = session.next_id();
                    backoff.pause().await;
                }
                done => return done,
            }
        }
    };
    world.within(attempts).await
}

/// Calls, reads to the end and judges.
async fn complete(session: &Arc<RawSession>, tool: &str, arguments: Value, expect: Expect) {
    if let Some(mut stream) = call(session, tool, &arguments, expect).await {
        let ended = stream.read(Stop::Answer).await;
        stream.judge(&ended, End::Answered);
        session.world.tally.call_ended();
    }
}

/// A call whose latency is measured.
async fn measured(session: &Arc<RawSession>, tool: &str, arguments: Value, expect: Expect) {
    if let Some(mut stream) = call(session, tool, &arguments, expect).await {
        let ended = stream.read(Stop::Answer).await;
        if let (Ok(()), Some(at)) = (&ended, stream.answered_at()) {
            session.world.tally.call_took(stream.began(), at);
        }
        stream.judge(&ended, End::Answered);
        session.world.tally.call_ended();
    }
}

async fn echo(session: &Arc<RawSession>) {
    let message = session.unique("echo");
    let expect = Expect {
        id: session.next_id(),
        text: Some(message.clone()),
        ..Expect::default()
    };
    measured(session, "echo", json!({ "message": message }), expect).await;
}

async fn whoami(session: &Arc<RawSession>) {
    let expect = Expect {
        id: session.next_id(),
        ..Expect::default()
    };
    measured(session, "whoami", json!({}), expect).await;
}

async fn count(session: &Arc<RawSession>, n: u64, delay_ms: u64) {
    let expect = counting(session, n);
    let arguments = json!({ "n": n, "delay_ms": delay_ms });
    complete(session, "slow_count", arguments, expect).await;
}

fn counting(session: &RawSession, n: u64) -> Expect {
    Expect {
        id: session.next_id(),
        progress: Some((session.next_id(), n)),
        text: Some(format!("counted {n}")),
        ..Expect::default()
    }
}

async fn ask(session: &Arc<RawSession>) {
    let question = session.unique("question");
    let expect = Expect {
        id: session.next_id(),
        text: Some(Answer::to(&question).result_text()),
        questions: vec![question.clone()],
        ..Expect::default()
    };
    complete(session, "ask", json!({ "message": question }), expect).await;
}

async fn log(session: &Arc<RawSession>) {
    let tag = session.unique("log");
    session.expect_logs(ExpectedLogs {
        tag: tag.clone(),
        total: if session.verbose { LOGS } else { 0 },
        excused: false,
    });
    let expect = Expect {
        id: session.next_id(),
        text: Some(format!("logged {LOGS}")),
        ..Expect::default()
    };
    let began = Instant::now();
    let arguments = json!({ "n": LOGS, "tag": tag });
    let Some(mut stream) = call(session, "log", &arguments, expect).await else {
        return session.excuse_logs(&tag);
    };
    let ended = stream.read(Stop::Answer).await;
    // Messages on their way to the store die with their instance.
    if session.world.outages.excuse(stream.owner(), began) {
        session.excuse_logs(&tag);
    }
    stream.judge(&ended, End::Answered);
    session.world.tally.call_ended();
}

async fn resume_running(session: &Arc<RawSession>, cut_at: u64) {
    let expect = counting(session, 12);
    let arguments = json!({ "n": 12, "delay_ms": 15 });
    let Some(mut stream) = call(session, "slow_count", &arguments, expect).await else {
        return;
    };
    let mut ended = stream.read(Stop::Progress(cut_at)).await;
    if ended.is_ok() {
        stream.cut();
        ended = stream.read(Stop::Answer).await;
    }
    stream.judge(&ended, End::Answered);
    session.world.tally.call_ended();
}

async fn resume_finished(session: &Arc<RawSession>, cut_at: u64) {
    let tag = session.unique("finished");
    let expect = counting(session, 6);
    let arguments = json!({ "n": 6, "delay_ms": 5, "tag": tag });
    let Some(mut stream) = call(session, "slow_count", &arguments, expect).await else {
        return;
    };
    let mut ended = stream.read(Stop::Progress(cut_at)).await;
    if ended.is_ok() {
        stream.cut();
        ended = state_becomes(session, &tag, "finished", &stream).await;
    }
    if ended.is_ok() {
        ended = stream.read(Stop::Answer).await;
    }
    // Once more from the first number: finished streams stay for a while.
    if ended.is_ok()
        && let Some(mut again) = stream.again_after(1)
    {
        let ended = again.read(Stop::Answer).await;
        again.judge(&ended, End::Answered);
    }
    stream.judge(&ended, End::Answered);
    session.world.tally.call_ended();
}

async fn cancel(session: &Arc<RawSession>) {
    let tag = session.unique("cancel");
    let expect = counting(session, 5_000);
    // A minute and more, should the cancel be lost.
    let arguments = json!({ "n": 5_000, "delay_ms": 15, "tag": tag });
    let Some(mut stream) = call(session, "slow_count", &arguments, expect).await else {
        return;
    };
    let mut ended = stream.read(Stop::Progress(2)).await;
    if ended.is_ok() {
        let params = json!({ "requestId": stream.id(), "reason": "the user went on" });
        ended = session
            .world
            .within(session.notify("notifications/cancelled", &params))
            .await
            .map(drop);
    }
    if ended.is_ok() {
        session.world.tally.count(|counts| counts.cancels += 1);
        ended = stream.read(Stop::StreamEnd).await;
    }
    if ended.is_ok() {
        ended = state_becomes(session, &tag, "cancelled", &stream).await;
    }
    stream.judge(&ended, End::Cancelled);
    session.world.tally.call_ended();
}

/// The same id and the same progress token, twice in flight.
async fn twins(session: &Arc<RawSession>) {
    let id = session.next_id();
    let token = session.next_id();
    let mut both = JoinSet::new();
    for n in [4, 7] {
        let session = Arc::clone(session);
        let expect = Expect {
            id: id.clone(),
            progress: Some((token.clone(), n)),
            ..counting(&session, n)
        };
        both.spawn(async move {
            let arguments = json!({ "n": n, "delay_ms": 10 });
            complete(&session, "slow_count", arguments, expect).await;
        });
    }
    both.join_all().await;
}

/// Asks until the server says that the handler has come to this: after a cancel,
/// nothing else shows that it stopped.
async fn state_becomes(
    session: &Arc<RawSession>,
    tag: &str,
    wanted: &str,
    of: &CallStream,
) -> Result<(), Trouble> {
    let world = &session.world;
    let asking = async {
        let mut backoff = Backoff::new();
        loop {
            let expect = Expect {
                id: session.next_id(),
                ..Expect::default()
            };
            let arguments = json!({ "tag": tag });
            let mut status = open(session, "call_status", &arguments, expect).await?;
            status.read(Stop::Answer).await?;
            let state = status.text().map(ToOwned::to_owned);
            let asked = status.owner().map(ToOwned::to_owned);
            let excused = world.outages.excuse(asked.as_deref(), status.began());
            status.judge(&Ok(()), End::Answered);
            let state = match state {
                Some(state) => state,
                // Whoever was asked died over it. The next one lives.
                None if excused => {
                    backoff.pause().await;
                    continue;
                }
                None => {
                    return Err(Trouble::Refused {
                        instance: asked,
                        text: format!("call_status of {tag} has no result"),
                    });
                }
            };
            if state.starts_with(wanted) {
                return Ok(());
            }
            let over = !state.starts_with("running") && !state.starts_with("unknown");
            // A killed instance took its memory along.
            if over || world.outages.excuse(of.owner(), of.began()) {
                return Err(Trouble::Refused {
                    instance: of.owner().map(Into::into),
                    text: format!("{tag} should be {wanted} and is {state}"),
                });
            }
            backoff.pause().await;
        }
    };
    world.within(asking).await
}
