//! A repository of the guest's, and git on it, so that nothing that stands in it runs. Used by the tools
//! of the family.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use rustix::fs::FileType;

use crate::backups::Draft;
use crate::directories::Place;
use crate::error::ToolError;
use crate::host::Host;
use crate::programs::{self, Ended, Program};
use crate::registry::Deadline;

/// Where hosts have it.
pub(crate) const PLACES: [&str; 2] = ["/usr/bin/git", "/usr/local/bin/git"];
/// What wins over the repository's own configuration.
const SETTINGS: &[&str] = &[
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.pager=cat",
    "core.editor=false",
    "core.sshCommand=false",
    "core.askPass=false",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.alternateRefsCommand=",
    "credential.helper=",
    "protocol.allow=never",
    "gc.auto=0",
    "maintenance.auto=false",
    "commit.gpgSign=false",
    "tag.gpgSign=false",
    "gpg.program=false",
    "log.showSignature=false",
    "diff.external=",
    "submodule.recurse=false",
    "status.submoduleSummary=false",
    "safe.directory=*",
    "advice.detachedHead=false",
    "color.ui=false",
];

/// What a repository consists of. A file, or a link, in the place of a directory would lead elsewhere.
const PARTS: &[(&str, FileType)] = &[
    (".git", FileType::Directory),
    (".git/config", FileType::RegularFile),
    (".git/HEAD", FileType::RegularFile),
    (".git/objects", FileType::Directory),
    (".git/refs", FileType::Directory),
];
/// Files in which a repository says that parts of it, its configuration among them, are elsewhere.
const ELSEWHERE: &[&str] = &[
    ".git/commondir",
    ".git/config.worktree",
    ".git/objects/info/alternates",
    ".git/objects/info/http-alternates",
];

/// Keys of a repository's configuration that name no program and lead nowhere, in lower case; a `*`
/// stands for a name of the user's.
const HARMLESS: &[&str] = &[
    "core.repositoryformatversion",
    "core.filemode",
    "core.bare",
    "core.logallrefupdates",
    "core.ignorecase",
    "core.precomposeunicode",
    "core.symlinks",
    "core.autocrlf",
    "core.eol",
    "core.safecrlf",
    "core.quotepath",
    "extensions.objectformat",
    "init.defaultbranch",
    "user.name",
    "user.email",
    "remote.*.url",
    "remote.*.fetch",
    "branch.*.remote",
    "branch.*.merge",
    "branch.*.rebase",
    "pull.rebase",
    "push.default",
    "submodule.active",
];

/// A repository that was looked at.
pub(super) struct Repository<'r> {
    host: &'r Host,
    path: &'r Path,
    deadline: Deadline,
    write: bool,
}

impl<'r> Repository<'r> {
    /// # Errors
    /// It is none, or its configuration has a key that may name a program.
    pub(super) fn open(
        host: &'r Host,
        path: &'r Path,
        write: bool,
        deadline: &Deadline,
    ) -> Result<Self, ToolError> {
        let repository = Self {
            host,
            path,
            deadline: *deadline,
            write,
        };
        for (name, kind) in PARTS {
            if repository.kind(name)? != Some(*kind) {
                let path = path.display();
                return Err(ToolError::refused(format!(
                    "`{path}` is no repository: no {name}"
                )));
            }
        }
        for name in ELSEWHERE {
            if repository.kind(name)?.is_some() {
                let path = path.display();
                return Err(ToolError::refused(format!(
                    "`{path}` has {name}, which leads elsewhere"
                )));
            }
        }
        // Whatever the call may change, this only looks.
        let looking = Self {
            write: false,
            ..repository
        };
        let arguments = ["config", "--file", ".git/config", "--no-includes", "--null"];
        let keys = looking.git(&arguments, &["--name-only", "--list"], "")?;
        for key in keys.stdout.split('\0').filter(|key| !key.is_empty()) {
            if !is_harmless(key) {
                return Err(ToolError::refused(format!(
                    "the repository's configuration has the key `{}`, which is not known to be harmless",
                    key.escape_debug()
                )));
            }
        }
        Ok(Self { write, ..looking })
    }

    /// What is at a place, if anything is.
    fn kind(&self, name: &str) -> Result<Option<FileType>, ToolError> {
        let found = self.place(name)?.look()?;
        Ok(found.map(|stat| FileType::from_raw_mode(stat.st_mode)))
    }

    fn place(&self, name: &str) -> Result<Place<'r>, ToolError> {
        self.host.directories.place(&self.path.join(name))
    }

    /// Runs git to its end; what it does must succeed.
    pub(super) fn git(
        &self,
        arguments: &[&str],
        operands: &[&str],
        input: &str,
    ) -> Result<Ended, ToolError> {
        let ended = self.try_git(arguments, operands, input)?;
        match ended.status {
            0 => Ok(ended),
            _ => {
                let said = ended.stderr.trim();
                let said: String = said.chars().take(2000).collect();
                // It may have done a part of it.
                Err(ToolError::refused(format!("git refused: {said}")).halfway())
            }
        }
    }

    fn try_git(
        &self,
        arguments: &[&str],
        operands: &[&str],
        input: &str,
    ) -> Result<Ended, ToolError> {
        let git = self
            .host
            .git
            .ok_or_else(|| ToolError::refused("the host has no git"))?;
        let settings = SETTINGS.iter().flat_map(|setting| ["-c", setting]);
        let words = (settings.chain(["--no-pager", "--literal-pathspecs"]))
            .chain(arguments.iter().copied())
            .chain(operands.iter().copied());
        let environment = [
            ("GIT_DIR", ".git"),
            ("GIT_WORK_TREE", "."),
            // Wins over a file that appears after it was looked for.
            ("GIT_COMMON_DIR", ".git"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_NO_LAZY_FETCH", "1"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_EDITOR", "false"),
            ("GIT_AUTHOR_NAME", "agent"),
            ("GIT_AUTHOR_EMAIL", "agent@bulkhead.invalid"),
            ("GIT_COMMITTER_NAME", "agent"),
            ("GIT_COMMITTER_EMAIL", "agent@bulkhead.invalid"),
            ("HOME", "/nonexistent"),
            ("PATH", "/nonexistent"),
            ("LC_ALL", "C.UTF-8"),
        ];
        let program = Program {
            path: git.into(),
            arguments: words.map(str::to_owned).collect(),
            environment: (environment.iter())
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            directory: self.host.directories.place(self.path)?.directory()?,
            write: self.write,
            input: input.to_owned(),
        };
        programs::run(&self.host.launcher, program, &self.deadline)
    }

    /// The branch that is checked out, by its full name.
    pub(super) fn head(&self) -> Result<String, ToolError> {
        let mut text = String::new();
        let head = self.place(".git/HEAD")?.read()?;
        let read = head.take(4096).read_to_string(&mut text);
        read.map_err(|error| ToolError::io("read", &self.path.join(".git/HEAD"), &error))?;
        let branch = text.trim_end().strip_prefix("ref: ").unwrap_or_default();
        match branch.starts_with("refs/heads/") && is_plain_name(branch) {
            true => Ok(branch.to_owned()),
            false => Err(ToolError::refused("no branch is checked out")),
        }
    }

    /// Takes down the files of these names, and the directories on the way to them, which git makes and
    /// removes as it needs them.
    pub(super) fn take(&self, draft: &mut Draft<'_>, names: &[String]) -> Result<(), ToolError> {
        let above = |name: &String| {
            let above = Path::new(name).ancestors().skip(1);
            let above = above.filter_map(|path| path.to_str().filter(|text| !text.is_empty()));
            above.map(str::to_owned).collect::<Vec<_>>()
        };
        let above: BTreeSet<String> = names.iter().flat_map(above).collect();
        // What is behind a missing directory is missing.
        let exists = |name: &String| Ok(self.place(name)?.look().ok().flatten().is_some());
        let mut missing = Vec::new();
        // From the outside in, as they have to be made.
        for directory in &above {
            match exists(directory)? {
                true => draft.take(&self.place(directory)?)?,
                false => missing.push(directory),
            }
        }
        for name in names {
            draft.take(&self.place(name)?)?;
        }
        // From the inside out, as they have to go.
        for directory in missing.into_iter().rev() {
            draft.take(&self.place(directory)?)?;
        }
        Ok(())
    }
}

/// The parts of a key that are the user's own may hold anything.
fn is_harmless(key: &str) -> bool {
    let Some((section, rest)) = key.split_once('.') else {
        return false;
    };
    let key = match rest.rsplit_once('.') {
        None => format!("{section}.{rest}"),
        Some((_, last)) => format!("{section}.*.{last}"),
    };
    HARMLESS.contains(&key.to_lowercase().as_str())
}

/// No part of it begins with a dot, or is empty.
fn is_plain_name(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    name.split('/').all(plain) && !name.contains("..")
}

pub(super) fn plain(name: &str) -> Result<&str, ToolError> {
    match is_plain_name(name) {
        true => Ok(name),
        false => Err(ToolError::refused(format!(
            "`{name}` is no name that git takes"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_may_name_a_program_are_not_harmless() {
        for key in [
            "core.bare",
            "core.repositoryFormatVersion",
            "remote.origin.url",
            "remote.a.b.c.url",
            "branch.main.merge",
        ] {
            assert!(is_harmless(key), "{key}");
        }
        for key in [
            "core.fsmonitor",
            "core.hookspath",
            "core.worktree",
            "core.sshcommand",
            "filter.x.clean",
            "filter.x.process",
            "diff.external",
            "diff.x.command",
            "diff.x.textconv",
            "merge.x.driver",
            "gpg.program",
            "include.path",
            "includeif.gitdir:/.path",
            "alias.status",
            "extensions.worktreeconfig",
            "extensions.partialclone",
            "remote.x.uploadpack",
            "remote.x.promisor",
            "core.x.bare",
            "x",
            "",
        ] {
            assert!(!is_harmless(key), "{key}");
        }
    }

    #[test]
    fn names_have_no_second_meaning() {
        for name in ["main", "feature/x", "v1.0", "refs/heads/a"] {
            assert!(is_plain_name(name), "{name}");
        }
        for name in [
            "", "a..b", "../x", "a//b", "/a", "a/", ".hidden", "a/.b", "a.lock", "a/b.lock",
        ] {
            assert!(!is_plain_name(name), "{name}");
        }
    }
}
