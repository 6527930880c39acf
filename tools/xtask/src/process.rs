//! Starting other programs: in the repository's root, with the error that names them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::{Failure, Result};

/// Directories searched beside `PATH`: Debian keeps mke2fs and friends out of a user's path.
const SYSTEM_DIRS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Where `program` is, or nothing.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Where `program` is, or the sentence that names its package.
pub(crate) fn require(program: &str, package: &str) -> Result<PathBuf> {
    which(program).ok_or_else(|| {
        Failure::new(format!("{program} is not installed (package {package})"))
            .remedy("cargo xtask setup")
    })
}

/// How a command line reads in a message.
pub(crate) fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs it with our stdout and stderr; any status but 0 is a failure.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(|error| Failure::new(format!("cannot start {}: {error}", shown(command))))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("{} failed: {status}", shown(command))))
}

/// Runs it and returns its stdout; any status but 0 is a failure that quotes its stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::new(format!("cannot start {}: {error}", shown(command))))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Failure::new(format!(
        "{} failed: {}\n{}",
        shown(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    )))
}

/// Runs it and returns its stdout, whatever its status.
pub(crate) fn output_of_any_status(command: &mut Command) -> Result<String> {
    command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .map_err(|error| Failure::new(format!("cannot start {}: {error}", shown(command))))
}

/// `cargo`, the one that runs us, at the repository's root.
pub(crate) fn cargo(root: &Path) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root);
    command
}
