//! The lab's agent: started by the lab's init, runs one command for `cargo xtask lab`, sends its
//! output and its status over a virtio-serial port, and ends. Static and without dependencies.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use lab_wire::{Kind, MAX_BODY, receive, send};

/// The port's name, as QEMU was told.
const PORT: &str = "bulkhead.lab";
/// How long output is awaited after the command ended: a background child may hold the pipe open
/// for ever.
const DRAIN: Duration = Duration::from_secs(2);

/// The command as the host described it.
#[derive(Default)]
struct Job {
    words: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    out: Vec<OsString>,
}

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The console: the host shows it when no status arrives.
            eprintln!("lab-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let mut port = open_port()?;
    send(&mut port, Kind::Ready, b"")?;
    let job = receive_job(&mut port)?;
    match spawn(&job) {
        Ok(child) => run(child, &job, port),
        Err(error) => {
            let program = job.words.first().cloned().unwrap_or_default();
            let sentence = format!("cannot start {}: {error}", program.display());
            send(&mut port, Kind::Failed, sentence.as_bytes())
        }
    }
}

/// Finds the port by its name: the number depends on how many ports QEMU was given.
fn open_port() -> io::Result<File> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT {
            let device = std::path::Path::new("/dev").join(entry.file_name());
            return File::options().read(true).write(true).open(device);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("no virtio port is named {PORT}"),
    ))
}

fn receive_job(port: &mut File) -> io::Result<Job> {
    let mut job = Job::default();
    loop {
        let Some((kind, body)) = receive(port)? else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        match kind {
            Kind::Arg => job.words.push(OsString::from_vec(body)),
            Kind::Env => {
                let mut halves = body.splitn(2, |byte| *byte == b'=');
                let mut half = || OsString::from_vec(halves.next().unwrap_or_default().to_vec());
                job.env.push((half(), half()));
            }
            Kind::Out => job.out.push(OsString::from_vec(body)),
            Kind::Start => return Ok(job),
            other => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{other:?} before the start"),
                ));
            }
        }
    }
}

fn spawn(job: &Job) -> io::Result<Child> {
    let (program, args) = (job.words.split_first()).ok_or(io::ErrorKind::InvalidInput)?;
    Command::new(program)
        .args(args)
        .envs(job.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// Carries bytes both ways until the command ended.
fn run(mut child: Child, job: &Job, mut port: File) -> io::Result<()> {
    let (frames, queue) = mpsc::sync_channel(16);
    pump(child.stdout.take(), Kind::Stdout, frames.clone());
    pump(child.stderr.take(), Kind::Stderr, frames.clone());
    let (mut input, mut from_host) = (child.stdin.take(), port.try_clone()?);
    thread::spawn(move || {
        while let Ok(Some((kind @ (Kind::Stdin | Kind::Wake), body))) = receive(&mut from_host) {
            if kind == Kind::Wake {
                continue;
            }
            if body.is_empty() {
                input = None;
            } else if let Some(pipe) = &mut input
                && pipe.write_all(&body).is_err()
            {
                input = None;
            }
        }
    });
    thread::spawn(move || {
        // The send fails only when the main thread is gone.
        let _ = frames.send(Message::Ended(child.wait()));
    });
    let (mut status, mut open, mut deadline) = (None, 2, None);
    while status.is_none() || open > 0 {
        let next = match deadline {
            None => queue.recv().ok(),
            Some(end) => queue
                .recv_timeout(Instant::saturating_duration_since(&end, Instant::now()))
                .ok(),
        };
        match next {
            Some(Message::Output(_, bytes)) if bytes.is_empty() => open -= 1,
            Some(Message::Output(kind, bytes)) => send(&mut port, kind, &bytes)?,
            Some(Message::Ended(ended)) => {
                status = Some(ended?);
                deadline = Some(Instant::now() + DRAIN);
            }
            None => break,
        }
    }
    let Some(status) = status else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    send_archive(&job.out, &mut port)?;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    send(&mut port, Kind::Exit, &code.to_le_bytes())
}

enum Message {
    /// An empty body is the end of that stream.
    Output(Kind, Vec<u8>),
    Ended(io::Result<std::process::ExitStatus>),
}

fn pump(from: Option<impl Read + Send + 'static>, kind: Kind, to: mpsc::SyncSender<Message>) {
    thread::spawn(move || {
        let mut buffer = vec![0; MAX_BODY];
        if let Some(mut from) = from {
            while let Ok(len @ 1..) = from.read(&mut buffer) {
                let bytes = buffer.get(..len).unwrap_or_default().to_vec();
                if to.send(Message::Output(kind, bytes)).is_err() {
                    return;
                }
            }
        }
        let _ = to.send(Message::Output(kind, Vec::new()));
    });
}

fn send_archive(paths: &[OsString], port: &mut File) -> io::Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let mut tar = Command::new("tar")
        .arg("-cf")
        .arg("-")
        .args(paths)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut buffer = vec![0; MAX_BODY];
    if let Some(mut bytes) = tar.stdout.take() {
        while let len @ 1.. = bytes.read(&mut buffer)? {
            send(port, Kind::Archive, buffer.get(..len).unwrap_or_default())?;
        }
    }
    tar.wait().map(|_| ())
}
