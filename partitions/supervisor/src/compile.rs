//! Compiles a checked partition into the machine description of its VMM.
//!
//! This is where a grant becomes a device, and the only such place: what is not granted is not
//! asked for, so no descriptor of it exists in the VMM. The walk over the partition is here and
//! pure; opening what it asks for is [`crate::open`]'s part, behind [`Descriptors`].

use crate::error::Error;
use crate::library::LibraryFile;
use crate::linux;
use bulkhead_capability::Capability;
use bulkhead_machine::device::{Block, Device, DeviceKind, RateLimit};
use bulkhead_machine::{Boot, Console, Fd, Jail, MachineDescription, Module, ModuleKind};
use bulkhead_manifest::{Kernel, KernelKind, LinuxBoot, Partition, Program, Source};
use std::path::Path;

/// Search path of a Linux program that was given none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
    Disk {
        path: &'p Path,
        write: bool,
    },
    Input,
    Output,
    /// The error stream of programs that have one of their own.
    ErrorOutput,
}

/// Who opens what a description needs, and says under which number the VMM has it.
pub(crate) trait Descriptors {
    fn open(&mut self, partition: &Partition, want: Want<'_>) -> Result<Fd, Error>;
}

/// What does not come from the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The console has an input stream.
    pub(crate) input: bool,
    /// The console is a terminal.
    pub(crate) tty: bool,
    pub(crate) jail: Jail,
}

/// Makes the description of `partition`, opening what it needs in a fixed order.
pub(crate) fn compile(
    partition: &Partition,
    settings: Settings,
    descriptors: &mut dyn Descriptors,
) -> Result<MachineDescription, Error> {
    let mut open = |want: Want<'_>| descriptors.open(partition, want);
    let kvm = open(Want::Kvm)?;
    let control = open(Want::Control)?;
    let boot = boot(partition, &mut open)?;
    let mut description = MachineDescription {
        vcpus: partition.vcpus,
        jail: settings.jail,
        ..MachineDescription::new(&partition.name, kvm, control, partition.memory_mib, boot)
    };
    for grant in partition.grants.iter() {
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
            Capability::BlockRead(path) | Capability::BlockWrite(path) => {
                let write = matches!(grant, Capability::BlockWrite(_));
                description.devices.push(Device {
                    name: format!("disk{}", description.devices.len()),
                    kind: DeviceKind::Block(Block {
                        file: open(Want::Disk { path, write })?,
                        read_only: !write,
                        direct: false,
                        overlay: None,
                        queues: 1,
                        rate: RateLimit::default(),
                    }),
                });
            }
        }
    }
    Ok(description)
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
                Want::Disk { path, write } => format!("{} {write}", path.display()),
                other => format!("{other:?}"),
            };
            self.0.push(want);
            Ok(Fd(2 + self.0.len() as i32))
        }
    }

    const SETTINGS: Settings = Settings {
        input: true,
        tty: false,
        jail: Jail::Full,
    };
    const NATIVE: &str = "kernel = \"native\"\nprogram = \"bin/hello\"\n";

    fn compiled(lines: &str) -> (MachineDescription, Vec<String>) {
        let mut recorder = Recorder::default();
        let description = compile(&partition(lines), SETTINGS, &mut recorder).unwrap();
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
                "/srv/a false",
                "Input",
                "Output",
                "ErrorOutput",
                "/b true"
            ]
        );
        let console = description.console.unwrap();
        assert_eq!(
            (console.input, console.output, console.error),
            (Some(Fd(8)), Fd(9), Some(Fd(10)))
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
        assert_eq!(opened, ["Kvm", "Control", "kernel image", "AgentFiles"]);
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

    proptest! {
        #[test]
        fn compiling_is_deterministic_and_grants_nothing_else(
            grants in prop::sample::subsequence(
                vec!["console", "entropy", "time", "block.read:a", "block.write:b"], 0..=5)
        ) {
            let list: Vec<String> = grants.iter().map(|grant| format!("{grant:?}")).collect();
            let lines = format!("{NATIVE}grants = [{}]", list.join(", "));
            let (first, _) = compiled(&lines);
            prop_assert_eq!(&first, &compiled(&lines).0);
            prop_assert_eq!(first.console.is_some(), grants.contains(&"console"));
            prop_assert_eq!(first.entropy, grants.contains(&"entropy"));
            prop_assert_eq!(first.time, grants.contains(&"time"));
            let disks = grants.iter().filter(|grant| grant.starts_with("block")).count();
            prop_assert_eq!(first.devices.len(), disks);
        }
    }
}
