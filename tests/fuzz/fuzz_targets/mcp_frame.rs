//! A line from a guest to its tools: refused somewhere on its way, and no further than where it would be
//! recorded, for nothing records it. Nothing in its directory changes, and nothing beside it is seen.
#![no_main]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bulkhead_capability::{Autonomy, Capability, Grants};
use bulkhead_record::{Entry, RecordError, Recorder};
use bulkhead_toolbox::Limits;
use libfuzzer_sys::fuzz_target;
use rmcp::model::{ClientJsonRpcMessage, ClientRequest, JsonRpcMessage};
use rustix::fs::{Mode, OFlags, open};
use serde_json::Value;
use tools::backups::Backups;
use tools::directories::{Directories, Root};
use tools::host::Host;
use tools::jobs::Jobs;
use tools::limiter::{HostClock, Limiter};
use tools::permits::Permits;
use tools::pipeline::{Nobody, Parts, Pipeline};
use tools::programs::Launcher;
use tools::{CallError, Registry};

/// Records nothing, so that nothing happens.
struct Never;

impl Recorder for Never {
    fn record(&self, entry: &Entry) -> Result<u64, RecordError> {
        let length = serde_json::to_vec(entry).expect("an entry").len();
        assert!(length <= bulkhead_record::MAX_ENTRY_BYTES, "{length}");
        Err(RecordError::WriterGone)
    }
}

fn directory(path: &Path) -> OwnedFd {
    fs::create_dir_all(path).expect("scratch");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).expect("scratch")
}

/// What calls name: seeds do, and mutations of them.
const DATA: &str = "/tmp/mcp-frame/data";

static TOOLS: LazyLock<Pipeline> = LazyLock::new(|| {
    let data = PathBuf::from(DATA);
    let file = directory(&data);
    fs::write(data.join("f"), "one\ntwo\n").expect("scratch");
    let _ = symlink("/etc/passwd", data.join("link"));
    let grants = ["tool.call:*", "exec:/usr/bin/git"];
    let grants = grants.map(|grant| grant.parse::<Capability>().expect("a grant"));
    let grants = Grants::from_iter(grants);
    let mut limits = Limits::default();
    limits.partition.calls = u32::MAX;
    limits.partition.writes = u32::MAX;
    limits.partition.destructive = u32::MAX;
    Pipeline::new(Parts {
        actor: "fuzz/fuzz".to_owned(),
        registry: Registry::new().expect("tools"),
        permits: Permits::new(grants.clone(), Duration::ZERO),
        host: Host {
            grants,
            directories: Directories::new(vec![Root {
                path: data,
                file,
                write: true,
            }]),
            backups: Backups::open(directory(Path::new("/tmp/mcp-frame/backups")))
                .expect("scratch"),
            launcher: Launcher {
                binary: "/nonexistent".into(),
                jailed: true,
            },
            git: Some("/usr/bin/git"),
            gate: None,
            jobs: Jobs::default(),
        },
        limiter: Limiter::new(limits, None, None, None, Box::new(HostClock)),
        autonomy: Autonomy::Full,
        conditions: None,
        approver: Arc::new(Nobody),
        recorder: Arc::new(Never),
    })
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = serde_json::from_slice::<ClientJsonRpcMessage>(bytes) else {
        return;
    };
    let JsonRpcMessage::Request(request) = message else {
        return;
    };
    let ClientRequest::CallToolRequest(call) = request.request else {
        return;
    };
    let arguments = Value::Object(call.params.arguments.unwrap_or_default());
    let refused = TOOLS.call(&call.params.name, &arguments);
    let refused = refused.expect_err("nothing is done without a record");
    assert!(!matches!(
        refused,
        CallError::Result | CallError::OutcomeNotRecorded(_)
    ));
    assert!(!refused.to_string().is_empty());
    let file = fs::read(Path::new(DATA).join("f")).expect("the file");
    assert_eq!(file, b"one\ntwo\n");
    let mut backups = fs::read_dir("/tmp/mcp-frame/backups").expect("the back-ups");
    assert!(
        backups.next().is_none(),
        "nothing is kept of what was not done"
    );
});
