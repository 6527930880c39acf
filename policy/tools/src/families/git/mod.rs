//! `git.status`, `git.log`, `git.show`, `git.diff`, `git.add`, `git.commit`, `git.branch` and
//! `git.checkout`: the host's git on a repository in a granted directory.
//!
//! A repository is data of the guest, and what stands in it can name programs: hooks, filters,
//! diff and merge drivers, monitors, editors, pagers, signers. None of them runs. The jail lets git
//! execute nothing but git; what can be switched off is switched off on the command line, which
//! wins; and a repository whose own configuration has a key that is not known to be harmless, or
//! which keeps a part of itself elsewhere, is refused. What git is asked before a call is on record
//! it is asked with a directory that it can only read.

mod repository;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_toolbox::Risk;
use serde::Deserialize;
use serde_json::{Value, json};

pub(crate) use repository::PLACES;
use repository::{Repository, plain};

use crate::backups::Draft;
use crate::error::ToolError;
use crate::host::Host;
use crate::programs::Ended;
use crate::registry::{Action, Deadline, Facts, Need, object, path};

/// Most commits that a log shows.
const MAX_COMMITS: u32 = 500;
/// Most paths that one call names, and that a checkout changes.
const MAX_PATHS: usize = 256;
/// Longest message of a commit.
const MAX_MESSAGE: usize = 16 * 1024;
/// Longest name of a branch or revision.
const MAX_NAME: usize = 200;

const fn facts(name: &'static str, summary: &'static str, risk: Risk) -> Facts {
    let reads = matches!(risk, Risk::Read);
    Facts {
        name,
        version: "1",
        summary,
        needs: match reads {
            true => "`exec` of git, `fs.read` of the repository",
            false => "`exec` of git, `fs.write` of the repository",
        },
        risk,
        idempotent: reads,
        rollback: if reads { None } else { Some("tool.rollback") },
        timeout: Duration::from_secs(60),
    }
}

fn repository() -> Value {
    path("the directory that has .git in it")
}

fn name(what: &str) -> Value {
    json!({
        "type": "string", "minLength": 1, "maxLength": MAX_NAME, "description": what,
        // No option, no range, no path, and nothing that git takes apart.
        "pattern": "^[A-Za-z0-9_][A-Za-z0-9_./+-]*$",
    })
}

fn paths() -> Value {
    json!({
        "type": "array", "minItems": 1, "maxItems": MAX_PATHS,
        "items": { "type": "string", "minLength": 1, "maxLength": 4095, "pattern": "^[^\\u0000]*$" },
        "description": "from the repository on",
    })
}

fn text() -> Value {
    object(
        json!({ "output": { "type": "string" }, "truncated": { "type": "boolean" } }),
        &["output", "truncated"],
    )
}

fn nothing() -> Value {
    object(json!({}), &[])
}

/// The needs of a call on a repository.
fn needs(host: &Host, repository: &Path, write: bool) -> Vec<Need> {
    let git = PathBuf::from(host.git.unwrap_or(PLACES[0]));
    let repository = repository.to_owned();
    let repository = match write {
        true => Need::Write(repository),
        false => Need::Read(repository),
    };
    vec![Need::Exec(git), repository]
}

fn shown(ended: &Ended) -> Value {
    json!({ "output": ended.stdout, "truncated": ended.truncated })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct On {
    repository: PathBuf,
}

/// `git.status`.
pub(crate) struct Status;

impl Action for Status {
    type Input = On;
    const FACTS: Facts = facts(
        "git.status",
        "shows what was changed since the last commit",
        Risk::Read,
    );

    fn input() -> Value {
        object(json!({ "repository": repository() }), &["repository"])
    }

    fn output() -> Value {
        text()
    }

    fn needs(host: &Host, input: &On) -> Result<Vec<Need>, ToolError> {
        Ok(needs(host, &input.repository, false))
    }

    fn run(host: &Host, input: &On, deadline: &Deadline) -> Result<Value, ToolError> {
        let repository = Repository::open(host, &input.repository, false, deadline)?;
        let status = [
            "status",
            "--porcelain=v1",
            "--branch",
            "--ignore-submodules=all",
        ];
        Ok(shown(&repository.git(
            &status,
            &["--untracked-files=all"],
            "",
        )?))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Commits {
    repository: PathBuf,
    #[serde(default = "few")]
    count: u32,
    #[serde(default = "head")]
    revision: String,
}

fn few() -> u32 {
    20
}

fn head() -> String {
    "HEAD".to_owned()
}

/// `git.log`.
pub(crate) struct Log;

impl Action for Log {
    type Input = Commits;
    const FACTS: Facts = facts("git.log", "lists commits, the last first", Risk::Read);

    fn input() -> Value {
        object(
            json!({
                "repository": repository(),
                "count": { "type": "integer", "minimum": 1, "maximum": MAX_COMMITS },
                "revision": name("a branch, tag or commit; what is checked out if absent"),
            }),
            &["repository"],
        )
    }

    fn output() -> Value {
        text()
    }

    fn needs(host: &Host, input: &Commits) -> Result<Vec<Need>, ToolError> {
        Ok(needs(host, &input.repository, false))
    }

    fn run(host: &Host, input: &Commits, deadline: &Deadline) -> Result<Value, ToolError> {
        let repository = Repository::open(host, &input.repository, false, deadline)?;
        let count = format!("--max-count={}", input.count.min(MAX_COMMITS));
        let log = [
            "log",
            "--no-show-signature",
            "--no-mailmap",
            "--date=iso-strict",
            &count,
        ];
        Ok(shown(&repository.git(
            &log,
            &[plain(&input.revision)?, "--"],
            "",
        )?))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Revision {
    repository: PathBuf,
    #[serde(default = "head")]
    revision: String,
}

/// `git.show`.
pub(crate) struct Show;

impl Action for Show {
    type Input = Revision;
    const FACTS: Facts = facts("git.show", "shows a commit and what it changed", Risk::Read);

    fn input() -> Value {
        object(
            json!({
                "repository": repository(),
                "revision": name("a branch, tag or commit; what is checked out if absent"),
            }),
            &["repository"],
        )
    }

    fn output() -> Value {
        text()
    }

    fn needs(host: &Host, input: &Revision) -> Result<Vec<Need>, ToolError> {
        Ok(needs(host, &input.repository, false))
    }

    fn run(host: &Host, input: &Revision, deadline: &Deadline) -> Result<Value, ToolError> {
        let repository = Repository::open(host, &input.repository, false, deadline)?;
        let show = [
            "show",
            "--no-show-signature",
            "--no-ext-diff",
            "--no-textconv",
        ];
        Ok(shown(&repository.git(
            &show,
            &[plain(&input.revision)?, "--"],
            "",
        )?))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Changes {
    repository: PathBuf,
    #[serde(default)]
    staged: bool,
}

/// `git.diff`.
pub(crate) struct Diff;

impl Action for Diff {
    type Input = Changes;
    const FACTS: Facts = facts(
        "git.diff",
        "shows what was changed and not added, or added and not committed",
        Risk::Read,
    );

    fn input() -> Value {
        object(
            json!({
                "repository": repository(),
                "staged": { "type": "boolean", "description": "what was added" },
            }),
            &["repository"],
        )
    }

    fn output() -> Value {
        text()
    }

    fn needs(host: &Host, input: &Changes) -> Result<Vec<Need>, ToolError> {
        Ok(needs(host, &input.repository, false))
    }

    fn run(host: &Host, input: &Changes, deadline: &Deadline) -> Result<Value, ToolError> {
        let repository = Repository::open(host, &input.repository, false, deadline)?;
        let diff = [
            "diff",
            "--no-ext-diff",
            "--no-textconv",
            "--ignore-submodules=all",
        ];
        let staged = if input.staged {
            &["--cached", "--"][..]
        } else {
            &["--"]
        };
        Ok(shown(&repository.git(&diff, staged, "")?))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Paths {
    repository: PathBuf,
    paths: Vec<String>,
}

/// `git.add`.
pub(crate) struct Add;

impl Action for Add {
    type Input = Paths;
    const FACTS: Facts = facts("git.add", "adds files to the next commit", Risk::Write);

    fn input() -> Value {
        object(
            json!({ "repository": repository(), "paths": paths() }),
            &["repository", "paths"],
        )
    }

    fn output() -> Value {
        nothing()
    }

    fn needs(host: &Host, input: &Paths) -> Result<Vec<Need>, ToolError> {
        Ok(needs(host, &input.repository, true))
    }

    fn back_up(host: &Host, input: &Paths, draft: &mut Draft<'_>) -> Result<(), ToolError> {
        let index = input.repository.join(".git/index");
        draft.take(&host.directories.place(&index)?)
    }

    fn run(host: &Host, input: &Paths, deadline: &Deadline) -> Result<Value, ToolError> {
        let repository = Repository::open(host, &input.repository, true, deadline)?;
        let paths: Vec<&str> = input.paths.iter().map(String::as_str).collect();
        repository.git(&["add", "--"], &paths, "")?;
        Ok(json!({}))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Message {
    repository: PathBuf,
    message: String,
}

/// `git.commit`.
pub(crate) struct Commit;

impl Action for Commit {
    type Input = Message;
    const FACTS: Facts = facts("git.commit", "commits what was added", Risk::Write);

    fn input() -> Value {
        object(
            json!({
                "repository": repository(),
                "message": { "type": "string", "minLength": 1, "maxLength": MAX_MESSAGE },
            }),
            &["repository", "message"],
        )
    }

    fn output() -> Value {
        object(json!({ "commit": { "type": "string" } }), &["commit"])
    }

    fn needs(host: &Host, input: &Message) -> Result<Vec<Need>, ToolError> {
        Ok(needs(host, &input.repository, true))
    }

    fn back_up(host: &Host, input: &Message, draft: &mut Draft<'_>) -> Result<(), ToolError> {
        let deadline = Deadline::after(Self::FACTS.timeout);
        let repository = Repository::open(host, &input.repository, false, &deadline)?;
        let head = repository.head()?;
        let names = [
            ".git/index".to_owned(),
            ".git/COMMIT_EDITMSG".to_owned(),
            format!(".git/{head}"),
            ".git/logs/HEAD".to_owned(),
            format!(".git/logs/{head}"),
        ];
        repository.take(draft, &names)
    }

    fn run(host: &Host, input: &Message, deadline: &Deadline) -> Result<Value, ToolError> {
        let repository = Repository::open(host, &input.repository, true, deadline)?;
        let commit = [
            "commit",
            "--no-verify",
            "--no-gpg-sign",
            "--no-post-rewrite",
        ];
        let operands = ["--cleanup=verbatim", "--quiet", "--file=-"];
        repository.git(&commit, &operands, &input.message)?;
        let commit = repository.git(&["rev-parse", "--verify"], &["HEAD"], "")?;
        Ok(json!({ "commit": commit.stdout.trim() }))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Named {
    repository: PathBuf,
    branch: String,
}

fn named(what: &str) -> Value {
    object(
        json!({ "repository": repository(), "branch": name(what) }),
        &["repository", "branch"],
    )
}

/// `git.branch`.
pub(crate) struct Branch;

impl Action for Branch {
    type Input = Named;
    const FACTS: Facts = facts(
        "git.branch",
        "makes a branch at the commit that is checked out",
        Risk::Write,
    );

    fn input() -> Value {
        named("the new branch")
    }

    fn output() -> Value {
        nothing()
    }

    fn needs(host: &Host, input: &Named) -> Result<Vec<Need>, ToolError> {
        Ok(needs(host, &input.repository, true))
    }

    fn back_up(host: &Host, input: &Named, draft: &mut Draft<'_>) -> Result<(), ToolError> {
        let branch = plain(&input.branch)?;
        let deadline = Deadline::after(Self::FACTS.timeout);
        let repository = Repository::open(host, &input.repository, false, &deadline)?;
        let names = [
            format!(".git/refs/heads/{branch}"),
            format!(".git/logs/refs/heads/{branch}"),
        ];
        repository.take(draft, &names)
    }

    fn run(host: &Host, input: &Named, deadline: &Deadline) -> Result<Value, ToolError> {
        let repository = Repository::open(host, &input.repository, true, deadline)?;
        let branch = ["branch", "--no-track", "--"];
        repository.git(&branch, &[plain(&input.branch)?], "")?;
        Ok(json!({}))
    }
}

/// `git.checkout`.
pub(crate) struct Checkout;

impl Action for Checkout {
    type Input = Named;
    const FACTS: Facts = facts(
        "git.checkout",
        "checks a branch out, where nothing is changed and not committed",
        Risk::Write,
    );

    fn input() -> Value {
        named("a branch that exists")
    }

    fn output() -> Value {
        nothing()
    }

    fn needs(host: &Host, input: &Named) -> Result<Vec<Need>, ToolError> {
        Ok(needs(host, &input.repository, true))
    }

    fn back_up(host: &Host, input: &Named, draft: &mut Draft<'_>) -> Result<(), ToolError> {
        let branch = format!("refs/heads/{}", plain(&input.branch)?);
        let deadline = Deadline::after(Self::FACTS.timeout);
        let repository = Repository::open(host, &input.repository, false, &deadline)?;
        let status = ["status", "--porcelain=v1", "--ignore-submodules=all"];
        let dirty = repository.git(&status, &["--untracked-files=no"], "")?;
        if !dirty.stdout.is_empty() {
            let why = "something is changed and not committed, which a checkout might lose";
            return Err(ToolError::refused(why));
        }
        let diff = [
            "diff",
            "--no-ext-diff",
            "--no-textconv",
            "--no-renames",
            "--name-only",
            "-z",
        ];
        let changed = repository.git(&diff, &["HEAD", &branch, "--"], "")?;
        let changed: Vec<String> = (changed.stdout.split('\0'))
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        if changed.len() > MAX_PATHS {
            let many = changed.len();
            let why =
                format!("it changes {many} files, more than the {MAX_PATHS} that are backed up");
            return Err(ToolError::refused(why));
        }
        let own = [".git/HEAD", ".git/index", ".git/logs/HEAD"].map(str::to_owned);
        let names: Vec<String> = own.into_iter().chain(changed).collect();
        repository.take(draft, &names)
    }

    fn run(host: &Host, input: &Named, deadline: &Deadline) -> Result<Value, ToolError> {
        let repository = Repository::open(host, &input.repository, true, deadline)?;
        let checkout = [
            "checkout",
            "--quiet",
            "--no-guess",
            "--no-recurse-submodules",
        ];
        repository.git(&checkout, &[plain(&input.branch)?, "--"], "")?;
        Ok(json!({}))
    }
}
