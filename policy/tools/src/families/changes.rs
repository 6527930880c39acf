//! `fs.write`, `fs.append`, `fs.edit`, `fs.copy`, `fs.move`, `fs.delete`, `fs.mkdir`, `fs.rmdir` and
//! `fs.chmod`: what changes files. Each takes down first what `tool.rollback` puts back.

use std::fs::File;
use std::io::{self, Read as _, Seek, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_toolbox::Risk;
use rustix::fs::{AtFlags, FileType, Mode, fchmod, mkdirat, unlinkat};
use rustix::io::Errno;
use serde::Deserialize;
use serde_json::{Value, json};

use super::files::MAX_READ;
use crate::backups::{Draft, MAX_FILE, move_entry};
use crate::directories::Place;
use crate::error::ToolError;
use crate::host::Host;
use crate::registry::{Action, Deadline, Facts, Need, object, path};

/// Most characters that one call writes.
const MAX_WRITE: u64 = MAX_READ;
/// Mode of a new file, and of a new directory.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;
/// What takes all of these back.
const ROLLBACK: Option<&str> = Some("tool.rollback");

const fn facts(name: &'static str, summary: &'static str, idempotent: bool) -> Facts {
    Facts {
        name,
        version: "1",
        summary,
        needs: "`fs.write` of the path",
        risk: Risk::Write,
        idempotent,
        rollback: ROLLBACK,
        timeout: Duration::from_secs(30),
    }
}

fn content() -> Value {
    json!({ "type": "string", "maxLength": MAX_WRITE })
}

fn size() -> Value {
    object(
        json!({ "size": { "type": "integer", "minimum": 0 } }),
        &["size"],
    )
}

fn nothing() -> Value {
    object(json!({}), &[])
}

/// Replaces what a file holds, or makes it.
fn put(place: &Place<'_>, content: &[u8]) -> Result<(), ToolError> {
    let path = place.path();
    let failed = |error: io::Error| ToolError::io("write", &path, &error);
    let mut file = match place.look()? {
        Some(_) => place.write()?,
        None => place.create(Mode::from_raw_mode(FILE_MODE))?,
    };
    let put = file.set_len(0).and_then(|()| file.write_all(content));
    put.map_err(|error| failed(error).halfway())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Text {
    path: PathBuf,
    content: String,
}

/// `fs.write`.
pub(crate) struct Write;

impl Action for Write {
    type Input = Text;
    const FACTS: Facts = facts(
        "fs.write",
        "makes a text file, or replaces what it holds",
        true,
    );

    fn input() -> Value {
        object(
            json!({ "path": path("the file"), "content": content() }),
            &["path", "content"],
        )
    }

    fn output() -> Value {
        size()
    }

    fn needs(_: &Host, input: &Text) -> Result<Vec<Need>, ToolError> {
        Ok(vec![Need::Write(input.path.clone())])
    }

    fn back_up(host: &Host, input: &Text, draft: &mut Draft<'_>) -> Result<(), ToolError> {
        draft.take(&host.directories.place(&input.path)?)
    }

    fn run(host: &Host, input: &Text, _: &Deadline) -> Result<Value, ToolError> {
        put(
            &host.directories.place(&input.path)?,
            input.content.as_bytes(),
        )?;
        Ok(json!({ "size": input.content.len() }))
    }
}

/// `fs.append`.
pub(crate) struct Append;

impl Action for Append {
    type Input = Text;
    const FACTS: Facts = facts("fs.append", "adds text at the end of a file", false);

    fn input() -> Value {
        Write::input()
    }

    fn output() -> Value {
        size()
    }

    fn needs(_: &Host, input: &Text) -> Result<Vec<Need>, ToolError> {
        Ok(vec![Need::Write(input.path.clone())])
    }

    fn back_up(host: &Host, input: &Text, draft: &mut Draft<'_>) -> Result<(), ToolError> {
        draft.take(&host.directories.place(&input.path)?)
    }

    fn run(host: &Host, input: &Text, _: &Deadline) -> Result<Value, ToolError> {
        let mut file = host.directories.place(&input.path)?.write()?;
        let failed = |error: io::Error| ToolError::io("append to", &input.path, &error);
        let end = file.seek(SeekFrom::End(0)).map_err(failed)?;
        file.write_all(input.content.as_bytes())
            .map_err(|error| failed(error).halfway())?;
        let added = input.content.len() as u64;
        Ok(json!({ "size": end.saturating_add(added) }))
    }
}

/// `fs.edit`.
pub(crate) struct Edit;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Replacement {
    path: PathBuf,
    old: String,
    new: String,
    #[serde(default)]
    all: bool,
}

impl Action for Edit {
    type Input = Replacement;
    const FACTS: Facts = facts(
        "fs.edit",
        "replaces a piece of text in a file, which has to be there exactly once unless all are meant",
        false,
    );

    fn input() -> Value {
        object(
            json!({
                "path": path("the file"),
                "old": { "type": "string", "minLength": 1, "maxLength": MAX_WRITE },
                "new": content(),
                "all": { "type": "boolean", "description": "replace each that is there" },
            }),
            &["path", "old", "new"],
        )
    }

    fn output() -> Value {
        object(
            json!({ "replaced": { "type": "integer", "minimum": 1 } }),
            &["replaced"],
        )
    }

    fn needs(_: &Host, input: &Replacement) -> Result<Vec<Need>, ToolError> {
        Ok(vec![Need::Write(input.path.clone())])
    }

    fn back_up(host: &Host, input: &Replacement, draft: &mut Draft<'_>) -> Result<(), ToolError> {
        draft.take(&host.directories.place(&input.path)?)
    }

    fn run(host: &Host, input: &Replacement, _: &Deadline) -> Result<Value, ToolError> {
        let place = host.directories.place(&input.path)?;
        let failed = |error: io::Error| ToolError::io("read", &input.path, &error);
        let mut bytes = Vec::new();
        let mut part = place.read()?.take(MAX_READ + 1);
        part.read_to_end(&mut bytes).map_err(failed)?;
        let path = input.path.display();
        if bytes.len() as u64 > MAX_READ {
            let most = MAX_READ >> 20;
            let why = format!("`{path}` is larger than the {most} MiB that can be edited");
            return Err(ToolError::refused(why));
        }
        let text = String::from_utf8(bytes);
        let text = text.map_err(|_| ToolError::refused(format!("`{path}` is not UTF-8 text")))?;
        let found = text.matches(&input.old).count();
        if found == 0 {
            return Err(ToolError::refused(format!("the text is not in `{path}`")));
        }
        if found > 1 && !input.all {
            let why = format!("the text is {found} times in `{path}`; `all` replaces each");
            return Err(ToolError::refused(why));
        }
        let grown = input.new.len().saturating_sub(input.old.len());
        if text.len().saturating_add(grown.saturating_mul(found)) as u64 > MAX_FILE {
            return Err(ToolError::refused(format!("`{path}` would be too large")));
        }
        put(&place, text.replace(&input.old, &input.new).as_bytes())?;
        Ok(json!({ "replaced": found }))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FromTo {
    from: PathBuf,
    to: PathBuf,
}

fn from_to() -> Value {
    object(
        json!({ "from": path("what there is"), "to": path("where nothing is yet") }),
        &["from", "to"],
    )
}

/// `fs.copy`.
pub(crate) struct Copy;

impl Action for Copy {
    type Input = FromTo;
    const FACTS: Facts = Facts {
        needs: "`fs.read` of what is copied, `fs.write` of the copy",
        ..facts(
            "fs.copy",
            "copies a file, with its mode, to where nothing is yet",
            false,
        )
    };

    fn input() -> Value {
        from_to()
    }

    fn output() -> Value {
        size()
    }

    fn needs(_: &Host, input: &FromTo) -> Result<Vec<Need>, ToolError> {
        Ok(vec![
            Need::Read(input.from.clone()),
            Need::Write(input.to.clone()),
        ])
    }

    fn back_up(host: &Host, input: &FromTo, draft: &mut Draft<'_>) -> Result<(), ToolError> {
        let to = host.directories.place(&input.to)?;
        must_be_free(&to)?;
        draft.take(&to)
    }

    fn run(host: &Host, input: &FromTo, deadline: &Deadline) -> Result<Value, ToolError> {
        let from = host.directories.place(&input.from)?.read()?;
        let failed = |error: io::Error| ToolError::io("copy", &input.from, &error);
        let metadata = from.metadata().map_err(failed)?;
        if metadata.len() > MAX_FILE {
            let path = input.from.display();
            let most = MAX_FILE >> 20;
            let why = format!("`{path}` is larger than the {most} MiB that can be copied");
            return Err(ToolError::refused(why));
        }
        let to = host.directories.place(&input.to)?;
        let mut copy = to.create(Mode::RUSR | Mode::WUSR)?;
        // Set-id bits are not an agent's to hand on.
        let mode = Mode::from_raw_mode(metadata.mode() & 0o777);
        let copied = copy_all(from, &mut copy, &input.from, deadline).and_then(|copied| {
            fchmod(&copy, mode).map_err(|errno| failed(errno.into()))?;
            Ok(copied)
        });
        Ok(json!({ "size": copied.map_err(ToolError::halfway)? }))
    }
}

fn copy_all(from: File, to: &mut File, path: &Path, deadline: &Deadline) -> Result<u64, ToolError> {
    let failed = |error: io::Error| ToolError::io("copy", path, &error);
    let mut from = from.take(MAX_FILE);
    let mut copied = 0;
    loop {
        deadline.check()?;
        let part = io::copy(&mut from.by_ref().take(1024 * 1024), to).map_err(failed)?;
        if part == 0 {
            return Ok(copied);
        }
        copied += part;
    }
}

fn must_be_free(place: &Place<'_>) -> Result<(), ToolError> {
    match place.look()? {
        None => Ok(()),
        Some(_) => Err(ToolError::host("replace", &place.path(), Errno::EXIST)),
    }
}

/// `fs.move`.
pub(crate) struct Move;

impl Action for Move {
    type Input = FromTo;
    const FACTS: Facts = Facts {
        needs: "`fs.write` of both paths",
        ..facts(
            "fs.move",
            "moves a file or directory to where nothing is yet",
            false,
        )
    };

    fn input() -> Value {
        from_to()
    }

    fn output() -> Value {
        nothing()
    }

    fn needs(_: &Host, input: &FromTo) -> Result<Vec<Need>, ToolError> {
        Ok(vec![
            Need::Write(input.from.clone()),
            Need::Write(input.to.clone()),
        ])
    }

    fn back_up(host: &Host, input: &FromTo, draft: &mut Draft<'_>) -> Result<(), ToolError> {
        let to = host.directories.place(&input.to)?;
        must_be_free(&to)?;
        draft.moves(&host.directories.place(&input.from)?, &to)
    }

    fn run(host: &Host, input: &FromTo, _: &Deadline) -> Result<Value, ToolError> {
        let from = host.directories.place(&input.from)?;
        move_entry(&from, &host.directories.place(&input.to)?)?;
        Ok(json!({}))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Where {
    path: PathBuf,
}

fn only_a_path(what: &str) -> Value {
    object(json!({ "path": path(what) }), &["path"])
}

/// `fs.delete`.
pub(crate) struct Delete;

impl Action for Delete {
    type Input = Where;
    const FACTS: Facts = Facts {
        risk: Risk::Destructive,
        ..facts("fs.delete", "deletes a file, or a link", false)
    };

    fn input() -> Value {
        only_a_path("the file or link")
    }

    fn output() -> Value {
        nothing()
    }

    fn needs(_: &Host, input: &Where) -> Result<Vec<Need>, ToolError> {
        Ok(vec![Need::Write(input.path.clone())])
    }

    fn back_up(host: &Host, input: &Where, draft: &mut Draft<'_>) -> Result<(), ToolError> {
        let place = host.directories.place(&input.path)?;
        match place
            .look()?
            .map(|stat| FileType::from_raw_mode(stat.st_mode))
        {
            Some(FileType::RegularFile | FileType::Symlink) => draft.take(&place),
            Some(_) => Err(ToolError::NotAFile(input.path.clone())),
            None => Err(ToolError::host("delete", &input.path, Errno::NOENT)),
        }
    }

    fn run(host: &Host, input: &Where, _: &Deadline) -> Result<Value, ToolError> {
        let entry = host.directories.place(&input.path)?.entry()?;
        unlinkat(&entry.directory, &entry.name, AtFlags::empty())
            .map_err(|errno| ToolError::host("delete", &input.path, errno))?;
        Ok(json!({}))
    }
}

/// `fs.mkdir`.
pub(crate) struct MakeDirectory;

impl Action for MakeDirectory {
    type Input = Where;
    const FACTS: Facts = facts("fs.mkdir", "makes a directory", false);

    fn input() -> Value {
        only_a_path("the new directory")
    }

    fn output() -> Value {
        nothing()
    }

    fn needs(_: &Host, input: &Where) -> Result<Vec<Need>, ToolError> {
        Ok(vec![Need::Write(input.path.clone())])
    }

    fn back_up(host: &Host, input: &Where, draft: &mut Draft<'_>) -> Result<(), ToolError> {
        let place = host.directories.place(&input.path)?;
        must_be_free(&place)?;
        draft.take(&place)
    }

    fn run(host: &Host, input: &Where, _: &Deadline) -> Result<Value, ToolError> {
        let place = host.directories.place(&input.path)?;
        let entry = place.entry()?;
        let failed = |errno| ToolError::host("create", &input.path, errno);
        let mode = Mode::from_raw_mode(DIRECTORY_MODE);
        mkdirat(&entry.directory, &entry.name, mode).map_err(failed)?;
        Ok(json!({}))
    }
}

/// `fs.rmdir`.
pub(crate) struct RemoveDirectory;

impl Action for RemoveDirectory {
    type Input = Where;
    const FACTS: Facts = facts("fs.rmdir", "removes an empty directory", false);

    fn input() -> Value {
        only_a_path("the empty directory")
    }

    fn output() -> Value {
        nothing()
    }

    fn needs(_: &Host, input: &Where) -> Result<Vec<Need>, ToolError> {
        Ok(vec![Need::Write(input.path.clone())])
    }

    fn back_up(host: &Host, input: &Where, draft: &mut Draft<'_>) -> Result<(), ToolError> {
        let place = host.directories.place(&input.path)?;
        place.directory()?;
        draft.take(&place)
    }

    fn run(host: &Host, input: &Where, _: &Deadline) -> Result<Value, ToolError> {
        let entry = host.directories.place(&input.path)?.entry()?;
        unlinkat(&entry.directory, &entry.name, AtFlags::REMOVEDIR)
            .map_err(|errno| ToolError::host("remove", &input.path, errno))?;
        Ok(json!({}))
    }
}

/// `fs.chmod`.
pub(crate) struct ChangeMode;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModeOf {
    path: PathBuf,
    mode: String,
}

impl Action for ChangeMode {
    type Input = ModeOf;
    const FACTS: Facts = facts(
        "fs.chmod",
        "sets the permissions of a file or directory",
        true,
    );

    fn input() -> Value {
        object(
            json!({
                "path": path("the file or directory"),
                "mode": { "type": "string", "pattern": "^[0-7]{3}$", "description": "octal, as 644" },
            }),
            &["path", "mode"],
        )
    }

    fn output() -> Value {
        nothing()
    }

    fn needs(_: &Host, input: &ModeOf) -> Result<Vec<Need>, ToolError> {
        Ok(vec![Need::Write(input.path.clone())])
    }

    fn back_up(host: &Host, input: &ModeOf, draft: &mut Draft<'_>) -> Result<(), ToolError> {
        draft.take(&host.directories.place(&input.path)?)
    }

    fn run(host: &Host, input: &ModeOf, _: &Deadline) -> Result<Value, ToolError> {
        let place = host.directories.place(&input.path)?;
        place.entry()?;
        let failed = |errno| ToolError::host("set the mode of", &input.path, errno);
        let bits = u32::from_str_radix(&input.mode, 8);
        let bits = bits.map_err(|_| ToolError::refused("the mode is not octal"))?;
        let mode = Mode::from_raw_mode(bits & 0o777);
        let kind = place
            .look()?
            .map(|stat| FileType::from_raw_mode(stat.st_mode));
        match kind {
            Some(FileType::Directory) => fchmod(place.directory()?, mode).map_err(failed)?,
            _ => fchmod(place.read()?, mode).map_err(failed)?,
        }
        Ok(json!({}))
    }
}
