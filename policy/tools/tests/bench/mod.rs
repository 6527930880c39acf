//! What the tests of the pipeline share: a partition's tools on temporary directories, with a ledger,
//! a clock and a person that the tests play.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::panic,
    clippy::unwrap_used,
    reason = "each test uses a part of it"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_capability::{Autonomy, Capability, Grant, Grants};
use bulkhead_conditions::Asker;
use bulkhead_record::{Entry, Kind, RecordError, Recorder};
use bulkhead_toolbox::Limits;
use rustix::fs::{Mode, OFlags, open};
use serde_json::Value;
use tempfile::TempDir;
use tools::backups::Backups;
use tools::directories::{Directories, Root};
use tools::gate::Gate;
use tools::host::Host;
use tools::jobs::Jobs;
use tools::limiter::{Clock, Limiter};
use tools::permits::Permits;
use tools::pipeline::{Approver, Done, Parts, Pipeline, Question};
use tools::programs::Launcher;
use tools::{CallError, Registry};

/// When the partition started, in seconds since 1970, and on the clock that counts calls.
const STARTED: u64 = 1_800_000_000;
pub const NOW: u64 = 1_000_000;

/// A ledger in memory.
#[derive(Default)]
pub struct Ledger {
    pub entries: Mutex<Vec<Entry>>,
    /// How many more entries it takes.
    pub room: AtomicU64,
}

impl Recorder for Ledger {
    fn record(&self, entry: &Entry) -> Result<u64, RecordError> {
        let taken = self
            .room
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |room| {
                room.checked_sub(1)
            });
        if taken.is_err() {
            return Err(RecordError::NotWritten("no space".to_owned()));
        }
        let mut entries = self.entries.lock().unwrap();
        entries.push(entry.clone());
        Ok(entries.len() as u64)
    }
}

/// A clock that stands until it is moved.
#[derive(Clone, Default)]
pub struct Watch(pub Arc<AtomicU64>);

impl Clock for Watch {
    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn date(&self) -> Duration {
        Duration::from_secs(STARTED) + Duration::from_millis(self.now() - NOW)
    }
}

/// A person who always says the same.
#[derive(Default)]
pub struct Person {
    pub allows: AtomicBool,
    /// What happens while they think.
    pub meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    pub asked: Mutex<Vec<String>>,
}

impl Approver for Person {
    fn ask(&self, question: &Question<'_>) -> Result<String, String> {
        let mut asked = self.asked.lock().unwrap();
        asked.push(format!("{} {}", question.tool, question.objects));
        if let Some(happens) = self.meanwhile.lock().unwrap().take() {
            happens();
        }
        match self.allows.load(Ordering::SeqCst) {
            true => Ok("operator".to_owned()),
            false => Err("denied".to_owned()),
        }
    }
}

/// The tools of a partition.
pub struct Bench {
    pub pipeline: Pipeline,
    pub ledger: Arc<Ledger>,
    pub person: Arc<Person>,
    pub watch: Watch,
    /// A directory that may be changed, and one that is only read.
    pub data: PathBuf,
    pub given: PathBuf,
    pub backups: PathBuf,
    pub scratch: TempDir,
}

pub fn directory(path: &Path) -> rustix::fd::OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).unwrap()
}

/// What a bench is made of.
pub struct Setup<'s> {
    pub limits: Limits,
    pub budget: Option<u64>,
    pub tools: &'s [&'s str],
    pub programs: &'s [&'static str],
    /// Further grants.
    pub more: Vec<Grant>,
    /// What starts programs.
    pub launcher: PathBuf,
    pub autonomy: Autonomy,
    /// The way to the gateway.
    pub gate: Option<Gate>,
    /// Who answers for conditions, if there are any.
    pub conditions: Option<Asker>,
}

impl Default for Setup<'_> {
    /// Every tool, no program, and limits that no test reaches.
    fn default() -> Self {
        let mut limits = Limits::default();
        limits.partition.calls = 10_000;
        limits.partition.writes = 10_000;
        limits.partition.destructive = 10_000;
        Self {
            limits,
            budget: None,
            tools: &["*"],
            programs: &[],
            more: Vec::new(),
            launcher: env!("CARGO_BIN_EXE_bulkhead-tools").into(),
            autonomy: Autonomy::default(),
            gate: None,
            conditions: None,
        }
    }
}

impl Bench {
    pub fn new() -> Self {
        Self::of(Setup::default())
    }

    /// The same with programs of the host.
    pub fn with_programs(programs: &[&'static str]) -> Self {
        Self::of(Setup {
            programs,
            ..Setup::default()
        })
    }

    pub fn with(limits: Limits, tools: &[&str], programs: &[&'static str]) -> Self {
        Self::with_grants(limits, tools, programs, Vec::new())
    }

    /// The same with further grants.
    pub fn with_grants(
        limits: Limits,
        tools: &[&str],
        programs: &[&'static str],
        more: Vec<Grant>,
    ) -> Self {
        Self::of(Setup {
            limits,
            tools,
            programs,
            more,
            ..Setup::default()
        })
    }

    pub fn of(setup: Setup<'_>) -> Self {
        let Setup {
            limits,
            budget,
            tools,
            programs,
            more,
            launcher,
            autonomy,
            gate,
            conditions,
        } = setup;
        let scratch = TempDir::new().unwrap();
        let path = |name: &str| {
            let path = scratch.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (data, given, backups) = (path("data"), path("given"), path("backups"));
        let ledger = Arc::new(Ledger::default());
        ledger.room.store(u64::MAX, Ordering::SeqCst);
        let person = Arc::new(Person::default());
        let watch = Watch::default();
        watch.0.store(NOW, Ordering::SeqCst);
        let tools = tools.iter().map(|name| format!("tool.call:{name}"));
        let programs_of = programs.iter().map(|path| format!("exec:{path}"));
        let written = tools
            .chain(programs_of)
            .map(|grant| grant.parse::<Capability>().unwrap());
        let grants: Grants = written.map(Grant::from).chain(more).collect();
        let root = |path: &Path, write| Root {
            path: path.to_owned(),
            file: directory(path),
            write,
        };
        let pipeline = Pipeline::new(Parts {
            actor: "system/agent".to_owned(),
            registry: Registry::new().unwrap(),
            permits: Permits::new(grants.clone(), Duration::from_secs(STARTED)),
            host: Host {
                grants,
                directories: Directories::new(vec![root(&data, true), root(&given, false)]),
                backups: Backups::open(directory(&backups)).unwrap(),
                launcher: Launcher {
                    binary: launcher,
                    jailed: true,
                },
                git: programs.iter().find(|path| path.ends_with("/git")).copied(),
                gate,
                jobs: Jobs::default(),
            },
            limiter: Limiter::new(limits, budget, None, None, Box::new(watch.clone())),
            autonomy,
            conditions,
            approver: person.clone(),
            recorder: ledger.clone(),
        });
        Self {
            pipeline,
            ledger,
            person,
            watch,
            data,
            given,
            backups,
            scratch,
        }
    }

    pub fn call(&self, tool: &str, arguments: Value) -> Result<Done, CallError> {
        self.pipeline.call(tool, &arguments)
    }

    /// The kinds of all records so far.
    pub fn kinds(&self) -> Vec<Kind> {
        let entries = self.ledger.entries.lock().unwrap();
        entries.iter().map(|entry| entry.kind).collect()
    }

    pub fn last_entry(&self) -> Entry {
        self.ledger.entries.lock().unwrap().last().unwrap().clone()
    }
}

/// Everything below a directory: kind, mode and contents by path.
pub fn tree(path: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    gather(path, &mut found);
    found
}

fn gather(path: &Path, found: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
    let metadata = fs::symlink_metadata(path).unwrap();
    let contents = if metadata.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            gather(&entry.unwrap().path(), found);
        }
        Vec::new()
    } else if metadata.is_symlink() {
        let target = fs::read_link(path).unwrap();
        target.to_str().unwrap().into()
    } else if metadata.is_file() {
        fs::read(path).unwrap()
    } else {
        Vec::new()
    };
    found.insert(path.to_owned(), (metadata.mode(), contents));
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
