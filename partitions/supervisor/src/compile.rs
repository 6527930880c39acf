//! Compiles a checked partition into the machine description of its VMM.
//!
//! This is where a grant becomes a device, and the only such place: what is not granted is not
//! asked for, so no descriptor of it exists in the VMM. The walk over the partition is here and
//! pure; opening what it asks for is [`crate::open`]'s part, behind [`Descriptors`].

use crate::error::Error;
use crate::library::LibraryFile;
use crate::linux;
use bulkhead_capability::Capability;
use bulkhead_machine::cpu::Leaf;
use bulkhead_machine::device::{
    Balloon, BaseImage, Block, Device, DeviceKind, ImageFormat, Net, NetBackend, Overlay, Pmem,
    VhostUser, VhostUserDevice, Vsock,
};
use bulkhead_machine::{
    Boot, Console, Fd, Image, Jail, MachineDescription, Memory, Module, ModuleKind,
};
use bulkhead_manifest as manifest;
use bulkhead_manifest::{
    Disk, Kernel, KernelKind, LinuxBoot, Network, Partition, Program, Share, Source,
};
use std::path::{Path, PathBuf};

/// Search path of a Linux program that was given none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Entries of each queue of a disk or interface that another process serves.
const VHOST_USER_QUEUE_SIZE: u16 = 256;

/// Something a VMM needs open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want<'p> {
    Kvm,
    Control,
    /// A file of the library.
    Library(LibraryFile),
    /// A native program.
    Program(&'p Source),
    /// A kernel image or initrd; the text says which.
    File(&'static str, &'p Source),
    /// The packed files of a Linux-ABI program.
    Files(&'p Program),
    /// The packed files of a Linux partition's command, with its agent.
    AgentFiles(&'p Program),
    /// A raw disk.
    Disk(&'p Disk),
    /// What a disk with an overlay is based on.
    Base(&'p Disk),
    /// What that is based on.
    Backing(&'p Path),
    /// The top of such a disk; its map is wanted next.
    Top(&'p Disk),
    Map,
    /// One pair of queues of a tap interface that has so many; the first is wanted first.
    TapQueue {
        interface: &'p str,
        queue: u16,
        queues: u16,
    },
    /// The user-mode network of the device of this name.
    Network(&'p str, &'p Network),
    /// The connection to the server of the device of this name.
    Share(&'p str, &'p Share),
    Pmem {
        path: &'p Path,
        write: bool,
    },
    /// A connection to the socket at this path.
    Connection(&'p Path),
    VsockListener,
    VsockConnector,
    /// The socket that a debugger connects to.
    Gdb,
    /// The tables of this machine.
    AcpiTables(&'p MachineDescription),
    Input,
    Output,
    /// The error stream of programs that have one of their own.
    ErrorOutput,
}

impl Want<'_> {
    /// The name in the manifest of a file that is wanted by itself.
    pub(crate) fn name(&self, library: &Path) -> Option<PathBuf> {
        match *self {
            Self::Program(source) | Self::File(_, source) => Some(source.resolve(library)),
            Self::Disk(disk) | Self::Base(disk) => Some(disk.path.clone()),
            Self::Top(disk) => disk.overlay.clone(),
            Self::Backing(path) | Self::Pmem { path, .. } => Some(path.to_owned()),
            _ => None,
        }
    }
}

/// Who opens what a description needs, and says under which number the VMM has it.
pub(crate) trait Descriptors {
    fn open(&mut self, partition: &Partition, want: Want<'_>) -> Result<Fd, Error>;

    /// What the VMM has to know of the kernel that `boot` names.
    fn image(&self, partition: &Partition, boot: &Boot) -> Result<Option<Image>, Error>;
}

/// What does not come from the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The console has an input stream.
    pub(crate) input: bool,
    /// The console is a terminal.
    pub(crate) tty: bool,
    /// A debugger comes.
    pub(crate) gdb: bool,
    pub(crate) jail: Jail,
}

/// Makes the description of `partition`, whose CPUs are made from `cpuid`, opening what it needs in a
/// fixed order.
pub(crate) fn compile(
    partition: &Partition,
    settings: Settings,
    cpuid: Vec<Leaf>,
    descriptors: &mut dyn Descriptors,
) -> Result<MachineDescription, Error> {
    let mut open = |want: Want<'_>| descriptors.open(partition, want);
    let kvm = open(Want::Kvm)?;
    let control = open(Want::Control)?;
    let boot = boot(partition, &mut open)?;
    let mut description = MachineDescription {
        vcpus: partition.vcpus,
        memory: Memory {
            mib: partition.memory.mib,
            pluggable_mib: partition.memory.pluggable_mib,
            hugepages: partition.memory.hugepages,
            prefault: partition.memory.prefault,
            shared: partition.memory.shared,
        },
        transport: partition.transport,
        watchdog: partition.watchdog,
        gdb: settings.gdb.then(|| open(Want::Gdb)).transpose()?,
        jail: settings.jail,
        ..MachineDescription::new(
            &partition.name,
            kvm,
            control,
            cpuid,
            partition.memory.mib,
            boot,
        )
    };
    for grant in partition.grants.capabilities() {
        match grant {
            Capability::Console => {
                let own_errors = partition.kernel.kind() != KernelKind::Linux;
                description.console = Some(Console {
                    input: settings.input.then(|| open(Want::Input)).transpose()?,
                    output: open(Want::Output)?,
                    error: own_errors.then(|| open(Want::ErrorOutput)).transpose()?,
                    tty: settings.tty,
                    ports: Vec::new(),
                });
            }
            Capability::Time => description.time = true,
            Capability::Entropy => description.entropy = true,
            // The others have become devices of the partition.
            _ => {}
        }
    }
    for granted in &partition.devices {
        let device = device(granted, &mut open)?;
        description.memory.shared |= matches!(device.kind, DeviceKind::VhostUser(_));
        description.devices.push(device);
    }
    if let Some(balloon) = partition.memory.balloon {
        description.devices.push(Device {
            name: "balloon".to_owned(),
            kind: DeviceKind::Balloon(Balloon {
                target_mib: balloon.mib,
                deflate_on_oom: balloon.deflate_on_oom,
                free_page_reporting: balloon.free_page_reporting,
            }),
        });
    }
    bulkhead_acpi::provide(&mut description, |pc| open(Want::AcpiTables(pc)))?;
    description.image = descriptors.image(partition, &description.boot)?;
    Ok(description)
}

/// Makes the description of one device, opening what it needs.
pub(crate) fn device(
    granted: &manifest::Device,
    open: &mut dyn FnMut(Want<'_>) -> Result<Fd, Error>,
) -> Result<Device, Error> {
    let name = granted.name.as_str();
    let kind = match &granted.kind {
        manifest::DeviceKind::Disk(disk) => DeviceKind::Block(block(disk, open)?),
        manifest::DeviceKind::Network(network) => DeviceKind::Net(Net {
            backend: NetBackend::Socket {
                socket: open(Want::Network(name, network))?,
            },
            mac: network.mac,
            mtu: Some(network.mtu),
            queue_pairs: 1,
            receive_rate: network.receive_rate,
            transmit_rate: network.transmit_rate,
        }),
        manifest::DeviceKind::Tap(tap) => {
            let queue = |queue| {
                open(Want::TapQueue {
                    interface: &tap.interface,
                    queue,
                    queues: tap.queues,
                })
            };
            DeviceKind::Net(Net {
                backend: NetBackend::Tap {
                    queues: (0..tap.queues).map(queue).collect::<Result<_, _>>()?,
                },
                mac: tap.mac,
                mtu: tap.mtu,
                queue_pairs: tap.queues,
                receive_rate: tap.receive_rate,
                transmit_rate: tap.transmit_rate,
            })
        }
        manifest::DeviceKind::Share(share) => DeviceKind::VhostUser(VhostUser {
            socket: open(Want::Share(name, share))?,
            device: VhostUserDevice::Fs {
                tag: share.tag.clone(),
                queues: bulkhead_share::REQUEST_QUEUES,
            },
            queue_size: bulkhead_share::QUEUE_SIZE,
        }),
        manifest::DeviceKind::Pmem { path, write } => DeviceKind::Pmem(Pmem {
            file: open(Want::Pmem {
                path,
                write: *write,
            })?,
            read_only: !write,
        }),
        manifest::DeviceKind::Vsock { cid } => DeviceKind::Vsock(Vsock {
            cid: *cid,
            listener: open(Want::VsockListener)?,
            connector: open(Want::VsockConnector)?,
        }),
        manifest::DeviceKind::VhostUserBlock { path, queues } => DeviceKind::VhostUser(VhostUser {
            socket: open(Want::Connection(path))?,
            device: VhostUserDevice::Block { queues: *queues },
            queue_size: VHOST_USER_QUEUE_SIZE,
        }),
        manifest::DeviceKind::VhostUserNet { path, mac, queues } => {
            DeviceKind::VhostUser(VhostUser {
                socket: open(Want::Connection(path))?,
                device: VhostUserDevice::Net {
                    mac: *mac,
                    queue_pairs: *queues,
                },
                queue_size: VHOST_USER_QUEUE_SIZE,
            })
        }
    };
    Ok(Device {
        name: granted.name.clone(),
        kind,
    })
}

/// A disk. One that is only read and not raw gets an empty top, since the VMM reads other formats
/// as a base alone.
fn block(disk: &Disk, open: &mut dyn FnMut(Want<'_>) -> Result<Fd, Error>) -> Result<Block, Error> {
    let layered = disk.overlay.is_some() || disk.format != ImageFormat::Raw;
    let (file, overlay) = if layered {
        let file = open(Want::Top(disk))?;
        let map = open(Want::Map)?;
        let mut base = vec![BaseImage {
            file: open(Want::Base(disk))?,
            format: disk.format,
        }];
        for image in &disk.backing {
            base.push(BaseImage {
                file: open(Want::Backing(&image.path))?,
                format: image.format,
            });
        }
        (file, Some(Overlay { map, base }))
    } else {
        (open(Want::Disk(disk))?, None)
    };
    Ok(Block {
        file,
        read_only: !disk.write,
        // The empty top of a disk that is only read is in memory.
        direct: disk.direct && (disk.overlay.is_some() || overlay.is_none()),
        overlay,
        queues: disk.queues,
        rate: disk.rate,
    })
}

fn boot(
    partition: &Partition,
    open: &mut dyn FnMut(Want<'_>) -> Result<Fd, Error>,
) -> Result<Boot, Error> {
    match &partition.kernel {
        Kernel::Native { program, args, env } => {
            let name = match program {
                Source::Library(path) | Source::Host(path) => path.file_name(),
            };
            let name = name.map(|name| name.to_string_lossy().into_owned());
            Ok(Boot::Bulkhead {
                kernel: open(Want::Library(LibraryFile::Kernel))?,
                modules: vec![Module {
                    kind: ModuleKind::Program,
                    file: open(Want::Program(program))?,
                }],
                args: name.into_iter().chain(args.iter().cloned()).collect(),
                env: env.clone(),
                trace_syscalls: false,
            })
        }
        Kernel::LinuxAbi {
            program,
            trace_syscalls,
        } => Ok(Boot::Bulkhead {
            kernel: open(Want::Library(LibraryFile::Kernel))?,
            modules: vec![
                Module {
                    kind: ModuleKind::Program,
                    file: open(Want::Library(LibraryFile::LinuxPersonality))?,
                },
                Module {
                    kind: ModuleKind::Initramfs,
                    file: open(Want::Files(program))?,
                },
            ],
            args: program.command.clone(),
            env: with_default_path(&program.env),
            trace_syscalls: *trace_syscalls,
        }),
        Kernel::Linux {
            image,
            boot,
            cmdline,
        } => {
            let kernel = open(Want::File("kernel image", image))?;
            let (initrd, cmdline) = match boot {
                LinuxBoot::Command(program) => (
                    Some(open(Want::AgentFiles(program))?),
                    linux::cmdline(partition, cmdline.as_deref()),
                ),
                LinuxBoot::Initrd(initrd) => {
                    let initrd = initrd
                        .as_ref()
                        .map(|initrd| open(Want::File("initrd", initrd)));
                    (initrd.transpose()?, cmdline.clone().unwrap_or_default())
                }
            };
            Ok(Boot::Linux {
                kernel,
                initrd,
                cmdline,
                // Made when everything else is known.
                acpi: Fd(-1),
            })
        }
    }
}

/// The environment, with a search path when it has none.
pub(crate) fn with_default_path(env: &[String]) -> Vec<String> {
    let mut env = env.to_vec();
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.push(DEFAULT_PATH.to_owned());
    }
    env
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A partition with the keys of `lines`.
    pub(crate) fn partition(lines: &str) -> Partition {
        let text = format!("name = \"s\"\n[[partition]]\nname = \"p\"\n{lines}");
        let system = bulkhead_manifest::parse(text.as_bytes(), Path::new("/srv/system.toml"));
        system.unwrap().partitions[0].clone()
    }

    /// Numbers descriptors from 3 and remembers what was asked for.
    #[derive(Default)]
    struct Recorder(Vec<String>);

    impl Descriptors for Recorder {
        fn open(&mut self, _: &Partition, want: Want<'_>) -> Result<Fd, Error> {
            let want = match want {
                Want::Program(_) => "Program".to_owned(),
                Want::Files(_) => "Files".to_owned(),
                Want::AgentFiles(_) => "AgentFiles".to_owned(),
                Want::File(what, _) => what.to_owned(),
                Want::Disk(disk) => format!("{} {}", disk.path.display(), disk.write),
                Want::Base(disk) => format!("base {}", disk.path.display()),
                Want::Top(_) => "top".to_owned(),
                Want::AcpiTables(_) => "ACPI tables".to_owned(),
                Want::Network(name, _) | Want::Share(name, _) => name.to_owned(),
                other => format!("{other:?}"),
            };
            self.0.push(want);
            Ok(Fd(2 + self.0.len() as i32))
        }

        fn image(&self, _: &Partition, _: &Boot) -> Result<Option<Image>, Error> {
            Ok(None)
        }
    }

    const SETTINGS: Settings = Settings {
        input: true,
        tty: false,
        gdb: false,
        jail: Jail::Full,
    };
    const NATIVE: &str = "kernel = \"native\"\nprogram = \"bin/hello\"\n";

    fn compiled(lines: &str) -> (MachineDescription, Vec<String>) {
        let mut recorder = Recorder::default();
        let description = compile(&partition(lines), SETTINGS, Vec::new(), &mut recorder).unwrap();
        (description, recorder.0)
    }

    #[test]
    fn no_grant_no_device() {
        let kernels = [
            NATIVE,
            "kernel = \"linux-abi\"\ncommand = [\"/x\"]\n",
            "kernel = \"linux\"\ncommand = [\"/x\"]\n",
        ];
        for lines in kernels {
            let (description, opened) = compiled(lines);
            assert_eq!(description.console, None);
            assert!(!description.time && !description.entropy && description.devices.is_empty());
            let devices = ["Input", "Output", "ErrorOutput"];
            assert!(
                !opened.iter().any(|want| devices.contains(&want.as_str())),
                "{opened:?}"
            );
        }
    }

    #[test]
    fn each_grant_is_one_device() {
        let (description, opened) = compiled(&format!(
            "{NATIVE}grants = [\"time\", \"block.read:a\", \"console\", \"block.write:/b\"]"
        ));
        assert!(description.time && !description.entropy);
        let [a, b] = description.devices.as_slice() else {
            panic!("two")
        };
        for (device, name, want) in [(a, "disk0", true), (b, "disk1", false)] {
            let DeviceKind::Block(block) = &device.kind else {
                panic!("a disk")
            };
            assert_eq!((device.name.as_str(), block.read_only), (name, want));
        }
        assert_eq!(
            opened,
            [
                "Kvm",
                "Control",
                "Library(Kernel)",
                "Program",
                "Input",
                "Output",
                "ErrorOutput",
                "/srv/a false",
                "/b true"
            ]
        );
        let console = description.console.unwrap();
        assert_eq!(
            (console.input, console.output, console.error),
            (Some(Fd(7)), Fd(8), Some(Fd(9)))
        );
    }

    #[test]
    fn programs_get_their_arguments_and_a_search_path() {
        let (native, _) = compiled(&format!("{NATIVE}args = [\"x\"]\nenv = {{ A = \"b\" }}"));
        let Boot::Bulkhead { args, env, .. } = native.boot else {
            panic!("bulkhead")
        };
        assert_eq!(
            (args, env),
            (
                vec!["hello".to_owned(), "x".to_owned()],
                vec!["A=b".to_owned()]
            )
        );
        let (abi, _) = compiled("kernel = \"linux-abi\"\ncommand = [\"sh\", \"-c\", \"ls\"]");
        let Boot::Bulkhead {
            args, env, modules, ..
        } = abi.boot
        else {
            panic!("bulkhead")
        };
        assert_eq!(args, ["sh", "-c", "ls"]);
        assert_eq!(env, [DEFAULT_PATH]);
        let kinds: Vec<ModuleKind> = modules.iter().map(|module| module.kind).collect();
        assert_eq!(kinds, [ModuleKind::Program, ModuleKind::Initramfs]);
        let own = with_default_path(&["PATH=/x".to_owned()]);
        assert_eq!(own, ["PATH=/x"]);
    }

    #[test]
    fn a_linux_partition_boots_what_it_says() {
        let (command, opened) = compiled("kernel = \"linux\"\ncommand = [\"/x\"]");
        let Boot::Linux {
            initrd: Some(_),
            cmdline,
            ..
        } = command.boot
        else {
            panic!("linux")
        };
        assert!(cmdline.contains("rdinit="));
        let wanted = [
            "Kvm",
            "Control",
            "kernel image",
            "AgentFiles",
            "ACPI tables",
        ];
        assert_eq!(opened, wanted);
        let (own, _) = compiled("kernel = \"linux\"\ninitrd = \"i\"\ncmdline = \"a b\"");
        let Boot::Linux {
            initrd: Some(_),
            cmdline,
            ..
        } = own.boot
        else {
            panic!("linux")
        };
        assert_eq!(cmdline, "a b");
    }

    #[test]
    fn devices_have_what_they_name() {
        let linux = "kernel = \"linux\"\ncommand = [\"/x\"]\nvcpus = 2\ntransport = \"pci\"\n\
                     cpu = \"v2\"\nwatchdog = true\n\
                     memory = { size = \"512MiB\", max = \"1GiB\", balloon = true, hugepages = true, \
                     shared = true }\n";
        let (description, opened) = compiled(&format!(
            r#"{linux}grants = [
                {{ capability = "block.write:b", format = "qcow2", overlay = "t", queues = 2 }},
                {{ capability = "block.read:c", format = "qcow2", direct = true, backing = [{{ path = "e" }}] }},
                "net.connect:a.org:80",
                {{ capability = "net.tap:t", queues = 2, mtu = 9000 }},
                {{ capability = "fs.write:d", tag = "x" }},
                "vsock", "pmem.read:/m", "vhost_user.block:/s", "vhost_user.net:/n",
            ]"#
        ));
        assert_eq!(
            opened,
            [
                "Kvm",
                "Control",
                "kernel image",
                "AgentFiles",
                "top",
                "Map",
                "base /srv/b",
                "top",
                "Map",
                "base /srv/c",
                "Backing(\"/srv/e\")",
                "net0",
                "TapQueue { interface: \"t\", queue: 0, queues: 2 }",
                "TapQueue { interface: \"t\", queue: 1, queues: 2 }",
                "fs0",
                "VsockListener",
                "VsockConnector",
                "Pmem { path: \"/m\", write: false }",
                "Connection(\"/s\")",
                "Connection(\"/n\")",
                "ACPI tables",
            ]
        );
        let names: Vec<&str> = description
            .devices
            .iter()
            .map(|d| d.name.as_str())
            .collect();
        let expected = [
            "disk0", "disk1", "net0", "net1", "fs0", "vsock", "pmem0", "disk2", "net2", "balloon",
        ];
        assert_eq!(names, expected);
        let shape = |at: usize| match &description.devices[at].kind {
            DeviceKind::Block(block) => {
                let layers = block.overlay.as_ref();
                let layers = layers.map_or(0, |overlay| overlay.base.len());
                assert!(!block.direct, "what is in memory is not");
                (block.read_only, layers, block.queues)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!((shape(0), shape(1)), ((false, 1, 2), (true, 2, 1)));
        let DeviceKind::Net(tap) = &description.devices[3].kind else {
            panic!("a tap")
        };
        assert_eq!((tap.queue_pairs, tap.mtu), (2, Some(9000)));
        assert!(description.watchdog && description.memory.hugepages);
        assert!(description.memory.shared && !description.memory.prefault);
        assert_eq!(
            (description.memory.mib, description.memory.pluggable_mib),
            (512, 512)
        );
        assert_eq!(description.transport, bulkhead_machine::Transport::Pci);
    }

    proptest! {
        #[test]
        fn compiling_is_deterministic_and_grants_nothing_else(
            grants in prop::sample::subsequence(
                vec![
                    "console", "entropy", "time", "block.read:a", "block.write:b", "fs.read:c",
                    "net.connect:a.org:80", "net.listen:80", "net.tap:t", "vsock", "pmem.read:d",
                    "vhost_user.net:e",
                ], 0..=12)
        ) {
            let list: Vec<String> = grants.iter().map(|grant| format!("{grant:?}")).collect();
            let lines = format!("{NATIVE}grants = [{}]", list.join(", "));
            let (first, _) = compiled(&lines);
            prop_assert_eq!(&first, &compiled(&lines).0);
            prop_assert_eq!(first.console.is_some(), grants.contains(&"console"));
            prop_assert_eq!(first.entropy, grants.contains(&"entropy"));
            prop_assert_eq!(first.time, grants.contains(&"time"));
            let alone = ["block", "fs", "net.tap", "vsock", "pmem", "vhost_user"];
            let own = |grant: &&&str| alone.iter().any(|prefix| grant.starts_with(prefix));
            let user_mode = ["net.connect:a.org:80", "net.listen:80"];
            let network = grants.iter().any(|grant| user_mode.contains(grant));
            let devices = grants.iter().filter(own).count() + usize::from(network);
            prop_assert_eq!(first.devices.len(), devices);
        }
    }
}
