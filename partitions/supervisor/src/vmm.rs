//! One VMM process: started with exactly its descriptors, listened to, and ended for certain.

use crate::error::Error;
use crate::initramfs::memory_file;
use bulkhead_machine::MachineDescription;
use bulkhead_machine::control::{Command as Order, Event, MAX_MESSAGE_BYTES, Request};
use command_fds::CommandFdExt;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

/// Most bytes of a VMM's last words that are kept.
const LAST_WORDS: usize = 2048;

/// The request to end a partition; it has no reply.
const STOP: Request = Request {
    id: 0,
    command: Order::Stop,
};

/// A running VMM. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Vmm {
    child: Child,
    /// Readable when the process has ended.
    pub(crate) pidfd: OwnedFd,
    /// Our end of the control socket.
    pub(crate) control: OwnedFd,
    /// What the VMM says beside the control socket.
    pub(crate) stderr: Option<ChildStderr>,
    last_words: Vec<u8>,
    reaped: bool,
}

/// A message of the VMM, or that there will be none.
#[derive(Debug)]
pub(crate) enum Heard {
    Event(Event),
    /// Nothing to read now.
    Nothing,
    /// The VMM closed its end, or said what no VMM of ours says.
    Closed,
}

/// The two ends of a control socket, ours first.
pub(crate) fn control_socket() -> Result<(OwnedFd, OwnedFd), Error> {
    let pair = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    );
    pair.map_err(Error::system("create a socket pair"))
}

/// The description as a file without a name.
fn description_file(description: &MachineDescription) -> Result<File, Error> {
    let mut file = memory_file(c"machine-description")?;
    let json = serde_json::to_vec(description).map_err(Error::system("describe a machine"))?;
    let written = file.write_all(&json).and_then(|()| file.rewind());
    written.map_err(Error::system("write a machine description"))?;
    Ok(file)
}

impl Vmm {
    /// Starts the VMM at `path`. `descriptors` are all that it inherits beside its standard streams;
    /// it gets no environment, no arguments of the user's, and no terminal's signals.
    pub(crate) fn spawn(
        path: &Path,
        description: &MachineDescription,
        control: OwnedFd,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Self, Error> {
        let file: OwnedFd = description_file(description)?.into();
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
        // Our copies of the VMM's descriptors close here, so that its end is seen as hang-ups.
        drop(command);
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let pidfd = match pidfd {
            Ok(pidfd) => pidfd,
            Err(errno) => {
                // The process is a stranger without it: end it at once.
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(errno.into()));
            }
        };
        let stderr = child.stderr.take();
        Ok(Self {
            child,
            pidfd,
            control,
            stderr,
            last_words: Vec::new(),
            reaped: false,
        })
    }

    /// Process id, for people.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Takes the next message without waiting.
    pub(crate) fn hear(&self) -> Heard {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        match rustix::net::recv(&self.control, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((0, _)) => Heard::Closed,
            Ok((count, _)) => {
                let packet = buffer.get(..count).unwrap_or_default();
                serde_json::from_slice(packet).map_or(Heard::Closed, Heard::Event)
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Heard::Nothing,
            Err(_) => Heard::Closed,
        }
    }

    /// Asks the VMM to end its partition. A VMM that cannot be asked will be killed.
    pub(crate) fn ask_to_stop(&self) {
        if let Ok(order) = serde_json::to_vec(&STOP) {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _ = rustix::net::send(&self.control, &order, flags);
        }
    }

    /// Kills the process; harmless when it has ended.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Reads what is there of its standard error; `false` at its end.
    pub(crate) fn listen(&mut self) -> bool {
        let mut buffer = [0; LAST_WORDS];
        let Some(stderr) = &mut self.stderr else {
            return false;
        };
        match stderr.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.last_words
                    .extend(buffer.get(..count).unwrap_or_default());
                let excess = self.last_words.len().saturating_sub(LAST_WORDS);
                self.last_words.drain(..excess);
                true
            }
            Err(error) => error.kind() == io::ErrorKind::Interrupted,
        }
    }

    /// After the process has ended: how, as the end of a sentence, with its last line.
    pub(crate) fn reap(&mut self) -> String {
        while self.listen() {}
        let how = match self.child.wait() {
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

impl Drop for Vmm {
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
    use bulkhead_machine::{Boot, Fd};
    use std::io::Write;
    use tempfile::tempdir;

    fn description() -> MachineDescription {
        let boot = Boot::Linux {
            kernel: Fd(0),
            initrd: None,
            cmdline: String::new(),
        };
        MachineDescription::new("p", Fd(0), Fd(0), 2, boot)
    }

    /// Runs a shell script in the VMM's place and gives back how it ended, and its environment.
    fn run(script: &str, descriptors: Vec<OwnedFd>) -> String {
        let dir = tempdir().unwrap();
        let path = dir.path().join("vmm");
        let mut file = File::options();
        use std::os::unix::fs::OpenOptionsExt;
        let mut file = file
            .write(true)
            .create(true)
            .mode(0o755)
            .open(&path)
            .unwrap();
        write!(file, "#!/bin/sh\n{script}\n").unwrap();
        drop(file);
        let (control, _theirs) = control_socket().unwrap();
        let mut vmm = Vmm::spawn(&path, &description(), control, descriptors).unwrap();
        vmm.reap()
    }

    #[test]
    fn the_vmm_inherits_what_it_was_given_and_nothing_else() {
        let secret = tempfile::tempfile().unwrap();
        let given = tempfile::tempfile().unwrap();
        let (secret_fd, given_fd) = (secret.as_raw_fd(), given.as_raw_fd());
        let script = format!(
            "test -e /proc/self/fd/{given_fd} && ! test -e /proc/self/fd/{secret_fd} \
             && test \"$1\" = --description-fd && test -s /proc/self/fd/$2 && exit 7"
        );
        assert_eq!(run(&script, vec![given.into()]), "exited with status 7");
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
    fn a_dropped_vmm_is_dead() {
        let (control, theirs) = control_socket().unwrap();
        let path = Path::new("/bin/cat");
        let vmm = Vmm::spawn(path, &description(), control, vec![theirs]);
        // cat fails at once over its arguments or is killed: either way nobody is left.
        let pid = vmm.as_ref().map(|vmm| vmm.pid()).unwrap();
        drop(vmm);
        assert!(!Path::new(&format!("/proc/{pid}/status")).exists());
    }

    #[test]
    fn events_are_parsed_and_nonsense_closes() {
        let (control, theirs) = control_socket().unwrap();
        let mut vmm = Vmm::spawn(Path::new("/bin/true"), &description(), control, vec![]).unwrap();
        assert!(matches!(vmm.hear(), Heard::Nothing));
        let send = |bytes: &[u8]| {
            rustix::net::send(&theirs, bytes, SendFlags::empty()).unwrap();
        };
        send(br#"{"event":"running","jail_gaps":[]}"#);
        assert!(matches!(vmm.hear(), Heard::Event(Event::Running { .. })));
        send(b"{}");
        assert!(matches!(vmm.hear(), Heard::Closed));
        vmm.reap();
    }
}
