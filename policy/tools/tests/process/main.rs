//! `bulkhead-tools` as a process in its jail, called over its socket by a guest that the tests play, in
//! the plain JSON lines that any language can write.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod consent;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, IoSlice, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_capability::{Autonomy, Capability};
use bulkhead_network::tools::{MAX_PACKET, Wanted};
use bulkhead_record::wire::{Answer, MAX_REQUEST_BYTES, Outcome, Request};
use bulkhead_record::{Entry, Kind};
use bulkhead_toolbox::{Directory, Fd, Jail, Limits, ToolsDescription, VERSION};
use command_fds::CommandFdExt;
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, send, sendmsg, socketpair,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tools::limiter::{HostClock, Limiter};

/// So that a hang ends.
const PATIENCE: Duration = Duration::from_secs(120);

/// A process, its directories, and its ledger.
struct Tools {
    process: Child,
    socket: PathBuf,
    data: PathBuf,
    entries: Arc<Mutex<Vec<Entry>>>,
    /// Our end of the way into the ledger.
    ledger: Option<Arc<OwnedFd>>,
    /// Where it asks for a person's consent.
    questions: OwnedFd,
    scratch: TempDir,
}

fn directory(path: &Path) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).unwrap()
}

/// Writes down what it is asked to, as long as somebody asks.
fn keep_ledger(socket: Arc<OwnedFd>, entries: Arc<Mutex<Vec<Entry>>>) {
    let mut buffer = vec![0; MAX_REQUEST_BYTES];
    while let Ok((count @ 1.., _)) = recv(&*socket, buffer.as_mut_slice(), RecvFlags::empty()) {
        let request: Request = serde_json::from_slice(&buffer[..count]).unwrap();
        let mut entries = entries.lock().unwrap();
        entries.push(request.entry);
        let answer = Answer {
            id: request.id,
            outcome: Outcome::Recorded(entries.len() as u64),
        };
        let answer = serde_json::to_vec(&answer).unwrap();
        let _ = send(&*socket, &answer, SendFlags::NOSIGNAL);
    }
}

impl Tools {
    fn start(grants: &[&str]) -> Self {
        Self::with(grants, |_| {})
    }

    fn with(grants: &[&str], change: impl FnOnce(&mut ToolsDescription)) -> Self {
        Self::begin(grants, None, change)
    }

    /// One whose way to the web this is.
    fn with_gateway(grants: &[&str], gateway: OwnedFd) -> Self {
        Self::begin(grants, Some(gateway), |_| {})
    }

    fn begin(
        grants: &[&str],
        gateway: Option<OwnedFd>,
        change: impl FnOnce(&mut ToolsDescription),
    ) -> Self {
        let scratch = TempDir::new().unwrap();
        let (data, backups) = (scratch.path().join("data"), scratch.path().join("backups"));
        fs::create_dir(&data).unwrap();
        fs::create_dir(&backups).unwrap();
        let socket = scratch.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        let counters = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(scratch.path().join("counters"));
        let (questions, asker) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        let mut kept: Vec<OwnedFd> = vec![
            listener.into(),
            theirs,
            directory(&backups),
            directory(&data),
            counters.unwrap().into(),
            asker,
        ];
        let number = |at: usize| Fd(kept[at].as_raw_fd());
        let grants = grants
            .iter()
            .map(|grant| grant.parse::<Capability>().unwrap());
        let mut limits = Limits::default();
        limits.partition.calls = 100_000;
        limits.partition.writes = 100_000;
        limits.partition.destructive = 100_000;
        limits.all.calls = 100_000;
        limits.all.writes = 100_000;
        limits.all.destructive = 100_000;
        let mut description = ToolsDescription {
            version: VERSION,
            actor: "system/agent".to_owned(),
            listener: number(0),
            ledger: Some(number(1)),
            approvals: Some(number(5)),
            conditions: None,
            backups: number(2),
            counters: Some(number(4)),
            own_counters: None,
            gateway: gateway.as_ref().map(|gateway| Fd(gateway.as_raw_fd())),
            grants: grants.collect(),
            started: 1_800_000_000,
            directories: vec![Directory {
                path: data.clone(),
                file: number(3),
                write: true,
            }],
            autonomy: Autonomy::Full,
            limits,
            budget: None,
            jail: Jail::Full,
        };
        change(&mut description);
        kept.extend(gateway);
        let mut text = File::from(memfd_create("description", MemfdFlags::CLOEXEC).unwrap());
        text.write_all(&serde_json::to_vec(&description).unwrap())
            .unwrap();
        text.rewind().unwrap();
        let number = text.as_raw_fd();
        kept.push(text.into());
        let process = Command::new(env!("CARGO_BIN_EXE_bulkhead-tools"))
            .args(["--description-fd", &number.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .preserved_fds(kept)
            .spawn()
            .unwrap();
        let (entries, ledger) = (Arc::<Mutex<Vec<Entry>>>::default(), Arc::new(ours));
        let keeper = (ledger.clone(), entries.clone());
        thread::spawn(move || keep_ledger(keeper.0, keeper.1));
        Self {
            process,
            socket,
            data,
            entries,
            ledger: Some(ledger),
            questions,
            scratch,
        }
    }

    fn connect(&self) -> Guest {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Guest {
            reader: BufReader::new(stream.try_clone().unwrap()),
            stream,
            last: 0,
        }
    }

    /// A connection that has said hello.
    fn guest(&self) -> Guest {
        let mut guest = self.connect();
        guest.hello();
        guest
    }

    fn kinds(&self) -> Vec<Kind> {
        self.entries
            .lock()
            .unwrap()
            .iter()
            .map(|entry| entry.kind)
            .collect()
    }

    fn path(&self, name: &str) -> String {
        self.data.join(name).to_str().unwrap().to_owned()
    }

    fn status(&self, field: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A connection of the guest.
struct Guest {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    last: u64,
}

impl Guest {
    fn say(&mut self, line: &str) {
        self.stream.write_all(line.as_bytes()).unwrap();
        self.stream.write_all(b"\n").unwrap();
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        let count = self.reader.read_line(&mut line).unwrap();
        assert_ne!(count, 0, "the connection ended");
        serde_json::from_str(&line).unwrap()
    }

    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let id = self.last;
        let request = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        self.say(&request.to_string());
        let answer = self.hear();
        assert_eq!(answer["id"], id, "{answer}");
        answer
    }

    fn hello(&mut self) {
        let client = json!({ "name": "test", "version": "1" });
        let params = json!({
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client,
        });
        let answer = self.ask("initialize", params);
        assert_eq!(
            answer["result"]["serverInfo"]["name"], "bulkhead-tools",
            "{answer}"
        );
        self.say(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
    }

    fn call(&mut self, tool: &str, arguments: Value) -> Value {
        self.ask(
            "tools/call",
            json!({ "name": tool, "arguments": arguments }),
        )
    }

    /// What a call gives back that worked.
    fn done(&mut self, tool: &str, arguments: Value) -> Value {
        let answer = self.call(tool, arguments);
        assert_eq!(answer["result"]["isError"], false, "{tool}: {answer}");
        answer["result"].clone()
    }

    /// Why a call did not work.
    fn refused(&mut self, tool: &str, arguments: Value) -> String {
        let answer = self.call(tool, arguments);
        assert_eq!(answer["result"]["isError"], true, "{tool}: {answer}");
        let text = &answer["result"]["content"][0]["text"];
        text.as_str().unwrap().to_owned()
    }
}

#[test]
fn a_guest_edits_a_file_and_takes_it_back() {
    let tools = Tools::start(&["tool.call:*"]);
    fs::write(tools.data.join("f"), "before").unwrap();
    let mut guest = tools.guest();
    let listed = guest.ask("tools/list", json!({}));
    let listed = listed["result"]["tools"].as_array().unwrap();
    assert!(listed.len() >= 20, "{}", listed.len());
    let edit = listed
        .iter()
        .find(|tool| tool["name"] == "fs.edit")
        .unwrap();
    assert_eq!(edit["inputSchema"]["additionalProperties"], false);
    assert_eq!(edit["_meta"]["bulkhead/rollback"], "tool.rollback");
    let path = tools.path("f");
    let read = guest.done("fs.read", json!({ "path": path }));
    assert_eq!(read["structuredContent"]["content"], "before");
    let edited = guest.done("fs.edit", json!({ "path": path, "old": "be", "new": "BE" }));
    assert_eq!(fs::read(tools.data.join("f")).unwrap(), b"BEfore");
    let call = edited["_meta"]["bulkhead/call"].as_u64().unwrap();
    guest.done("tool.rollback", json!({ "call": call }));
    assert_eq!(fs::read(tools.data.join("f")).unwrap(), b"before");
    // They count in what all partitions share, which was open before the jail.
    let counted = tools.scratch.path().join("counters");
    let counted = File::options().read(true).write(true).open(counted);
    let mut limits = Limits::default();
    limits.all.calls = 3;
    let limiter = Limiter::new(limits, None, counted.ok(), None, Box::new(HostClock));
    let refused = limiter.begin().unwrap_err().reason;
    assert!(
        refused.contains("too many calls of all partitions"),
        "{refused}"
    );
    use Kind::{Intent, Outcome};
    assert_eq!(
        tools.kinds(),
        [Intent, Outcome, Intent, Outcome, Intent, Outcome]
    );
}

#[test]
fn a_hidden_tool_is_one_that_does_not_exist() {
    let tools = Tools::start(&["tool.call:fs.read"]);
    let mut guest = tools.guest();
    let listed = guest.ask("tools/list", json!({}));
    let names: Vec<_> = listed["result"]["tools"]
        .as_array()
        .unwrap()
        .iter()
        .collect();
    assert_eq!(names.len(), 1, "{listed}");
    let mut answer = |tool: &str| {
        let mut answer = guest.call(tool, json!({ "path": "/" }));
        answer["id"] = json!(0);
        answer.to_string().replace(tool, "TOOL")
    };
    assert_eq!(answer("fs.stat"), answer("fs.none"));
}

#[test]
fn the_process_has_nothing_but_what_was_granted() {
    let tools = Tools::start(&["tool.call:*"]);
    let mut guest = tools.guest();
    guest.done("fs.list", json!({ "path": tools.data }));
    assert_eq!(tools.status("CapEff"), "0000000000000000");
    assert_eq!(tools.status("CapBnd"), "0000000000000000");
    assert_eq!(tools.status("NoNewPrivs"), "1");
    assert_eq!(tools.status("Seccomp"), "2");
    let namespace =
        |process: &str, kind: &str| fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap();
    let process = tools.process.id().to_string();
    for kind in ["net", "mnt", "ipc", "uts"] {
        assert_ne!(namespace(&process, kind), namespace("self", kind), "{kind}");
    }
    // Its root holds the way to the directory, and nothing beside it.
    let mut at = PathBuf::from(format!("/proc/{process}/root"));
    for part in tools.data.strip_prefix("/").unwrap() {
        let entries = fs::read_dir(&at)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        assert_eq!(entries.collect::<Vec<_>>(), [part], "{}", at.display());
        at.push(part);
    }
    for path in ["/etc/passwd", "/proc/self/environ", "/", "/dev/kvm"] {
        let refused = guest.refused("fs.read", json!({ "path": path }));
        assert!(refused.contains("grant"), "{path}: {refused}");
    }
    symlink("/etc/passwd", tools.data.join("link")).unwrap();
    let refused = guest.refused("fs.read", json!({ "path": tools.path("link") }));
    assert!(refused.contains("is no regular file"), "{refused}");
}

#[test]
fn a_directory_that_is_swapped_while_calls_run_leads_nowhere() {
    let tools = Tools::start(&["tool.call:*"]);
    let outside = tools.scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "outside").unwrap();
    let (here, away) = (tools.data.join("d"), tools.data.join("away"));
    fs::create_dir(&here).unwrap();
    fs::write(here.join("f"), "inside").unwrap();
    symlink(&outside, tools.data.join("s")).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let swapping = {
        let (over, link) = (over.clone(), tools.data.join("s"));
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let _ = fs::rename(&here, &away);
                let _ = fs::rename(&link, &here);
                let _ = fs::rename(&here, &link);
                let _ = fs::rename(&away, &here);
            }
        })
    };
    let mut guest = tools.guest();
    let mut read = 0;
    for number in 0..400 {
        let answer = guest.call("fs.read", json!({ "path": tools.path("d/f") }));
        read += usize::from(answer["result"]["isError"] == false);
        assert!(!answer.to_string().contains("\"outside\""), "{answer}");
        let path = tools.path(&format!("d/new-{number}"));
        guest.call("fs.write", json!({ "path": path, "content": "x" }));
        guest.call(
            "fs.write",
            json!({ "path": tools.path("d/f"), "content": "inside" }),
        );
    }
    over.store(true, Ordering::Relaxed);
    swapping.join().unwrap();
    assert_ne!(read, 0, "the swaps hid the file throughout");
    let names: BTreeSet<_> = fs::read_dir(&outside)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, BTreeSet::from(["f".into()]));
    assert_eq!(fs::read(outside.join("f")).unwrap(), b"outside");
}

#[test]
fn frames_that_lie_cost_their_connection_at_most() {
    let tools = Tools::start(&["tool.call:*"]);
    let mut honest = tools.guest();
    let deep = format!(
        r#"{{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{{"name":"fs.stat","arguments":{}{}}}}}"#,
        "{\"a\":".repeat(100_000),
        "}".repeat(100_000)
    );
    let huge = format!(
        "{{\"jsonrpc\":\"2.0\",\"x\":\"{}\"}}",
        "x".repeat(9 * 1024 * 1024)
    );
    let ping = r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#;
    for line in [
        "",
        "nonsense",
        "null",
        "[]",
        "{}",
        "\"\"",
        "\u{0}",
        "{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"ping\"}",
        "{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"ping\"}",
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\"}",
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":[]}",
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"no/such\"}",
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}",
        "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/cancelled\",\"params\":{\"requestId\":1}}",
        &deep,
        &huge,
    ] {
        let mut guest = tools.guest();
        guest.say(line);
        // Whatever it makes of the line, it goes on with the next, or ends the connection.
        let _ = guest.stream.write_all(format!("{ping}\n").as_bytes());
        let _ = guest.stream.shutdown(Shutdown::Write);
        let mut rest = Vec::new();
        match guest.reader.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{line:.60}"),
        }
        honest.done("fs.stat", json!({ "path": tools.data }));
    }
    // Before it has said hello.
    for line in [
        "nonsense",
        ping,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"fs.roots"}}"#,
    ] {
        let mut guest = tools.connect();
        guest.say(line);
        let _ = guest.stream.shutdown(Shutdown::Write);
        let _ = guest.reader.read_to_end(&mut Vec::new());
    }
    // Two requests of one number, of which one is being answered.
    let mut guest = tools.guest();
    let call = r#"{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"fs.roots","arguments":{}}}"#;
    let _ = guest
        .stream
        .write_all(format!("{call}\n{call}\n{call}\n").as_bytes());
    let _ = guest.stream.shutdown(Shutdown::Write);
    let _ = guest.reader.read_to_end(&mut Vec::new());
    honest.done("fs.stat", json!({ "path": tools.data }));
}

/// Memory that the process has, in kB.
fn resident(tools: &Tools) -> u64 {
    let text = tools.status("VmRSS");
    text.trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn one_that_asks_and_does_not_read_holds_up_itself_alone() {
    let tools = Tools::start(&["tool.call:*"]);
    let mut honest = tools.guest();
    let before = resident(&tools);
    let mut deaf = tools.guest();
    deaf.stream
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    fs::write(tools.data.join("f"), "x".repeat(512 * 1024)).unwrap();
    let mut asked = 0_u64;
    // Until nothing more is taken: how long that takes does not matter.
    loop {
        asked += 1;
        let params = json!({ "name": "fs.read", "arguments": { "path": tools.path("f") } });
        let call =
            json!({ "jsonrpc": "2.0", "id": asked + 10, "method": "tools/call", "params": params });
        if deaf
            .stream
            .write_all(format!("{call}\n").as_bytes())
            .is_err()
        {
            break;
        }
    }
    honest.done("fs.stat", json!({ "path": tools.data }));
    let after = resident(&tools);
    assert!(
        after < before + 64 * 1024,
        "{before} kB, then {after} kB after {asked} calls"
    );
}

#[test]
fn further_connections_wait_for_a_place() {
    let tools = Tools::start(&["tool.call:*"]);
    let mut guests: Vec<Guest> = (0..tools::mcp::MAX_CONNECTIONS)
        .map(|_| tools.guest())
        .collect();
    let late = tools.connect();
    late.stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let hello = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;
    (&late.stream)
        .write_all(format!("{hello}\n").as_bytes())
        .unwrap();
    let mut line = String::new();
    let mut reader = BufReader::new(late.stream.try_clone().unwrap());
    let error = reader.read_line(&mut line).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    guests.pop();
    late.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    reader.read_line(&mut line).unwrap();
    assert!(line.contains("bulkhead-tools"), "{line}");
}

#[test]
fn without_a_ledger_no_tool_runs() {
    let tools = Tools::with(&["tool.call:*"], |description| description.ledger = None);
    let mut guest = tools.guest();
    let refused = guest.refused(
        "fs.write",
        json!({ "path": tools.path("f"), "content": "x" }),
    );
    assert!(refused.starts_with("it was not done: "), "{refused}");
    assert!(!tools.data.join("f").exists());
}

#[test]
fn when_the_ledger_is_gone_no_tool_runs_any_more() {
    let mut tools = Tools::start(&["tool.call:*"]);
    let mut guest = tools.guest();
    guest.done(
        "fs.write",
        json!({ "path": tools.path("f"), "content": "x" }),
    );
    let ledger = tools.ledger.take().unwrap();
    rustix::net::shutdown(&*ledger, rustix::net::Shutdown::Both).unwrap();
    drop(ledger);
    let refused = guest.refused(
        "fs.write",
        json!({ "path": tools.path("g"), "content": "x" }),
    );
    assert!(refused.starts_with("it was not done: "), "{refused}");
    assert!(!tools.data.join("g").exists());
}

#[test]
fn programs_run_from_inside_the_jail() {
    let grants = ["tool.call:*", "exec:/usr/bin/perl", "exec:/usr/bin/git"];
    let tools = Tools::start(&grants);
    let repository = tools.data.join("repository");
    let init = ["init", "--quiet", "--initial-branch=main"];
    let made = Command::new("/usr/bin/git")
        .args(init)
        .arg(&repository)
        .status();
    assert!(made.unwrap().success());
    let mut guest = tools.guest();
    guest.done(
        "fs.write",
        json!({ "path": repository.join("f"), "content": "x\n" }),
    );
    guest.done(
        "git.add",
        json!({ "repository": repository, "paths": ["f"] }),
    );
    guest.done(
        "git.commit",
        json!({ "repository": repository, "message": "by a tool" }),
    );
    let log = guest.done("git.log", json!({ "repository": repository }));
    assert!(
        log["structuredContent"]["output"]
            .as_str()
            .unwrap()
            .contains("by a tool"),
        "{log}"
    );
    // From within, there is nothing of the host but what programs need.
    let script = "for ('/', '/etc', '/proc', '/home', '/root') { opendir D, $_ or print \"$!,\";
        print -e \"$_/passwd\" ? 'there,' : 'absent,' }";
    let arguments = json!({
        "program": "/usr/bin/perl", "arguments": ["-e", script], "directory": tools.data,
    });
    let seen = guest.done("process.run", arguments);
    let seen = seen["structuredContent"]["stdout"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(!seen.contains("there"), "{seen}");
    let other = json!({ "program": "/usr/bin/env", "directory": tools.data });
    guest.refused("process.run", other);
}

/// Processes of the host whose command line has this in it, other than this one.
fn processes_with(marker: &str) -> usize {
    let own = std::process::id().to_string();
    let all = fs::read_dir("/proc").unwrap().flatten();
    let all = all.filter(|entry| *entry.file_name() != *own);
    let lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| String::from_utf8_lossy(line).contains(marker))
        .count()
}

fn expect_gone(marker: &str) {
    let end = Instant::now() + PATIENCE;
    while processes_with(marker) != 0 {
        assert!(Instant::now() < end, "{marker} goes on");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn programs_are_gone_when_the_tools_are_killed() {
    let mut tools = Tools::start(&["tool.call:*", "exec:/usr/bin/perl"]);
    let mut guest = tools.guest();
    // One that goes on, with what it has left behind, and one whose call is waited for.
    let script = |marker: &str| {
        format!(
            "require POSIX; if (!fork) {{ POSIX::setsid(); $0 = '{marker}'; sleep 1000 }} sleep 1000"
        )
    };
    let arguments = |marker: &str| {
        json!({ "program": "/usr/bin/perl", "directory": tools.data,
                "arguments": ["-e", script(marker), marker] })
    };
    let (started, running) = ("orphan-a-62fa", "orphan-b-62fa");
    guest.done("process.start", arguments(started));
    let params = json!({ "name": "process.run", "arguments": arguments(running) });
    let call = json!({ "jsonrpc": "2.0", "id": 99, "method": "tools/call", "params": params });
    guest.say(&call.to_string());
    let end = Instant::now() + PATIENCE;
    // Two stages, the program, and its own child.
    while processes_with(started) < 4 || processes_with(running) < 4 {
        assert!(Instant::now() < end, "they do not start");
        thread::sleep(Duration::from_millis(5));
    }
    tools.process.kill().unwrap();
    tools.process.wait().unwrap();
    expect_gone(started);
    expect_gone(running);
}

#[test]
fn a_program_outlives_the_thread_of_its_call() {
    let tools = Tools::start(&["tool.call:*", "exec:/usr/bin/perl"]);
    let mut guest = tools.guest();
    let arguments = json!({
        "program": "/usr/bin/perl", "directory": tools.data, "write": true,
        "arguments": ["-e", "sleep 1 until -e 'go'; print 'went'"],
    });
    let started = guest.done("process.start", arguments);
    let job = started["structuredContent"]["job"].clone();
    // Longer than the runtime keeps a thread that has nothing to do.
    thread::sleep(Duration::from_secs(11));
    fs::write(tools.data.join("go"), "").unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        let output = guest.done("process.output", json!({ "job": job }));
        let output = &output["structuredContent"];
        if output["stdout"] == "went" {
            break;
        }
        assert_eq!(output["running"], true, "{output}");
        assert!(Instant::now() < end, "it does not end");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_jailed_process_reaches_the_web_through_its_gateway_alone() {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
    let gateway = thread::spawn(move || {
        let mut buffer = [0; MAX_PACKET];
        let (length, _) = recv(&ours, &mut buffer[..], RecvFlags::empty()).unwrap();
        let wanted: Wanted = serde_json::from_slice(&buffer[..length]).unwrap();
        let (stream, mut own) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let answer = serde_json::json!({ "id": wanted.id }).to_string();
        let passed = [stream.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&passed)));
        let parts = [IoSlice::new(answer.as_bytes())];
        sendmsg(&ours, &parts, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        let mut request = vec![0; 4096];
        let length = own.read(&mut request).unwrap();
        own.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
            .unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    let grants = ["tool.call:http.get", "net.connect:api.example:443"];
    let tools = Tools::with_gateway(&grants, theirs);
    let mut guest = tools.guest();
    let got = guest.done("http.get", json!({ "url": "https://api.example/x" }));
    assert_eq!(got["structuredContent"]["text"], "hi", "{got}");
    assert!(gateway.join().unwrap().starts_with("GET /x HTTP/1.1\r\n"));
}
