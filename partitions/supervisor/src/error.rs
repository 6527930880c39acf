//! Everything that can go wrong between a checked system and its running partitions.
//!
//! Each error has a stable code and, where something can be done, a remedy: the command line
//! prints both. A failure inside the VMM arrives as [`crate::End::Failed`] instead.

use bulkhead_cpu::Lacks;
use bulkhead_manifest::Rejection;
use bulkhead_models::file::LoadError;
use bulkhead_places::PlaceError;
use bulkhead_toolbox::ParseLimitsError;
use std::io;
use std::path::PathBuf;

/// Too many open files in this process.
const EMFILE: i32 = rustix::io::Errno::MFILE.raw_os_error();

/// What to do where everything is halted.
pub(crate) const HALTED_HELP: &str = "let everything go on with `bulkhead resume --all`";

/// No such device.
const ENODEV: i32 = rustix::io::Errno::NODEV.raw_os_error();

/// Why the supervisor refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A partition's secrets.
    #[error(transparent)]
    Secret(bulkhead_vault::VaultError),
    /// What has to be recorded cannot be.
    #[error("the ledger cannot be written: {0}")]
    Ledger(String),
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open /dev/kvm: {}", reason(.0))]
    Kvm(io::Error),
    /// A Linux kernel was asked for on a KVM that interprets guest kernel mode.
    #[error("partition `{partition}` needs a Linux kernel, and {reason}")]
    KvmInterpreted {
        /// The partition.
        partition: String,
        /// What was measured, as a clause.
        reason: String,
    },
    /// The library directory is nowhere.
    #[error("no library directory at `{}`", .0.display())]
    NoLibrary(PathBuf),
    /// A file of the library is absent: the installation is incomplete.
    #[error("the library has no {what} at `{}`", path.display())]
    NotInstalled {
        /// What the file is.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
    },
    /// A file that a partition names cannot be used.
    #[error("cannot open {what} `{}`: {}", path.display(), reason(source))]
    Open {
        /// What it is to the partition.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not of the kind that is needed.
    #[error("{what} `{}` is {found}", path.display())]
    FileKind {
        /// What it is to the partition.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What it is instead, with its article.
        found: &'static str,
    },
    /// A disk of a size that is no disk.
    #[error("disk `{}` is {bytes} bytes long", path.display())]
    DiskSize {
        /// Its path.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A disk that somebody else writes, or that is to be written while somebody uses it.
    #[error("disk `{}` is in use already", .0.display())]
    DiskBusy(PathBuf),
    /// An image that is not of the format that it was said to have.
    #[error("disk `{}` is no qcow2 image", .0.display())]
    DiskFormat(PathBuf),
    /// Of a top and its map one is absent.
    #[error("an overlay is its top and its map, and there is no `{}`", .0.display())]
    OverlayIncomplete(PathBuf),
    /// A directory that is not to be shared.
    #[error("directory `{}` is not to be shared", .0.display())]
    Share(PathBuf),
    /// A directory of the user's own cannot be used.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// There is no proper file of models.
    #[error(transparent)]
    Models(LoadError),
    /// A grant that no model of that file fits.
    #[error("`model.chat:{0}` is granted, and models.toml has no such model")]
    NoSuchModel(String),
    /// A secret that can be no provider's key.
    #[error("the secret `{0}` is no key of a provider: it is not one line of text")]
    ProviderKey(String),
    /// Tools are granted, and the guest has no way to call them.
    #[error("partition `{0}` may call tools, and has no vsock to call them on")]
    ToolsWithoutVsock(String),
    /// The policy file for tools is none.
    #[error("the policy file `{}` is malformed: {error}", path.display())]
    ToolsPolicy {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        error: ParseLimitsError,
    },
    /// A socket of the host cannot be listened on.
    #[error("cannot listen on {address}: {}", reason(source))]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A tap interface cannot be opened.
    #[error("cannot open tap interface `{interface}`: {}", reason(source))]
    Tap {
        /// Its name.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// A socket of another process cannot be connected to.
    #[error("cannot connect to `{}`: {}", path.display(), reason(source))]
    Connect {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is to be memory is not whole blocks.
    #[error("file `{}` is {bytes} bytes long", path.display())]
    PmemSize {
        /// Its path.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// The limits of a partition cannot be applied.
    #[error(
        "cannot limit {controller} of partition `{partition}`: {}",
        reason(source)
    )]
    Limits {
        /// The partition.
        partition: String,
        /// The controller.
        controller: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A kernel that the VMM could not enter.
    #[error("partition `{partition}`: the kernel image {source}")]
    KernelImage {
        /// The partition.
        partition: String,
        /// What is wrong with it.
        source: bulkhead_image::ImageError,
    },
    /// A program that cannot run in its partition.
    #[error("program `{}` {}", path.display(), problem.clause())]
    Program {
        /// Its path on the host.
        path: PathBuf,
        /// Why it cannot.
        problem: ProgramProblem,
    },
    /// More memory than there is.
    #[error(
        "partition `{partition}` asks for {asked_mib} MiB of memory, and this host has {host_mib} MiB"
    )]
    MemoryExceedsHost {
        /// The partition.
        partition: String,
        /// What it asks for.
        asked_mib: u64,
        /// What the host has, swap included.
        host_mib: u64,
    },
    /// The host's CPU, or its KVM, cannot be what a template promises.
    #[error("partition `{partition}`: {lacks}")]
    CpuTemplate {
        /// The partition.
        partition: String,
        /// What is missing.
        lacks: Lacks,
    },
    /// The files of a partition do not fit into it.
    #[error("the files of partition `{partition}` do not fit into its {memory_mib} MiB of memory")]
    FilesExceedMemory {
        /// The partition.
        partition: String,
        /// Its memory.
        memory_mib: u64,
    },
    /// A file or directory cannot be copied into a partition.
    #[error("cannot copy `{}` into the partition: {}", path.display(), reason(source))]
    Pack {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The state directory is unusable.
    #[error("cannot use the state directory `{}`: {}", path.display(), reason(source))]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The state directory is not the caller's alone.
    #[error("the state directory `{}` {problem}", path.display())]
    StateDirUnsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A system of this name runs already.
    #[error("a system named `{0}` is running already")]
    AlreadyRunning(String),
    /// Everything was halted, and nothing starts until somebody lets it go on.
    #[error("everything is halted")]
    Halted,
    /// No system of this name runs, or ran and left its logs.
    #[error("no system named `{0}`")]
    NoSuchSystem(String),
    /// A system has no such partition, or it keeps no log.
    #[error("system `{system}` has no log of a partition `{partition}`")]
    NoSuchLog {
        /// The system.
        system: String,
        /// The partition.
        partition: String,
    },
    /// A system has ended.
    #[error("system `{0}` has ended")]
    NotRunning(String),
    /// A supervisor gave no answer.
    #[error("the supervisor of system `{0}` does not answer")]
    NoAnswer(String),
    /// A system did not go away.
    #[error("system `{0}` is still there after one second")]
    StillThere(String),
    /// The VMM process could not be started.
    #[error("cannot start the VMM `{}`: {}", path.display(), reason(source))]
    Spawn {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The name of a file leads elsewhere than when the manifest that names it was judged.
    #[error(
        "`{}` led to `{}` when its manifest was judged, and leads to `{}`",
        path.display(), judged.display(), found.display()
    )]
    LeadsElsewhere {
        /// The name.
        path: PathBuf,
        /// Where it led.
        judged: PathBuf,
        /// Where it leads.
        found: PathBuf,
    },
    /// A child inherits conditions that hold no more.
    #[error("`{partition}` inherits conditions of `{ancestor}` that hold no more")]
    ConditionsChanged {
        /// The child.
        partition: String,
        /// Whose they are.
        ancestor: String,
    },
    /// A manifest that was admitted does not keep a rule any more.
    #[error("{}", .0.message)]
    Rejected(Box<Rejection>),
    /// Something of a manifest that nothing would hold the partition to.
    #[error("nothing enforces `{0}` yet")]
    NotEnforced(String),
    /// The operating system refused something ordinary.
    #[error("cannot {doing}: {}", reason(source))]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Why a program cannot run in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramProblem {
    /// It is not an ELF file.
    NotElf,
    /// It ends before what its headers promise.
    Truncated,
    /// It is for another CPU or for 32 bits.
    WrongArchitecture,
    /// It is a library, object or core file.
    NotExecutable,
    /// It needs a dynamic loader.
    Dynamic {
        /// The loader that it names.
        loader: String,
    },
}

impl ProgramProblem {
    fn clause(&self) -> String {
        match self {
            Self::NotElf => "is not an ELF file".to_owned(),
            Self::Truncated => {
                "is truncated: its headers promise more bytes than it has".to_owned()
            }
            Self::WrongArchitecture => "is not for a 64-bit x86 CPU".to_owned(),
            Self::NotExecutable => "is an ELF file, but no program".to_owned(),
            Self::Dynamic { loader } => {
                format!("is dynamically linked, and the partition has no `{loader}`")
            }
        }
    }
}

/// The text of an I/O error without Rust's `(os error N)`, in lower case like all our texts.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => text.to_owned(),
    }
}

impl Error {
    /// Shorthand for [`Error::System`].
    pub(crate) fn system<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            doing,
            source: source.into(),
        }
    }

    /// Stable code for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Kvm(source) => match source.kind() {
                io::ErrorKind::NotFound => "kvm-absent",
                io::ErrorKind::PermissionDenied => "kvm-permission",
                _ => "kvm-unusable",
            },
            Self::Ledger(_) => "ledger",
            Self::KvmInterpreted { .. } => "kvm-interpreted",
            Self::NoLibrary(_) | Self::NotInstalled { .. } => "library-incomplete",
            Self::Open { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => "file-not-found",
                io::ErrorKind::PermissionDenied => "file-permission",
                _ => "file-unusable",
            },
            Self::FileKind { .. } => "file-kind",
            Self::DiskSize { bytes: 0, .. } => "disk-empty",
            Self::DiskSize { .. } => "disk-size",
            Self::DiskBusy(_) => "disk-busy",
            Self::DiskFormat(_) => "disk-format",
            Self::OverlayIncomplete(_) => "overlay-incomplete",
            Self::Share(_) => "share-refused",
            Self::Place(error) => error.code(),
            Self::Models(error) => error.code(),
            Self::NoSuchModel(_) => "no-such-model",
            Self::ProviderKey(_) => "provider-key",
            Self::ToolsPolicy { .. } => "tools-policy",
            Self::ToolsWithoutVsock(_) => "tools-without-vsock",
            Self::Listen { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => "address-in-use",
                _ => "listen",
            },
            Self::Tap { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => "tap-not-found",
                io::ErrorKind::PermissionDenied => "tap-permission",
                _ if source.raw_os_error() == Some(ENODEV) => "tap-not-found",
                _ => "tap-unusable",
            },
            Self::Connect { .. } => "backend-not-reached",
            Self::PmemSize { .. } => "pmem-size",
            Self::Limits { .. } => "limits",
            Self::NotEnforced(_) => "not-enforced",
            Self::LeadsElsewhere { .. } => "leads-elsewhere",
            Self::ConditionsChanged { .. } => "conditions-changed",
            Self::Rejected(rejection) => rejection.rule.as_str(),
            Self::KernelImage { source, .. } => source.code(),
            Self::Program { problem, .. } => match problem {
                ProgramProblem::NotElf => "program-not-elf",
                ProgramProblem::Truncated => "program-truncated",
                ProgramProblem::WrongArchitecture => "program-architecture",
                ProgramProblem::NotExecutable => "program-kind",
                ProgramProblem::Dynamic { .. } => "program-dynamic",
            },
            Self::MemoryExceedsHost { .. } => "memory-exceeds-host",
            Self::CpuTemplate { .. } => "cpu-template",
            Self::FilesExceedMemory { .. } => "files-exceed-memory",
            Self::Pack { .. } => "file-not-copied",
            Self::StateDir { .. } => "state-dir",
            Self::StateDirUnsafe { .. } => "state-dir-unsafe",
            Self::AlreadyRunning(_) => "already-running",
            Self::Halted => "halted",
            Self::Secret(error) => error.code(),
            Self::NoSuchSystem(_) => "no-such-system",
            Self::NoSuchLog { .. } => "no-such-log",
            Self::NotRunning(_) => "not-running",
            Self::NoAnswer(_) => "no-answer",
            Self::StillThere(_) => "still-there",
            Self::Spawn { .. } => "vmm-not-started",
            Self::System { .. } => "system",
        }
    }

    /// What to do, where there is something to do.
    pub fn help(&self) -> Option<String> {
        let help = match self {
            Self::Kvm(source) => match source.kind() {
                io::ErrorKind::NotFound => {
                    "load the kvm module, or run in the lab: cargo xtask lab -- bulkhead ..."
                }
                io::ErrorKind::PermissionDenied => {
                    "join the group that owns it: sudo usermod -aG kvm $USER, then log in again"
                }
                _ => "ask `bulkhead doctor`",
            },
            Self::Ledger(_) => {
                "ask `bulkhead ledger verify`; docs/ledger.md says how to begin anew"
            }
            Self::KvmInterpreted { .. } => {
                "run the same command in the lab: cargo xtask lab -- bulkhead ..."
            }
            Self::NoLibrary(_) | Self::NotInstalled { .. } => {
                "build it with `cargo xtask build`, or name another one in BULKHEAD_LIB"
            }
            Self::DiskSize { bytes: 0, .. } => "give it a size: truncate -s 1G FILE",
            Self::DiskSize { .. } => "a disk is whole sectors of 512 bytes: truncate -s %512 FILE",
            Self::DiskBusy(_) => {
                "end the partition that has it, or grant block.read to all instead of block.write"
            }
            Self::DiskFormat(_) => "say what it is: format = \"raw\"",
            Self::OverlayIncomplete(_) => {
                "bring it back; or remove the other one, and with it what the guest wrote"
            }
            Self::Share(_) => "share a directory of its own",
            Self::Models(error) => error.help(),
            Self::NoSuchModel(_) => "`bulkhead model ls` lists those that there are",
            Self::ProviderKey(_) => "give it another value: `bulkhead secret rotate NAME`",
            Self::ToolsPolicy { .. } => "docs/tools.md has its keys",
            Self::ToolsWithoutVsock(_) => {
                "grant vsock as well, to kernel `linux` or `native`; or leave tool.call out"
            }
            Self::Listen { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => "choose another port, or end what has this one",
                io::ErrorKind::PermissionDenied => "choose a port from 1024",
                _ => "choose an address of this host",
            },
            Self::Tap { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "make it yours: sudo ip tuntap add NAME mode tap user $USER"
                }
                _ => "make it: sudo ip tuntap add NAME mode tap user $USER",
            },
            Self::Connect { .. } => "start the process that listens there first",
            Self::PmemSize { .. } => "memory is plugged whole: truncate -s %2M FILE",
            Self::Limits { .. } => {
                "run as root or in a cgroup that is delegated to you (systemd-run --user --scope -p \
                 Delegate=yes ...), or leave `limits` out"
            }
            Self::Program { problem, .. } => match problem {
                ProgramProblem::NotElf => "a partition runs static ELF programs",
                ProgramProblem::Truncated => "copy or build it again",
                ProgramProblem::WrongArchitecture => "build it for x86-64",
                ProgramProblem::NotExecutable => "name the program, not a part of it",
                ProgramProblem::Dynamic { .. } => {
                    "link it statically (Rust: --target x86_64-unknown-linux-musl), or give the \
                     partition a root that has the loader"
                }
            },
            Self::NotEnforced(_) => "leave it out of the manifest",
            Self::LeadsElsewhere { .. } => {
                "put the link back, or start the partition anew to have it judged as it is"
            }
            Self::ConditionsChanged { .. } => {
                "start it again; if that does not help, its parent was not told of the new ones: reload them once more"
            }
            Self::Rejected(rejection) => &rejection.help,
            Self::MemoryExceedsHost { .. } => "ask for less",
            Self::CpuTemplate { .. } => "choose another: `cpu = \"host\"` is what this host has",
            Self::FilesExceedMemory { .. } => "give it more memory, or put the files on a disk",
            Self::StateDirUnsafe { .. } | Self::StateDir { .. } => {
                "name another place in BULKHEAD_STATE_DIR"
            }
            Self::AlreadyRunning(name) => {
                return Some(format!("end it with `bulkhead down {name}`"));
            }
            Self::Halted => HALTED_HELP,
            Self::Secret(error) => return error.help(),
            Self::NoAnswer(_) => "it may have just ended: see `bulkhead ps`",
            Self::NoSuchSystem(_) | Self::NotRunning(_) => "list them with `bulkhead ps`",
            Self::NoSuchLog { .. } => {
                "only partitions started by `bulkhead up --detach` keep a log"
            }
            Self::StillThere(_) => "try again, and look for it with `ps`",
            Self::Open { source, .. }
            | Self::Pack { source, .. }
            | Self::Spawn { source, .. }
            | Self::System { source, .. }
                if source.raw_os_error() == Some(EMFILE) =>
            {
                "raise the limit of open files: ulimit -n 4096"
            }
            Self::FileKind { .. }
            | Self::Open { .. }
            | Self::Pack { .. }
            | Self::Spawn { .. }
            | Self::KernelImage { .. }
            | Self::Place(_)
            | Self::System { .. } => return None,
        };
        Some(help.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_like_the_rest_of_the_sentence() {
        let error = io::Error::from_raw_os_error(2);
        assert_eq!(reason(&error), "no such file or directory");
        assert_eq!(reason(&io::Error::other("")), "");
        let error = Error::Kvm(io::Error::from_raw_os_error(13));
        assert_eq!(error.to_string(), "cannot open /dev/kvm: permission denied");
        assert_eq!(error.code(), "kvm-permission");
        let remedy = |errno| {
            let failed = Error::system("create a pipe")(io::Error::from_raw_os_error(errno));
            failed.help().unwrap_or_default()
        };
        assert!(remedy(24).contains("ulimit"));
        assert_eq!(remedy(12), "");
    }
}
