//! What the guest speaks: MCP, one JSON-RPC message a line. Each connection is served on its own;
//! how much one may ask for at once is bounded, and so is a line.

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientNotification, ContentBlock,
    Implementation, JsonRpcMessage, ListToolsResult, MetaObject, PaginatedRequestParams, RequestId,
    ServerCapabilities, ServerConfig, Tool as Listed, ToolAnnotations,
};
use rmcp::service::{RequestContext, RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use rmcp::transport::async_rw::AsyncRwTransport;
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::{Value, json};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};

use crate::error::CallError;
use crate::pipeline::Pipeline;
use crate::registry::Tool;
use bulkhead_toolbox::Risk;

/// Longest line of a guest in bytes. Parsed it may take some twenty times as much, and as many lines as
/// there are connections times requests are in memory at once.
pub const MAX_LINE: usize = 2 * 1024 * 1024;
/// Most connections at a time; further ones wait.
pub const MAX_CONNECTIONS: usize = 8;
/// Most requests of a connection that are not answered yet; further ones are not read.
pub const MAX_REQUESTS: usize = 2;
/// Most calls that are under way, those that wait for a person among them: who is asked to read no more
/// than is answered has no others.
pub const MAX_UNDER_WAY: usize = MAX_CONNECTIONS * MAX_REQUESTS;
/// Where the number of a call is in its result.
const CALL: &str = "bulkhead/call";

/// Serves connections until the listener fails.
///
/// # Errors
/// The host refuses.
pub(crate) async fn serve(listener: UnixListener, pipeline: Arc<Pipeline>) -> io::Result<()> {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut number = 0_u64;
    loop {
        let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        let place = connections.clone().acquire_owned().await.map_err(closed)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // The peer was gone again before it was served.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        number += 1;
        let server = Server {
            pipeline: pipeline.clone(),
            task: format!("connection {number}"),
        };
        tokio::spawn(async move {
            let _place = place;
            // A peer that breaks the protocol loses its connection, and nobody else theirs.
            if let Ok(running) = rmcp::serve_server(server, Bounded::new(stream)).await {
                let _ = running.waiting().await;
            }
        });
    }
}

/// The tools of a partition, on one connection.
struct Server {
    pipeline: Arc<Pipeline>,
    /// An agent that begins another piece of work connects anew.
    task: String,
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().build();
        ServerConfig::new(capabilities).with_server_info(Implementation::new(
            "bulkhead-tools",
            env!("CARGO_PKG_VERSION"),
        ))
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let tools = self.pipeline.tools().map(listed).collect();
        Ok(ListToolsResult::with_all_items(tools))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let internal = || ErrorData::internal_error("the call ended without a result", None);
        let (pipeline, task) = (self.pipeline.clone(), self.task.clone());
        let called = tokio::task::spawn_blocking(move || {
            let arguments = Value::Object(request.arguments.unwrap_or_default());
            pipeline.call_in(Some(&task), &request.name, &arguments)
        });
        match called.await.map_err(|_| internal())? {
            Ok(done) => {
                let mut result = CallToolResult::structured(done.result);
                if done.reversible {
                    let call = done.call;
                    let hint = format!("call {call} can be rolled back: tool.rollback");
                    result.content.push(ContentBlock::text(hint));
                    let meta = json!({ CALL: call }).as_object().cloned();
                    result = result.with_meta(meta.map(MetaObject));
                }
                Ok(result.into())
            }
            Err(error @ CallError::Unknown(_)) => {
                Err(ErrorData::invalid_params(error.to_string(), None))
            }
            Err(error) => {
                let text = ContentBlock::text(error.to_string());
                Ok(CallToolResult::error(vec![text]).into())
            }
        }
    }
}

fn listed(tool: &Tool) -> Listed {
    let facts = tool.facts;
    let mut listed = Listed::default();
    listed.name = facts.name.into();
    listed.description = Some(facts.summary.into());
    listed.input_schema = Arc::new(tool.input.clone());
    listed.output_schema = Some(Arc::new(tool.output.clone()));
    listed.annotations = Some(ToolAnnotations::from_raw(
        None,
        Some(facts.risk == Risk::Read),
        Some(facts.risk == Risk::Destructive),
        Some(facts.idempotent),
        Some(facts.risk == Risk::Network),
    ));
    let meta = json!({
        "bulkhead/version": facts.version,
        "bulkhead/risk": facts.risk.as_str(),
        "bulkhead/needs": facts.needs,
        "bulkhead/rollback": facts.rollback,
        "bulkhead/timeout": facts.timeout.as_secs(),
    });
    listed.meta = meta.as_object().cloned().map(MetaObject);
    listed
}

/// A connection of which no more is read than is answered.
struct Bounded {
    stream: AsyncRwTransport<RoleServer, OwnedReadHalf, OwnedWriteHalf>,
    unanswered: Arc<Unanswered>,
}

/// Requests without an answer.
#[derive(Default)]
struct Unanswered {
    requests: Mutex<HashSet<RequestId>>,
    fewer: Notify,
}

impl Unanswered {
    async fn room(&self) {
        loop {
            let fewer = self.fewer.notified();
            if self.with(|requests| requests.len() < MAX_REQUESTS) {
                return;
            }
            fewer.await;
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashSet<RequestId>) -> T) -> T {
        act(&mut self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Bounded {
    fn new(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self {
            stream: AsyncRwTransport::new_server(read, write).with_max_line_length(MAX_LINE),
            unanswered: Arc::default(),
        }
    }
}

impl Transport<RoleServer> for Bounded {
    type Error = io::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = Result<(), io::Error>> + Send + 'static {
        let answered = match &item {
            JsonRpcMessage::Response(response) => Some(response.id.clone()),
            JsonRpcMessage::Error(error) => error.id.clone(),
            JsonRpcMessage::Request(_) | JsonRpcMessage::Notification(_) => None,
        };
        let sending = self.stream.send(item);
        let unanswered = self.unanswered.clone();
        async move {
            let sent = sending.await;
            if let Some(id) = answered {
                unanswered.with(|requests| requests.remove(&id));
                unanswered.fewer.notify_one();
            }
            sent
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        loop {
            self.unanswered.room().await;
            let message = self.stream.receive().await?;
            match &message {
                JsonRpcMessage::Request(request) => {
                    let id = request.id.clone();
                    // Two that are answered by one name: nobody could tell the answers apart.
                    return self
                        .unanswered
                        .with(|requests| requests.insert(id))
                        .then_some(message);
                }
                // A call that was begun is done to its end, and answered.
                JsonRpcMessage::Notification(notification) => {
                    if !matches!(
                        notification.notification,
                        ClientNotification::CancelledNotification(_)
                    ) {
                        return Some(message);
                    }
                }
                // Nothing was asked of a client.
                JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => {}
            }
        }
    }

    async fn close(&mut self) -> Result<(), io::Error> {
        self.stream.close().await
    }
}
