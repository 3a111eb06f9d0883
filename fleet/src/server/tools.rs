//! The tools that the load generator calls.

use std::time::Duration;

use rmcp::{
    ErrorData, RoleServer,
    handler::server::{tool::InputResponses, wrapper::Parameters},
    model::{
        CallToolResponse, CallToolResult, ContentBlock, ElicitRequest, ElicitRequestParams,
        ElicitResult, ElicitationAction, ElicitationSchema, InputRequest, InputRequests,
        InputRequiredResult, LoggingLevel, LoggingMessageNotificationParam,
        ProgressNotificationParam, ProtocolVersion,
    },
    service::RequestContext,
    tool, tool_router,
};
use serde::Deserialize;
use serde_json::json;

use super::{ExampleServer, ledger::CallState};
use crate::backend;

/// Bounds of `slow_count` and `log`: a caller cannot occupy a server for ever.
const MAX_COUNT: u32 = 100_000;
const MAX_DELAY: Duration = Duration::from_secs(60);
/// Key of the only input request of `ask` under 2026-07-28.
const ASK_KEY: &str = "answer";

#[derive(Debug, Deserialize, schemars::JsonSchema)]
pub(super) struct EchoArgs {
    /// Returned as it is.
    message: String,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
pub(super) struct CountArgs {
    /// How far to count.
    n: u32,
    /// Pause before each number, in milliseconds.
    #[serde(default)]
    delay_ms: u64,
    /// Name under which `call_status` can be asked about this call.
    #[serde(default)]
    tag: Option<String>,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
pub(super) struct StatusArgs {
    /// Tag given to `slow_count`.
    tag: String,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
pub(super) struct AskArgs {
    /// Question to put to the user.
    message: String,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
pub(super) struct LogArgs {
    /// How many messages to send.
    n: u32,
    /// Copied into each message.
    #[serde(default)]
    tag: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    answer: String,
    confirm: bool,
}

#[tool_router(router = example_tools, vis = "pub(super)")]
impl ExampleServer {
    #[tool(description = "Returns the message")]
    async fn echo(&self, Parameters(EchoArgs { message }): Parameters<EchoArgs>) -> String {
        message
    }

    #[tool(description = "Returns the name of the instance that serves this request")]
    async fn whoami(&self) -> String {
        self.instance.name.clone()
    }

    #[tool(description = "Counts from 1 to n, one progress notification each")]
    async fn slow_count(
        &self,
        Parameters(CountArgs { n, delay_ms, tag }): Parameters<CountArgs>,
        context: RequestContext<RoleServer>,
    ) -> Result<String, ErrorData> {
        let delay = Duration::from_millis(delay_ms);
        if n > MAX_COUNT || delay > MAX_DELAY {
            return Err(ErrorData::invalid_params(
                "n or delay_ms is too large",
                None,
            ));
        }
        let token = context.meta.get_progress_token();
        let mut run = self.instance.ledger.begin(tag.clone());
        for i in 1..=n {
            tokio::select! {
                biased;
                () = context.ct.cancelled() => {
                    run.end(CallState::Cancelled);
                    leave_note(&context, tag, CallState::Cancelled, i - 1).await;
                    return Err(ErrorData::internal_error("cancelled", None));
                }
                () = tokio::time::sleep(delay) => {}
            }
            if let Some(token) = &token {
                let progress = ProgressNotificationParam::new(token.clone(), f64::from(i))
                    .with_total(f64::from(n));
                // A client that went away can resume: the count goes on.
                let _ = context.peer.notify_progress(progress).await;
            }
            run.counted(i);
        }
        run.end(CallState::Finished);
        leave_note(&context, tag, CallState::Finished, n).await;
        Ok(format!("counted {n}"))
    }

    #[tool(
        description = "State of a tagged slow_count call of this session: running, cancelled, finished, dropped or unknown, and its count"
    )]
    async fn call_status(
        &self,
        Parameters(StatusArgs { tag }): Parameters<StatusArgs>,
        context: RequestContext<RoleServer>,
    ) -> String {
        match self.instance.ledger.get(&tag) {
            Some((state, counted)) => format!("{} {counted}", state.as_str()),
            // It ran at another instance.
            None => backend::noted(&context, &tag)
                .await
                .unwrap_or_else(|| "unknown 0".into()),
        }
    }

    #[tool(description = "Asks the user and returns what they answered")]
    async fn ask(
        &self,
        Parameters(AskArgs { message }): Parameters<AskArgs>,
        InputResponses(responses): InputResponses,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let form = ask_form(message)?;
        let modern = context
            .protocol_version()
            .is_some_and(|version| version >= ProtocolVersion::V_2026_07_28);
        if modern {
            // This revision has no requests from server to client: the call ends
            // with what it needs and is sent again with the answer.
            let answer = responses
                .as_ref()
                .and_then(|responses| responses.get(ASK_KEY))
                .and_then(|value| serde_json::from_value::<ElicitResult>(value.clone()).ok());
            return match answer {
                Some(answer) => Ok(answered(answer).into()),
                None => {
                    let mut requests = InputRequests::new();
                    requests.insert(
                        ASK_KEY.into(),
                        InputRequest::Elicitation(ElicitRequest::new(form)),
                    );
                    Ok(InputRequiredResult::from_input_requests(requests).into())
                }
            };
        }
        match context.peer.create_elicitation(form).await {
            Ok(answer) => Ok(answered(answer).into()),
            Err(error) => Ok(text_error(format!("no answer: {error}")).into()),
        }
    }

    #[tool(description = "Sends n log messages at level info")]
    async fn log(
        &self,
        Parameters(LogArgs { n, tag }): Parameters<LogArgs>,
        context: RequestContext<RoleServer>,
    ) -> Result<String, ErrorData> {
        if n > MAX_COUNT {
            return Err(ErrorData::invalid_params("n is too large", None));
        }
        if self.may_log(LoggingLevel::Info) {
            for i in 1..=n {
                let data = json!({ "n": i, "of": n, "tag": tag });
                let message = LoggingMessageNotificationParam::new(LoggingLevel::Info, data)
                    .with_logger("fleet");
                context
                    .peer
                    .notify_logging_message(message)
                    .await
                    .map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
            }
        }
        Ok(format!("logged {n}"))
    }
}

async fn leave_note(
    context: &RequestContext<RoleServer>,
    tag: Option<String>,
    state: CallState,
    counted: u32,
) {
    if let Some(tag) = tag {
        backend::note(context, &tag, &format!("{} {counted}", state.as_str())).await;
    }
}

fn ask_form(message: String) -> Result<ElicitRequestParams, ErrorData> {
    let schema = ElicitationSchema::builder()
        .required_string("answer")
        .required_bool("confirm")
        .build()
        .map_err(|error| ErrorData::internal_error(error, None))?;
    Ok(ElicitRequestParams::FormElicitationParams {
        meta: None,
        message,
        requested_schema: schema,
    })
}

fn answered(result: ElicitResult) -> CallToolResult {
    match result.action {
        ElicitationAction::Decline => text("decline"),
        ElicitationAction::Cancel => text("cancel"),
        ElicitationAction::Accept => {
            match serde_json::from_value::<Answer>(result.content.unwrap_or_default()) {
                Ok(Answer { answer, confirm }) => text(format!("accept: {answer} {confirm}")),
                Err(error) => text_error(format!("the answer does not fit its form: {error}")),
            }
        }
        other => text_error(format!("unknown action {other:?}")),
    }
}

fn text(text: impl Into<String>) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text)])
}

fn text_error(text: impl Into<String>) -> CallToolResult {
    CallToolResult::error(vec![ContentBlock::text(text)])
}
