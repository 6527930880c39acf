//! A house of a test's own: an operator's keys and roles, a ledger, and systems, apart from all others.

use std::fs;
use std::os::unix::fs::DirBuilderExt;

use serde_json::Value;

use crate::bulkhead::{Bulkhead, Ended};
use crate::leftovers::Census;
use crate::scratch::Scratch;

/// The house, and what was there before it.
#[derive(Debug)]
pub struct House {
    /// The command, in this house.
    pub bulkhead: Bulkhead,
    /// Where it stands.
    pub scratch: Scratch,
    /// What was there before anything of it ran.
    pub census: Census,
}

impl House {
    /// Alice signs, Bob signs and approves, Mallory is not trusted. `role` is what a `coder` may
    /// have.
    pub fn new(role: &str) -> Self {
        let scratch = Scratch::new();
        let config = scratch.path().join("config");
        let roles = config.join("roles");
        let mut builder = fs::DirBuilder::new();
        let made = builder.mode(0o700).recursive(true).create(&roles);
        made.expect("the scratch directory is writable");
        let bulkhead = Bulkhead::built()
            .env("BULKHEAD_CONFIG_DIR", &config)
            .env("BULKHEAD_DATA_DIR", scratch.path().join("data"))
            .env(
                "BULKHEAD_CHECKPOINT_DIR",
                scratch.path().join("checkpoints"),
            )
            .env("BULKHEAD_STATE_DIR", scratch.path().join("s"));
        let house = Self {
            bulkhead,
            scratch,
            census: Census::take(),
        };
        house.role("coder", role);
        for name in ["alice", "bob", "mallory"] {
            house.run(&["key", "new", name]).expect_status(0);
            let public = house.run(&["key", "export", name]);
            house.scratch.file(&format!("{name}.pub"), public.stdout());
        }
        house.trust("alice", &[]);
        house.trust("bob", &["--approver"]);
        house
    }

    /// Says what a role may have.
    pub fn role(&self, name: &str, text: &str) {
        self.scratch
            .file(&format!("config/roles/{name}.toml"), text);
    }

    /// Runs a command to its end.
    pub fn run(&self, words: &[&str]) -> Ended {
        self.bulkhead.run(words)
    }

    fn trust(&self, name: &str, options: &[&str]) {
        let file = self.scratch.path().join(format!("{name}.pub"));
        let file = file.to_str().expect("a plain path");
        let words = [&["key", "trust", file], options].concat();
        self.run(&words).expect_status(0);
    }

    /// The manifest, signed by these.
    #[track_caller]
    pub fn signed(&self, text: &str, keys: &[&str]) -> String {
        let mut file = self.scratch.file("agent.toml", text);
        for key in keys {
            let path = file.to_str().expect("a plain path");
            let words = ["manifest", "sign", path, "--key", key];
            self.run(&words).expect_status(0);
            file = file.with_extension("json");
        }
        file.to_str().expect("a plain path").to_owned()
    }

    /// Starts it, with an empty line as its input.
    pub fn start(&self, file: &str) -> Ended {
        let words = ["run", "--manifest", file];
        self.bulkhead.run_with_input(words, b"\n")
    }

    /// A start that a rule stands against.
    #[track_caller]
    pub fn refused(&self, file: &str, said: &str) {
        let ended = self.start(file);
        ended.expect_status(125).expect_stderr(said);
        assert_eq!(ended.stdout(), "", "nothing of it ran");
    }

    /// Every record in the ledger, the oldest first; none where there is no ledger yet.
    pub fn records(&self) -> Vec<Value> {
        let exported = self.run(&["ledger", "export"]).stdout();
        let parse = |line| serde_json::from_str(line).expect("a record is JSON");
        exported.lines().map(parse).collect()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // A test that fails leaves nothing running behind.
        if std::thread::panicking() {
            let mut down = self.bulkhead.command(["down", "--all"]);
            let _ = down.status();
        }
    }
}
