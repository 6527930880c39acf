//! What can be typed: every command and option, with the help that people read.

use crate::approvals::ApprovalsCommand;
use crate::doctor::DoctorArgs;
use crate::secret::SecretArgs;
use bulkhead_capability::NamePattern;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Run programs and kernels in partitions: virtual machines with nothing but what they were granted
#[derive(Debug, Parser)]
#[command(
    name = "bulkhead",
    version,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one command in a partition of its own and exit with its status
    Run(Box<RunArgs>),
    /// Start the partitions of a system.toml together
    Up(UpArgs),
    /// End running systems
    Down(DownArgs),
    /// List systems and their partitions
    Ps(PsArgs),
    /// Print what a partition started by `up --detach` has written
    Logs(LogsArgs),
    /// Stop a running partition where it stands
    Pause(PartitionArgs),
    /// Let a paused partition go on, or all after an emergency stop
    Resume(ResumeArgs),
    /// Emergency stop: halt every partition of this user at once
    Stop(StopArgs),
    /// Plug a device into a running Linux partition, and print its name
    Attach(AttachArgs),
    /// Take a device out of a running Linux partition
    Detach(DetachArgs),
    /// Change the memory, the balloon or a disk of a running partition
    Resize(ResizeArgs),
    /// Print the counters of running partitions
    Stats(StatsArgs),
    /// Write a running partition's memory and registers into an ELF core file
    Dump(DumpArgs),
    /// Check, sign and show the manifests of partitions
    #[command(subcommand)]
    Manifest(ManifestCommand),
    /// Make keys, and say whose signatures count
    #[command(subcommand)]
    Key(KeyCommand),
    /// Read and verify what partitions did
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Answer what partitions ask a person
    #[command(subcommand)]
    Approvals(ApprovalsCommand),
    /// Keep secrets that partitions use and never see
    Secret(SecretArgs),
    /// List the models that partitions can be granted
    #[command(subcommand)]
    Model(ModelCommand),
    /// Test, explain and learn what a manifest and its conditions allow
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Say what decides on an act of a partition, and what would allow it
    Why(Box<WhyArgs>),
    /// Say what this host can run, and why not
    Doctor(DoctorArgs),
    /// Print the version
    Version,
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KernelChoice {
    /// A native program on Bulkhead's microkernel
    Native,
    /// A Linux program on Bulkhead's microkernel
    LinuxAbi,
    /// An unmodified Linux kernel
    Linux,
}

/// How strictly a VMM locks itself in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum JailChoice {
    /// Every layer, or it does not start
    Full,
    /// Every layer that this host offers
    BestEffort,
    /// None: for debugging the VMM
    None,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A partition started by `run` is granted console, entropy and time. Disks come with --disk.
A CMD with a slash is a file of this host, any other is looked up in PATH; either is copied into the
partition, unless --root or --mount has it. Exit status: the command's own; 125 if Bulkhead failed,
126 if the command cannot be run, 127 if it was not found, 130 after Ctrl-C.")]
pub(crate) struct RunArgs {
    /// Start what a partition.toml, or a signed one, describes
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "kernel", "memory", "max_memory", "vcpus", "env", "mount", "root", "disk", "net", "publish",
        "share", "vsock", "grant", "no_default_grants", "image", "initrd", "cmdline", "transport",
        "trace_syscalls", "command",
    ])]
    pub(crate) manifest: Option<PathBuf>,
    /// That manifest needs no signature
    #[arg(long, requires = "manifest")]
    pub(crate) unsigned: bool,
    /// Kernel of the partition
    #[arg(long, value_enum, default_value = "linux-abi")]
    pub(crate) kernel: KernelChoice,
    /// Memory, such as 64MiB (default: 16MiB native, 128MiB linux-abi, 256MiB linux)
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Memory to which it can grow, with --kernel linux --transport pci; see `resize`
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_memory: Option<String>,
    /// Virtual CPUs (default: 1)
    #[arg(long, value_name = "N")]
    pub(crate) vcpus: Option<i64>,
    /// Name for `ps` and `down` (default: run-PID)
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Environment variable; without a value, this process's own
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Copy a host file or directory into the partition
    #[arg(short = 'v', long, value_name = "HOST:GUEST")]
    pub(crate) mount: Vec<String>,
    /// Host directory that is the partition's /
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<String>,
    /// Raw disk image or block device; `:ro` grants block.read, else block.write
    #[arg(long, value_name = "FILE[:ro]")]
    pub(crate) disk: Vec<String>,
    /// Let the partition connect there, through the user-mode network: deb.debian.org:80, udp:10.0.0.0/8:*
    #[arg(long, value_name = "RULE")]
    pub(crate) net: Vec<String>,
    /// Lead a socket of this host to a port of the partition
    #[arg(short, long, value_name = "[ADDRESS:]PORT=GUEST-PORT")]
    pub(crate) publish: Vec<String>,
    /// Share a directory by virtiofs; `:ro` grants fs.read, else fs.write
    #[arg(long, value_name = "DIR:TAG[:ro]")]
    pub(crate) share: Vec<String>,
    /// Grant sockets between this host and the partition
    #[arg(long)]
    pub(crate) vsock: bool,
    /// Further grant, such as block.read:disk.img
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) grant: Vec<String>,
    /// Grant nothing but what other options name: no console, no entropy, no time
    #[arg(long)]
    pub(crate) no_default_grants: bool,
    /// Kernel image, with --kernel linux (default: @linux/vmlinuz)
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<String>,
    /// Initial RAM filesystem, with --kernel linux and no CMD
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<String>,
    /// Kernel arguments, with --kernel linux
    #[arg(long, value_name = "TEXT")]
    pub(crate) cmdline: Option<String>,
    /// How a Linux kernel finds its devices: pci or mmio
    #[arg(long, value_name = "TRANSPORT")]
    pub(crate) transport: Option<String>,
    /// Wait for a debugger before the first instruction (default address: 127.0.0.1:1234)
    #[arg(
        long,
        value_name = "ADDRESS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "127.0.0.1:1234"
    )]
    pub(crate) gdb: Option<String>,
    /// Name every system call on the error stream, with --kernel linux-abi
    #[arg(long)]
    pub(crate) trace_syscalls: bool,
    /// Put the terminal into raw mode; Ctrl-] ends the partition
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// How strictly the VMM locks itself in
    #[arg(long, value_enum, default_value = "best-effort")]
    pub(crate) jail: JailChoice,
    /// Command and arguments
    #[arg(
        value_name = "CMD",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// The system
    #[arg(value_name = "SYSTEM.TOML", default_value = "system.toml")]
    pub(crate) manifest: PathBuf,
    /// Start only this partition (repeatable)
    #[arg(long, value_name = "PARTITION")]
    pub(crate) only: Vec<String>,
    /// Leave it running in the background; see `logs`, `ps`, `down`
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// How strictly the VMMs lock themselves in
    #[arg(long, value_enum, default_value = "best-effort")]
    pub(crate) jail: JailChoice,
    /// We are the supervisor that --detach started
    #[arg(long, hide = true)]
    pub(crate) in_background: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// Systems to end
    #[arg(value_name = "NAME", required_unless_present = "all")]
    pub(crate) names: Vec<String>,
    /// End every system of this user
    #[arg(long, conflicts_with = "names")]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    pub(crate) format: ListFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// System and partition
    #[arg(value_name = "NAME/PARTITION")]
    pub(crate) partition: String,
    /// Go on until the system ends
    #[arg(short, long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PartitionArgs {
    /// System and partition
    #[arg(value_name = "NAME/PARTITION")]
    pub(crate) partition: String,
}

#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// System and partition
    #[arg(value_name = "NAME/PARTITION", required_unless_present = "all")]
    pub(crate) partition: Option<String>,
    /// Everything that `stop --all --now` halted
    #[arg(long, conflicts_with = "partition")]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Every partition stands still within a second, and nothing starts until `bulkhead resume --all`. A system
that cannot be halted in that time is killed.")]
pub(crate) struct StopArgs {
    /// Every system of this user
    #[arg(long, required = true)]
    all: bool,
    /// Without asking anybody
    #[arg(long, required = true)]
    now: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("device").required(true).multiple(true))]
pub(crate) struct AttachArgs {
    /// System and partition
    #[arg(value_name = "NAME/PARTITION")]
    pub(crate) partition: String,
    /// Disk image or block device; `:ro` grants block.read, else block.write
    #[arg(long, value_name = "FILE[:ro]", group = "device", conflicts_with_all = ["share", "net", "publish"])]
    pub(crate) disk: Option<String>,
    /// Directory; `:ro` grants fs.read, else fs.write
    #[arg(long, value_name = "DIR:TAG[:ro]", group = "device", conflicts_with_all = ["net", "publish"])]
    pub(crate) share: Option<String>,
    /// User-mode network on which the partition may connect there (repeatable)
    #[arg(long, value_name = "RULE", group = "device")]
    pub(crate) net: Vec<String>,
    /// The same network, with a socket of this host that leads to the partition (repeatable)
    #[arg(
        short,
        long,
        value_name = "[ADDRESS:]PORT=GUEST-PORT",
        group = "device"
    )]
    pub(crate) publish: Vec<String>,
    /// Name of the device (default: the next free one)
    #[arg(long, conflicts_with_all = ["net", "publish"])]
    pub(crate) name: Option<String>,
    /// Format of the disk image: raw or qcow2
    #[arg(long, requires = "disk")]
    pub(crate) format: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DetachArgs {
    /// System and partition
    #[arg(value_name = "NAME/PARTITION")]
    pub(crate) partition: String,
    /// Name of the device, as `stats` has it
    pub(crate) device: String,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(crate) struct ResizeArgs {
    /// System and partition
    #[arg(value_name = "NAME/PARTITION")]
    pub(crate) partition: String,
    /// Memory in all, up to memory.max of the manifest
    #[arg(long, value_name = "SIZE", group = "what")]
    pub(crate) memory: Option<String>,
    /// Memory that the guest is asked to give back
    #[arg(long, value_name = "SIZE", group = "what")]
    pub(crate) balloon: Option<String>,
    /// Disk whose file has another length now
    #[arg(long, value_name = "DEVICE", group = "what")]
    pub(crate) disk: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// System, or system and partition
    #[arg(value_name = "NAME[/PARTITION]")]
    pub(crate) partition: String,
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    pub(crate) format: StatsFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatsFormat {
    /// For people
    Table,
    /// For programs
    Json,
    /// For Prometheus, as its text format
    Prometheus,
}

#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    /// System and partition
    #[arg(value_name = "NAME/PARTITION")]
    pub(crate) partition: String,
    /// The file, which must not exist
    pub(crate) file: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ManifestCommand {
    /// Say whether a partition.toml, or a signed one, is what a manifest may be
    Check {
        /// The manifest; - for standard input
        file: PathBuf,
    },
    /// Sign a partition.toml, or add a signature to a signed one
    Sign(ManifestSignArgs),
    /// Say who has signed a manifest, and print it
    Verify {
        /// The signed manifest; - for standard input
        file: PathBuf,
    },
    /// Print what will be enforced of a manifest, by whom and where
    Plan(ManifestPlanArgs),
    /// Print what a manifest may more and less than another; status 1 if they differ
    Diff {
        /// The one
        old: PathBuf,
        /// The other
        new: PathBuf,
    },
    /// Print the JSON Schema of partition.toml, for editors
    Schema,
}

#[derive(Debug, Args)]
pub(crate) struct ManifestPlanArgs {
    /// The manifest; - for standard input
    pub(crate) file: PathBuf,
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    pub(crate) format: ListFormat,
}

#[derive(Debug, Args)]
pub(crate) struct ManifestSignArgs {
    /// The manifest
    pub(crate) file: PathBuf,
    /// Which of the keys that are here
    #[arg(long, value_name = "NAME")]
    pub(crate) key: String,
    /// Where the signed manifest goes, - for standard output (default: the manifest's name with .json)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key pair, and print its id
    New(KeyNewArgs),
    /// List the keys that are here, and those that are trusted
    Ls(KeyListArgs),
    /// Let the owner of a public key sign manifests, and print its id
    Trust(KeyTrustArgs),
    /// Trust a key no longer
    Distrust {
        /// What it is called here
        name: String,
    },
    /// Print the public key of a key pair
    Export {
        /// What the pair is called
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct KeyNewArgs {
    /// What the pair is called: 1 to 40 of a-z, 0-9 and -
    pub(crate) name: String,
    /// Whose it is, in words
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) comment: String,
}

#[derive(Debug, Args)]
pub(crate) struct KeyListArgs {
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    pub(crate) format: ListFormat,
}

#[derive(Debug, Args)]
pub(crate) struct KeyTrustArgs {
    /// The public key, as `key export` prints it; - for standard input
    pub(crate) file: PathBuf,
    /// What it is called here (default: the name of the file)
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Its signature also counts as the approval of a second person
    #[arg(long)]
    pub(crate) approver: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// Verify that every record is there, and as it was written
    Verify(LedgerVerifyArgs),
    /// Print the last records
    Tail(LedgerTailArgs),
    /// Print a proof that a record is in the ledger
    Prove {
        /// The record
        index: u64,
    },
    /// Print all records, each a line of JSON
    Export,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 if all is well, 1 if not, with the first bad record named; 125 if it cannot be told.")]
pub(crate) struct LedgerVerifyArgs {
    /// Checkpoint that was kept elsewhere, which the ledger has to agree with (repeatable)
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint: Vec<PathBuf>,
    /// Verify this proof, and not the ledger
    #[arg(long, value_name = "FILE", conflicts_with = "checkpoint")]
    pub(crate) proof: Option<PathBuf>,
    /// Public key (default: keys/ledger.pub)
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: LedgerFormat,
}

#[derive(Debug, Args)]
pub(crate) struct LedgerTailArgs {
    /// How many
    #[arg(short = 'n', long, value_name = "N", default_value = "10")]
    pub(crate) lines: usize,
    /// Go on with what is added
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only what this system or partition did
    #[arg(long, value_name = "NAME[/PARTITION]")]
    pub(crate) partition: Option<String>,
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: LedgerFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LedgerFormat {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// List the models of models.toml, and where each is served
    Ls(ModelListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ModelListArgs {
    /// Only those that the grant `model.chat` of this name or pattern gives
    #[arg(long, value_name = "PATTERN")]
    pub(crate) grant: Option<NamePattern>,
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    pub(crate) format: ListFormat,
}

impl From<JailChoice> for bulkhead_supervisor::Jail {
    fn from(choice: JailChoice) -> Self {
        match choice {
            JailChoice::Full => Self::Full,
            JailChoice::BestEffort => Self::BestEffort,
            JailChoice::None => Self::None,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Run a file of cases, each an act and what policy is expected to say of it
    Test {
        /// The file
        file: PathBuf,
    },
    /// Print what each partition is granted and denied, and the conditions
    Explain {
        /// The manifest; conditions are in policy.cedar beside it
        #[arg(default_value = "system.toml")]
        manifest: PathBuf,
        /// Only this partition
        #[arg(long)]
        partition: Option<String>,
    },
    /// Print the narrowest grants and conditions for what is denied of a file of cases, or was done by
    /// partitions that learn
    Learn(PolicyLearnArgs),
    /// Have other conditions hold for a running partition, and print their SHA-256
    Reload(PolicyReloadArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PolicyLearnArgs {
    /// The file of cases
    #[arg(required_unless_present = "ledger")]
    pub(crate) file: Option<PathBuf>,
    /// What the ledger has of partitions with conditions = "learn", and not a file
    #[arg(long, conflicts_with = "file")]
    pub(crate) ledger: bool,
    /// Only this system or partition
    #[arg(long, value_name = "NAME[/PARTITION]", conflicts_with = "file")]
    pub(crate) partition: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t = ListFormat::Table, conflicts_with = "file")]
    pub(crate) format: ListFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Conditions that permit nothing more hold at once; others are refused without --widen. What is refused
changes nothing.")]
pub(crate) struct PolicyReloadArgs {
    /// SYSTEM/PARTITION that runs
    #[arg(value_name = "NAME/PARTITION")]
    pub(crate) partition: String,
    /// The conditions; - for standard input
    pub(crate) file: PathBuf,
    /// They may permit what those that hold do not
    #[arg(long)]
    pub(crate) widen: bool,
}

/// An act, and of whom.
#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// SYSTEM/PARTITION that runs, or a manifest
    pub(crate) target: String,
    /// The partition, of a manifest with several
    #[arg(long)]
    pub(crate) partition: Option<String>,
    #[command(flatten)]
    pub(crate) act: ActArgs,
    /// Seconds since 1970; else now
    #[arg(long, value_name = "SECONDS")]
    pub(crate) time: Option<u64>,
    /// How to print it
    #[arg(long, value_enum, default_value_t = ListFormat::Table)]
    pub(crate) format: ListFormat,
}

/// Exactly one of net, dns, tool, secret, model, file, exec and spawn.
#[derive(Clone, Debug, Args)]
pub(crate) struct ActArgs {
    /// Connect or send there
    #[arg(long, value_name = "[tcp:|udp:]HOST:PORT")]
    pub(crate) net: Option<String>,
    /// The address that the name stands for
    #[arg(long, requires = "net")]
    pub(crate) address: Option<std::net::Ipv4Addr>,
    /// Method of the web request
    #[arg(long, requires = "net")]
    pub(crate) method: Option<String>,
    /// Path of the web request
    #[arg(long, requires = "net")]
    pub(crate) path: Option<String>,
    /// Resolve a name
    #[arg(long, value_name = "NAME")]
    pub(crate) dns: Option<String>,
    /// Call a tool
    #[arg(long, value_name = "NAME")]
    pub(crate) tool: Option<String>,
    /// A path among the tool's arguments
    #[arg(long, value_name = "PATH", requires = "tool")]
    pub(crate) argument: Vec<PathBuf>,
    /// Have a secret used
    #[arg(long, value_name = "NAME")]
    pub(crate) secret: Option<String>,
    /// Talk to a model
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Read a file or directory of the host
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    /// Change it
    #[arg(long, requires = "file")]
    pub(crate) write: bool,
    /// Have a program run
    #[arg(long, value_name = "PATH")]
    pub(crate) exec: Option<String>,
    /// Start partitions of a role
    #[arg(long, value_name = "ROLE[=COUNT]")]
    pub(crate) spawn: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_end_where_the_command_begins() {
        for line in [
            "bulkhead run --vcpus 2 sh -c x --name y",
            "bulkhead run --vcpus 2 -- sh -c x --name y",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let Command::Run(args) = cli.command else {
                panic!("run")
            };
            assert_eq!(args.command, ["sh", "-c", "x", "--name", "y"]);
            assert_eq!((args.name, args.vcpus), (None, Some(2)));
        }
    }
}
