//! `fs.roots`, `fs.read`, `fs.list`, `fs.stat` and `fs.search`: what looks at files.

use std::io::{self, Read as _, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_toolbox::Risk;
use regex::{Regex, RegexBuilder};
use rustix::fs::{Dir, FileType, Stat as Status, fstat};
use serde::Deserialize;
use serde_json::{Value, json};

use super::calls::Nothing;
use crate::directories::Place;
use crate::error::ToolError;
use crate::host::Host;
use crate::registry::{Action, Deadline, Facts, Need, object, path};

/// Most bytes that one call reads.
pub(crate) const MAX_READ: u64 = 1024 * 1024;
/// Most entries that a list has.
const MAX_ENTRIES: usize = 4096;
/// Most matches that a search finds.
const MAX_MATCHES: usize = 1000;
/// Most files that a search opens.
const MAX_FILES: usize = 20_000;
/// Most bytes of a file that a search reads, and of a line that it shows.
const MAX_SEARCHED: u64 = 8 * 1024 * 1024;
const MAX_LINE: usize = 400;
/// How deep a search goes.
const MAX_DEPTH: usize = 64;
/// Most memory of a compiled expression.
const MAX_EXPRESSION: usize = 1024 * 1024;

/// `fs.roots`.
pub(crate) struct Roots;

impl Action for Roots {
    type Input = Nothing;
    const FACTS: Facts = Facts {
        name: "fs.roots",
        version: "1",
        summary: "lists the granted directories",
        needs: "",
        risk: Risk::Read,
        idempotent: true,
        rollback: None,
        timeout: Duration::from_secs(5),
    };

    fn input() -> Value {
        object(json!({}), &[])
    }

    fn output() -> Value {
        let root = object(
            json!({ "path": { "type": "string" }, "write": { "type": "boolean" } }),
            &["path", "write"],
        );
        object(
            json!({ "roots": { "type": "array", "items": root } }),
            &["roots"],
        )
    }

    fn needs(_: &Host, _: &Nothing) -> Result<Vec<Need>, ToolError> {
        Ok(Vec::new())
    }

    fn run(host: &Host, _: &Nothing, _: &Deadline) -> Result<Value, ToolError> {
        let roots = host.directories.iter();
        let roots =
            roots.map(|root| json!({ "path": root.path.to_string_lossy(), "write": root.write }));
        Ok(json!({ "roots": roots.collect::<Vec<_>>() }))
    }
}

/// `fs.read`.
pub(crate) struct Read;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Portion {
    path: PathBuf,
    #[serde(default)]
    offset: u64,
    #[serde(default = "most")]
    length: u64,
}

fn most() -> u64 {
    MAX_READ
}

impl Action for Read {
    type Input = Portion;
    const FACTS: Facts = Facts {
        name: "fs.read",
        version: "1",
        summary: "reads a text file, or a part of it",
        needs: "`fs.read` of the path",
        risk: Risk::Read,
        idempotent: true,
        rollback: None,
        timeout: Duration::from_secs(10),
    };

    fn input() -> Value {
        object(
            json!({
                "path": path("the file"),
                "offset": { "type": "integer", "minimum": 0, "maximum": i64::MAX, "description": "first byte; 0 if absent" },
                "length": { "type": "integer", "minimum": 1, "maximum": MAX_READ, "description": "most bytes" },
            }),
            &["path"],
        )
    }

    fn output() -> Value {
        object(
            json!({
                "content": { "type": "string" },
                "size": { "type": "integer", "minimum": 0 },
                "next": { "type": "integer", "minimum": 0 },
            }),
            &["content", "size"],
        )
    }

    fn needs(_: &Host, input: &Portion) -> Result<Vec<Need>, ToolError> {
        Ok(vec![Need::Read(input.path.clone())])
    }

    fn run(host: &Host, input: &Portion, _: &Deadline) -> Result<Value, ToolError> {
        let place = host.directories.place(&input.path)?;
        let mut file = place.read()?;
        let failed = |error: io::Error| ToolError::io("read", &input.path, &error);
        let size = file.metadata().map_err(failed)?.len();
        file.seek(SeekFrom::Start(input.offset)).map_err(failed)?;
        let mut bytes = Vec::new();
        let mut part = file.take(input.length);
        part.read_to_end(&mut bytes).map_err(failed)?;
        let end = input.offset.saturating_add(bytes.len() as u64);
        let whole = end >= size;
        // A character that the end of the part divides is left to the next one.
        let valid = match std::str::from_utf8(&bytes) {
            Ok(_) => bytes.len(),
            Err(error) if error.error_len().is_none() && !whole && error.valid_up_to() > 0 => {
                error.valid_up_to()
            }
            Err(_) => {
                let path = input.path.display();
                return Err(ToolError::refused(format!("`{path}` is not UTF-8 text")));
            }
        };
        bytes.truncate(valid);
        let next = input.offset.saturating_add(valid as u64);
        let content = String::from_utf8(bytes).unwrap_or_default();
        Ok(match next < size {
            true => json!({ "content": content, "size": size, "next": next }),
            false => json!({ "content": content, "size": size }),
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Where {
    path: PathBuf,
}

fn kind(mode: u32) -> &'static str {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "link",
        _ => "other",
    }
}

fn attributes(name: &str, stat: &Status) -> Value {
    json!({
        "name": name,
        "kind": kind(stat.st_mode),
        "mode": format!("{:04o}", stat.st_mode & 0o7777),
        "size": stat.st_size,
        "modified": stat.st_mtime,
    })
}

fn attributes_schema() -> Value {
    object(
        json!({
            "name": { "type": "string" },
            "kind": { "enum": ["file", "directory", "link", "other"] },
            "mode": { "type": "string" },
            "size": { "type": "integer" },
            "modified": { "type": "integer", "description": "seconds since 1970" },
        }),
        &["name", "kind", "mode", "size", "modified"],
    )
}

/// `fs.list`.
pub(crate) struct List;

impl Action for List {
    type Input = Where;
    const FACTS: Facts = Facts {
        name: "fs.list",
        version: "1",
        summary: "lists a directory",
        needs: "`fs.read` of the path",
        risk: Risk::Read,
        idempotent: true,
        rollback: None,
        timeout: Duration::from_secs(10),
    };

    fn input() -> Value {
        object(json!({ "path": path("the directory") }), &["path"])
    }

    fn output() -> Value {
        object(
            json!({
                "entries": { "type": "array", "items": attributes_schema(), "maxItems": MAX_ENTRIES },
                "more": { "type": "boolean", "description": "there are more than are shown" },
            }),
            &["entries", "more"],
        )
    }

    fn needs(_: &Host, input: &Where) -> Result<Vec<Need>, ToolError> {
        Ok(vec![Need::Read(input.path.clone())])
    }

    fn run(host: &Host, input: &Where, deadline: &Deadline) -> Result<Value, ToolError> {
        let directory = host.directories.place(&input.path)?.directory()?;
        let (mut names, more) = names(&directory, &input.path, MAX_ENTRIES, deadline)?;
        names.sort();
        let mut entries = Vec::new();
        for name in names {
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            // One that is gone by now, or whose name is no text, is not there.
            if let (Ok(stat), Some(text)) =
                (rustix::fs::statat(&directory, &name, flags), name.to_str())
            {
                entries.push(attributes(text, &stat));
            }
        }
        Ok(json!({ "entries": entries, "more": more }))
    }
}

/// The names in a directory, at most so many; whether there are more.
fn names(
    directory: impl std::os::fd::AsFd,
    path: &Path,
    most: usize,
    deadline: &Deadline,
) -> Result<(Vec<PathBuf>, bool), ToolError> {
    use std::os::unix::ffi::OsStrExt;
    let failed = |errno| ToolError::host("list", path, errno);
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).map_err(failed)? {
        deadline.check()?;
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        if names.len() == most {
            return Ok((names, true));
        }
        names.push(PathBuf::from(std::ffi::OsStr::from_bytes(name)));
    }
    Ok((names, false))
}

/// `fs.stat`.
pub(crate) struct Stat;

impl Action for Stat {
    type Input = Where;
    const FACTS: Facts = Facts {
        name: "fs.stat",
        version: "1",
        summary: "tells whether something is at a path, and what",
        needs: "`fs.read` of the path",
        risk: Risk::Read,
        idempotent: true,
        rollback: None,
        timeout: Duration::from_secs(5),
    };

    fn input() -> Value {
        object(json!({ "path": path("the file or directory") }), &["path"])
    }

    fn output() -> Value {
        object(
            json!({ "exists": { "type": "boolean" }, "attributes": attributes_schema() }),
            &["exists"],
        )
    }

    fn needs(_: &Host, input: &Where) -> Result<Vec<Need>, ToolError> {
        Ok(vec![Need::Read(input.path.clone())])
    }

    fn run(host: &Host, input: &Where, _: &Deadline) -> Result<Value, ToolError> {
        let name = input.path.file_name().unwrap_or_default().to_string_lossy();
        Ok(match host.directories.place(&input.path)?.look()? {
            Some(stat) => json!({ "exists": true, "attributes": attributes(&name, &stat) }),
            None => json!({ "exists": false }),
        })
    }
}

/// `fs.search`.
pub(crate) struct Search;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pattern {
    path: PathBuf,
    pattern: String,
    #[serde(default)]
    regex: bool,
    #[serde(default)]
    ignore_case: bool,
}

impl Action for Search {
    type Input = Pattern;
    const FACTS: Facts = Facts {
        name: "fs.search",
        version: "1",
        summary: "finds the lines of text files below a directory, or of one file, that match a pattern",
        needs: "`fs.read` of the path",
        risk: Risk::Read,
        idempotent: true,
        rollback: None,
        timeout: Duration::from_secs(30),
    };

    fn input() -> Value {
        object(
            json!({
                "path": path("where to search"),
                "pattern": { "type": "string", "minLength": 1, "maxLength": 1024 },
                "regex": { "type": "boolean", "description": "the pattern is a regular expression" },
                "ignore_case": { "type": "boolean" },
            }),
            &["path", "pattern"],
        )
    }

    fn output() -> Value {
        let found = object(
            json!({
                "path": { "type": "string" },
                "line": { "type": "integer", "minimum": 1 },
                "text": { "type": "string" },
            }),
            &["path", "line", "text"],
        );
        object(
            json!({
                "matches": { "type": "array", "items": found, "maxItems": MAX_MATCHES },
                "more": { "type": "boolean", "description": "not all was searched or is shown" },
            }),
            &["matches", "more"],
        )
    }

    fn needs(_: &Host, input: &Pattern) -> Result<Vec<Need>, ToolError> {
        Ok(vec![Need::Read(input.path.clone())])
    }

    fn run(host: &Host, input: &Pattern, deadline: &Deadline) -> Result<Value, ToolError> {
        let pattern = match input.regex {
            true => input.pattern.clone(),
            false => regex::escape(&input.pattern),
        };
        let expression = RegexBuilder::new(&pattern)
            .case_insensitive(input.ignore_case)
            .size_limit(MAX_EXPRESSION)
            .dfa_size_limit(MAX_EXPRESSION)
            .build();
        let expression = expression.map_err(|error| {
            let error = error.to_string();
            let last = error.lines().last().unwrap_or_default();
            ToolError::refused(format!("the pattern is no regular expression: {last}"))
        })?;
        let mut search = Searching {
            host,
            expression,
            deadline,
            matches: Vec::new(),
            files: 0,
            more: false,
        };
        search.at(&host.directories.place(&input.path)?, 0)?;
        Ok(json!({ "matches": search.matches, "more": search.more }))
    }
}

struct Searching<'s> {
    host: &'s Host,
    expression: Regex,
    deadline: &'s Deadline,
    matches: Vec<Value>,
    files: usize,
    more: bool,
}

impl Searching<'_> {
    fn full(&self) -> bool {
        self.matches.len() >= MAX_MATCHES || self.files >= MAX_FILES
    }

    fn at(&mut self, place: &Place<'_>, depth: usize) -> Result<(), ToolError> {
        self.deadline.check()?;
        let Some(stat) = place.look()? else {
            return match depth {
                0 => Err(ToolError::host(
                    "search",
                    &place.path(),
                    rustix::io::Errno::NOENT,
                )),
                // It was there a moment ago.
                _ => Ok(()),
            };
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(place),
            FileType::Directory if depth < MAX_DEPTH => {
                let path = place.path();
                // One that may not be listed is passed over.
                let Ok(directory) = place.directory() else {
                    self.more = true;
                    return Ok(());
                };
                let (mut names, more) = names(&directory, &path, MAX_ENTRIES, self.deadline)?;
                self.more |= more;
                names.sort();
                for name in names {
                    if self.full() {
                        self.more = true;
                        return Ok(());
                    }
                    if let Ok(place) = self.host.directories.place(&path.join(name)) {
                        self.at(&place, depth + 1)?;
                    }
                }
                Ok(())
            }
            FileType::Directory => {
                self.more = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn file(&mut self, place: &Place<'_>) -> Result<(), ToolError> {
        self.files += 1;
        let mut text = Vec::new();
        let read = place.read().and_then(|file| {
            let size = fstat(&file).map_or(0, |stat| stat.st_size);
            self.more |= u64::try_from(size).is_ok_and(|size| size > MAX_SEARCHED);
            let path = place.path();
            let failed = |error: io::Error| ToolError::io("read", &path, &error);
            file.take(MAX_SEARCHED)
                .read_to_end(&mut text)
                .map_err(failed)
        });
        // What cannot be read, or is no text, has no lines.
        let (Ok(_), Ok(text)) = (read, std::str::from_utf8(&text)) else {
            return Ok(());
        };
        let path = place.path();
        for (number, line) in text.lines().enumerate() {
            if number % 1024 == 0 {
                self.deadline.check()?;
            }
            if !self.expression.is_match(line) {
                continue;
            }
            if self.matches.len() >= MAX_MATCHES {
                self.more = true;
                return Ok(());
            }
            let line: String = line.chars().take(MAX_LINE).collect();
            let path = path.to_string_lossy();
            self.matches
                .push(json!({ "path": path, "line": number + 1, "text": line }));
        }
        Ok(())
    }
}
