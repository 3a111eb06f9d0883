//! The steps of an SDK client's script.

use std::{sync::Arc, time::Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{SdkSession, refused};
use crate::load::{
    answer::Answer,
    check::{self, Expect, ExpectedLogs},
    script::{PARALLEL, Step},
    world::{Backoff, Trouble},
};

/// Messages of one `log` call.
const LOGS: u64 = 3;

impl SdkSession {
    /// One step of the script.
    pub(super) async fn step(self: &Arc<Self>, step: Step) {
        match step {
            Step::Ask => self.ask().await,
            Step::ParallelAsks => {
                let mut asks = JoinSet::new();
                for _ in 0..PARALLEL {
                    let session = Arc::clone(self);
                    asks.spawn(async move { session.ask().await });
                }
                asks.join_all().await;
            }
            Step::Count => self.count().await,
            Step::Log => self.log().await,
            Step::Cancel => self.cancel().await,
            Step::WhoAmI => self.measured("whoami", json!({}), None).await,
            Step::Echo | Step::ResumeRunning | Step::ResumeFinished | Step::Twins => {
                let message = self.unique("echo");
                let arguments = json!({ "message": message });
                self.measured("echo", arguments, Some(message)).await;
            }
        }
    }

    async fn measured(&self, tool: &'static str, arguments: Value, text: Option<String>) {
        let expect = Expect {
            text,
            ..Expect::default()
        };
        if let Some((sent, at)) = self.call(tool, arguments, expect).await {
            self.world.tally.call_took(sent, at);
        }
    }

    async fn count(&self) {
        let expect = Expect {
            progress: Some((Value::Null, 5)),
            text: Some("counted 5".into()),
            ..Expect::default()
        };
        let arguments = json!({ "n": 5, "delay_ms": 5 });
        self.call("slow_count", arguments, expect).await;
    }

    async fn ask(&self) {
        let question = self.unique("question");
        let expect = Expect {
            text: Some(Answer::to(&question).result_text()),
            questions: vec![question.clone()],
            ..Expect::default()
        };
        let done = self
            .call("ask", json!({ "message": question }), expect)
            .await;
        if let Some((_, at)) = done {
            let inbox = self.app.inbox.lock();
            let asked = inbox
                .questions
                .get(&question)
                .and_then(|times| times.first());
            if let Some(asked) = asked {
                self.world.tally.elicit_took(*asked, at);
            }
        }
    }

    async fn log(&self) {
        let tag = self.unique("log");
        let expect = Expect {
            text: Some(format!("logged {LOGS}")),
            ..Expect::default()
        };
        self.logs.lock().push(ExpectedLogs {
            tag: tag.clone(),
            total: LOGS,
            excused: false,
        });
        let began = Instant::now();
        let done = self
            .call("log", json!({ "n": LOGS, "tag": tag }), expect)
            .await;
        if done.is_none() || self.world.outages.excuse(None, began) {
            for logs in self.logs.lock().iter_mut() {
                logs.excused |= logs.tag == tag;
            }
        }
    }

    async fn cancel(&self) {
        let world = &self.world;
        world.tally.count(|counts| counts.calls += 1);
        let began = Instant::now();
        let tag = self.unique("cancel");
        let arguments = json!({ "n": 5_000, "delay_ms": 15, "tag": tag });
        let work = async {
            let handle = self.send("slow_count", &arguments).await?;
            let token = json!(handle.progress_token);
            self.await_progress(&token, 2).await;
            handle
                .cancel(Some("the user went on".into()))
                .await
                .map_err(|error| refused(&error))?;
            world.tally.count(|counts| counts.cancels += 1);
            self.stopped(&tag, began).await
        };
        if let Err(trouble) = world.within(work).await {
            world.count(&trouble, &format!("{} cancel", self.label), None, began);
        }
        world.tally.call_ended();
    }

    /// Asks until the server says that the handler was cancelled.
    async fn stopped(&self, tag: &str, began: Instant) -> Result<(), Trouble> {
        let mut backoff = Backoff::new();
        loop {
            let handle = self.send("call_status", &json!({ "tag": tag })).await?;
            let result = handle
                .await_response()
                .await
                .map_err(|error| refused(&error))?;
            let message = json!({ "result": result });
            let state = check::result_text(&message).unwrap_or_default();
            if state.starts_with("cancelled") {
                return Ok(());
            }
            let over = !state.starts_with("running") && !state.starts_with("unknown");
            if over || self.world.outages.excuse(None, began) {
                return Err(Trouble::Refused {
                    instance: None,
                    text: format!("{tag} should be cancelled and is {state}"),
                });
            }
            backoff.pause().await;
        }
    }
}
