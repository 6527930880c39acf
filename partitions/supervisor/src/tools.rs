//! The tools of a partition: the process `bulkhead-tools`, made ready beside the partition's vsock, on
//! which its guest calls them. Called by the launcher; started and watched as a back end.

use crate::backend::{Descriptors, Kind, Ready};
use crate::error::Error;
use crate::files::is_as_judged;
use crate::lasting::Lasting;
use crate::process::packet_pair;
use crate::vsock::Vsock;
use bulkhead_capability::Capability;
use bulkhead_manifest::{Device, DeviceKind, Partition, is_reserved_directory};
use bulkhead_places::Place;
use bulkhead_toolbox::{Directory, Jail, Limits, PORT, ToolsDescription, VERSION, WEB_TOOLS};
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::ffi::CStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Name of the policy file in the directory of what operators configure.
const POLICY: &str = "tools.toml";
/// Directory of what tools leave, in the one of what lasts, and the file of counters in it.
const DIRECTORY: &str = "tools";
const COUNTERS: &str = "calls";
/// What the file of the calls of one partition is for.
const CALLS: &CStr = c"calls";
/// Name of the process where devices have theirs.
const NAME: &str = "tools";

/// Whose tools they are.
pub(crate) struct Whose<'w> {
    /// Name of the system.
    pub(crate) system: &'w str,
    pub(crate) partition: &'w Partition,
    /// When the system started.
    pub(crate) started: SystemTime,
    pub(crate) jail: Jail,
    /// Where its own calls are counted.
    pub(crate) lasting: &'w Lasting,
    /// What narrows the host's limits for it.
    pub(crate) limits: Option<&'w Limits>,
}

/// Whether tools of the partition may ask its gateway for connections to web servers.
pub(crate) fn ask_the_web(partition: &Partition) -> bool {
    let is_network = |device: &Device| matches!(device.kind, DeviceKind::Network(_));
    let asks = |held: &Capability| match held {
        Capability::ToolCall(names) => WEB_TOOLS.iter().any(|name| names.matches(name)),
        _ => false,
    };
    partition.devices.iter().any(is_network) && partition.grants.capabilities().any(asks)
}

/// The ways of the tools to others.
pub(crate) struct Ways {
    /// Into the ledger; without, no tool runs.
    pub(crate) ledger: Option<OwnedFd>,
    /// To what answers for the conditions, if there are any.
    pub(crate) conditions: Option<OwnedFd>,
    /// To the gateway, and by that to the web.
    pub(crate) gateway: Option<OwnedFd>,
}

/// Makes the tools of a partition ready, if it may call any. `ways` gives them theirs.
pub(crate) fn ready(
    whose: &Whose<'_>,
    vsock: Option<&Vsock>,
    ways: impl FnOnce() -> Result<Ways, Error>,
) -> Result<Option<Ready>, Error> {
    if !whose.partition.calls_tools() {
        return Ok(None);
    }
    let without = || Error::ToolsWithoutVsock(whose.partition.name.clone());
    let vsock = vsock.ok_or_else(without)?;
    let config = Place::config().map_err(Error::Place)?;
    let data = Place::data().map_err(Error::Place)?.below(DIRECTORY);
    describe(whose, vsock, ways()?, &config, &data).map(Some)
}

/// The tools of a partition whose policy file is in `config`, and which leave what has to last in `data`.
fn describe(
    whose: &Whose<'_>,
    vsock: &Vsock,
    ways: Ways,
    config: &Place,
    data: &Place,
) -> Result<Ready, Error> {
    let Whose {
        system,
        partition,
        started,
        jail,
        lasting,
        limits: own,
    } = *whose;
    let host = limits(config)?;
    let mut descriptors = Descriptors::default();
    let (questions, approvals) = packet_pair()?;
    let listener = vsock.listen(PORT)?;
    let backups = data.below(system).below(&partition.name);
    let backups = directory(backups.make().map_err(Error::Place)?)?;
    let description = ToolsDescription {
        version: VERSION,
        actor: format!("{system}/{}", partition.name),
        listener: descriptors.keep(listener),
        ledger: ways.ledger.map(|ledger| descriptors.keep(ledger)),
        approvals: Some(descriptors.keep(approvals)),
        conditions: ways.conditions.map(|way| descriptors.keep(way)),
        backups: descriptors.keep(backups),
        counters: Some(descriptors.keep(counters(data)?)),
        own_counters: Some(descriptors.keep(lasting.file(&partition.name, CALLS, &[])?)),
        gateway: ways.gateway.map(|gateway| descriptors.keep(gateway)),
        grants: partition.grants.clone(),
        started: started
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since: Duration| since.as_secs()),
        directories: directories(partition, &mut descriptors)?,
        autonomy: partition.autonomy,
        limits: own.map_or_else(|| host.clone(), |own| host.narrowed(own)),
        budget: (partition.mandate.as_ref()).and_then(|mandate| mandate.budget.calls),
        jail,
    };
    let description = serde_json::to_vec(&description);
    Ok(Ready {
        device: NAME.to_owned(),
        kind: Kind::Tools,
        description: description.map_err(Error::system("describe the tools"))?,
        descriptors: descriptors.0,
        control: None,
        questions: Some(questions),
    })
}

/// The directories that the partition shares, which its tools work in too.
fn directories(
    partition: &Partition,
    descriptors: &mut Descriptors,
) -> Result<Vec<Directory>, Error> {
    let mut directories = Vec::new();
    for held in partition.grants.capabilities() {
        let (named, write) = match held {
            Capability::FsRead(path) => (path, false),
            Capability::FsWrite(path) => (path, true),
            _ => continue,
        };
        let failed = |source| Error::Open {
            what: "directory",
            path: named.clone(),
            source,
        };
        // A link may lead where no manifest may.
        let resolved = named.canonicalize().map_err(failed)?;
        if is_reserved_directory(&resolved) {
            return Err(Error::Share(resolved));
        }
        // A call's path has neither, so that of its directory may not.
        let plain = |part: Component<'_>| !matches!(part, Component::CurDir | Component::ParentDir);
        let written: PathBuf = named.components().collect();
        let path = match written.components().all(plain) {
            true => written,
            false => resolved.clone(),
        };
        let opened = directory(&resolved)?;
        is_as_judged(partition, named, &opened)?;
        directories.push(Directory {
            path,
            file: descriptors.keep(opened),
            write,
        });
    }
    Ok(directories)
}

fn directory(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(CWD, path, flags, Mode::empty());
    opened.map_err(|errno| Error::Open {
        what: "directory",
        path: path.to_owned(),
        source: errno.into(),
    })
}

/// The file that all partitions of this user count their calls in.
fn counters(data: &Place) -> Result<File, Error> {
    let path = data.path().join(COUNTERS);
    let mut options = File::options();
    let options = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    options.open(&path).map_err(|source| Error::Open {
        what: "file of counters",
        path,
        source,
    })
}

/// What the operator's policy file says, or the defaults where there is none.
fn limits(config: &Place) -> Result<Limits, Error> {
    let Some(directory) = config.existing().map_err(Error::Place)? else {
        return Ok(Limits::default());
    };
    let path = directory.join(POLICY);
    match fs::read_to_string(&path) {
        Ok(text) => Limits::parse(&text).map_err(|error| Error::ToolsPolicy { path, error }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Limits::default()),
        Err(source) => Err(Error::Open {
            what: "policy file",
            path,
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::tests::partition;
    use bulkhead_capability::Autonomy;
    use bulkhead_toolbox::Risk;
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;
    use tempfile::{TempDir, tempdir};

    fn described(dir: &TempDir, grants: &str) -> Result<ToolsDescription, Error> {
        described_within(dir, grants, None)
    }

    fn described_within(
        dir: &TempDir,
        grants: &str,
        limits: Option<&Limits>,
    ) -> Result<ToolsDescription, Error> {
        let program = "kernel = \"native\"\nprogram = \"/p\"\n";
        let partition = partition(&format!("{program}grants = [{grants}]"));
        let whose = Whose {
            system: "s",
            partition: &partition,
            started: UNIX_EPOCH + Duration::from_secs(7),
            jail: Jail::Full,
            lasting: &Lasting::default(),
            limits,
        };
        let (vsock, _theirs) = Vsock::new(&dir.path().join("p"))?;
        let place = |name: &str| Place::at(&dir.path().join(name)).unwrap();
        let ways = Ways {
            ledger: None,
            conditions: None,
            gateway: None,
        };
        let ready = describe(&whose, &vsock, ways, &place("config"), &place("data"))?;
        assert!(dir.path().join("p/vsock.sock_1024").exists());
        let description: ToolsDescription = serde_json::from_slice(&ready.description).unwrap();
        assert!(ready.questions.is_some() && description.approvals.is_some());
        assert_eq!(ready.descriptors.len(), 5 + description.directories.len());
        Ok(description)
    }

    #[test]
    fn tools_get_the_directories_and_nothing_else() {
        let dir = tempdir().unwrap();
        fs::create_dir(dir.path().join("shared")).unwrap();
        let shared = dir.path().join("shared");
        let grants = format!(
            "\"vsock\", \"tool.call:fs.*\", \"fs.write:{}\"",
            shared.display()
        );
        let description = described(&dir, &grants).unwrap();
        assert_eq!(description.actor, "s/p");
        assert_eq!(description.started, 7);
        assert_eq!(description.limits, Limits::default());
        let [directory] = description.directories.as_slice() else {
            panic!("{:?}", description.directories);
        };
        assert_eq!((&directory.path, directory.write), (&shared, true));
        // However it is written, it has a path that calls can name.
        for odd in ["shared/../shared", "./shared/."] {
            let grants = format!(
                "\"vsock\", \"tool.call:*\", \"fs.read:{}/{odd}\"",
                dir.path().display()
            );
            let description = described(&dir, &grants).unwrap();
            assert_eq!(description.directories[0].path, shared, "{odd}");
        }
        // What they leave is nobody else's, and there when they start again.
        let backups = dir.path().join("data/s/p");
        assert_eq!(
            fs::metadata(&backups).unwrap().permissions().mode() & 0o777,
            0o700
        );
        fs::write(backups.join("kept"), "").unwrap();
        described(&dir, &grants).unwrap();
        assert!(backups.join("kept").exists());
    }

    #[test]
    fn tools_reach_the_web_where_they_and_the_partition_may() {
        for (grants, asks) in [
            (
                "\"tool.call:http.get\", \"net.connect:a.example:443\"",
                true,
            ),
            ("\"tool.call:*\", \"net.connect:a.example:443\"", true),
            ("\"tool.call:fs.*\", \"net.connect:a.example:443\"", false),
            ("\"tool.call:http.*\"", false),
        ] {
            let program = "kernel = \"linux\"\ncommand = [\"/x\"]\n";
            let partition = partition(&format!("{program}grants = [\"vsock\", {grants}]"));
            assert_eq!(ask_the_web(&partition), asks, "{grants}");
            // What tools ask for is looked into.
            assert_eq!(crate::web::is_needed(&partition), asks, "{grants}");
        }
    }

    #[test]
    fn tools_know_how_autonomous_their_partition_is() {
        let dir = tempdir().unwrap();
        let grants = "\"vsock\", \"tool.call:*\"";
        let said = described(&dir, &format!("{grants}]\nautonomy = \"manual\"\n#")).unwrap();
        assert_eq!(said.autonomy, Autonomy::Manual);
        assert_eq!(described(&dir, grants).unwrap().autonomy, Autonomy::Full);
    }

    #[test]
    fn the_policy_file_is_read_or_nothing_starts() {
        let dir = tempdir().unwrap();
        let config = Place::at(&dir.path().join("config")).unwrap();
        let path = config.make().unwrap().join(POLICY);
        fs::write(&path, "confirm = [\"write\"]\n[all]\ncalls = 5\n").unwrap();
        let grants = "\"vsock\", \"tool.call:*\"";
        let limits = described(&dir, grants).unwrap().limits;
        assert_eq!(limits.all.calls, 5);
        assert_eq!(limits.confirm, BTreeSet::from([Risk::Write]));
        // A partition's own narrow it, and widen nothing.
        let own = "confirm = [\"read\"]\n[all]\ncalls = 9\n[partition]\ncalls = 2\n";
        let own = Limits::parse_narrowing(own).unwrap();
        let limits = described_within(&dir, grants, Some(&own)).unwrap().limits;
        assert_eq!((limits.all.calls, limits.partition.calls), (5, 2));
        assert_eq!(limits.partition.writes, Limits::default().partition.writes);
        assert_eq!(limits.confirm, BTreeSet::from([Risk::Read, Risk::Write]));
        fs::write(&path, "[all]\ncall = 5\n").unwrap();
        let refused = described(&dir, "\"vsock\", \"tool.call:*\"").unwrap_err();
        assert_eq!(refused.code(), "tools-policy");
        assert!(refused.to_string().contains("line 2"), "{refused}");
    }

    #[test]
    fn who_may_call_tools_needs_a_way_to_do_it() {
        let ready = |grants: &str| {
            let program = "kernel = \"native\"\nprogram = \"/p\"\n";
            let partition = partition(&format!("{program}grants = [{grants}]"));
            let whose = Whose {
                system: "s",
                partition: &partition,
                started: UNIX_EPOCH,
                jail: Jail::Full,
                lasting: &Lasting::default(),
                limits: None,
            };
            super::ready(&whose, None, || unreachable!("nobody is asked for a way"))
        };
        assert!(ready("\"console\"").unwrap().is_none());
        let refused = ready("\"tool.call:*\"").unwrap_err();
        assert_eq!(refused.code(), "tools-without-vsock");
    }
}
