//! Finds the program of `bulkhead run`: which host file it is, and where the partition gets it.

use crate::failure::{Failure, STATUS_CANNOT_RUN, STATUS_NOT_FOUND};
use bulkhead_manifest::GuestPath;
use bulkhead_supervisor::reason;
use rustix::fs::{Access, access};
use std::env;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

/// Where a program that was found in PATH is put.
const GUEST_BIN: &str = "/bin";

/// A host file for the guest to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Path on the host, or `@name` in the library.
    pub(crate) source: String,
    /// Where the guest will look for it.
    pub(crate) target: String,
}

/// Looks up `name` as a shell would: a path if it has a slash, else in PATH; `@name` is a file of
/// the library.
pub(crate) fn find(name: &str) -> Result<Found, Failure> {
    if let Some(file) = name.strip_prefix('@') {
        let base = Path::new(file)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        return Ok(Found {
            source: name.to_owned(),
            target: format!("{GUEST_BIN}/{base}"),
        });
    }
    if name.contains('/') {
        let path = Path::new(name);
        check(path)?;
        let target = GuestPath::from_root(path).map_err(|why| {
            Failure::new(
                "command",
                format!("`{name}` has no place in the partition: {why}"),
            )
        })?;
        return Ok(Found {
            source: name.to_owned(),
            target: target.to_string(),
        });
    }
    let path = search(name, env::var_os("PATH").as_deref()).ok_or_else(|| {
        Failure::new(
            "command-not-found",
            format!("no command `{name}` in PATH of this host"),
        )
        .help("name its file with a slash, or bring it with --root or --mount")
        .status(STATUS_NOT_FOUND)
    })?;
    let source = path.into_os_string().into_string().map_err(|path| {
        Failure::new(
            "command",
            format!("the path of `{name}` is not UTF-8: {}", path.display()),
        )
    })?;
    Ok(Found {
        source,
        target: format!("{GUEST_BIN}/{name}"),
    })
}

/// True when a mount at `target` (as written) is or holds what the guest would run as `name`.
pub(crate) fn is_provided(name: &str, target: &str) -> bool {
    let Ok(target) = GuestPath::new(target) else {
        return false;
    };
    if name.contains('/') {
        return GuestPath::from_root(Path::new(name)).is_ok_and(|path| path.is_within(&target));
    }
    let file = Path::new(target.as_str()).file_name();
    file == Some(OsStr::new(name)) || file == Some(OsStr::new("bin"))
}

/// The first executable file of this name in the directories of PATH.
fn search(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    let directories = env::split_paths(path.unwrap_or_default());
    let files = directories.map(|directory| directory.join(name));
    files.into_iter().find(|file| check(file).is_ok())
}

/// A regular file that this user may execute.
fn check(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let cannot = |why: &str| {
        Failure::new(
            "command-not-executable",
            format!("cannot run `{shown}`: {why}"),
        )
        .status(STATUS_CANNOT_RUN)
    };
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::new(
            "command-not-found",
            format!("no command `{shown}` on this host"),
        )
        .help("a command with a slash is a file of this host")
        .status(STATUS_NOT_FOUND)),
        Err(error) => Err(cannot(&reason(&error))),
        Ok(metadata) if !metadata.is_file() => Err(cannot("it is no regular file")),
        Ok(_) if access(path, Access::EXEC_OK).is_err() => {
            Err(cannot("it is not executable").help(format!("chmod +x {shown}")))
        }
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use tempfile::tempdir;

    #[test]
    fn paths_library_names_and_absent_files() {
        let found = find("@examples/hello").unwrap();
        assert_eq!(
            (found.source.as_str(), found.target.as_str()),
            ("@examples/hello", "/bin/hello")
        );
        let found = find("/bin/../bin/sh").unwrap();
        assert_eq!(
            (found.source.as_str(), found.target.as_str()),
            ("/bin/../bin/sh", "/bin/sh")
        );
        assert_eq!(find("./nonexistent").unwrap_err().status, STATUS_NOT_FOUND);
        assert_eq!(
            find("nonexistent-command").unwrap_err().status,
            STATUS_NOT_FOUND
        );
        assert_eq!(find("/bin/").unwrap_err().status, STATUS_CANNOT_RUN);
        assert_eq!(find("/etc/passwd").unwrap_err().status, STATUS_CANNOT_RUN);
    }

    #[test]
    fn the_search_passes_over_what_is_not_executable() {
        let dir = tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for directory in [&a, &b] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("tool"), "").unwrap();
        }
        fs::set_permissions(b.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        let path = env::join_paths([&a, &b]).unwrap();
        assert_eq!(search("tool", Some(&path)), Some(b.join("tool")));
        assert_eq!(search("other", Some(&path)), None);
        assert_eq!(search("tool", None), None);
    }

    #[test]
    fn a_mount_provides_what_it_is_or_holds() {
        for (name, target, provided) in [
            ("/bin/x", "/bin/x", true),
            ("./x", "/x", true),
            ("/opt/tools/x", "/opt", true),
            ("/bin/x", "/bin/y", false),
            ("x", "/usr/bin/x", true),
            ("x", "/usr/bin", true),
            ("x", "/data", false),
            ("x", "relative", false),
        ] {
            assert_eq!(is_provided(name, target), provided, "{name} {target}");
        }
    }
}
