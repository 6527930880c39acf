//! The command line without KVM: what it refuses, how it says so, and that it leaves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::{TempDir, tempdir};

/// A place with an empty library and no state directory yet.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempdir().unwrap();
        fs::create_dir(dir.path().join("lib")).unwrap();
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn file(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command
            .args(args)
            .current_dir(self.path())
            .env("BULKHEAD_LIB", self.path().join("lib"))
            .env("BULKHEAD_STATE_DIR", self.path().join("s"))
            .env("BULKHEAD_DATA_DIR", self.path().join("data"))
            .env("BULKHEAD_CONFIG_DIR", self.path().join("config"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs and demands status and code of a refusal: one sentence, help below it, no data.
    #[track_caller]
    fn refused(&self, args: &[&str], status: i32, code: &str) -> String {
        let before = fs::read_dir(self.path()).unwrap().count();
        let output = self.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
        let mut lines = stderr.lines();
        let first = lines.next().unwrap_or_default();
        assert!(
            first.starts_with(&format!("bulkhead: error[{code}]: ")),
            "{args:?}: {stderr}"
        );
        assert!(!first.ends_with('.'), "{first}");
        assert!(lines.all(|line| line.starts_with("  help: ")), "{stderr}");
        assert_eq!(
            fs::read_dir(self.path()).unwrap().count(),
            before,
            "{args:?} left something"
        );
        stderr
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn version_completions_and_help_are_data() {
    let place = Place::new();
    let version = place.run(&["version"]);
    assert_eq!(
        stdout(&version),
        concat!("bulkhead ", env!("CARGO_PKG_VERSION"), "\n")
    );
    for shell in ["bash", "zsh", "fish"] {
        let script = place.run(&["completions", shell]);
        assert!(script.status.success());
        assert!(stdout(&script).contains("bulkhead"), "{shell}");
    }
    let help = place.run(&["run", "--help"]);
    assert!(help.status.success());
    assert!(stdout(&help).contains("Exit status"));
}

#[test]
fn misuse_is_125() {
    let place = Place::new();
    for args in [
        &["explode"][..],
        &["run", "--memory"],
        &["run", "--memory", "1MiB", "--memory", "2MiB", "x"],
        &["run", "--vcpus", "x"],
        &["run", "--kernel", "windows"],
        &["down"],
        &["ps", "--format", "x"],
        &["ps", "--fromat", "json"],
    ] {
        place.refused(args, 125, "usage");
    }
    let nothing = place.run(&[]);
    assert_eq!(nothing.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("Commands:"));
    place.refused(&["run", "--no-such-option", "x"], 125, "usage");
    place.refused(&["run"], 125, "no-command");
    place.refused(&["run", "-v", "x", "/bin/sh"], 125, "mount");
    place.refused(&["run", "-t", "/bin/sh"], 125, "no-terminal");
}

#[test]
fn commands_that_are_not_there_or_not_runnable() {
    let place = Place::new();
    place.file("data", "x");
    place.refused(&["run", "no-such-command"], 127, "command-not-found");
    place.refused(&["run", "./no-such-file"], 127, "command-not-found");
    place.refused(&["run", "./data"], 126, "command-not-executable");
    place.refused(&["run", "./lib"], 126, "command-not-executable");
}

#[test]
fn options_are_checked_like_a_manifest() {
    let place = Place::new();
    for (args, code) in [
        (&["--memory", "10TiB"][..], "manifest-memory"),
        (&["--memory", "64"], "manifest-memory"),
        (&["--vcpus", "0"], "manifest-vcpus"),
        (&["--name", "Not A Name"], "manifest-name"),
        (&["--grant", "net.connect"], "manifest-grant"),
        (
            &["--disk", "a", "--disk", "a:ro"],
            "manifest-duplicate-grant",
        ),
        (
            &["-v", "a:/x", "-v", "b:/x/y"],
            "manifest-overlapping-mount",
        ),
        (&["-v", "a:x"], "manifest-mount-target"),
        (&["--image", "x"], "manifest-key-not-for-kernel"),
        (&["-e", "=x"], "manifest-command"),
    ] {
        let args: Vec<&str> = ["run"]
            .iter()
            .chain(args)
            .chain(&["/bin/sh"])
            .copied()
            .collect();
        place.refused(&args, 125, code);
    }
}

#[test]
fn manifests_are_refused_by_place() {
    let place = Place::new();
    place.refused(&["up"], 125, "manifest-unreadable");
    place.refused(&["up", "lib"], 125, "manifest-unreadable");
    place.file(
        "bad.toml",
        "name = \"x\"\n[[partition]]\nname = \"p\"\nkernel = \"nativ\"\n",
    );
    let said = place.refused(&["up", "bad.toml"], 125, "manifest-kernel");
    assert!(said.contains("bad.toml:4:10: "), "{said}");
    place.file(
        "good.toml",
        "name = \"x\"\n[[partition]]\nname = \"p\"\nkernel = \"native\"\nprogram = \"p\"\n",
    );
    let said = place.refused(
        &["up", "good.toml", "--only", "q"],
        125,
        "no-such-partition",
    );
    assert!(said.contains("help: it has p"), "{said}");
}

#[test]
fn a_manifest_is_checked_with_its_file_of_limits() {
    let place = Place::new();
    let manifest = "[identity]\nname = \"a\"\nrole = \"r\"\n[boot]\nkernel = \"native\"\n\
                    program = \"/p\"\n[lifetime]\nmax = \"1h\"\n[tools]\nlimits = \"own.toml\"\n";
    place.file("agent.toml", manifest);
    let check = ["manifest", "check", "agent.toml"];
    assert!(place.run(&check).status.success(), "it may be elsewhere");
    place.file("own.toml", "[partition]\ncalls = 3\n");
    assert!(place.run(&check).status.success());
    place.file("own.toml", "[partition]\nwrites = 3\ncall = 3\n");
    let said = place.refused(&check, 125, "tools-policy");
    assert!(
        said.contains("own.toml") && said.contains("line 3"),
        "{said}"
    );
}

#[test]
fn a_missing_library_is_told() {
    let place = Place::new();
    fs::remove_dir(place.path().join("lib")).unwrap();
    let said = place.refused(&["run", "/bin/sh"], 125, "library-incomplete");
    assert!(said.contains("BULKHEAD_LIB"), "{said}");
}

#[test]
fn without_systems_there_is_nothing_to_list_or_end() {
    let place = Place::new();
    assert_eq!(stdout(&place.run(&["ps", "--format", "json"])), "[]\n");
    assert_eq!(stdout(&place.run(&["ps"])).lines().count(), 1);
    assert!(place.run(&["down", "--all"]).status.success());
    place.refused(&["down", "nobody"], 125, "no-such-system");
    place.refused(&["logs", "nobody/p"], 125, "no-such-system");
    place.refused(&["logs", "nobody"], 125, "no-such-log");
}

#[test]
fn one_unknown_name_does_not_keep_down_from_the_others() {
    let place = Place::new();
    let state = place.path().join("s");
    fs::create_dir_all(state.join("old")).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    let record = r#"{"supervisor":0,"started":0,"finished":true,"partitions":[]}"#;
    fs::write(state.join("old/system.json"), record).unwrap();
    let output = place.run(&["down", "nobody", "old"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("[no-such-system]"));
    assert!(!state.exists());
}

#[test]
fn a_stale_directory_is_removed_and_an_open_one_refused() {
    let place = Place::new();
    let state = place.path().join("s");
    fs::create_dir_all(state.join("stale")).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(stdout(&place.run(&["ps", "--format", "json"])), "[]\n");
    assert!(!state.exists());
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o777)).unwrap();
    place.refused(&["ps"], 125, "state-dir-unsafe");
}

#[test]
fn a_state_directory_with_other_things_in_it_keeps_them() {
    let place = Place::new();
    let state = place.path().join("s");
    let diary = state.join("documents/diary");
    fs::create_dir_all(state.join("documents")).unwrap();
    fs::write(&diary, "x").unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(stdout(&place.run(&["ps", "--format", "json"])), "[]\n");
    assert!(place.run(&["down", "--all"]).status.success());
    assert!(diary.exists());
}

#[test]
fn a_state_directory_is_absolute() {
    let place = Place::new();
    let output = place
        .command(&["ps"])
        .env("BULKHEAD_STATE_DIR", "here")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("[state-dir-unsafe]"));
}

#[test]
fn a_reader_that_went_away_is_no_failure() {
    let place = Place::new();
    let mut child = place
        .command(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(output.stderr.is_empty());
}

#[test]
fn models_are_listed_as_the_operator_wrote_them() {
    let place = Place::new();
    let config = place.path().join("config");
    let list = |args: &[&str]| {
        let mut command = place.command(&["model", "ls"]);
        command.args(args).env("BULKHEAD_CONFIG_DIR", &config);
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr))
    };
    assert!(list(&[]).1.starts_with("bulkhead: error[no-models]: "));
    fs::create_dir(&config).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o700)).unwrap();
    let example = include_str!("../../../docs/examples/models.toml");
    fs::write(config.join("models.toml"), example).unwrap();
    let (table, _) = list(&[]);
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(
        table.contains("claude-sonnet-4-5  large    anthropic  3.00   15.00   8192"),
        "{table}"
    );
    let (json, _) = list(&["--grant", "sm*", "--format", "json"]);
    assert_eq!(json.matches("\"provider\"").count(), 2, "{json}");
    assert!(!json.contains("anthropic"), "{json}");
    assert_eq!(list(&["--grant", "none"]).0.lines().count(), 1);
    fs::write(
        config.join("models.toml"),
        example.replace("\"3.00\"", "3.00"),
    )
    .unwrap();
    let (_, refused) = list(&[]);
    assert!(refused.contains("error[models-invalid]"), "{refused}");
    assert!(refused.contains("models.toml:17:9: "), "{refused}");
}
