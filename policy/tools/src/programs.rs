//! Programs of the host that tools run: started in their jail, fed, listened to within bounds, and
//! ended for certain when their time is over. Used by the families `process` and `git`.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use command_fds::CommandFdExt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use crate::error::ToolError;
use crate::launch::{LAUNCH, Launch, Stage};
use crate::registry::Deadline;

/// Most bytes of a program's output, of each stream, that are kept.
pub(crate) const MAX_OUTPUT: usize = 256 * 1024;
/// A program that writes more than this is ended.
const MAX_FLOOD: u64 = 64 * 1024 * 1024;
/// Most bytes of a program's arguments and environment together.
pub(crate) const MAX_ARGUMENTS: usize = 64 * 1024;
/// Memory of each process of a program, and the largest file it writes.
const MEMORY: u64 = 4 * 1024 * 1024 * 1024;
const FILE_SIZE: u64 = 1024 * 1024 * 1024;
/// Most processes and threads of a program. Of root the host limits none, but by control group.
const PROCESSES: u64 = 256;
/// The CPU time that a program has beyond its time.
const CPU_GRACE: u64 = 5;

/// How programs are started.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// This binary, as it is found from inside the jail.
    pub binary: PathBuf,
    /// Programs are jailed.
    pub jailed: bool,
}

/// What is to run.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) directory: OwnedFd,
    pub(crate) write: bool,
    pub(crate) input: String,
}

/// What a program has written so far, within bounds.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// More was written than is kept.
    pub(crate) truncated: bool,
    total: u64,
}

impl Output {
    /// What there is, once; how much there was in all stays known.
    pub(crate) fn take(&mut self) -> Self {
        let total = self.total;
        let taken = std::mem::take(self);
        self.total = total;
        taken
    }

    fn add(&mut self, error: bool, bytes: &[u8]) {
        let kept = if error {
            &mut self.stderr
        } else {
            &mut self.stdout
        };
        let room = MAX_OUTPUT.saturating_sub(kept.len()).min(bytes.len());
        kept.extend(bytes.get(..room).unwrap_or_default());
        self.truncated |= room < bytes.len();
        self.total = self.total.saturating_add(bytes.len() as u64);
    }
}

/// A started program. Dropping it kills it, with all that it has started.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    group: Pid,
    pidfd: Arc<OwnedFd>,
    /// What it is fed.
    input: String,
    reaped: bool,
}

/// Who can end a program from elsewhere, and never anything else.
#[derive(Clone, Debug)]
pub(crate) struct Killer(Arc<OwnedFd>);

impl Killer {
    /// Ends all of it. Harmless where it has ended.
    pub(crate) fn kill(&self) {
        // What is inside the namespace ends with its outer process.
        let _ = pidfd_send_signal(&*self.0, Signal::KILL);
    }
}

impl Launcher {
    /// Starts a program, which ends with the thread that started it.
    ///
    /// # Errors
    /// The host refuses.
    pub(crate) fn start(
        &self,
        program: Program,
        deadline: &Deadline,
    ) -> Result<Running, ToolError> {
        let Program {
            path,
            arguments,
            environment,
            directory,
            write,
            input,
        } = program;
        let failed = |error: io::Error| ToolError::io("start", &path, &error);
        let launch = Launch {
            program: path.clone(),
            arguments,
            environment,
            directory: directory.as_raw_fd(),
            write,
            jailed: self.jailed,
            parent: std::process::id(),
            outer: None,
            cpu_seconds: deadline.left().as_secs().saturating_add(CPU_GRACE),
            memory: MEMORY,
            file_size: FILE_SIZE,
            processes: PROCESSES,
        };
        let launch = serde_json::to_string(&launch).map_err(|error| failed(error.into()))?;
        if launch.len() > MAX_ARGUMENTS {
            let path = path.display();
            return Err(ToolError::refused(format!(
                "the arguments of `{path}` are too long"
            )));
        }
        let mut command = Command::new(&self.binary);
        command
            .args([LAUNCH, Stage::Outer.as_str(), &launch])
            .env_clear()
            .stdin(if input.is_empty() {
                Stdio::null()
            } else {
                Stdio::piped()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .preserved_fds(vec![directory]);
        let mut child = command.spawn().map_err(failed)?;
        let group = Pid::from_child(&child);
        match pidfd_open(group, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Running {
                group,
                child,
                pidfd: Arc::new(pidfd),
                input,
                reaped: false,
            }),
            Err(errno) => {
                // The process is a stranger without it: end it at once.
                let _ = child.kill();
                let _ = child.wait();
                Err(failed(errno.into()))
            }
        }
    }
}

impl Running {
    /// Feeds and listens until the program ends; its exit status, as a shell tells it. What it
    /// leaves running ends with it.
    ///
    /// # Errors
    /// It took too long, or wrote without end.
    pub(crate) fn finish(
        &mut self,
        output: &Mutex<Output>,
        deadline: &Deadline,
    ) -> Result<i32, ToolError> {
        let input = std::mem::take(&mut self.input);
        let heard = self.listen(input.as_bytes(), output, deadline);
        let heard = heard.and_then(|()| self.wait(deadline));
        if heard.is_err() {
            self.kill();
        }
        let status = self.child.wait().map_err(lost)?;
        self.reaped = true;
        heard?;
        Ok(match (status.code(), status.signal()) {
            (Some(code), _) => code,
            (None, signal) => 128 + signal.unwrap_or(0),
        })
    }

    /// A program may close its streams long before it ends.
    fn wait(&self, deadline: &Deadline) -> Result<(), ToolError> {
        loop {
            let mut watched = [PollFd::new(&*self.pidfd, PollFlags::IN)];
            match poll(&mut watched, Some(&left(deadline))) {
                Ok(0) | Err(rustix::io::Errno::INTR) => deadline.check()?,
                Ok(_) => return Ok(()),
                Err(errno) => return Err(lost(errno.into())),
            }
        }
    }

    /// Feeds and listens until both streams have ended.
    fn listen(
        &mut self,
        mut input: &[u8],
        output: &Mutex<Output>,
        deadline: &Deadline,
    ) -> Result<(), ToolError> {
        let mut stdin = self.child.stdin.take();
        let mut stdout = self.child.stdout.take();
        let mut stderr = self.child.stderr.take();
        if let Some(stdin) = &stdin {
            rustix::io::ioctl_fionbio(stdin, true).map_err(|errno| lost(errno.into()))?;
        }
        let mut buffer = vec![0; 64 * 1024];
        while stdout.is_some() || stderr.is_some() {
            deadline.check()?;
            let [mut to_feed, mut out_ready, mut err_ready] = [false; 3];
            {
                let mut watched = Vec::new();
                let mut flags = Vec::new();
                if let Some(stdin) = &stdin {
                    watched.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::OUT));
                    flags.push(&mut to_feed);
                }
                if let Some(stdout) = &stdout {
                    watched.push(PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::IN));
                    flags.push(&mut out_ready);
                }
                if let Some(stderr) = &stderr {
                    watched.push(PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::IN));
                    flags.push(&mut err_ready);
                }
                match poll(&mut watched, Some(&left(deadline))) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(errno) => return Err(lost(errno.into())),
                }
                for (watched, flag) in watched.iter().zip(flags) {
                    *flag = !watched.revents().is_empty();
                }
            }
            if to_feed && !feed(&mut stdin, &mut input) {
                stdin = None;
            }
            if out_ready && !take(&mut stdout, &mut buffer, false, output) {
                stdout = None;
            }
            if err_ready && !take(&mut stderr, &mut buffer, true, output) {
                stderr = None;
            }
            let total = output.lock().unwrap_or_else(PoisonError::into_inner).total;
            if total > MAX_FLOOD {
                let most = MAX_FLOOD >> 20;
                let why = format!("it wrote more than {most} MiB, and was ended");
                return Err(ToolError::refused(why));
            }
        }
        Ok(())
    }

    /// Ends all of it. Harmless where it has ended.
    pub(crate) fn kill(&self) {
        if !self.reaped {
            let _ = kill_process_group(self.group, Signal::KILL);
        }
    }

    /// Who can end it from another thread.
    pub(crate) fn killer(&self) -> Killer {
        Killer(self.pidfd.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

fn lost(error: io::Error) -> ToolError {
    ToolError::refused(format!("the program is lost: {error}"))
}

fn left(deadline: &Deadline) -> Timespec {
    let left = deadline.left();
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    }
}

/// Hands on what the program takes; whether there is more for it.
fn feed(stdin: &mut Option<ChildStdin>, input: &mut &[u8]) -> bool {
    let Some(stdin) = stdin else {
        return false;
    };
    match stdin.write(input) {
        Ok(count) => {
            *input = input.get(count..).unwrap_or_default();
            !input.is_empty()
        }
        Err(error) => matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
        ),
    }
}

/// Takes what is there; whether there may be more.
fn take(
    stream: &mut Option<impl Read>,
    buffer: &mut [u8],
    error: bool,
    output: &Mutex<Output>,
) -> bool {
    let Some(stream) = stream else {
        return false;
    };
    match stream.read(buffer) {
        Ok(0) => false,
        Ok(count) => {
            let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
            output.add(error, buffer.get(..count).unwrap_or_default());
            true
        }
        Err(error) => error.kind() == io::ErrorKind::Interrupted,
    }
}

/// What [`run`] gives back.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) truncated: bool,
}

/// Runs a program to its end.
///
/// # Errors
/// It could not be started, took too long, or wrote without end.
pub(crate) fn run(
    launcher: &Launcher,
    program: Program,
    deadline: &Deadline,
) -> Result<Ended, ToolError> {
    let output = Mutex::new(Output::default());
    let mut running = launcher.start(program, deadline)?;
    let status = running.finish(&output, deadline);
    // It ran, so it may have changed something.
    let status = status.map_err(ToolError::halfway)?;
    let output = output.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ok(Ended {
        status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        truncated: output.truncated,
    })
}
