//! A hostile vhost-user back end of a disk, a network interface or a shared directory, and a hostile
//! driver before it: answers that are wrong, cut short, split, not asked for, with descriptors, and
//! signals on every eventfd that the back end was given. A back end may break its device, and
//! nothing else.
#![no_main]

mod driver;

use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use bulkhead_machine::device::{VhostUser as Described, VhostUserDevice};
use bulkhead_machine::{Fd, Memory};
use driver::{Host, Script, drive_on};
use hypervisor::devices::virtio::VirtioDevice;
use hypervisor::devices::virtio::vhost_user::VhostUser;
use hypervisor::machine::memory;
use libfuzzer_sys::fuzz_target;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Request, flags and size of the body, 32 bits each.
const HEADER: usize = 12;
/// Flags of a reply, and the one that asks for an acknowledgement.
const REPLY: u32 = 1 | 4;
const NEED_REPLY: u32 = 8;

const GET_FEATURES: u32 = 1;
const GET_VRING_BASE: u32 = 11;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;
const GET_CONFIG: u32 = 24;

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let (shape, len) = (script.byte(), script.byte());
    let plan = Script(script.some(usize::from(len)));
    let device = match shape & 3 {
        0 | 1 => VhostUserDevice::Block {
            queues: 1 + u16::from(shape & 1),
        },
        2 => VhostUserDevice::Net {
            mac: [2, 0, 0, 0, 0, 1],
            queue_pairs: 1,
        },
        _ => VhostUserDevice::Fs {
            tag: "data".into(),
            queues: 1,
        },
    };
    let described = Described {
        socket: Fd(-1),
        device,
        queue_size: 16,
    };
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let given = Mutex::default();
    std::thread::scope(|scope| {
        let back_end = BackEnd {
            socket: theirs,
            plan,
            given: &given,
        };
        let thread = scope.spawn(|| back_end.serve());
        if let Ok(device) = VhostUser::new(&described, ours.into()) {
            assert_eq!(device.features() >> 24, 0, "the transport's features");
            let shared = Memory {
                shared: true,
                ..Memory::of_mib(2)
            };
            let host = Host {
                memory: memory::map(&shared).expect("memory").all,
                elsewhere: &|| signal(&given, shape),
                breaks: true,
            };
            drive_on(host, Box::new(device), script);
        }
        // The device's end ends the connection, and that the back end.
        thread.join().expect("a back end that does not panic");
    });
});

/// Signals some of what the back end was given: memory, which takes it for contents, and eventfds,
/// until they are full.
fn signal(given: &Mutex<Vec<OwnedFd>>, shape: u8) {
    if shape & 4 == 0 {
        return;
    }
    let value = if shape & 8 == 0 { 1 } else { u64::MAX - 1 };
    for (index, file) in given.lock().expect("no panic").iter().enumerate() {
        if shape >> 4 == 0 || index % usize::from(shape >> 4) == 0 {
            let _ = rustix::io::write(file, &u64::to_ne_bytes(value));
        }
    }
}

struct BackEnd<'a> {
    socket: UnixStream,
    plan: Script<'a>,
    /// The descriptors that came with requests.
    given: &'a Mutex<Vec<OwnedFd>>,
}

impl BackEnd<'_> {
    /// Answers each request as the next byte of the plan says, and well when it is used up.
    fn serve(mut self) {
        while let Some((request, flags, body)) = self.hear() {
            let mut answer = answer(request, flags, &body).unwrap_or_default();
            match self.plan.byte() {
                // A number of the plan's.
                0xc0..0xd0 if answer.len() >= HEADER + 8 => {
                    answer[HEADER..HEADER + 8].copy_from_slice(&self.plan.bytes::<8>());
                }
                // One byte is wrong.
                0xd0..0xdc if !answer.is_empty() => {
                    let at = usize::from(self.plan.byte()) % answer.len();
                    answer[at] ^= self.plan.byte();
                }
                // Not all of it, and nothing behind it: nobody waits for the rest.
                0xdc..0xe4 => {
                    answer.truncate(usize::from(self.plan.byte()));
                    self.say(&answer, false);
                    let _ = self.socket.shutdown(Shutdown::Write);
                    continue;
                }
                // More than was asked for.
                0xe4..0xec => {
                    let len = self.plan.byte();
                    answer.extend(self.plan.some(len.into()));
                }
                0xec..0xf4 => {
                    self.say(&answer, true);
                    continue;
                }
                0xf4..0xfc => {
                    let (one, other) = answer.split_at(answer.len() / 2);
                    self.say(one, false);
                    self.say(other, false);
                    continue;
                }
                0xfc.. => return,
                _ => {}
            }
            self.say(&answer, false);
        }
    }

    /// The next request: its number, its flags, its body.
    fn hear(&mut self) -> Option<(u32, u32, Vec<u8>)> {
        let mut head = [0; HEADER];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut head)];
        let got = recvmsg(&self.socket, &mut into, &mut control, RecvFlags::WAITALL).ok()?;
        if got.bytes < HEADER {
            return None;
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.given.lock().expect("no panic").extend(files);
            }
        }
        let [request, flags, size] =
            [0, 4, 8].map(|at| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four")));
        assert!(size < 4096, "a front end keeps to the protocol");
        let mut body = vec![0; size as usize];
        self.socket.read_exact(&mut body).ok()?;
        Some((request, flags, body))
    }

    /// Says `bytes`, perhaps with a descriptor. A front end that has gone does not hear it.
    fn say(&self, bytes: &[u8], with_descriptor: bool) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [self.socket.as_fd()];
        if with_descriptor {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        if !bytes.is_empty() {
            let parts = [IoSlice::new(bytes)];
            let _ = sendmsg(&self.socket, &parts, &mut control, SendFlags::NOSIGNAL);
        }
    }
}

/// A good answer, header and all; nothing where none is due.
fn answer(request: u32, flags: u32, body: &[u8]) -> Option<Vec<u8>> {
    let number = u64::to_ne_bytes;
    let body = match request {
        GET_FEATURES | GET_PROTOCOL_FEATURES => number(u64::MAX).to_vec(),
        GET_QUEUE_NUM => number(2).to_vec(),
        GET_CONFIG | GET_VRING_BASE => body.to_vec(),
        _ if flags & NEED_REPLY != 0 => number(0).to_vec(),
        _ => return None,
    };
    let head = [request, REPLY, body.len() as u32].map(u32::to_ne_bytes);
    Some([head.as_flattened(), &body].concat())
}
