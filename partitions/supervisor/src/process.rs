//! A process of a partition: started with exactly its descriptors, listened to, ended for certain.
//!
//! The VMM, the gateway and the servers of shared directories are started alike: each reads a
//! description from the descriptor named by `--description-fd`, and each dies with its supervisor.

use crate::cgroup::Group;
use crate::error::Error;
use crate::initramfs::memory_file;
use command_fds::CommandFdExt;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, pidfd_send_signal,
    waitid,
};
use std::fs;
use std::io::{self, PipeWriter, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Most bytes of a process's last words that are kept.
const LAST_WORDS: usize = 2048;
/// Most bytes of its words that are taken at once: whole lines, as a rule.
const WORDS: usize = 16 * 1024;
/// Most bytes that an unprivileged user's pipe holds (`/proc/sys/fs/pipe-max-size`).
const MAX_PIPE: usize = 1024 * 1024;
/// How long between two looks at a process that is being frozen.
const STOPPING: Duration = Duration::from_millis(1);

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// Readable when the process has ended.
    pub(crate) pidfd: OwnedFd,
    /// What it says on standard error.
    pub(crate) stderr: Option<ChildStderr>,
    last_words: Vec<u8>,
    reaped: bool,
    /// It ended with status 0.
    pub(crate) succeeded: bool,
}

/// The two ends of a socket whose packets stay whole, ours first.
pub(crate) fn packet_pair() -> Result<(OwnedFd, OwnedFd), Error> {
    let pair = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    );
    pair.map_err(Error::system("create a socket pair"))
}

/// A description on its way: in a file without a name, or in a pipe that is filled later, so that
/// the process waits for it.
enum Delivery {
    Now(OwnedFd),
    Later(OwnedFd, PipeWriter),
}

impl Delivery {
    fn now(description: &[u8]) -> Result<Self, Error> {
        let mut file = memory_file(c"description")?;
        let written = file.write_all(description).and_then(|()| file.rewind());
        written.map_err(Error::system("write a description"))?;
        Ok(Self::Now(file.into()))
    }

    fn later(description: &[u8]) -> Result<Self, Error> {
        let (theirs, ours) = io::pipe().map_err(Error::system("create a pipe"))?;
        // So that a process that does not read cannot hold us up.
        let size = description.len().clamp(4096, MAX_PIPE);
        rustix::pipe::fcntl_setpipe_size(&ours, size).map_err(Error::system("size a pipe"))?;
        Ok(Self::Later(theirs.into(), ours))
    }
}

impl Process {
    /// Starts the program at `path`. `descriptors` are all that it inherits beside its standard
    /// streams; it gets no environment, no arguments of the user's, and no terminal's signals.
    /// With a `group` it is in there before it reads its description.
    pub(crate) fn spawn(
        path: &Path,
        description: &[u8],
        mut descriptors: Vec<OwnedFd>,
        group: Option<&Group>,
    ) -> Result<Self, Error> {
        let delivery = match group {
            None => Delivery::now(description)?,
            Some(_) => Delivery::later(description)?,
        };
        let (file, writer) = match delivery {
            Delivery::Now(file) => (file, None),
            Delivery::Later(file, writer) => (file, Some(writer)),
        };
        let number = file.as_raw_fd();
        descriptors.push(file);
        let mut command = Command::new(path);
        command
            .arg("--description-fd")
            .arg(number.to_string())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .preserved_fds(descriptors);
        let failed = |source| Error::Spawn {
            path: path.to_owned(),
            source,
        };
        let mut child = command.spawn().map_err(failed)?;
        // Our copies of its descriptors close here, so that its end is seen as hang-ups.
        drop(command);
        let pidfd = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(errno) => {
                // The process is a stranger without it: end it at once.
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(errno.into()));
            }
        };
        let stderr = child.stderr.take();
        let process = Self {
            child,
            pidfd,
            stderr,
            last_words: Vec::new(),
            reaped: false,
            succeeded: false,
        };
        if let Some(group) = group {
            group.add(process.pid())?;
        }
        if let Some(mut writer) = writer {
            // One that died already is seen to have, and says why.
            let _ = writer.write_all(description);
        }
        Ok(process)
    }

    /// Process id, for people.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the process; harmless when it has ended.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Stops all its threads where they are, whatever they do.
    pub(crate) fn freeze(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::STOP);
    }

    /// Lets them go on.
    pub(crate) fn thaw(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::CONT);
    }

    /// Kills what the process has started, once it is frozen and so starts nothing more. Frozen, some of
    /// it could wake the others. Where the process does not stand still by `deadline`, or the host does
    /// not tell what it has started, it is killed itself.
    pub(crate) fn kill_children(&self, deadline: Instant) {
        match self.stands_still(deadline).and_then(|()| self.children()) {
            // Nobody has waited for them, so the numbers are still theirs.
            Ok(children) => children.into_iter().for_each(|child| {
                let _ = kill_process(child, Signal::KILL);
            }),
            Err(_) => self.kill(),
        }
    }

    /// Waits until every thread of it is stopped, or it has ended.
    fn stands_still(&self, deadline: Instant) -> io::Result<()> {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED;
        let options = options | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while waitid(WaitId::PidFd(self.pidfd.as_fd()), options)?.is_none() {
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(STOPPING);
        }
        Ok(())
    }

    fn children(&self) -> io::Result<Vec<Pid>> {
        let mut children = Vec::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let listed = fs::read_to_string(task?.path().join("children"))?;
            let numbers = listed.split_whitespace().map(str::parse);
            let numbers = numbers.map(|number| number.ok().and_then(Pid::from_raw));
            children.extend(numbers.flatten());
        }
        Ok(children)
    }

    /// Reads what is there of its standard error; nothing at its end.
    pub(crate) fn listen(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0; WORDS];
        match self.stderr.as_mut()?.read(&mut buffer) {
            Ok(0) => None,
            Ok(count) => {
                let words = buffer.get(..count).unwrap_or_default();
                self.last_words.extend(words);
                let excess = self.last_words.len().saturating_sub(LAST_WORDS);
                self.last_words.drain(..excess);
                Some(words.to_vec())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Some(Vec::new()),
            Err(_) => None,
        }
    }

    /// After the process has ended: how, as the end of a sentence, with its last line.
    pub(crate) fn reap(&mut self) -> String {
        while self.listen().is_some() {}
        let how = match self.child.wait() {
            Ok(status) if status.success() => {
                self.succeeded = true;
                "exited with status 0".to_owned()
            }
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("exited with status {code}"),
                (None, Some(signal)) => format!("was killed by signal {signal}"),
                (None, None) => "ended".to_owned(),
            },
            Err(_) => "is gone".to_owned(),
        };
        self.reaped = true;
        let words = String::from_utf8_lossy(&self.last_words);
        match words.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => format!("{how}: {}", line.trim().escape_debug()),
            None => how,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::OpenOptionsExt;
    use tempfile::tempdir;

    /// Runs a shell script and gives back how it ended.
    fn run(script: &str, descriptors: Vec<OwnedFd>) -> String {
        let dir = tempdir().unwrap();
        let path = dir.path().join("process");
        let mut options = File::options();
        let options = options.write(true).create(true).mode(0o755);
        let mut file = options.open(&path).unwrap();
        write!(file, "#!/bin/sh\n{script}\n").unwrap();
        drop(file);
        Process::spawn(&path, b"{}", descriptors, None)
            .unwrap()
            .reap()
    }

    #[test]
    fn a_process_inherits_what_it_was_given_and_nothing_else() {
        // Far from the numbers that a shell uses itself.
        let high = |file| rustix::io::fcntl_dupfd_cloexec(&file, 200).unwrap();
        let secret = high(tempfile::tempfile().unwrap());
        let given = high(tempfile::tempfile().unwrap());
        let (secret_fd, given_fd) = (secret.as_raw_fd(), given.as_raw_fd());
        let script = format!(
            "test -e /proc/self/fd/{given_fd} && ! test -e /proc/self/fd/{secret_fd} \
             && test \"$1\" = --description-fd && test -s /proc/self/fd/$2 && exit 7"
        );
        assert_eq!(run(&script, vec![given]), "exited with status 7");
        assert_eq!(
            run("test -z \"$HOME$USER$CARGO\" && exit 8", vec![]),
            "exited with status 8"
        );
    }

    #[test]
    fn last_words_and_signals_are_told() {
        assert_eq!(
            run("echo one >&2; echo two >&2; exit 3", vec![]),
            "exited with status 3: two"
        );
        assert_eq!(run("kill -9 $$", vec![]), "was killed by signal 9");
    }

    #[test]
    fn a_dropped_process_is_dead() {
        // cat fails at once over its arguments or is killed: either way nobody is left.
        let process = Process::spawn(Path::new("/bin/cat"), b"", vec![], None).unwrap();
        let pid = process.pid();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}/status")).exists());
    }
}
