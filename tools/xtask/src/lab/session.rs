//! One boot of the lab: hands the command to the agent, carries bytes both ways, keeps the
//! console's last lines for the report, and gives up in time.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lab_wire::{Kind, MAX_BODY, receive, send};

use super::qemu::Machine;
use crate::failure::{Failure, Result};
use crate::say::Say;

/// How many lines of the console a report shows.
const CONSOLE_LINES: usize = 60;
/// How long the emulated host may take to power off after the status is known: writing back what
/// the command wrote to extra disks.
const POWER_OFF: Duration = Duration::from_secs(30);

/// How long an emulated host whose timer was lost sleeps at most.
const WAKE: Duration = Duration::from_secs(1);

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// `NAME=value`.
    pub(crate) env: Vec<String>,
    /// Paths in the lab, sent back as a tar archive.
    pub(crate) out: Vec<String>,
    /// Where that archive goes.
    pub(crate) archive: Option<PathBuf>,
    /// Bound on the whole, from the start of QEMU.
    pub(crate) timeout: Duration,
    /// Bound on the boot alone.
    pub(crate) boot_timeout: Duration,
    /// Show the console while it runs.
    pub(crate) show_console: bool,
    /// Hand over our standard input.
    pub(crate) stdin: bool,
}

/// How a boot ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The command ended with this status.
    Status(i32),
    /// The agent never reported: worth one retry.
    Stalled(String),
    /// The time for the whole was up; the text is the console's end.
    TimedOut(String),
    /// The lab itself broke.
    Broken(Failure),
}

enum Event {
    Frame(Kind, Vec<u8>),
    Closed(Option<io::Error>),
}

type Console = Arc<Mutex<VecDeque<String>>>;

/// Boots `machine`, runs `job`; where the output goes is the caller's choice.
pub(crate) fn run(
    machine: &Machine,
    job: &Job,
    stdout: &mut impl Write,
    stderr: &mut impl Write,
    say: &Say,
) -> Result<End> {
    let started = Instant::now();
    let mut qemu = machine.start()?;
    let console = Console::default();
    let (events, queue) = mpsc::channel();
    if let Some(port) = qemu.stdout.take() {
        thread::spawn(move || read_port(port, &events));
    }
    let log = qemu.stderr.take().map(|lines| {
        let (console, show) = (console.clone(), job.show_console);
        thread::spawn(move || keep_console(lines, &console, show))
    });
    say.step("booting");
    let mut port = qemu.stdin.take();
    let end = loop {
        let ready = port.is_none();
        let limit = if ready {
            job.timeout
        } else {
            job.boot_timeout.min(job.timeout)
        };
        let patience = limit.saturating_sub(started.elapsed());
        match queue.recv_timeout(patience) {
            Ok(Event::Frame(Kind::Ready, _)) => {
                let Some(port) = port.take() else { continue };
                say.step("running");
                say.clear();
                if let Err(error) = hand_over(port, job) {
                    break End::Broken(Failure::new(format!("cannot reach the agent: {error}")));
                }
            }
            Ok(Event::Frame(Kind::Stdout, bytes)) => deliver(stdout, &bytes, "stdout")?,
            Ok(Event::Frame(Kind::Stderr, bytes)) => deliver(stderr, &bytes, "stderr")?,
            Ok(Event::Frame(Kind::Archive, bytes)) => append(job.archive.as_ref(), &bytes)?,
            Ok(Event::Frame(Kind::Exit, body)) => {
                let status = body.try_into().map_or(-1, i32::from_le_bytes);
                power_off(&mut qemu);
                break End::Status(status);
            }
            Ok(Event::Frame(Kind::Failed, body)) => {
                let sentence = String::from_utf8_lossy(&body).into_owned();
                break End::Broken(Failure::new(sentence));
            }
            Ok(Event::Frame(kind, _)) => {
                break End::Broken(Failure::new(format!("the agent sent {kind:?}")));
            }
            Err(RecvTimeoutError::Timeout) if ready => break End::TimedOut(tail(&console)),
            Err(RecvTimeoutError::Timeout) => break End::Stalled(tail(&console)),
            Ok(Event::Closed(error)) => {
                // Its last words arrive on the console.
                let _ = qemu.wait();
                let _ = log.map(thread::JoinHandle::join);
                let why = error.map_or_else(String::new, |error| format!(" ({error})"));
                return Ok(End::Broken(Failure::new(format!(
                    "the emulated host went down before the command ended{why}\n{}",
                    tail(&console)
                ))));
            }
            Err(RecvTimeoutError::Disconnected) => {
                break End::Broken(Failure::new("the port to the emulated host is gone"));
            }
        }
    };
    // It may have powered itself off by now: then there is nothing to kill.
    let _ = qemu.kill();
    let _ = qemu.wait();
    Ok(end)
}

fn read_port(mut port: impl Read, events: &Sender<Event>) {
    loop {
        let event = match receive(&mut port) {
            Ok(Some((kind, body))) => Event::Frame(kind, body),
            Ok(None) => Event::Closed(None),
            Err(error) => Event::Closed(Some(error)),
        };
        let last = matches!(event, Event::Closed(_));
        if events.send(event).is_err() || last {
            return;
        }
    }
}

fn keep_console(lines: impl Read, console: &Console, show: bool) {
    let mut lines = BufReader::new(lines);
    let mut line = Vec::new();
    while let Ok(1..) = lines.read_until(b'\n', &mut line) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        if show {
            let _ = writeln!(io::stderr(), "lab console: {text}");
        }
        if let Ok(mut console) = console.lock() {
            if console.len() == CONSOLE_LINES {
                console.pop_front();
            }
            console.push_back(text);
        }
    }
}

fn tail(console: &Console) -> String {
    let lines: Vec<String> = match console.lock() {
        Ok(lines) => lines.iter().map(|line| format!("  | {line}")).collect(),
        Err(_) => Vec::new(),
    };
    match lines.as_slice() {
        [] => "  its console is empty".to_owned(),
        lines => format!("  the end of its console:\n{}", lines.join("\n")),
    }
}

/// Describes the job, then leaves two threads behind: one carries our standard input, the other wakes
/// the emulated host again and again, for QEMU loses its timer at times.
fn hand_over(mut port: ChildStdin, job: &Job) -> io::Result<()> {
    for (kind, items) in [
        (Kind::Arg, &job.command),
        (Kind::Env, &job.env),
        (Kind::Out, &job.out),
    ] {
        for item in items {
            send(&mut port, kind, item.as_bytes())?;
        }
    }
    send(&mut port, Kind::Start, b"")?;
    let port = Arc::new(Mutex::new(port));
    let (wanted, to_input) = (job.stdin, port.clone());
    thread::spawn(move || {
        let mut buffer = vec![0; MAX_BODY];
        let mut input = io::stdin();
        while wanted && let Ok(len @ 1..) = input.read(&mut buffer) {
            let bytes = buffer.get(..len).unwrap_or_default();
            if send_shared(&to_input, Kind::Stdin, bytes).is_err() {
                return;
            }
        }
        // The other thread is told if this fails.
        let _ = send_shared(&to_input, Kind::Stdin, b"");
    });
    // It also keeps the pipe open: QEMU would close the whole port at the end of its input.
    thread::spawn(move || {
        while send_shared(&port, Kind::Wake, b"").is_ok() {
            thread::sleep(WAKE);
        }
    });
    Ok(())
}

fn send_shared(port: &Mutex<ChildStdin>, kind: Kind, body: &[u8]) -> io::Result<()> {
    send(
        &mut *port.lock().unwrap_or_else(PoisonError::into_inner),
        kind,
        body,
    )
}

fn deliver(to: &mut impl Write, bytes: &[u8], name: &str) -> Result<()> {
    to.write_all(bytes)
        .and_then(|()| to.flush())
        .map_err(|error| Failure::new(format!("cannot write to {name}: {error}")))
}

fn append(archive: Option<&PathBuf>, bytes: &[u8]) -> Result<()> {
    let Some(path) = archive else { return Ok(()) };
    File::options()
        .append(true)
        .create(true)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))
}

/// Waits for QEMU to end by itself, so that extra disks are whole.
fn power_off(qemu: &mut Child) {
    let end = Instant::now() + POWER_OFF;
    while Instant::now() < end && matches!(qemu.try_wait(), Ok(None)) {
        thread::sleep(Duration::from_millis(10));
    }
}
