//! The built `bulkhead` as a user runs it: started, fed, waited for, ended.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a command may take before the test fails for it. Nothing is timed by it: it only keeps
/// a hang from stopping the suite. The lab is some twenty times slower than a machine, and a
/// busy lab slower still.
const PATIENCE: Duration = Duration::from_secs(600);

/// Where the built tree is.
pub(crate) fn dist() -> PathBuf {
    let dist = std::env::var_os("BULKHEAD_DIST").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bulkhead"),
        PathBuf::from,
    );
    std::fs::canonicalize(&dist).unwrap_or(dist)
}

/// The tree that `cargo xtask build` laid out.
#[derive(Clone, Debug)]
pub struct Bulkhead {
    dist: PathBuf,
    env: Vec<(String, String)>,
}

impl Bulkhead {
    /// The tree in `BULKHEAD_DIST`, else in `target/bulkhead`.
    pub fn built() -> Self {
        let dist = dist();
        assert!(
            dist.join("bin/bulkhead").exists(),
            "{} has no bulkhead: run cargo xtask build",
            dist.display()
        );
        Self::at(dist)
    }

    /// Another tree of the same shape.
    pub fn at(dist: impl Into<PathBuf>) -> Self {
        let dist = dist.into();
        // Apart from the user's own systems, and where a census looks.
        let user = rustix::process::getuid().as_raw();
        let own = std::env::temp_dir().join(format!("bulkhead-suites-{user}"));
        for dir in ["state", "tmp"] {
            let mut builder = std::fs::DirBuilder::new();
            let made = builder.mode(0o700).recursive(true).create(own.join(dir));
            made.expect("the temporary directory is writable");
        }
        // What is to last stays, and is nobody's leftover: one ledger for all suites.
        let lasting = std::env::temp_dir().join(format!("bulkhead-test-lasting-{user}"));
        let env = Vec::new();
        Self { dist, env }
            .env("BULKHEAD_STATE_DIR", own.join("state"))
            .env("BULKHEAD_DATA_DIR", lasting.join("data"))
            .env("BULKHEAD_CONFIG_DIR", lasting.join("config"))
            .env("TMPDIR", own.join("tmp"))
    }

    /// The command itself.
    pub fn program(&self) -> PathBuf {
        self.dist.join("bin/bulkhead")
    }

    /// With a variable in the environment of everything it runs.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        let value = value.as_ref().to_string_lossy().into_owned();
        self.env.push((name.to_owned(), value));
        self
    }

    /// A file of the tree's library.
    pub fn library(&self, name: &str) -> PathBuf {
        self.dist.join("lib/bulkhead").join(name)
    }

    /// `bulkhead` with these arguments, not yet started.
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(self.program());
        command.args(args).stdin(Stdio::null());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs it to its end.
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Ended {
        Running::start(&mut self.command(args)).wait()
    }

    /// Runs it to its end with `input` as its standard input.
    pub fn run_with_input<A: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
        input: &[u8],
    ) -> Ended {
        let mut command = self.command(args);
        let mut running = Running::start(command.stdin(Stdio::piped()));
        let mut pipe = running.child.stdin.take().expect("stdin is piped");
        let input = input.to_vec();
        // A guest that ends early closes the pipe: not the test's concern.
        thread::spawn(move || drop(pipe.write_all(&input)));
        running.wait()
    }
}

/// A command that runs; killed when dropped.
#[derive(Debug)]
pub struct Running {
    shown: String,
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    since: Instant,
}

impl Running {
    /// Starts `command` with its output captured.
    pub fn start(command: &mut Command) -> Self {
        let shown = format!("{command:?}");
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        let since = Instant::now();
        Self {
            shown,
            child,
            stdout,
            stderr,
            since,
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a child has an id"), signal).expect("the child runs");
    }

    /// Waits for its end; fails the test when it does not come.
    pub fn wait(mut self) -> Ended {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                break status;
            }
            if self.since.elapsed() > PATIENCE {
                let _ = self.child.kill();
                let _ = self.child.wait();
                let stdout = taken(self.stdout.take());
                let stderr = taken(self.stderr.take());
                panic!("{} does not end\n{stdout}\n{stderr}", self.shown);
            }
            thread::sleep(Duration::from_millis(2));
        };
        let output = Output {
            status,
            stdout: self.stdout.take().map_or_else(Vec::new, joined),
            stderr: self.stderr.take().map_or_else(Vec::new, joined),
        };
        Ended {
            shown: self.shown.clone(),
            output,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended in the good case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn joined(handle: JoinHandle<Vec<u8>>) -> Vec<u8> {
    handle.join().unwrap_or_default()
}

fn taken(handle: Option<JoinHandle<Vec<u8>>>) -> String {
    String::from_utf8_lossy(&handle.map_or_else(Vec::new, joined)).into_owned()
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    shown: String,
    output: Output,
}

impl Ended {
    /// Its exit status; -1 where a signal ended it.
    pub fn status(&self) -> i32 {
        self.output.status.code().unwrap_or(-1)
    }

    /// What it wrote to stdout.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// What it wrote to stderr.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Demands this status, and shows everything where it is another.
    #[track_caller]
    pub fn expect_status(&self, status: i32) -> &Self {
        let got = self.status();
        assert!(
            got == status,
            "{}\nended with {got} and not {status}\nstdout: {}\nstderr: {}",
            self.shown,
            self.stdout(),
            self.stderr()
        );
        self
    }

    /// Demands that stdout contains `text`.
    #[track_caller]
    pub fn expect_stdout(&self, text: &str) -> &Self {
        assert!(
            self.stdout().contains(text),
            "{}\ndid not print {text:?}\nstdout: {}\nstderr: {}",
            self.shown,
            self.stdout(),
            self.stderr()
        );
        self
    }

    /// Demands that stderr contains `text`.
    #[track_caller]
    pub fn expect_stderr(&self, text: &str) -> &Self {
        assert!(
            self.stderr().contains(text),
            "{}\ndid not say {text:?}\nstdout: {}\nstderr: {}",
            self.shown,
            self.stdout(),
            self.stderr()
        );
        self
    }

    /// Demands what a refusal owes its reader: status 125, nothing on stdout, one sentence (and
    /// perhaps a line of help) on stderr, no trace of a panic.
    #[track_caller]
    pub fn expect_refusal(&self) -> &Self {
        self.expect_status(125);
        let stderr = self.stderr();
        let lines = stderr
            .lines()
            .filter(|line| !line.trim().is_empty())
            .count();
        assert!(
            self.stdout().is_empty() && (1..=12).contains(&lines) && !stderr.contains("panicked"),
            "{}\nstdout: {}\nstderr: {stderr}",
            self.shown,
            self.stdout()
        );
        self
    }
}
