//! A VMM that its guest has taken over, for the red team's suites: it takes the place of
//! `bulkhead-vmm`, is started by a real supervisor with exactly a VMM's descriptors, enters the
//! VMM's own jail by the VMM's own code, and then does what native code there could do.
//!
//! Its orders are the arguments of the partition's program: a stage, what to do, and targets.
//!
//! ```text
//! STAGE   free       as the supervisor has started it: before the jail, when no guest runs yet
//!         layers     in the jail, without the filter of system calls: what the other layers hold
//!         loop       in the jail as the event loop is
//!         vcpu       in the jail as a vCPU is
//! ORDER   the name of an attack, or everything, harmless, look, lie, network, names, rest
//! TARGET  file=PATH  socket=PATH  abstract=NAME  tcp=ADDRESS:PORT  pid=NUMBER  name=NAME
//!         secret=BACKWARDS  port=NUMBER
//! ```
//!
//! For each attack there is a line on the console: `attack NAME: refused: WHY`, or
//! `attack NAME: GOT THROUGH: WHAT`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program: a panic is its error message"
)]

mod attacks;
mod calls;
mod descriptors;
mod lies;
mod network;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};

use bulkhead_machine::control::{Ended, Event};
use bulkhead_machine::{Boot, Jail, MachineDescription};
use hypervisor::jail::{close_inherited, confine, enter, filters, outlive_file_size_limit};
use rustix::net::{SendFlags, send};

/// Descriptors that it may open in the jail: so that not their number is what refuses.
const ROOM: usize = 16;

/// Whom to attack.
#[derive(Debug, Default)]
pub(crate) struct Targets {
    files: Vec<String>,
    sockets: Vec<String>,
    names: Vec<String>,
    abstracts: Vec<String>,
    addresses: Vec<String>,
    pids: Vec<i32>,
    ports: Vec<u32>,
    secret: String,
}

/// What an attack came to: what it got, or why it got nothing.
pub(crate) type Outcome = Result<String, String>;

/// The VMM that it was.
pub(crate) struct Rogue {
    description: MachineDescription,
    targets: Targets,
    control: OwnedFd,
    console: File,
}

impl Rogue {
    /// Says how an attack ended.
    pub(crate) fn tell(&mut self, attack: &str, outcome: &Outcome) {
        let line = match outcome {
            Ok(what) => format!("attack {attack}: GOT THROUGH: {what}\n"),
            Err(why) => format!("attack {attack}: refused: {why}\n"),
        };
        self.say(&line);
    }

    /// Says something that is no attack.
    pub(crate) fn say(&mut self, text: &str) {
        self.console.write_all(text.as_bytes()).unwrap();
    }

    /// Says something to the supervisor.
    pub(crate) fn event(&self, event: &Event) {
        let packet = serde_json::to_vec(event).unwrap();
        send(&self.control, &packet, SendFlags::NOSIGNAL).unwrap();
    }
}

fn main() {
    // On one line: the last is the one that a supervisor tells.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{}", panic.to_string().replace('\n', " "));
    }));
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [option, number] = words.as_slice() else {
        panic!("a VMM has two arguments");
    };
    assert_eq!(option, "--description-fd");
    outlive_file_size_limit().unwrap();
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let number: i32 = number.parse().unwrap();
    let mut file = owned(number);
    let mut text = Vec::new();
    file.read_to_end(&mut text).unwrap();
    let description: MachineDescription = serde_json::from_slice(&text).unwrap();
    let inherited = descriptors::open(number);
    let (stage, order, mut targets) = orders(&description);
    assert!(
        stage != "free" || matches!(order.as_str(), "harmless" | "look" | "names" | "rest"),
        "without a jail that would be done to this host"
    );
    targets.pids.extend(siblings());
    let network = description.network_namespace.map(|fd| owned(fd.0));
    let console = description.console.as_ref().expect("a console to tell on");
    let console = owned(console.output.0);
    let mut rogue = Rogue {
        control: owned(description.control.0).into(),
        console,
        targets,
        description,
    };
    let level = rogue.description.jail;
    assert_ne!(level, Jail::None, "these attacks are on a jail");
    if stage != "free" {
        drop(file);
        close_inherited(&descriptors::named(&rogue.description)).unwrap();
        let jail_gaps = enter(level, ROOM, network).unwrap();
        rogue.say(&format!("gaps: {}\n", jail_gaps.join(",")));
        rogue.event(&Event::Running { jail_gaps });
        match stage.as_str() {
            "loop" => confine(level, filters::EVENT_LOOP).unwrap(),
            "vcpu" => confine(level, filters::VCPU).unwrap(),
            other => assert_eq!(other, "layers"),
        }
    } else {
        rogue.event(&Event::Running {
            jail_gaps: Vec::new(),
        });
    }
    match order.as_str() {
        "look" => descriptors::look(&mut rogue, &inherited, &text),
        "lie" => lies::tell_all(&mut rogue),
        "network" => network::attack(&mut rogue),
        "names" => attacks::names().for_each(|name| rogue.say(&format!("name: {name}\n"))),
        "rest" => {}
        other => attacks::attack(&mut rogue, other),
    }
    rogue.say("done\n");
    // A vCPU says nothing to the supervisor.
    if stage != "vcpu" {
        rogue.event(&Event::Ended {
            how: Ended::Exit { status: 0 },
        });
    }
}

/// What else the supervisor has started: found before the jail, as luck would find it in there.
fn siblings() -> Vec<i32> {
    let parent = rustix::process::getppid().expect("a supervisor");
    let parent = format!("PPid:\t{}\n", parent.as_raw_nonzero());
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let status = std::fs::read_to_string(entry.path().join("status"));
        if status.is_ok_and(|status| status.contains(&parent))
            && let Ok(pid) = entry.file_name().to_string_lossy().parse()
            && pid != own
        {
            found.push(pid);
        }
    }
    found
}

/// The descriptor of that number, which the supervisor has given to this process.
fn owned(number: i32) -> File {
    // SAFETY: the description names it as one that this process owns, and each is taken once.
    unsafe { File::from_raw_fd(number) }
}

fn orders(description: &MachineDescription) -> (String, String, Targets) {
    let Boot::Bulkhead { args, .. } = &description.boot else {
        panic!("orders are the arguments of a native program");
    };
    let [_, stage, order, rest @ ..] = args.as_slice() else {
        panic!("no orders: {args:?}");
    };
    let mut targets = Targets::default();
    for word in rest {
        let (kind, value) = word.split_once('=').expect("a target");
        let value = value.to_owned();
        match kind {
            "file" => targets.files.push(value),
            "socket" => targets.sockets.push(value),
            "abstract" => targets.abstracts.push(value),
            "name" => targets.names.push(value),
            "tcp" => targets.addresses.push(value),
            "pid" => targets.pids.push(value.parse().unwrap()),
            "port" => targets.ports.push(value.parse().unwrap()),
            "secret" => targets.secret = value,
            _ => panic!("no kind of target: {word}"),
        }
    }
    (stage.clone(), order.clone(), targets)
}
