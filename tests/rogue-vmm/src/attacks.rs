//! What native code in a VMM's process could try on the host and on others, one system call after the
//! other.

use std::ffi::CString;
use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixStream};
use std::ptr;

use bulkhead_machine::Fd;

use crate::calls::{address, address_mut, call, open, text};
use crate::{Outcome, Rogue, Targets, descriptors};

/// An attack by its name. It attacks every target there is of its kind.
type Attack = (&'static str, fn(&Rogue) -> Outcome);

const ATTACKS: [Attack; 35] = [
    ("use what was left open", use_what_was_left),
    ("read a file", read_files),
    ("write a file", write_files),
    ("create a file", create_files),
    ("climb out by a descriptor", climb),
    ("open by handle", open_by_handle),
    ("mount", mount_proc),
    ("mount in a namespace of its own", mount_in_namespace),
    ("connect to a socket of the host", connect_sockets),
    ("connect to an abstract socket", connect_abstract),
    ("connect by TCP", connect_tcp),
    ("send by UDP", send_udp),
    ("open a raw socket", raw_sockets),
    ("find an interface", find_interface),
    ("kill", kill),
    ("stop", stop),
    ("trace", trace),
    ("read memory", read_memory),
    ("write memory", write_memory),
    ("steal a descriptor", steal),
    ("enter namespaces", enter_namespaces),
    ("limit another", limit),
    ("slow another down", slow),
    ("watch another", watch),
    ("execute a file", execute),
    ("execute a descriptor", execute_descriptor),
    ("become root", become_root),
    ("take capabilities", take_capabilities),
    ("load code into the kernel", load_code),
    ("read the kernel's log", read_log),
    ("set the clock", set_clock),
    ("reboot", reboot),
    // Only the filter stands against these, and for what they are good for other layers do.
    ("look into keyrings", look_into_keyrings),
    ("open a vsock", open_vsock),
    ("make a VM", make_vm),
];

/// Attacks against which nothing but the filter stands.
const OF_THE_FILTER: [&str; 3] = ["look into keyrings", "open a vsock", "make a VM"];

/// Attacks that do no harm on a host where nothing stands against them: what is tried without a jail.
const HARMLESS: [&str; 10] = [
    "use what was left open",
    "read a file",
    "connect to a socket of the host",
    "connect to an abstract socket",
    "connect by TCP",
    "find an interface",
    "trace",
    "read memory",
    "steal a descriptor",
    "execute a descriptor",
];

/// Does the attack of that name; or `everything`, which is all that more than the filter stands
/// against; or `harmless`.
pub(crate) fn attack(rogue: &mut Rogue, order: &str) {
    let chosen = ATTACKS.iter().filter(|(name, _)| match order {
        "everything" => !OF_THE_FILTER.contains(name),
        "harmless" => HARMLESS.contains(name),
        one => one == *name,
    });
    for (name, act) in chosen {
        let outcome = act(rogue);
        rogue.tell(name, &outcome);
    }
}

/// Names of all attacks.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    ATTACKS.iter().map(|(name, _)| *name)
}

/// The first of these that succeeded, or the last reason why none did.
fn first<T>(
    targets: impl IntoIterator<Item = T>,
    act: impl Fn(&T) -> io::Result<String>,
) -> Outcome {
    let mut why = None;
    for target in targets {
        match act(&target) {
            Ok(what) => return Ok(what),
            Err(error) => why = Some(error.to_string()),
        }
    }
    Err(why.expect("there is a target"))
}

/// Every process to attack: those that are named, the supervisor, and what else it has started.
fn processes(targets: &Targets) -> Vec<i32> {
    let parent = rustix::process::getppid().expect("a supervisor");
    let mut all = targets.pids.clone();
    all.push(parent.as_raw_nonzero().get());
    all
}

fn use_what_was_left(rogue: &Rogue) -> Outcome {
    let named = descriptors::named(&rogue.description);
    first((3..1024).filter(|fd| !named.contains(fd)), |fd| {
        let arguments = [i64::from(*fd), libc::F_GETFD.into(), 0, 0, 0, 0];
        call(libc::SYS_fcntl, arguments).map(|_| format!("descriptor {fd} is open"))
    })
}

fn read_files(rogue: &Rogue) -> Outcome {
    let own = [
        "/",
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/1/environ",
        "/dev/kvm",
        "/dev/mem",
    ];
    let files = rogue.targets.files.iter().map(String::as_str).chain(own);
    first(files, |path| {
        open(libc::AT_FDCWD, path, libc::O_RDONLY).map(|_| format!("opened {path}"))
    })
}

fn write_files(rogue: &Rogue) -> Outcome {
    first(&rogue.targets.files, |path| {
        open(libc::AT_FDCWD, path, libc::O_WRONLY).map(|_| format!("opened {path}"))
    })
}

fn create_files(_: &Rogue) -> Outcome {
    first(["/rogue", "/tmp/rogue", "rogue"], |path| {
        open(libc::AT_FDCWD, path, libc::O_CREAT | libc::O_WRONLY).map(|_| format!("made {path}"))
    })
}

fn climb(rogue: &Rogue) -> Outcome {
    let all = descriptors::named(&rogue.description);
    first(all, |fd| {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        open(*fd, "..", flags).map(|_| format!("opened `..` of {fd}"))
    })
}

fn open_by_handle(rogue: &Rogue) -> Outcome {
    // The root of most file systems: inode 2, generation 0.
    let handle: [u32; 4] = [8, 1, 2, 0];
    first(descriptors::named(&rogue.description), |fd| {
        let arguments = [
            i64::from(*fd),
            address(&handle),
            libc::O_RDONLY.into(),
            0,
            0,
            0,
        ];
        call(libc::SYS_open_by_handle_at, arguments).map(|_| "opened a root".to_owned())
    })
}

fn mount_proc(_: &Rogue) -> Outcome {
    let (kind, at) = (text("proc"), text("/"));
    let arguments = [
        address(kind.as_bytes_with_nul()),
        address(at.as_bytes_with_nul()),
        address(kind.as_bytes_with_nul()),
        0,
        0,
        0,
    ];
    let mounted = call(libc::SYS_mount, arguments);
    mounted
        .map(|_| "mounted proc".to_owned())
        .map_err(|error| error.to_string())
}

fn mount_in_namespace(rogue: &Rogue) -> Outcome {
    // In a child: whatever privileges it gets in there are its own.
    let flags = i64::from(libc::CLONE_NEWUSER | libc::CLONE_NEWNS);
    let ended = in_child(|| {
        call(libc::SYS_unshare, [flags, 0, 0, 0, 0, 0]).map_err(|error| error.to_string())?;
        mount_proc(rogue)
    });
    match ended.map_err(|error| error.to_string())? {
        Some(0) => Ok("mounted proc".to_owned()),
        other => Err(format!("its child ended with {other:?}")),
    }
}

/// Runs `act` in a child, and gives back the status that it ended with: 0 where it got through.
fn in_child<T, E>(act: impl FnOnce() -> Result<T, E>) -> io::Result<Option<i32>> {
    // SAFETY: this process has one thread, so the child finds no lock that somebody else holds.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let status = i32::from(act().is_err());
        // SAFETY: ends the child.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    if child < 0 || unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)))
}

fn connect_sockets(rogue: &Rogue) -> Outcome {
    first(&rogue.targets.sockets, |path| {
        UnixStream::connect(path).map(|_| format!("connected to {path}"))
    })
}

fn connect_abstract(rogue: &Rogue) -> Outcome {
    first(&rogue.targets.abstracts, |name| {
        let address = UnixAddr::from_abstract_name(name)?;
        UnixStream::connect_addr(&address).map(|_| format!("connected to {name}"))
    })
}

fn connect_tcp(rogue: &Rogue) -> Outcome {
    first(&rogue.targets.addresses, |address| {
        TcpStream::connect(address.as_str()).map(|_| format!("connected to {address}"))
    })
}

fn send_udp(rogue: &Rogue) -> Outcome {
    first(&rogue.targets.addresses, |address| {
        let address: SocketAddr = address.parse().expect("an address");
        let any = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any)?;
        // A network without routes refuses to send; one that has them does not tell who listens.
        socket
            .send_to(b"rogue", address)
            .map(|_| format!("sent to {address}"))
    })
}

fn raw_sockets(_: &Rogue) -> Outcome {
    let kinds = [
        (libc::AF_PACKET, libc::SOCK_RAW, 0x300),
        (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        (libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6),
    ];
    first(kinds, |(family, kind, protocol)| {
        let arguments = [
            i64::from(*family),
            i64::from(*kind),
            i64::from(*protocol),
            0,
            0,
            0,
        ];
        call(libc::SYS_socket, arguments).map(|_| format!("family {family}"))
    })
}

fn find_interface(_: &Rogue) -> Outcome {
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| error.to_string())?;
    // Numbers up to here are those of a host's first interfaces; 1 is the loopback.
    first(2..64, |index| {
        let mut request = [0_u32; 10];
        request[4] = *index;
        let fd = i64::from(socket.as_raw_fd());
        let arguments = [
            fd,
            libc::SIOCGIFNAME as i64,
            address_mut(&mut request),
            0,
            0,
            0,
        ];
        call(libc::SYS_ioctl, arguments).map(|_| format!("interface {index}"))
    })
}

/// Sockets of this kind are in no namespace. It is not connected: who would answer is not known here.
fn open_vsock(_: &Rogue) -> Outcome {
    let kind = libc::SOCK_STREAM.into();
    let made = call(libc::SYS_socket, [libc::AF_VSOCK.into(), kind, 0, 0, 0, 0]);
    made.map(|_| "a socket".to_owned())
        .map_err(|error| error.to_string())
}

fn signal(rogue: &Rogue, signal: libc::c_int) -> Outcome {
    first(processes(&rogue.targets), |pid| {
        let arguments = [i64::from(*pid), signal.into(), 0, 0, 0, 0];
        call(libc::SYS_kill, arguments).map(|_| format!("signal {signal} to {pid}"))
    })
}

fn kill(rogue: &Rogue) -> Outcome {
    signal(rogue, libc::SIGKILL)
}

fn stop(rogue: &Rogue) -> Outcome {
    signal(rogue, libc::SIGSTOP)
}

fn trace(rogue: &Rogue) -> Outcome {
    first(processes(&rogue.targets), |pid| {
        // Numbers of another type in each C library.
        let attach = |how| call(libc::SYS_ptrace, [how, i64::from(*pid), 0, 0, 0, 0]);
        attach(libc::PTRACE_SEIZE as i64)
            .or_else(|_| attach(libc::PTRACE_ATTACH as i64))
            .map(|_| format!("traces {pid}"))
    })
}

/// A pair of places for `process_vm_*`: ours, and theirs where a static program's text begins.
fn places(own: &mut [u8; 64]) -> [libc::iovec; 2] {
    let length = own.len();
    [
        libc::iovec {
            iov_base: own.as_mut_ptr().cast(),
            iov_len: length,
        },
        libc::iovec {
            iov_base: ptr::without_provenance_mut(0x40_0000),
            iov_len: length,
        },
    ]
}

fn copy_memory(rogue: &Rogue, number: libc::c_long) -> Outcome {
    first(processes(&rogue.targets), |pid| {
        let mut own = [0; 64];
        let [local, remote] = places(&mut own);
        let (local, remote) = (address(&local), address(&remote));
        match call(number, [i64::from(*pid), local, 1, remote, 1, 0]) {
            // It may: there is only nothing at that place.
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                Ok(format!("may, of {pid}"))
            }
            other => other.map(|count| format!("{count} bytes of {pid}")),
        }
    })
}

fn read_memory(rogue: &Rogue) -> Outcome {
    copy_memory(rogue, libc::SYS_process_vm_readv)
}

fn write_memory(rogue: &Rogue) -> Outcome {
    copy_memory(rogue, libc::SYS_process_vm_writev)
}

fn steal(rogue: &Rogue) -> Outcome {
    first(processes(&rogue.targets), |pid| {
        let process = call(libc::SYS_pidfd_open, [i64::from(*pid), 0, 0, 0, 0, 0])?;
        let stolen = (0..32).find_map(|fd| {
            call(libc::SYS_pidfd_getfd, [process, fd, 0, 0, 0, 0])
                .ok()
                .map(|_| fd)
        });
        call(libc::SYS_close, [process, 0, 0, 0, 0, 0])?;
        let refused = io::Error::from(io::ErrorKind::PermissionDenied);
        stolen
            .map(|fd| format!("descriptor {fd} of {pid}"))
            .ok_or(refused)
    })
}

fn enter_namespaces(rogue: &Rogue) -> Outcome {
    first(processes(&rogue.targets), |pid| {
        let process = call(libc::SYS_pidfd_open, [i64::from(*pid), 0, 0, 0, 0, 0])?;
        let entered = [libc::CLONE_NEWNET, libc::CLONE_NEWNS, libc::CLONE_NEWUSER]
            .iter()
            .find_map(|kind| call(libc::SYS_setns, [process, i64::from(*kind), 0, 0, 0, 0]).ok());
        call(libc::SYS_close, [process, 0, 0, 0, 0, 0])?;
        let refused = io::Error::from(io::ErrorKind::PermissionDenied);
        entered
            .map(|_| format!("a namespace of {pid}"))
            .ok_or(refused)
    })
}

fn limit(rogue: &Rogue) -> Outcome {
    first(processes(&rogue.targets), |pid| {
        let none = [0_u64; 2];
        let resource = i64::from(libc::RLIMIT_NOFILE);
        let arguments = [i64::from(*pid), resource, address(&none), 0, 0, 0];
        call(libc::SYS_prlimit64, arguments).map(|_| format!("no descriptors for {pid}"))
    })
}

fn slow(rogue: &Rogue) -> Outcome {
    first(processes(&rogue.targets), |pid| {
        let arguments = [libc::PRIO_PROCESS.into(), i64::from(*pid), 19, 0, 0, 0];
        call(libc::SYS_setpriority, arguments).map(|_| format!("{pid} is nice"))
    })
}

fn watch(rogue: &Rogue) -> Outcome {
    first(processes(&rogue.targets), |pid| {
        // Kind and size of `perf_event_attr`, version 0; the rest is 0: the clock of the CPU.
        let mut attributes = [0_u32; 16];
        attributes[..2].copy_from_slice(&[1, 64]);
        let arguments = [address(&attributes), i64::from(*pid), -1, -1, 0, 0];
        call(libc::SYS_perf_event_open, arguments).map(|_| format!("watches {pid}"))
    })
}

/// Executes in a child, so that we are here to tell of it.
fn execute_at(directory: i32, path: &CString, flags: i64) -> io::Result<String> {
    let none: [usize; 1] = [0];
    let (at, none) = (address(path.as_bytes_with_nul()), address(&none));
    let arguments = [directory.into(), at, none, none, flags, 0];
    // A child that could not execute ends with 1; one that could ends as that program does.
    let refused = || call(libc::SYS_execveat, arguments);
    match in_child(refused)? {
        Some(1) => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
        other => Ok(format!("ran, and ended with {other:?}")),
    }
}

fn execute(_: &Rogue) -> Outcome {
    first(["/bin/sh", "/bin/busybox", "/proc/self/exe"], |path| {
        execute_at(libc::AT_FDCWD, &text(path), 0)
    })
}

fn execute_descriptor(rogue: &Rogue) -> Outcome {
    first(descriptors::named(&rogue.description), |fd| {
        execute_at(*fd, &text(""), libc::AT_EMPTY_PATH.into())
    })
}

fn become_root(_: &Rogue) -> Outcome {
    first(
        [libc::SYS_setuid, libc::SYS_setgid, libc::SYS_setfsuid],
        |number| {
            match call(*number, [0; 6])? {
                // Says who it was, whatever came of it.
                _ if *number == libc::SYS_setfsuid => {
                    let now = call(*number, [-1, 0, 0, 0, 0, 0])?;
                    let refused = io::Error::from(io::ErrorKind::PermissionDenied);
                    (now == 0)
                        .then(|| "files of root".to_owned())
                        .ok_or(refused)
                }
                _ => Ok("is root".to_owned()),
            }
        },
    )
}

fn take_capabilities(_: &Rogue) -> Outcome {
    // Version 3, for ourselves; all of the effective, permitted and inheritable ones.
    let (header, all) = ([0x2008_0522_u32, 0], [u32::MAX; 6]);
    let taken = call(
        libc::SYS_capset,
        [address(&header), address(&all), 0, 0, 0, 0],
    );
    taken
        .map(|_| "all of them".to_owned())
        .map_err(|error| error.to_string())
}

fn load_code(_: &Rogue) -> Outcome {
    // A module, a kernel, a program of BPF that counts packets.
    let attributes = [0_u64; 16];
    let empty = text("");
    let calls = [
        (
            libc::SYS_init_module,
            [0, 0, address(empty.as_bytes_with_nul()), 0, 0, 0],
        ),
        (libc::SYS_kexec_load, [0; 6]),
        (libc::SYS_bpf, [5, address(&attributes), 64, 0, 0, 0]),
    ];
    first(calls, |(number, arguments)| {
        call(*number, *arguments).map(|_| format!("call {number}"))
    })
}

fn read_log(_: &Rogue) -> Outcome {
    let mut bytes = [0_u8; 4096];
    let read = call(
        libc::SYS_syslog,
        [3, address_mut(&mut bytes), 4096, 0, 0, 0],
    );
    read.map(|count| format!("{count} bytes"))
        .map_err(|error| error.to_string())
}

fn set_clock(_: &Rogue) -> Outcome {
    // To the time zone that the kernel has: harmless where it would succeed.
    let zone = [0_i32; 2];
    let set = call(libc::SYS_settimeofday, [0, address(&zone), 0, 0, 0, 0]);
    set.map(|_| "may set it".to_owned())
        .map_err(|error| error.to_string())
}

fn reboot(_: &Rogue) -> Outcome {
    // What Ctrl-Alt-Del does: harmless where it would succeed.
    let magic = [0xfee1_dead_u32 as i32, 0x2812_1969, 0x89ab_cdef_u32 as i32].map(i64::from);
    let arguments = [magic[0], magic[1], 0, 0, 0, 0];
    let done = call(libc::SYS_reboot, arguments);
    done.map(|_| "may reboot".to_owned())
        .map_err(|error| error.to_string())
}

fn look_into_keyrings(_: &Rogue) -> Outcome {
    const SEARCH: i64 = 10;
    // Of the session, and of the user.
    first([-3_i64, -4], |ring| {
        let (kind, name) = (text("user"), text("bulkhead:vault"));
        let arguments = [
            SEARCH,
            *ring,
            address(kind.as_bytes_with_nul()),
            address(name.as_bytes_with_nul()),
            0,
            0,
        ];
        call(libc::SYS_keyctl, arguments).map(|key| format!("found key {key}"))
    })
}

fn make_vm(rogue: &Rogue) -> Outcome {
    const KVM_CREATE_VM: i64 = 0xae01;
    let Fd(kvm) = rogue.description.kvm;
    let made = call(libc::SYS_ioctl, [kvm.into(), KVM_CREATE_VM, 0, 0, 0, 0]);
    made.map(|_| "made one".to_owned())
        .map_err(|error| error.to_string())
}
