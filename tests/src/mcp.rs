//! A guest's way to its tools: a client of the Model Context Protocol on the socket behind which the
//! supervisor has a partition's tools, where the VMM connects for the guest.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// How long an answer may take: a hang ends, and nothing is judged by it.
const PATIENCE: Duration = Duration::from_secs(300);

/// A connection.
#[derive(Debug)]
pub struct Mcp {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
    last: u64,
}

impl Mcp {
    /// Connects to the tools behind this socket and introduces itself.
    pub fn connect(socket: &Path) -> Self {
        let mut mcp = Self::silent(socket);
        let client = json!({ "name": "test", "version": "1" });
        let hello = json!({
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client,
        });
        mcp.ask("initialize", &hello);
        let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        assert!(mcp.line(format!("{ready}\n").as_bytes()), "it is there");
        mcp
    }

    /// Connects and says nothing yet.
    pub fn silent(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the tools are there");
        let limit = stream.set_read_timeout(Some(PATIENCE));
        limit.expect("a socket");
        let answers = BufReader::new(stream.try_clone().expect("a descriptor is left"));
        Self {
            stream,
            answers,
            last: 0,
        }
    }

    /// Sends bytes as they are; whether they could be sent.
    pub fn line(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends a request; its number.
    pub fn send(&mut self, method: &str, params: &Value) -> u64 {
        self.last += 1;
        let id = self.last;
        let line = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        assert!(self.line(format!("{line}\n").as_bytes()), "it is there");
        id
    }

    /// The next answer; nothing where the connection has ended.
    pub fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(1..) => Some(serde_json::from_str(&line).expect("an answer is JSON")),
            _ => None,
        }
    }

    /// Asks and waits for the answer.
    #[track_caller]
    pub fn ask(&mut self, method: &str, params: &Value) -> Value {
        let id = self.send(method, params);
        let answer = self.hear().expect("an answer");
        assert_eq!(answer["id"], id, "{answer}");
        answer
    }

    /// Calls a tool: what it gave, or why not.
    ///
    /// # Errors
    /// The call was refused, or failed: the text that the guest gets.
    #[track_caller]
    pub fn call(&mut self, tool: &str, arguments: &Value) -> Result<Value, String> {
        let answer = self.ask(
            "tools/call",
            &json!({ "name": tool, "arguments": arguments }),
        );
        outcome(&answer)
    }
}

/// What a call's answer says.
///
/// # Errors
/// As [`Mcp::call`].
pub fn outcome(answer: &Value) -> Result<Value, String> {
    let result = &answer["result"];
    if result["isError"] == false {
        return Ok(result.clone());
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let why = text(&answer["error"]["message"]).or_else(|| text(&result["content"][0]["text"]));
    Err(why.unwrap_or_else(|| answer.to_string()))
}
