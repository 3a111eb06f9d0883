//! The example server: a few tools that make the promises of the adapters
//! visible, plus the fixtures of the official conformance suite.
#![expect(
    deprecated,
    reason = "2026-07-28 deprecates logging, sampling and roots; the revisions with sessions use them"
)]

mod fixtures;
mod ledger;
mod tools;

use std::sync::Arc;

use parking_lot::Mutex;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    handler::server::{router::tool::ToolRouter, tool::ToolCallContext},
    model::{
        CacheScope, CallToolRequestParams, CallToolResponse, CompleteRequestParams, CompleteResult,
        GetPromptRequestParams, GetPromptResponse, Implementation, ListPromptsResult,
        ListResourceTemplatesResult, ListResourcesResult, ListToolsResult, LoggingLevel,
        PaginatedRequestParams, ReadResourceRequestParams, ReadResourceResponse, RequestStateCodec,
        ServerCapabilities, ServerInfo, SetLevelRequestParams, SubscribeRequestParams, Tool,
        UnsubscribeRequestParams,
    },
    service::RequestContext,
};

use self::ledger::Ledger;
use crate::{backend::FleetHandle, error::Failure};

/// Key that seals the request state of stateless calls. All instances of a fleet
/// need the same one: the next round may reach another instance.
#[derive(Clone)]
pub(crate) struct StateKey([u8; RequestStateCodec::MIN_KEY_LENGTH]);

impl StateKey {
    /// A new secret from the operating system.
    pub(crate) fn generate() -> Result<Self, Failure> {
        let mut key = [0; RequestStateCodec::MIN_KEY_LENGTH];
        getrandom::fill(&mut key)
            .map_err(|error| Failure::new(format!("no random bytes from the system: {error}")))?;
        Ok(Self(key))
    }

    /// For the environment of another instance.
    pub(crate) fn to_text(&self) -> String {
        use std::fmt::Write as _;
        self.0.iter().fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// What [`to_text`](Self::to_text) gave.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let mut key = [0; RequestStateCodec::MIN_KEY_LENGTH];
        let pairs = text.as_bytes().chunks_exact(2);
        if !text.is_ascii() || text.len() != 2 * key.len() {
            return None;
        }
        for (byte, pair) in key.iter_mut().zip(pairs) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(key))
    }
}

impl std::fmt::Debug for StateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateKey").finish_non_exhaustive()
    }
}

/// What all sessions of one instance share.
#[derive(Debug)]
pub(crate) struct Instance {
    name: String,
    ledger: Ledger,
    state: RequestStateCodec,
}

impl Instance {
    /// An instance that answers `whoami` with `name`.
    pub(crate) fn new(name: impl Into<String>, key: &StateKey) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            ledger: Ledger::default(),
            state: RequestStateCodec::new_unchecked(key.0),
        })
    }
}

/// The handler of one session at one instance.
#[derive(Debug, Clone)]
pub(crate) struct ExampleServer {
    instance: Arc<Instance>,
    /// Reaches clients at every instance.
    fleet: FleetHandle,
    /// Set by `logging/setLevel`; a restored session gets the request again.
    level: Arc<Mutex<LoggingLevel>>,
    tools: ToolRouter<Self>,
}

impl ExampleServer {
    /// A handler for a new or restored session.
    pub(crate) fn new(instance: Arc<Instance>, fleet: FleetHandle) -> Self {
        Self {
            instance,
            fleet,
            level: Arc::new(Mutex::new(LoggingLevel::Info)),
            tools: Self::example_tools(),
        }
    }

    fn may_log(&self, level: LoggingLevel) -> bool {
        ledger::severity(level) >= ledger::severity(*self.level.lock())
    }
}

impl ServerHandler for ExampleServer {
    fn get_info(&self) -> ServerInfo {
        ServerInfo::new(
            ServerCapabilities::builder()
                .enable_completions()
                .enable_logging()
                .enable_prompts()
                .enable_prompts_list_changed()
                .enable_resources()
                .enable_resources_list_changed()
                .enable_resources_subscribe()
                .enable_tools()
                .enable_tool_list_changed()
                .build(),
        )
        .with_server_info(Implementation::new("fleet", env!("CARGO_PKG_VERSION")))
        .with_instructions("Example server of mcp-adapters: any instance can serve any request.")
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.tools
            .get(name)
            .cloned()
            .or_else(|| fixtures::tools::get(name))
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let mut tools = self.tools.list_all();
        tools.extend(fixtures::tools::list());
        Ok(ListToolsResult::with_all_items(tools)
            .with_ttl_ms(fixtures::CACHE_TTL_MS)
            .with_cache_scope(CacheScope::Public))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if self.tools.has_route(&request.name) {
            self.tools
                .call(ToolCallContext::new(self, request, context))
                .await
        } else {
            fixtures::tools::call(self, request, context).await
        }
    }

    async fn list_resources(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(fixtures::resources::list())
    }

    async fn list_resource_templates(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(fixtures::resources::templates())
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        fixtures::resources::read(&request.uri)
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        fixtures::resources::known(&request.uri)
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        fixtures::resources::known(&request.uri)
    }

    async fn list_prompts(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(fixtures::prompts::list())
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        fixtures::prompts::get(request)
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        fixtures::prompts::complete(&request)
    }

    async fn set_level(
        &self,
        request: SetLevelRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        *self.level.lock() = request.level;
        Ok(())
    }

    fn accepted_subscription_filter(
        &self,
        requested: &rmcp::model::SubscriptionFilter,
    ) -> Option<rmcp::model::SubscriptionFilter> {
        Some(requested.supported_by(&self.get_info().capabilities))
    }

    async fn listen(&self, context: rmcp::service::SubscriptionContext) -> Result<(), ErrorData> {
        self.fleet.listen(context).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_the_way_to_another_process() {
        let key = StateKey::generate().unwrap();
        let text = key.to_text();
        assert_eq!(StateKey::from_text(&text).unwrap().0, key.0);
        assert!(!format!("{key:?}").contains(&text));
        for bad in [
            "",
            "00",
            &text[1..],
            &text.replace(char::is_alphanumeric, "g"),
        ] {
            assert!(StateKey::from_text(bad).is_none(), "{bad}");
        }
    }
}
