//! `bulkhead-decision` as a process in its jail, asked over its sockets as a gateway would.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};

use bulkhead_capability::Capability;
use bulkhead_conditions::control::{Command as Order, Event, MAX_MESSAGE_BYTES, Reloaded};
use bulkhead_conditions::{
    Act, Asker, DecisionDescription, Inherited, MAX_TEXT_BYTES, Member, Ruling, VERSION,
};
use bulkhead_machine::{Fd, Jail};
use bulkhead_network::Protocol;
use command_fds::CommandFdExt;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, send, sendmsg, socketpair,
};

const CONDITIONS: &str = r#"
    @id("reads") permit(principal == Partition::"web", action == Action::"net.connect", resource)
        when { context has method && context.method == "GET" };
    @id("tools") permit(principal, action == Action::"tool.call", resource in ToolFamily::"fs");
    @id("no deletion") forbid(principal, action, resource == Tool::"fs.delete");
    @id("at first") permit(principal, action == Action::"model.chat", resource)
        when { context.age < 1000000000 && context.time > 1500000000 };
"#;

struct Process {
    child: Child,
    control: OwnedFd,
}

fn pair() -> (OwnedFd, OwnedFd) {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    socketpair(AddressFamily::UNIX, kind, flags, None).unwrap()
}

fn start(text: &str, change: impl FnOnce(&mut DecisionDescription)) -> Process {
    let grants = [
        "net.connect:*.example.org:443",
        "tool.call:fs.*",
        "model.chat:*",
    ];
    let grants = grants.map(|grant| grant.parse::<Capability>().unwrap());
    let (ours, theirs) = pair();
    let mut description = DecisionDescription {
        version: VERSION,
        system: "shop".to_owned(),
        partition: "web".to_owned(),
        lineage: Vec::new(),
        started: 1_700_000_000,
        text: text.to_owned(),
        learn: false,
        inherited: Vec::new(),
        world: vec![Member {
            name: "web".to_owned(),
            grants: grants.into_iter().collect(),
        }],
        control: Fd(theirs.as_raw_fd()),
        jail: Jail::Full,
    };
    change(&mut description);
    let mut file = File::from(memfd_create("description", MemfdFlags::CLOEXEC).unwrap());
    let json = serde_json::to_vec(&description).unwrap();
    file.write_all(&json).unwrap();
    file.rewind().unwrap();
    let number = file.as_raw_fd().to_string();
    let child = Command::new(env!("CARGO_BIN_EXE_bulkhead-decision"))
        .args(["--description-fd", &number])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .preserved_fds(vec![theirs, file.into()])
        .spawn()
        .unwrap();
    Process {
        child,
        control: ours,
    }
}

impl Process {
    fn hear(&self) -> Event {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        loop {
            match recv(&self.control, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((length, _)) => return serde_json::from_slice(&buffer[..length]).unwrap(),
                // It ended before it read all: told once, before what it has said.
                Err(rustix::io::Errno::CONNRESET) => {}
                Err(errno) => panic!("{errno}"),
            }
        }
    }

    /// A socket on which it answers.
    fn client(&self) -> OwnedFd {
        let (ours, theirs) = pair();
        self.order(&Order::Client, &theirs);
        ours
    }

    /// Sends a command with a descriptor.
    fn order(&self, order: &Order, passed: &impl AsFd) {
        let packet = serde_json::to_vec(order).unwrap();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let passed = [passed.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&passed)));
        let parts = [std::io::IoSlice::new(&packet)];
        sendmsg(&self.control, &parts, &mut ancillary, SendFlags::empty()).unwrap();
    }

    /// Puts this text into the place of its conditions, and hears how that went.
    fn reload(&self, id: u64, text: &[u8], widen: bool) -> Reloaded {
        self.reload_of(None, id, text, widen)
    }

    fn reload_of(&self, of: Option<&str>, id: u64, text: &[u8], widen: bool) -> Reloaded {
        let of = of.map(str::to_owned);
        let mut file = File::from(memfd_create("conditions", MemfdFlags::CLOEXEC).unwrap());
        file.write_all(text).unwrap();
        self.order(&Order::Reload { id, widen, of }, &file);
        match self.hear() {
            Event::Reloaded { id: of, outcome } => {
                assert_eq!(of, id);
                outcome
            }
            other => panic!("{other:?}"),
        }
    }

    fn asker(&self) -> Asker {
        Asker::new(self.client()).unwrap()
    }

    /// What it has said on standard error until its end.
    fn last_words(&mut self) -> String {
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn request(method: Option<&str>) -> Act {
    Act::Connect {
        protocol: Protocol::Tcp,
        name: Some("a.example.org".to_owned()),
        address: Some(Ipv4Addr::new(192, 0, 2, 1)),
        port: 443,
        http: method.map(|method| (method.to_owned(), "/".to_owned())),
    }
}

fn tool(name: &str) -> Act {
    Act::Tool(name.to_owned(), vec!["/srv/a".into()])
}

#[test]
fn whoever_asks_hears_which_condition_decides() {
    let process = start(CONDITIONS, |_| {});
    // Asked before it is ready: it answers when it is.
    let (early, other) = (process.asker(), process.asker());
    for (act, ruling) in [
        (
            request(Some("GET")),
            Ruling::Permitted(vec!["reads".to_owned()]),
        ),
        (request(Some("POST")), Ruling::NotPermitted),
        (request(None), Ruling::NotPermitted),
        (tool("fs.read"), Ruling::Permitted(vec!["tools".to_owned()])),
        (
            tool("fs.delete"),
            Ruling::Forbidden(vec!["no deletion".to_owned()]),
        ),
        // The clock is the process's own.
        (
            Act::Model("m".to_owned()),
            Ruling::Permitted(vec!["at first".to_owned()]),
        ),
    ] {
        for asker in [&early, &other] {
            let said = asker.ask(&act, None);
            assert_eq!(
                (said.ruling, said.enforced),
                (ruling.clone(), true),
                "{act:?}"
            );
        }
    }
    let jail_gaps = Vec::new();
    assert_eq!(process.hear(), Event::Running { jail_gaps });
}

#[test]
fn a_child_is_held_to_the_conditions_of_its_ancestors() {
    let of_boss = r#"
        permit(principal in Partition::"boss", action, resource);
        @id("no logs") forbid(principal, action, resource == Tool::"fs.log");
    "#;
    let process = start(CONDITIONS, |description| {
        description.lineage = vec!["boss".to_owned()];
        let mut boss = description.world.clone();
        boss[0].name = "boss".to_owned();
        description.inherited = vec![Inherited {
            ancestor: "boss".to_owned(),
            text: of_boss.to_owned(),
            learn: false,
            world: boss,
        }];
    });
    process.hear();
    let asker = process.asker();
    let by = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let permitted = Ruling::Permitted(by(&["tools", "policy0 of boss"]));
    assert_eq!(asker.ask(&tool("fs.read"), None).ruling, permitted);
    let forbidden = Ruling::Forbidden(by(&["no logs of boss"]));
    assert_eq!(asker.ask(&tool("fs.log"), None).ruling, forbidden);
    let own = Ruling::Forbidden(by(&["no deletion"]));
    assert_eq!(asker.ask(&tool("fs.delete"), None).ruling, own);
}

#[test]
fn who_learns_is_told_what_would_be_denied() {
    let process = start(CONDITIONS, |description| description.learn = true);
    let said = process.asker().ask(&tool("fs.delete"), None);
    assert!(said.allows() && !said.ruling.is_permitted());
}

const TOOLS: &str = r#"@id("tools") permit(principal, action == Action::"tool.call", resource in ToolFamily::"fs");"#;
const NO_DELETION: &str =
    r#"@id("no deletion") forbid(principal, action, resource == Tool::"fs.delete");"#;
const READS: &str = r#"@id("reads") permit(principal, action == Action::"net.connect", resource)
    when { context has method && context.method == "GET" };"#;

#[test]
fn other_conditions_hold_from_one_answer_to_the_next() {
    let process = start(&[TOOLS, NO_DELETION, READS].concat(), |_| {});
    process.hear();
    let asker = process.asker();
    assert!(asker.ask(&request(Some("GET")), None).allows());
    // Narrower: a permit goes, a forbid comes.
    let no_edit = r#"@id("no edit") forbid(principal, action, resource == Tool::"fs.edit");"#;
    let narrower = [NO_DELETION, no_edit, TOOLS].concat();
    let done = Reloaded::Done { widened: None };
    assert_eq!(process.reload(7, narrower.as_bytes(), false), done);
    assert!(asker.ask(&tool("fs.read"), None).allows());
    assert_eq!(
        asker.ask(&request(Some("GET")), None).ruling,
        Ruling::NotPermitted
    );
    let edit = asker.ask(&tool("fs.edit"), None).ruling;
    assert_eq!(edit, Ruling::Forbidden(vec!["no edit".to_owned()]));
    // Back again is wider, now.
    let back = [TOOLS, NO_DELETION, READS].concat();
    let Reloaded::Refused { code, message } = process.reload(8, back.as_bytes(), false) else {
        panic!("it has to be refused")
    };
    assert_eq!(code, "conditions-wider");
    assert_eq!(
        message,
        "the new conditions may permit more: permit `reads` is new, forbid `no edit` is gone"
    );
    assert!(!asker.ask(&request(Some("GET")), None).allows());
    let widened = Some("permit `reads` is new, forbid `no edit` is gone".to_owned());
    let done = Reloaded::Done { widened };
    assert_eq!(process.reload(9, back.as_bytes(), true), done);
    assert!(asker.ask(&request(Some("GET")), None).allows());
    assert!(process.asker().ask(&tool("fs.edit"), None).allows());
    assert!(!asker.ask(&tool("fs.delete"), None).allows());
    // Who is widened may still not be given what is no narrower word for word.
    let nothing = process.reload(10, b"", false);
    assert!(matches!(nothing, Reloaded::Refused { code, .. } if code == "conditions-wider"));
    assert_eq!(
        process.reload(11, NO_DELETION.as_bytes(), false),
        Reloaded::Done { widened: None }
    );
    assert_eq!(
        asker.ask(&tool("fs.read"), None).ruling,
        Ruling::NotPermitted
    );
}

#[test]
fn other_conditions_of_an_ancestor_hold_from_one_answer_to_the_next() {
    let process = start(TOOLS, |description| {
        let inherited = |ancestor: &str| Inherited {
            ancestor: ancestor.to_owned(),
            text: [TOOLS, READS].concat(),
            learn: false,
            world: description.world.clone(),
        };
        description.inherited = ["boss", "chief"].map(inherited).into();
    });
    process.hear();
    let asker = process.asker();
    assert!(asker.ask(&tool("fs.delete"), None).allows());
    let narrower = [NO_DELETION, TOOLS].concat();
    let done = Reloaded::Done { widened: None };
    let of_chief = |id, text: &str| process.reload_of(Some("chief"), id, text.as_bytes(), false);
    assert_eq!(of_chief(1, &narrower), done);
    let delete = asker.ask(&tool("fs.delete"), None).ruling;
    let why = vec!["no deletion of chief".to_owned()];
    assert_eq!(delete, Ruling::Forbidden(why));
    assert!(asker.ask(&tool("fs.read"), None).allows());
    let Reloaded::Refused { code, .. } = of_chief(2, TOOLS) else {
        panic!("it is wider")
    };
    assert_eq!(code, "conditions-wider");
    // What is said of one is said of no other.
    let of_boss = process.reload_of(Some("boss"), 3, TOOLS.as_bytes(), false);
    assert_eq!(of_boss, done);
    assert!(!asker.ask(&tool("fs.delete"), None).allows());
    let of_nobody = process.reload_of(Some("web"), 4, TOOLS.as_bytes(), true);
    assert!(matches!(of_nobody, Reloaded::Refused { code, .. } if code == "no-conditions"));
}

#[test]
fn a_text_that_is_refused_leaves_what_holds() {
    let process = start(&[TOOLS, NO_DELETION].concat(), |_| {});
    process.hear();
    let asker = process.asker();
    let unseen = r#"permit(principal, action, resource)
        when { context has method && context.method == "GET" || true };"#;
    let long = vec![b' '; MAX_TEXT_BYTES + 1];
    for (id, (text, says)) in [
        (&b"permit(principal, action"[..], "no Cedar"),
        (b"\xff\xfe", "not UTF-8"),
        (&long, "131073 bytes long"),
        (
            b"permit(principal, action, resource == Tool::\"hg.log\");",
            "hg.log",
        ),
        (unseen.as_bytes(), "speaks of requests"),
    ]
    .into_iter()
    .enumerate()
    {
        let Reloaded::Refused { code, message } = process.reload(id as u64, text, true) else {
            panic!("it has to be refused: {says}")
        };
        assert_eq!(code, "conditions", "{message}");
        assert!(message.contains(says), "{message}");
        assert!(asker.ask(&tool("fs.read"), None).allows());
        let deletion = asker.ask(&tool("fs.delete"), None).ruling;
        assert_eq!(deletion, Ruling::Forbidden(vec!["no deletion".to_owned()]));
    }
    // What is no file cannot be read.
    let (_ours, theirs) = pair();
    process.order(
        &Order::Reload {
            id: 99,
            widen: true,
            of: None,
        },
        &theirs,
    );
    let Event::Reloaded { id: 99, outcome } = process.hear() else {
        panic!("it answers")
    };
    assert!(matches!(outcome, Reloaded::Refused { code, .. } if code == "decision-setup"));
    assert!(asker.ask(&tool("fs.read"), None).allows());
}

#[test]
fn a_deep_condition_is_evaluated_inside_of_the_jail_or_denies() {
    for (many, permits) in [(10, true), (300, false)] {
        let deep = vec!["(context.port > 0 && !(context.port == 7))"; many].join(" && ");
        let text = format!(
            "@id(\"deep\") permit(principal, action == Action::\"net.connect\", resource) \
             when {{ {deep} }};"
        );
        let process = start(&text, |_| {});
        let asker = process.asker();
        for _ in 0..2 {
            let said = asker.ask(&request(None), None);
            assert_eq!(said.allows(), permits, "{many}: {}", said.ruling);
            let fails = matches!(said.ruling, Ruling::Failed(_));
            assert_eq!(fails, !permits, "{many}: {}", said.ruling);
        }
    }
}

#[test]
fn nonsense_is_answered_by_silence_and_disturbs_nobody() {
    let process = start(CONDITIONS, |_| {});
    let asker = process.asker();
    for nonsense in [
        b"{}".to_vec(),
        vec![0xff; 100],
        vec![b' '; bulkhead_conditions::wire::MAX_REQUEST_BYTES + 1],
        br#"{"id":1,"act":{"fly":"x"}}"#.to_vec(),
    ] {
        let client = process.client();
        send(&client, &nonsense, SendFlags::NOSIGNAL).unwrap();
        let mut buffer = [0; 16];
        let heard = recv(&client, buffer.as_mut_slice(), RecvFlags::empty());
        assert!(!matches!(heard, Ok((1.., _))), "{heard:?}");
    }
    send(&process.control, b"explode", SendFlags::NOSIGNAL).unwrap();
    assert!(asker.ask(&tool("fs.read"), None).allows());
}

#[test]
fn nobody_is_permitted_anything_by_a_process_that_was_killed() {
    let mut process = start(CONDITIONS, |_| {});
    let (asker, idle) = (process.asker(), process.asker());
    assert!(asker.ask(&tool("fs.read"), None).allows());
    process.child.kill().unwrap();
    process.child.wait().unwrap();
    for asker in [asker, idle] {
        for _ in 0..2 {
            let said = asker.ask(&tool("fs.read"), None);
            assert!(!said.allows(), "{said:?}");
        }
    }
}

#[test]
fn conditions_that_are_refused_end_it_and_permit_nothing() {
    let mut process = start(
        "permit(principal, action, resource == Tool::\"hg.log\");",
        |_| {},
    );
    let asker = process.asker();
    let Event::Failed { code, message } = process.hear() else {
        panic!("it has to fail");
    };
    assert_eq!(code, "conditions");
    assert!(message.contains("hg.log"), "{message}");
    assert!(!asker.ask(&tool("fs.read"), None).allows());
    assert!(process.last_words().contains("hg.log"));
    assert_eq!(process.child.wait().unwrap().code(), Some(125));
}

#[test]
fn it_ends_with_its_supervisor() {
    let mut process = start(CONDITIONS, |_| {});
    process.hear();
    let (_, other) = pair();
    drop(std::mem::replace(&mut process.control, other));
    assert_eq!(process.child.wait().unwrap().code(), Some(0));
}

#[test]
fn it_has_nothing_but_its_sockets() {
    let process = start(CONDITIONS, |_| {});
    process.hear();
    let _asker = process.asker();
    let status = fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    };
    assert_eq!(field("Seccomp"), "2");
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("CapEff"), "0000000000000000");
    // What only its own user may look at belongs to root where the process is not dumpable (proc(5)).
    let environment = format!("/proc/{}/environ", process.child.id());
    assert_eq!(fs::metadata(environment).unwrap().uid(), 0);
}
