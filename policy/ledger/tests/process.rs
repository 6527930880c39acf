//! The process `bulkhead-ledger`, with clients at its sockets: killed at any moment, out of room, and beside
//! another one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{IoSlice, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_ledger::{Reader, Record, Report, directory, verifier, verify};
use bulkhead_machine::{Fd, Jail};
use bulkhead_record::description::{Command as Order, Event, LedgerDescription, VERSION};
use bulkhead_record::wire::Request;
use bulkhead_record::{Client, Entry, Kind, RecordError, Recorder, Verdict};
use command_fds::CommandFdExt;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, send, sendmsg, socketpair,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::{TempDir, tempdir};

/// Longest wait for something that takes milliseconds: it tells a hang from a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn pair() -> (OwnedFd, OwnedFd) {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    socketpair(AddressFamily::UNIX, kind, flags, None).unwrap()
}

fn entry(actor: &str, object: &str) -> Entry {
    Entry {
        kind: Kind::Intent,
        actor: actor.to_owned(),
        action: "net.connect".to_owned(),
        object: object.to_owned(),
        verdict: Verdict::Allowed,
        reason: "grant 1".to_owned(),
        intent: None,
        detail: BTreeMap::new(),
    }
}

/// The directories of a ledger.
struct House {
    dir: TempDir,
}

impl House {
    fn new() -> Self {
        let dir = tempdir().unwrap();
        for name in ["ledger", "second", "keys"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn open(&self, name: &str) -> OwnedFd {
        directory(&self.path(name)).unwrap()
    }

    fn start(&self) -> Writer {
        self.start_with(Command::new(env!("CARGO_BIN_EXE_bulkhead-ledger")))
    }

    /// Starts a writer by a command that ends with its program.
    fn start_with(&self, mut command: Command) -> Writer {
        let (control, theirs) = pair();
        let given = ["ledger", "second", "keys"].map(|name| self.open(name));
        let number = |fd: &OwnedFd| Fd(fd.as_raw_fd());
        let description = LedgerDescription {
            version: VERSION,
            directory: number(&given[0]),
            second: number(&given[1]),
            keys: number(&given[2]),
            control: number(&theirs),
            jail: Jail::BestEffort,
        };
        let mut file = tempfile::tempfile().unwrap();
        serde_json::to_writer(&mut file, &description).unwrap();
        file.rewind().unwrap();
        let file = OwnedFd::from(file);
        let argument = file.as_raw_fd().to_string();
        let mut descriptors = Vec::from(given);
        descriptors.extend([theirs, file]);
        let child = command
            .args(["--description-fd", &argument])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .preserved_fds(descriptors)
            .spawn()
            .unwrap();
        Writer { child, control }
    }

    fn verify(&self) -> Report {
        let keys = self.open("keys");
        let (ledger, second) = (self.open("ledger"), self.open("second"));
        verify(Some(&ledger), Some(&second), &verifier(&keys).unwrap(), &[]).unwrap()
    }

    /// Demands that everything is in order; the number of records.
    #[track_caller]
    fn expect_good(&self) -> u64 {
        let report = self.verify();
        assert_eq!(report.problem, None);
        report.records
    }

    /// Actor and object of each record.
    fn records(&self) -> Vec<(String, String)> {
        let reader = Reader::new(self.open("ledger"));
        let segments = reader.segments().unwrap().into_iter();
        let records = segments.flat_map(|first| reader.segment(first).unwrap().records);
        let entry = |(_, json): (u64, Vec<u8>)| Record::from_json(&json).unwrap().entry;
        let entries = records.map(entry);
        entries.map(|entry| (entry.actor, entry.object)).collect()
    }
}

struct Writer {
    child: Child,
    control: OwnedFd,
}

impl Writer {
    fn client(&self, actor: &str) -> Arc<Client> {
        Arc::new(Client::new(self.socket(actor)))
    }

    /// The client's end of a socket.
    fn socket(&self, actor: &str) -> OwnedFd {
        let (ours, theirs) = pair();
        let order = Order::Client {
            actor: actor.to_owned(),
        };
        let packet = serde_json::to_vec(&order).unwrap();
        let sockets = [theirs.as_fd()];
        let message = SendAncillaryMessage::ScmRights(&sockets);
        let mut space = vec![MaybeUninit::uninit(); message.size()];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(message));
        let parts = [IoSlice::new(&packet)];
        // A writer that was killed is seen to be gone by its client.
        let _ = sendmsg(&self.control, &parts, &mut ancillary, SendFlags::NOSIGNAL);
        ours
    }

    fn event(&self) -> Event {
        let mut buffer = vec![0; 4096];
        loop {
            match recv(&self.control, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((length, _)) => return serde_json::from_slice(&buffer[..length]).unwrap(),
                // Told once, before what was said.
                Err(rustix::io::Errno::CONNRESET) => {}
                Err(errno) => panic!("{errno}"),
            }
        }
    }

    /// Lets go of it: how it ended, and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        drop(self.control);
        let since = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if since.elapsed() > PATIENCE {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(1));
        };
        let mut said = String::new();
        let stderr = self.child.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        (status.code(), said)
    }
}

#[test]
fn clients_record_together_and_each_for_itself() {
    let house = House::new();
    let writer = house.start();
    assert!(matches!(writer.event(), Event::Running { .. }));
    let clients = ["s/a", "s/b"].map(|actor| (actor, writer.client(actor)));
    thread::scope(|scope| {
        for (actor, client) in &clients {
            for thread in 0..4 {
                scope.spawn(move || {
                    for number in 0..25 {
                        let entry = entry(actor, &format!("{thread} {number}"));
                        client.record(&entry).unwrap();
                    }
                });
            }
        }
    });
    let (_, client) = &clients[0];
    let refused = client.record(&entry("s/b", "x")).unwrap_err();
    let sentence = "`s/a` cannot record what `s/b` does";
    assert_eq!(refused, RecordError::Refused(sentence.to_owned()));
    assert_eq!(client.record(&entry("s/a/tool", "last")).unwrap(), 200);
    // Nonsense costs whoever sends it its socket, and nobody else.
    let (ours, theirs) = pair();
    drop(theirs);
    drop(ours);
    assert_eq!(clients[1].1.record(&entry("s/b", "last")).unwrap(), 201);
    let (status, said) = writer.end();
    assert_eq!(status, Some(0));
    assert_eq!(said, format!("bulkhead-ledger: {sentence}\n"));
    assert_eq!(house.expect_good(), 202);
    assert_eq!(
        clients[0].1.record(&entry("s/a", "x")),
        Err(RecordError::WriterGone)
    );
    let records = house.records();
    for actor in ["s/a", "s/b"] {
        for thread in 0..4 {
            let of = (records.iter())
                .filter(|(by, object)| by == actor && object.starts_with(&format!("{thread} ")));
            let objects: Vec<&str> = of.map(|(_, object)| object.as_str()).collect();
            let expected: Vec<String> =
                (0..25).map(|number| format!("{thread} {number}")).collect();
            assert_eq!(objects, expected);
        }
    }
}

#[test]
fn what_a_client_asked_for_before_it_died_is_recorded() {
    let house = House::new();
    let writer = house.start();
    assert!(matches!(writer.event(), Event::Running { .. }));
    let socket = writer.socket("s/a");
    let ask = |id, object: &str| {
        let entry = entry("s/a", object);
        let packet = serde_json::to_vec(&Request { id, entry }).unwrap();
        send(&socket, &packet, SendFlags::NOSIGNAL).unwrap();
    };
    ask(1, "first");
    let mut answered = [PollFd::new(&socket, PollFlags::IN)];
    assert_eq!(poll(&mut answered, None), Ok(1));
    // It dies with the answer unread, right after it has asked again.
    let pid = Pid::from_child(&writer.child);
    kill_process(pid, Signal::STOP).unwrap();
    ask(2, "second");
    drop(socket);
    kill_process(pid, Signal::CONT).unwrap();
    let last = writer.client("s/b");
    last.record(&entry("s/b", "third")).unwrap();
    assert_eq!(writer.end().0, Some(0));
    let objects: Vec<String> = house.records().into_iter().map(|(_, o)| o).collect();
    assert_eq!(objects, ["first", "second", "third"]);
}

#[test]
fn two_writers_share_a_ledger() {
    let house = House::new();
    let writers = [house.start(), house.start()];
    thread::scope(|scope| {
        for (number, writer) in writers.iter().enumerate() {
            for thread in 0..2 {
                let client = writer.client("s/a");
                scope.spawn(move || {
                    for round in 0..100 {
                        let entry = entry("s/a", &format!("{number} {thread} {round}"));
                        client.record(&entry).unwrap();
                    }
                });
            }
        }
    });
    for writer in writers {
        assert_eq!(writer.end(), (Some(0), String::new()));
    }
    assert_eq!(house.expect_good(), 400);
}

/// The jail lets it make segments.
#[test]
fn a_ledger_grows_beyond_a_segment() {
    let house = House::new();
    let writer = house.start();
    let client = writer.client("s/a");
    let object = "x".repeat(15_000);
    for index in 0..160 {
        assert_eq!(client.record(&entry("s/a", &object)), Ok(index));
    }
    let segments = Reader::new(house.open("ledger")).segments().unwrap();
    assert_eq!(segments.len(), 3, "{segments:?}");
    // And another one follows it there.
    let other = house.start();
    assert_eq!(other.client("s/b").record(&entry("s/b", "x")), Ok(160));
    for index in 161..300 {
        assert_eq!(client.record(&entry("s/a", &object)), Ok(index));
    }
    assert_eq!(other.client("s/b").record(&entry("s/b", "x")), Ok(300));
    assert_eq!(house.expect_good(), 301);
}

/// How often the writer is killed: 1,000 times, or as often as the environment says.
fn kills() -> u32 {
    let asked = std::env::var("BULKHEAD_LEDGER_KILLS").ok();
    asked.map_or(1000, |asked| asked.parse().unwrap())
}

#[test]
fn a_killed_writer_loses_nothing_that_it_acknowledged() {
    let mut house = House::new();
    // Index and object of what was acknowledged.
    let mut acknowledged: BTreeMap<u64, String> = BTreeMap::new();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut unfinished = 0;
    let mut total = 0;
    for kill in 0..kills() {
        if kill % 50 == 49 {
            // What is to be read again each time does not become too long.
            total += acknowledged.len();
            (house, acknowledged) = (House::new(), BTreeMap::new());
        }
        let mut writer = house.start();
        let clients = [writer.client("s/a"), writer.client("s/b")];
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Some while it starts, most while it writes.
        if kill % 4 != 0 {
            let object = format!("{kill} first");
            let index = clients[0].record(&entry("s/a", &object)).unwrap();
            assert_eq!(acknowledged.insert(index, object), None);
        }
        let delay = Duration::from_micros((seed >> 33) % 10_000);
        thread::scope(|scope| {
            let recording: Vec<_> = (0..4)
                .map(|thread| {
                    let (actor, client) = (["s/a", "s/b"][thread % 2], &clients[thread % 2]);
                    scope.spawn(move || {
                        let mut done = Vec::new();
                        for number in 0.. {
                            let object = format!("{kill} {thread} {number}");
                            match client.record(&entry(actor, &object)) {
                                Ok(index) => done.push((index, object)),
                                Err(error) => {
                                    assert_eq!(error, RecordError::WriterGone);
                                    break;
                                }
                            }
                        }
                        done
                    })
                })
                .collect();
            thread::sleep(delay);
            writer.child.kill().unwrap();
            let _ = writer.child.wait();
            for recording in recording {
                for (index, object) in recording.join().unwrap() {
                    assert_eq!(
                        acknowledged.insert(index, object),
                        None,
                        "an index given twice"
                    );
                }
            }
        });
        if !house.path("keys").join("ledger.pub").exists() {
            assert!(acknowledged.is_empty());
            continue;
        }
        let report = house.verify();
        assert_eq!(report.problem, None, "kill {kill}");
        unfinished += u32::from(report.unfinished > 0);
        let records = house.records();
        for (index, object) in &acknowledged {
            let (_, found) = &records[usize::try_from(*index).unwrap()];
            assert_eq!(found, object, "kill {kill}");
        }
    }
    total += acknowledged.len();
    println!(
        "{} kills, {total} acknowledged, {unfinished} unfinished commits",
        kills()
    );
    assert!(total > 0);
}

/// The limit of a file's size stands for a full disk: to write is refused in the midst of a commit.
#[test]
fn without_room_nothing_is_recorded_and_the_reason_is_told() {
    let house = House::new();
    let mut command = Command::new("bash");
    let limited = "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\"";
    command.args(["-c", limited, env!("CARGO_BIN_EXE_bulkhead-ledger")]);
    let writer = house.start_with(command);
    assert!(matches!(writer.event(), Event::Running { .. }));
    let client = writer.client("s/a");
    let mut recorded = 0;
    let why = loop {
        match client.record(&entry("s/a", "x")) {
            Ok(index) => assert_eq!(index, recorded),
            Err(error) => break error,
        }
        recorded += 1;
        assert!(recorded < 1000, "the limit does not work");
    };
    let RecordError::NotWritten(why) = why else {
        panic!("{why}")
    };
    assert!(why.contains("File too large"), "{why}");
    for _ in 0..3 {
        let again = client.record(&entry("s/a", "x"));
        assert!(matches!(again, Err(RecordError::NotWritten(again)) if again.contains(&why)));
    }
    let (status, said) = writer.end();
    assert_eq!(status, Some(0));
    assert_eq!(
        said,
        format!("bulkhead-ledger: nothing is recorded any more: {why}\n")
    );
    assert_eq!(house.expect_good(), recorded);
    // With room, the ledger goes on.
    let writer = house.start();
    let client = writer.client("s/a");
    assert_eq!(client.record(&entry("s/a", "x")).unwrap(), recorded);
    writer.end();
    assert_eq!(house.expect_good(), recorded + 1);
}

#[test]
fn a_ledger_that_cannot_be_opened_is_said_so() {
    let house = House::new();
    let writer = house.start();
    writer.client("s").record(&entry("s/a", "x")).unwrap();
    writer.end();
    let segment = house.path("ledger").join("00000000000000000000.segment");
    let whole = fs::read(&segment).unwrap();
    let expect = |code: &str| {
        let writer = house.start();
        let client = writer.client("s");
        let event = writer.event();
        assert!(
            matches!(&event, Event::Failed { code: said, .. } if said == code),
            "{event:?}"
        );
        assert_eq!(
            client.record(&entry("s/a", "x")),
            Err(RecordError::WriterGone)
        );
        assert_eq!(writer.end().0, Some(125));
    };
    fs::write(&segment, &whole[1..]).unwrap();
    expect("ledger-damaged");
    fs::remove_file(&segment).unwrap();
    expect("ledger-truncated");
    fs::write(&segment, &whole).unwrap();
    fs::write(house.path("keys").join("ledger.key"), "x").unwrap();
    expect("ledger-key");
}

#[test]
fn what_is_no_description_is_refused() {
    for text in [
        "",
        "x",
        "{}",
        "{\"version\":2,\"directory\":3,\"second\":4,\"keys\":5,\"control\":6,\"jail\":\"full\"}",
    ] {
        let mut file: File = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        let file = OwnedFd::from(file);
        let number = file.as_raw_fd().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-ledger"));
        command.args(["--description-fd", &number]);
        let output = command.preserved_fds(vec![file]).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{text}");
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    }
}
