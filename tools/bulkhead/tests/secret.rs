//! `bulkhead secret` as it is typed: where keys and values come from, what is left when it is
//! killed, and that values are nowhere to be seen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bulkhead_vault::{KeyMaterial, Vault};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::{TempDir, tempdir};

/// An operator with a vault of their own, and a key file.
struct Operator {
    dir: TempDir,
}

impl Operator {
    fn new() -> Self {
        let dir = tempdir().unwrap();
        let operator = Self { dir };
        operator.private_file("key", &[0xa5; 32]);
        operator
    }

    fn private_file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Without a terminal, so that nobody is asked.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("setsid");
        command.args(["--wait", env!("CARGO_BIN_EXE_bulkhead"), "secret"]);
        self.prepare(command.args(args));
        command
    }

    fn prepare(&self, command: &mut Command) {
        command
            .env("BULKHEAD_DATA_DIR", self.dir.path().join("data"))
            .env("BULKHEAD_CONFIG_DIR", self.dir.path().join("config"))
            .env("BULKHEAD_STATE_DIR", self.dir.path().join("s"))
            .env_remove("BULKHEAD_CHECKPOINT_DIR")
            .env("BULKHEAD_VAULT_KEY_FILE", self.dir.path().join("key"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }

    fn start(&self, args: &[&str], input: &[u8]) -> Child {
        let mut child = self.command(args).spawn().unwrap();
        // Whoever is refused does not read it.
        let _ = child.stdin.take().unwrap().write_all(input);
        child
    }

    fn run(&self, args: &[&str], input: &str) -> Output {
        self.start(args, input.as_bytes())
            .wait_with_output()
            .unwrap()
    }

    #[track_caller]
    fn done(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn refused(&self, args: &[&str], input: &str, code: &str) {
        let output = self.run(args, input);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(125), "{args:?}: {stderr}");
        assert!(
            stderr.starts_with(&format!("bulkhead: error[{code}]: ")),
            "{args:?}: {stderr}"
        );
        assert!(output.stdout.is_empty());
    }

    #[track_caller]
    fn ledger(&self, args: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        self.prepare(command.arg("ledger").args(args));
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn vault(&self) -> Vault {
        let place = bulkhead_places::Place::at(&self.dir.path().join("data/vault")).unwrap();
        let key = KeyMaterial::from_file(&self.dir.path().join("key")).unwrap();
        Vault::open(&place, &key).unwrap()
    }

    fn value(&self, name: &str) -> Vec<u8> {
        self.vault()
            .get(&name.parse().unwrap())
            .unwrap()
            .expose()
            .to_vec()
    }
}

/// Every file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let below = |path: PathBuf| {
        if path.is_dir() {
            files(&path)
        } else {
            vec![path]
        }
    };
    entries.flat_map(|entry| below(entry.path())).collect()
}

#[test]
fn a_secret_is_set_listed_rotated_and_removed_and_never_shown() {
    let operator = Operator::new();
    assert!(operator.done(&["ls"], "").starts_with("NAME"));
    let mut said = operator.done(&["set", "token"], "hunter2\n");
    assert_eq!(
        operator.value("token"),
        b"hunter2",
        "the end of its line is not part of it"
    );
    operator.refused(&["set", "token"], "other", "secret-exists");
    said += &operator.done(&["rotate", "token"], "hunter22\n\n");
    assert_eq!(operator.value("token"), b"hunter22\n");
    said += &operator.done(&["ls"], "");
    said += &operator.done(&["ls", "--format", "json"], "");
    assert!(
        said.contains("token") && said.contains("\"version\": 2") && !said.contains("hunter"),
        "{said}"
    );
    let files = files(&operator.dir.path().join("data"));
    assert!(files.len() >= 2, "{files:?}");
    for file in files {
        let bytes = fs::read(&file).unwrap();
        assert!(
            !bytes.windows(6).any(|window| window == b"hunter"),
            "{file:?}"
        );
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o077, 0, "{file:?}");
    }
    operator.done(&["rm", "token"], "");
    let records = operator.ledger(&["tail"]);
    for action in ["secret.set", "secret.rotate", "secret.remove"] {
        let lines = records.lines().filter(|line| line.contains(action));
        assert_eq!(lines.count(), 2, "an intent and an outcome: {records}");
    }
    assert!(!records.contains("hunter"), "{records}");
    operator.ledger(&["verify"]);
    operator.refused(&["rm", "token"], "", "no-such-secret");
    let whose = operator.run(&["whose"], "anything\n");
    assert_eq!(whose.status.code(), Some(1), "nobody holds it");
    operator.refused(&["rotate", "token"], "x", "no-such-secret");
}

#[test]
fn values_are_bounded_and_never_arguments() {
    let operator = Operator::new();
    operator.refused(&["rotate", "token"], "x", "vault-absent");
    operator.refused(&["rm", "token"], "", "vault-absent");
    operator.refused(&["set", "token", "hunter2"], "", "usage");
    operator.refused(&["set", "a/b"], "x", "secret-name");
    operator.refused(&["set", "token"], "", "secret-value");
    operator.refused(
        &["set", "token"],
        &"x".repeat(16 * 1024 + 1),
        "secret-value",
    );
    operator.refused(&["set", "token"], &"x".repeat(200 * 1024), "secret-value");
    operator.done(&["set", "token"], &format!("{}\n", "x".repeat(16 * 1024)));
}

#[test]
fn a_key_comes_from_where_it_is_said_to_be() {
    let operator = Operator::new();
    let other = operator.private_file("other", b"correct horse battery\n");
    let other = format!("file:{}", other.display());
    operator.done(&["--key", &other, "set", "token"], "value");
    operator.refused(&["ls"], "", "vault-key");
    operator.done(
        &["--key", "stdin", "set", "second"],
        "correct horse battery\nvalue of it\n",
    );
    operator.refused(
        &["--key", "stdin", "set", "third"],
        "correct horse batterz\nvalue\n",
        "vault-key",
    );
    operator.done(
        &[
            "--key",
            "stdin",
            "rekey",
            "--to",
            &format!("file:{}", operator.dir.path().join("key").display()),
        ],
        "correct horse battery\n",
    );
    assert_eq!(operator.value("second"), b"value of it");
    operator.refused(&["--key", &other, "ls"], "", "vault-key");
    operator.refused(&["--key", "prompt", "ls"], "", "no-terminal");
    operator.refused(&["--key", "stdin", "ls"], "", "vault-no-key");
    operator.refused(&["--key", "hunter2", "ls"], "", "usage");
    fs::set_permissions(
        operator.dir.path().join("key"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    operator.refused(&["ls"], "", "vault-unsafe");
}

/// Types on a terminal that `script` makes: each answer when its question is there.
fn on_a_terminal(operator: &Operator, line: &str, answers: &[(&str, &str)]) -> (String, bool) {
    let mut command = Command::new("script");
    let shell = format!("{} secret {line}", env!("CARGO_BIN_EXE_bulkhead"));
    operator.prepare(command.args(["-q", "-e", "-c", &shell, "/dev/null"]));
    command.env_remove("BULKHEAD_VAULT_KEY_FILE");
    let mut child = command.spawn().expect("script, of bsdutils");
    let (mut keyboard, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut seen = String::new();
    let mut behind = 0;
    for (question, answer) in answers {
        while !seen[behind..].contains(question) {
            let mut bytes = [0; 256];
            let read = screen.read(&mut bytes).unwrap();
            assert_ne!(read, 0, "no {question:?} in {seen:?}");
            seen += &String::from_utf8_lossy(&bytes[..read]);
        }
        behind = seen.len();
        keyboard.write_all(answer.as_bytes()).unwrap();
    }
    screen.read_to_string(&mut seen).unwrap();
    (seen, child.wait().unwrap().success())
}

#[test]
fn a_person_is_asked_and_sees_nothing_of_the_answer() {
    let operator = Operator::new();
    let (phrase, wrong) = ("correct horse battery\n", "correct horse batterz\n");
    let (seen, good) = on_a_terminal(
        &operator,
        "--key prompt set token",
        &[
            ("new vault: ", phrase),
            ("once more: ", phrase),
            ("value of token: ", "hunter2\n"),
        ],
    );
    assert!(
        good && !seen.contains("horse") && !seen.contains("hunter"),
        "{seen}"
    );
    let (seen, good) = on_a_terminal(&operator, "--key prompt ls", &[("the vault: ", phrase)]);
    assert!(good && seen.contains("token"), "{seen}");
    let (seen, good) = on_a_terminal(&operator, "--key prompt ls", &[("the vault: ", wrong)]);
    assert!(!good && seen.contains("error[vault-key]"), "{seen}");
    let (seen, good) = on_a_terminal(&operator, "--key prompt ls", &[("the vault: ", "half\x03")]);
    assert!(!good && seen.contains("error[interrupted]"), "{seen}");
    let twice = [
        ("the vault: ", phrase),
        ("of the vault: ", phrase),
        ("once more: ", wrong),
    ];
    let (seen, good) = on_a_terminal(&operator, "--key prompt rekey", &twice);
    assert!(!good && seen.contains("error[not-repeated]"), "{seen}");
}

/// Killed at sixty moments between its start and its end, a change is made or not made, and the
/// next one works.
#[test]
fn a_change_that_is_killed_is_made_or_not() {
    let operator = Operator::new();
    operator.done(&["set", "token"], "value 1");
    let begun = Instant::now();
    operator.done(&["rotate", "token"], "value 2");
    let whole = begun.elapsed();
    let (mut version, mut made) = (2, 0);
    for moment in 0..60 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        operator.prepare(command.args(["secret", "rotate", "token"]));
        let mut child = command.spawn().unwrap();
        let next = format!("value {}", version + 1);
        let _ = child.stdin.take().unwrap().write_all(next.as_bytes());
        thread::sleep(whole * moment / 60);
        child.kill().unwrap();
        child.wait().unwrap();
        let now = operator.vault().list()[0].version;
        assert!(
            now == version || now == version + 1,
            "{now} after {version}"
        );
        made += now - version;
        version = now;
        assert_eq!(
            operator.value("token"),
            format!("value {version}").as_bytes()
        );
    }
    eprintln!("{made} of 60 changes were made before the kill");
    operator.done(&["rotate", "token"], "the last");
    assert_eq!(operator.value("token"), b"the last");
}

#[test]
fn many_processes_at_once_lose_nothing() {
    let operator = Operator::new();
    let names: Vec<String> = (0..12).map(|number| format!("s{number}")).collect();
    let children: Vec<Child> = names
        .iter()
        .map(|name| operator.start(&["set", name], name.as_bytes()))
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    for name in &names {
        assert_eq!(operator.value(name), name.as_bytes());
    }
    assert_eq!(operator.vault().generation(), 12);
}

#[test]
fn without_a_ledger_nothing_changes() {
    let operator = Operator::new();
    operator.done(&["set", "token"], "value");
    let ledger = operator.dir.path().join("data/ledger");
    fs::set_permissions(&ledger, fs::Permissions::from_mode(0o755)).unwrap();
    operator.refused(&["rotate", "token"], "other", "place-unsafe");
    operator.refused(&["rm", "token"], "", "place-unsafe");
    assert_eq!(operator.value("token"), b"value");
}

/// Nobody of the same user reads the memory of a process that holds a value.
#[test]
fn a_process_that_holds_a_value_is_not_for_others_to_read() {
    let operator = Operator::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    operator.prepare(command.args(["secret", "set", "token"]));
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}", child.id());
    let end = Instant::now() + Duration::from_secs(30);
    // Files of a process that does not dump belong to root; root itself tells by its limits.
    let closed = || {
        let limits = fs::read_to_string(format!("{status}/limits")).unwrap_or_default();
        let cores = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"));
        cores.is_some_and(|line| line.split_whitespace().nth(4) == Some("0"))
    };
    while !closed() && Instant::now() < end {
        thread::sleep(Duration::from_millis(2));
    }
    let was_closed = closed();
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(was_closed);
}
