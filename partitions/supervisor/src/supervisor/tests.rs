//! Systems from start to end, with shell scripts in the place of the VMM: no KVM is needed.
//!
//! A script finds its control socket in the description that it inherits, as a VMM does, and
//! speaks by `printf`: one write is one packet. It is for bash, since a plain shell redirects only to
//! descriptors below ten.

use super::*;
use crate::control::{Act, Answer, NewDevice, Request, act, ask, status};
use crate::down::down;
use crate::end::STATUS_STOPPED;
use crate::state_dir::Standing;
use bulkhead_abi::layout;
use bulkhead_machine::control::Ended;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::{TempDir, tempdir};

mod halt;
mod ledger;
mod reload;

/// Longest wait for something that takes milliseconds: it tells a hang from a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Finds the descriptors of a VMM in its description.
const PRELUDE: &str = r#"#!/bin/bash
text=$(cat /proc/self/fd/$2)
number() { echo "$text" | sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p"; }
control=$(number control) output=$(number output)
running() { printf '{"event":"running","jail_gaps":["x"]}' >&"$control"; }
ended() { printf '{"event":"ended","how":{"how":"exit","status":%d}}' "$1" >&"$control"; }
reset() { printf '{"event":"ended","how":{"how":"reset"}}' >&"$control"; }
request() { dd bs=64k count=1 2>/dev/null <&"$control"; }
reply() { printf '{"event":"reply","id":%d,"outcome":%s}' "$1" "$2" >&"$control"; }
boots() { count=$(cat "$0.boots" 2>/dev/null || echo 0); echo $((count + 1)) >"$0.boots"; }
"#;

/// Makes a program of `text`.
fn program(path: &Path, text: &str) {
    let mut options = File::options();
    let options = options.write(true).create(true).mode(0o755);
    let mut file = options.open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// The least that is a kernel by either protocol: a segment of one byte.
fn kernel() -> Vec<u8> {
    const ENTRY: u64 = layout::KERNEL_BASE + layout::KERNEL_LOAD;
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    image.extend([ENTRY, 64, 0].map(u64::to_le_bytes).as_flattened());
    let rest = [0u16, 0, 64, 56, 1, 64, 0, 0];
    image.extend(rest.map(u16::to_le_bytes).as_flattened());
    image.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let segment = [64 + 56, ENTRY, layout::KERNEL_LOAD, 1, 1, 4096];
    image.extend(segment.map(u64::to_le_bytes).as_flattened());
    image.push(0xf4);
    image
}

struct House {
    writer: Arc<ledger::FakeWriter>,
    dir: TempDir,
    library: Library,
    root: StateRoot,
    conditions: BTreeMap<String, Arc<PartitionConditions>>,
}

impl House {
    /// A library whose VMM is `script`.
    fn new(script: &str) -> Self {
        let dir = tempdir().unwrap();
        let lib = dir.path().join("lib");
        fs::create_dir(&lib).unwrap();
        program(&lib.join("bulkhead-vmm"), &format!("{PRELUDE}{script}\n"));
        fs::write(lib.join("kernel"), kernel()).unwrap();
        fs::write(lib.join("linux-personality"), "x").unwrap();
        let library = Library::at(&lib).unwrap();
        // The socket's path has to be short, whatever the place of temporary files is.
        let root = StateRoot::at(&dir.path().join("s")).unwrap();
        let writer = Arc::default();
        Self {
            writer,
            dir,
            library,
            root,
            conditions: BTreeMap::new(),
        }
    }

    fn start(&self, names: &[&str], keep_logs: bool) -> Supervisor {
        let mut text = "name = \"test\"\n".to_owned();
        for name in names {
            text += &format!(
                "[[partition]]\nname = \"{name}\"\nkernel = \"linux-abi\"\n\
                 command = [\"/x\"]\ngrants = [\"console\"]\n"
            );
        }
        self.start_text(&text, keep_logs)
    }

    /// Starts a partition `a` of kernel `linux`, which boots the native one, with these lines.
    fn start_linux(&self, lines: &str, keep_logs: bool) -> Supervisor {
        let image = self.library.path().join("kernel");
        let text = format!(
            "name = \"test\"\n[[partition]]\nname = \"a\"\nkernel = \"linux\"\n\
             image = {image:?}\ncmdline = \"x\"\n{lines}\n"
        );
        self.start_text(&text, keep_logs)
    }

    fn start_text(&self, text: &str, keep_logs: bool) -> Supervisor {
        self.try_start(text, keep_logs).unwrap()
    }

    /// On a host whose CPU can do nothing.
    fn try_start(&self, text: &str, keep_logs: bool) -> Result<Supervisor, Error> {
        let system = bulkhead_manifest::parse(text.as_bytes(), Path::new("system.toml")).unwrap();
        let kvm = File::open("/dev/null").unwrap();
        let options = Options {
            consoles: Consoles::Logged,
            jail: Jail::None,
            keep_logs,
            gdb: None,
            secrets: Arc::default(),
            conditions: self.conditions.clone(),
        };
        let cpu = HostCpu::from_iter([]);
        let (root, library) = (&self.root, &self.library);
        let ledger = Arc::new(self.writer.serve("test"));
        let started =
            Supervisor::start_on(&kvm, cpu, None, &ledger, &system, root, library, options);
        started.map_err(|error| refused(&ledger, &system, error))
    }

    fn log(&self, partition: &str) -> String {
        let path = self.dir.path().join(format!("s/test/{partition}.log"));
        fs::read_to_string(path).unwrap()
    }

    fn is_clean(&self) -> bool {
        !self.dir.path().join("s").exists()
    }
}

/// Waits for the system without ever sending it a signal.
fn wait(supervisor: Supervisor) -> Outcome {
    let (signals, _silent) = io::pipe().unwrap();
    supervisor.wait(signals, || {}).unwrap()
}

fn ends(outcome: &Outcome) -> Vec<u8> {
    outcome.ends.iter().map(|(_, end)| end.status()).collect()
}

#[test]
fn statuses_and_output_arrive_and_nothing_stays() {
    let house = House::new("running; echo hello >&$output; ended 7");
    let outcome = wait(house.start(&["a", "b"], false));
    assert_eq!((ends(&outcome), outcome.cause), (vec![7, 7], None));
    assert!(house.is_clean());
}

#[test]
fn a_cpu_that_the_host_cannot_be_is_refused_before_anything_runs() {
    let house = House::new("touch \"$0.ran\"");
    let text = "name = \"test\"\n[[partition]]\nname = \"a\"\nkernel = \"linux-abi\"\n\
                command = [\"/x\"]\ncpu = \"v2\"\n";
    let error = house.try_start(text, false).unwrap_err();
    assert_eq!(error.code(), "cpu-template");
    let said = error.to_string();
    let sentence = "partition `a`: this host cannot be a cpu `v2`: it lacks fpu, ";
    assert!(said.starts_with(sentence), "{said}");
    assert!(house.is_clean());
    assert!(!house.library.path().join("bulkhead-vmm.ran").exists());
}

#[test]
fn a_kernel_that_is_none_starts_no_vmm() {
    let house = House::new("boots; running; ended 7");
    let kernel = house.library.path().join("kernel");
    let text = "name = \"test\"\n[[partition]]\nname = \"a\"\nkernel = \"linux-abi\"\n\
                command = [\"/x\"]\n";
    let whole = fs::read(&kernel).unwrap();
    let mut foreign = whole.clone();
    foreign[18] = 183;
    for (bytes, code, message) in [
        (&b""[..], "kernel-empty", "the kernel image is empty"),
        (b"x", "kernel-format", "the kernel image is no ELF file"),
        (
            &whole[..whole.len() - 1],
            "kernel-truncated",
            "the kernel image is cut off: it needs 121 bytes and has 120",
        ),
        (
            &foreign,
            "kernel-architecture",
            "the kernel image is for another processor (ELF machine 183); 64-bit x86 is needed",
        ),
    ] {
        fs::write(&kernel, bytes).unwrap();
        let error = house.try_start(text, false).unwrap_err();
        assert_eq!(error.code(), code);
        assert_eq!(error.to_string(), format!("partition `a`: {message}"));
        assert!(house.is_clean());
    }
    let boots = house.library.path().join("bulkhead-vmm.boots");
    assert!(!boots.exists());
}

#[test]
fn logs_are_kept_when_asked_for() {
    let house = House::new("running; echo hello >&$output; ended 7");
    let _ = wait(house.start(&["a", "b"], true));
    assert_eq!(house.log("a"), "hello\n");
    let found = house.root.find("test").unwrap();
    assert_eq!(found.standing, Standing::Finished);
    let record = status(&found);
    assert!(record.finished);
    let partition = &record.partitions[1];
    assert_eq!(
        (partition.state, partition.status),
        (State::Terminated, Some(7))
    );
    assert_eq!(partition.jail_gaps, ["x"]);
    down(&house.root, &found).unwrap();
    assert!(house.is_clean());
}

#[test]
fn a_failure_before_the_guest_runs_ends_the_whole_system() {
    let failed = r#"{"event":"failed","code":"kernel-truncated","message":"two\nlines"}"#;
    let script = format!(
        "case \"$text\" in *'\"name\":\"a\"'*) printf '%s' '{failed}' >&\"$control\"; exit 125;; esac\n\
         running; exec sleep 1000"
    );
    let house = House::new(&script);
    let outcome = wait(house.start(&["a", "b"], true));
    assert_eq!(outcome.cause, Some(Cause::Incomplete));
    assert_eq!(
        outcome.ends[0].1,
        End::Failed {
            code: "kernel-truncated".to_owned(),
            message: "two".to_owned()
        }
    );
    assert_eq!(outcome.ends[1].1, End::Ended(Ended::Stopped));
    assert!(house.is_clean());
}

#[test]
fn a_vmm_that_dies_without_a_word_is_told() {
    let house = House::new("running; echo last words >&2; kill -9 $$");
    let outcome = wait(house.start(&["a"], false));
    let told = End::Vanished("was killed by signal 9: last words".to_owned());
    assert_eq!(outcome.ends, [("a".to_owned(), told)]);
    assert_eq!(ends(&outcome), [125]);
}

#[test]
fn nonsense_on_the_control_socket_is_no_word() {
    let house = House::new("printf nonsense >&\"$control\"; running; ended 0; exit 5");
    let outcome = wait(house.start(&["a"], false));
    assert!(matches!(&outcome.ends[0].1, End::Vanished(how) if how == "exited with status 5"));
}

#[test]
fn a_vmm_that_says_it_ended_and_stays_is_killed() {
    let house = House::new("running; ended 3; exec sleep 1000");
    let begun = Instant::now();
    assert_eq!(ends(&wait(house.start(&["a"], false))), [3]);
    assert!(begun.elapsed() < PATIENCE);
}

/// Starts a system that would run for ever, and gives back how it ended once `act` has acted.
fn ended_by(house: &House, act: impl FnOnce(&House, &mut dyn Write)) -> Outcome {
    watched(house, house.start(&["a", "b"], true), act)
}

/// The same with a system that was started.
fn watched(
    house: &House,
    supervisor: Supervisor,
    act: impl FnOnce(&House, &mut dyn Write),
) -> Outcome {
    let (signals, mut send) = io::pipe().unwrap();
    thread::scope(|scope| {
        let (ready, is_ready) = mpsc::channel();
        let waiting = scope.spawn(move || {
            supervisor
                .wait(signals, move || ready.send(()).unwrap())
                .unwrap()
        });
        is_ready.recv_timeout(PATIENCE).unwrap();
        act(house, &mut send);
        waiting.join().unwrap()
    })
}

#[test]
fn a_signal_ends_a_vmm_that_does_not_listen() {
    let house = House::new("trap '' TERM INT; running; exec sleep 1000");
    let begun = Instant::now();
    let outcome = ended_by(&house, |_, signals| signals.write_all(&[15]).unwrap());
    assert_eq!(outcome.cause, Some(Cause::Signal(15)));
    assert_eq!(ends(&outcome), [STATUS_STOPPED; 2]);
    assert!(begun.elapsed() < PATIENCE);
    assert!(house.is_clean(), "what was stopped leaves no logs");
}

#[test]
fn a_command_that_says_nothing_holds_up_no_other() {
    let house = House::new("running; exec sleep 1000");
    ended_by(&house, |house, signals| {
        let found = house.root.find("test").unwrap();
        let mut silent = UnixStream::connect(found.socket()).unwrap();
        let status: SystemRecord = ask(&found, &Request::Status, PATIENCE).unwrap();
        assert!(!status.finished);
        // Before the other was heard, it would have had to be let go.
        silent.set_nonblocking(true).unwrap();
        let error = silent.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        signals.write_all(&[15]).unwrap();
    });
}

#[test]
fn down_ends_a_system_from_outside() {
    let house = House::new("running; exec sleep 1000");
    let outcome = ended_by(&house, |house, _| {
        let found = house.root.find("test").unwrap();
        assert_eq!(found.standing, Standing::Live);
        let record = status(&found);
        assert!(
            record
                .partitions
                .iter()
                .all(|partition| partition.state == State::Running)
        );
        // This process is the supervisor: it answers, and has to be given time, not killed.
        let socket = std::os::unix::net::UnixStream::connect(found.socket()).unwrap();
        (&socket).write_all(b"{\"request\":\"down\"}\n").unwrap();
    });
    assert_eq!(outcome.cause, Some(Cause::Request));
    assert!(house.is_clean());
}

#[test]
fn nonsense_on_the_systems_socket_is_ignored() {
    let house = House::new("running; exec sleep 1000");
    let outcome = ended_by(&house, |house, signals| {
        let found = house.root.find("test").unwrap();
        for text in ["", "\n", "nonsense\n", "{\"request\":\"explode\"}\n", "{"] {
            let mut socket = std::os::unix::net::UnixStream::connect(found.socket()).unwrap();
            socket.write_all(text.as_bytes()).unwrap();
        }
        assert!(
            status(&found)
                .partitions
                .iter()
                .all(|partition| partition.status.is_none())
        );
        signals.write_all(&[2]).unwrap();
    });
    assert_eq!(outcome.cause, Some(Cause::Signal(2)));
}

#[test]
fn a_second_system_of_the_same_name_is_refused_and_harms_nobody() {
    let house = House::new("running; exec sleep 1000");
    let first = house.start(&["a"], false);
    let pid = first.members[0].vmm.process.pid();
    assert_eq!(
        house.root.create("test").unwrap_err().code(),
        "already-running"
    );
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    drop(first);
    assert!(!Path::new(&format!("/proc/{pid}/status")).exists());
    assert!(house.is_clean());
}

#[test]
fn a_linux_guest_that_resets_itself_starts_again_on_the_same_console() {
    let house = House::new(
        "boots; running; echo \"boot $count\" >&$output; \
         if [ $count -lt 2 ]; then reset; else ended 4; fi",
    );
    let outcome = wait(house.start_linux("grants = [\"console\", \"vsock\"]", true));
    assert_eq!((ends(&outcome), outcome.cause), (vec![4], None));
    assert_eq!(house.log("a"), "boot 0\nboot 1\nboot 2\n");
}

#[test]
fn a_guest_that_does_nothing_but_reset_itself_is_ended() {
    let house = House::new("boots; running; reset");
    let outcome = wait(house.start_linux("", false));
    let End::Failed { code, .. } = &outcome.ends[0].1 else {
        panic!("{:?}", outcome.ends)
    };
    assert_eq!(code, "reboot-loop");
    let boots = fs::read_to_string(house.library.path().join("bulkhead-vmm.boots")).unwrap();
    assert_eq!(boots, "5\n");
    assert!(house.is_clean());
}

#[test]
fn a_reset_ends_what_is_not_to_start_again() {
    let house = House::new("boots; running; reset");
    let outcome = wait(house.start_linux("on_reboot = \"end\"", false));
    assert_eq!(outcome.ends[0].1, End::Ended(Ended::Reset));
    assert_eq!(ends(&outcome), [0]);
}

#[test]
fn acts_reach_the_vmm_and_its_answers_come_back() {
    let house = House::new(
        "running; request >$0.1; reply 1 '{\"reply\":\"done\"}'; \
         request >$0.2; reply 2 '{\"reply\":\"stats\",\"paused\":true,\"vcpu_exits\":[7],\"devices\":[]}'; \
         request >$0.3; reply 3 '{\"reply\":\"refused\",\"code\":\"device-unknown\",\"message\":\"no\"}'; \
         request >$0.4; reply 4 '{\"reply\":\"refused\",\"code\":\"dump\",\"message\":\"no\"}'; \
         exec sleep 1000",
    );
    let disk = house.dir.path().join("disk.img");
    fs::write(&disk, [0; 512]).unwrap();
    let core = house.dir.path().join("core");
    let system = house.start_linux("transport = \"pci\"", false);
    watched(&house, system, |house, signals| {
        let found = house.root.find("test").unwrap();
        let ask = |what: Act| act(&found, "a", what).unwrap();
        let refused = |answer: Answer| match answer {
            Answer::Refused { code, .. } => code,
            other => panic!("{other:?}"),
        };
        assert_eq!(ask(Act::Pause), Answer::Done { device: None });
        assert_eq!(status(&found).partitions[0].state, State::Suspended);
        let Answer::Stats(stats) = ask(Act::Stats) else {
            panic!("stats")
        };
        assert_eq!((stats.paused, stats.vcpu_exits), (true, vec![7]));
        let attach = |grant: String| {
            Act::Attach(NewDevice {
                grants: vec![grant],
                ..NewDevice::default()
            })
        };
        let grant = format!("block.read:{}", disk.display());
        assert_eq!(refused(ask(attach(grant))), "device-unknown");
        assert_eq!(refused(ask(Act::Dump { file: core.clone() })), "dump");
        // Refused before the VMM is asked.
        for (what, code) in [
            (attach("block.read:/absent".to_owned()), "file-not-found"),
            (attach("fs.read:/".to_owned()), "manifest-share"),
            (attach("vsock".to_owned()), "not-pluggable"),
            (attach("console".to_owned()), "not-pluggable"),
            (attach("nonsense".to_owned()), "manifest-grant"),
            (Act::ResizeMemory { mib: 1 << 40 }, "memory-out-of-bounds"),
            (Act::Dump { file: disk.clone() }, "file-unusable"),
        ] {
            assert_eq!(refused(ask(what)), code);
        }
        let nobody = act(&found, "nobody", Act::Pause).unwrap();
        assert_eq!(refused(nobody), "no-such-partition");
        signals.write_all(&[2]).unwrap();
    });
    let asked = |number: u32| {
        let path = house.library.path().join(format!("bulkhead-vmm.{number}"));
        fs::read_to_string(path).unwrap()
    };
    assert_eq!(asked(1), r#"{"id":1,"command":"pause"}"#);
    assert!(asked(3).contains(r#""name":"disk0""#) && asked(3).contains(r#""file":0"#));
    assert!(!core.exists(), "what could not be written leaves no file");
}

#[test]
fn a_gateway_that_dies_takes_the_network_and_nothing_else() {
    let house = House::new("running; sleep 0.3; ended 6");
    let gateway = house.library.path().join("bulkhead-gateway");
    program(
        &gateway,
        "#!/bin/sh\necho \"bulkhead-gateway: a: refused\" >&2\nexit 3\n",
    );
    let outcome = wait(house.start_linux("grants = [\"net.connect:a.org:80\"]", true));
    assert_eq!(ends(&outcome), [6]);
    let log = house.log("a");
    assert!(log.contains("bulkhead: gateway: refused\n"), "{log}");
    assert!(
        log.contains("the network is down (net0): its process exited with status 3"),
        "{log}"
    );
}

#[test]
fn back_ends_end_with_their_partition() {
    let house = House::new("running; ended 0");
    for name in ["bulkhead-gateway", "bulkhead-fs"] {
        let path = house.library.path().join(name);
        program(&path, "#!/bin/sh\necho $$ >$0.pid\nexec sleep 1000\n");
    }
    let shared = tempdir().unwrap();
    let grants = format!(
        "grants = [\"net.connect:a.org:80\", \"fs.read:{}\"]",
        shared.path().display()
    );
    let supervisor = house.start_linux(&grants, false);
    let pids: Vec<u32> = supervisor.members[0]
        .backends
        .iter()
        .map(|backend| backend.process.pid())
        .collect();
    assert_eq!(pids.len(), 2);
    let _ = wait(supervisor);
    for pid in pids {
        assert!(!Path::new(&format!("/proc/{pid}/status")).exists());
    }
    assert!(house.is_clean());
}
