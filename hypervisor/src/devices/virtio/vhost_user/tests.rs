//! The front end against back ends that the tests play, most of them badly.

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vmm_sys_util::eventfd::EventFd;

use super::super::testing::*;
use super::*;
use FrontendReq as R;
use bulkhead_machine::Fd;

/// What a fake back end does with a request.
enum Act {
    /// What a good one would.
    Well,
    /// Answers with these bytes, header and all.
    Say(Vec<u8>),
    /// Does not answer.
    Nothing,
    /// Ends the connection.
    Close,
}

/// What a fake back end was given.
#[derive(Default)]
struct Given {
    requests: Vec<u32>,
    files: Vec<OwnedFd>,
}

const FEATURES: u64 = COMMON_FEATURES | 1 << 30 | 1 << VIRTIO_BLK_F_FLUSH | 1 << 60;
const PROTOCOL: u64 = 0x3fff;

fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let head = [request, flags, body.len() as u32].map(u32::to_ne_bytes);
    [head.as_flattened(), body].concat()
}

/// The body of a good answer; `None` where none is due.
fn good(request: u32, body: &[u8], acknowledge: bool) -> Option<Vec<u8>> {
    let number = |value: u64| Some(value.to_ne_bytes().to_vec());
    match request {
        r if r == R::GET_FEATURES as u32 => number(FEATURES),
        r if r == R::GET_PROTOCOL_FEATURES as u32 => number(PROTOCOL),
        r if r == R::GET_QUEUE_NUM as u32 => number(4),
        r if r == R::GET_CONFIG as u32 || r == R::GET_VRING_BASE as u32 => Some(body.to_vec()),
        _ if acknowledge => number(0),
        _ => None,
    }
}

/// Plays a back end on `socket` until the connection ends.
fn serve(mut socket: UnixStream, given: &Mutex<Given>, mut plan: impl FnMut(u32) -> Act) {
    loop {
        let mut head = [0; 12];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [io::IoSliceMut::new(&mut head)];
        match recvmsg(&socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(got) if got.bytes == 12 => {}
            _ => return,
        }
        let [request, flags, size] =
            [0, 4, 8].map(|at| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap()));
        let mut body = vec![0; size as usize];
        if socket.read_exact(&mut body).is_err() {
            return;
        }
        let act = {
            let mut given = given.lock().unwrap();
            given.requests.push(request);
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(files) = message {
                    given.files.extend(files);
                }
            }
            plan(request)
        };
        let answer = match act {
            Act::Well => {
                good(request, &body, flags & 8 != 0).map(|body| message(request, 5, &body))
            }
            Act::Say(bytes) => Some(bytes),
            Act::Nothing => None,
            Act::Close => return,
        };
        if let Some(answer) = answer
            && socket.write_all(&answer).is_err()
        {
            return;
        }
    }
}

/// The front end's socket, what the back end was given, and the back end's thread.
fn back_end(
    plan: impl FnMut(u32) -> Act + Send + 'static,
) -> (OwnedFd, Arc<Mutex<Given>>, thread::JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let given = Arc::new(Mutex::new(Given::default()));
    let seen = given.clone();
    let thread = thread::spawn(move || serve(theirs, &seen, plan));
    (ours.into(), given, thread)
}

fn described(device: VhostUserDevice) -> Described {
    Described {
        socket: Fd(-1),
        device,
        queue_size: SIZE,
    }
}

fn block(queues: u16) -> Described {
    described(VhostUserDevice::Block { queues })
}

/// A front end of a block device with two queues.
fn connect(plan: impl FnMut(u32) -> Act + Send + 'static) -> Result<VhostUser, BackendError> {
    let (socket, _, _) = back_end(plan);
    VhostUser::new(&block(2), socket)
}

fn misbehave(
    at: R,
    mut act: impl FnMut() -> Act + Send + 'static,
) -> impl FnMut(u32) -> Act + Send {
    move |request| {
        if request == at as u32 {
            act()
        } else {
            Act::Well
        }
    }
}

/// Activates `device` as the transport would.
fn activate(
    device: &mut VhostUser,
    rig: &mut Rig,
    doorbells: &[EventFd],
) -> Result<(), DeviceError> {
    device.activate(Activation {
        features: COMMON_FEATURES,
        memory: rig.memory,
        queues: &mut rig.queues,
        doorbells,
    })
}

fn doorbells() -> [EventFd; 2] {
    [(); 2].map(|()| EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap())
}

#[test]
fn a_good_back_end_gets_everything() {
    let (socket, given, _thread) = back_end(|_| Act::Well);
    let mut device = VhostUser::new(&block(2), socket).unwrap();
    assert_eq!(device.features(), 1 << VIRTIO_BLK_F_FLUSH, "what both know");
    assert_eq!(device.queue_max_sizes(), [SIZE; 2]);
    let mut config = [0xff; 64];
    device.read_config(0, &mut config);
    assert_eq!(config[BLOCK_NUM_QUEUES], [2, 0]);
    assert_eq!(config[60..], [0; 4]);

    let mut rig = Rig::shared(2);
    let doorbells = doorbells();
    activate(&mut device, &mut rig, &doorbells).unwrap();
    {
        let given = given.lock().unwrap();
        // Two regions of memory; for either queue an error, a call and a kick descriptor.
        assert_eq!(given.files.len(), 2 + 2 * 3);
        let enables = R::SET_VRING_ENABLE as u32;
        assert_eq!(given.requests.iter().filter(|r| **r == enables).count(), 2);
        doorbells[0].write(1).unwrap();
        assert_eq!(
            read(&given.files[4], &mut [0; 8]),
            Ok(8),
            "the first queue's doorbell"
        );
        // The second queue's call.
        write(&given.files[6], &1u64.to_ne_bytes()).unwrap();
    }
    let call = device.calls[1].as_raw_fd();
    assert!(
        device
            .interests()
            .iter()
            .any(|interest| interest.fd == call)
    );
    let _ = device.process_backend(call, &mut rig.io()).unwrap();
    assert!(!rig.queues[0].take_notification(rig.memory).unwrap());
    assert!(rig.queues[1].take_notification(rig.memory).unwrap());
    assert_eq!(
        device.counters(),
        [("interrupts", 1), ("backend_failures", 0)]
    );

    device.reset();
    let last: Vec<u32> = given
        .lock()
        .unwrap()
        .requests
        .iter()
        .rev()
        .take(3)
        .copied()
        .collect();
    let stop = R::GET_VRING_BASE as u32;
    assert_eq!(last, [R::RESET_DEVICE as u32, stop, stop]);
    activate(&mut device, &mut rig, &doorbells).unwrap();
}

#[test]
fn rings_stop_for_a_pause_and_start_again() {
    let (socket, given, _thread) = back_end(|_| Act::Well);
    let mut device = VhostUser::new(&block(2), socket).unwrap();
    let mut rig = Rig::shared(2);
    device.quiesce(&mut rig.io()).unwrap();
    let doorbells = doorbells();
    activate(&mut device, &mut rig, &doorbells).unwrap();
    let count = |request: R| {
        let given = given.lock().unwrap();
        given
            .requests
            .iter()
            .filter(|r| **r == request as u32)
            .count()
    };
    for pauses in 1..3 {
        device.quiesce(&mut rig.io()).unwrap();
        device.quiesce(&mut rig.io()).unwrap();
        assert_eq!(count(R::GET_VRING_BASE), 2 * pauses);
        let resume = device.resume.as_raw_fd();
        let _ = device.process_backend(resume, &mut rig.io()).unwrap();
        assert_eq!(count(R::SET_VRING_ENABLE), 2 + 2 * pauses);
    }
}

#[test]
fn each_kind_has_its_queues_and_its_configuration() {
    let (socket, _, _) = back_end(|_| Act::Well);
    let fs = described(VhostUserDevice::Fs {
        tag: "data".into(),
        queues: 1,
    });
    let device = VhostUser::new(&fs, socket).unwrap();
    assert_eq!(
        (device.device_type(), device.queue_max_sizes().len()),
        (DeviceType::Fs, 2)
    );
    let mut config = [0xff; 40];
    device.read_config(0, &mut config);
    assert_eq!((&config[..5], config[36]), (&b"data\0"[..], 1));

    let (socket, _, _) = back_end(|_| Act::Well);
    let mac = [2, 3, 4, 5, 6, 7];
    let net = VhostUserDevice::Net {
        mac,
        queue_pairs: 1,
    };
    let device = VhostUser::new(&described(net), socket).unwrap();
    assert_eq!(
        (device.device_type(), device.queue_max_sizes().len()),
        (DeviceType::Net, 2)
    );
    assert_ne!(device.features() & 1 << VIRTIO_NET_F_MAC, 0);
    let mut config = [0xff; 8];
    device.read_config(0, &mut config);
    assert_eq!(config, [2, 3, 4, 5, 6, 7, 0, 0]);

    for bad in [
        VhostUserDevice::Net {
            mac,
            queue_pairs: 2,
        },
        VhostUserDevice::Fs {
            tag: String::new(),
            queues: 1,
        },
        VhostUserDevice::Fs {
            tag: "x".repeat(37),
            queues: 1,
        },
        VhostUserDevice::Fs {
            tag: "x".into(),
            queues: 4,
        },
        VhostUserDevice::Block { queues: 5 },
    ] {
        let (socket, _, _) = back_end(|_| Act::Well);
        assert!(
            VhostUser::new(&described(bad.clone()), socket).is_err(),
            "{bad:?}"
        );
    }
}

#[test]
fn what_is_missing_is_said() {
    for (at, value, missing) in [
        (R::GET_FEATURES, FEATURES & !(1 << 32), "0x100000000"),
        (R::GET_FEATURES, FEATURES & !(1 << 30), "0x40000000"),
        (R::GET_FEATURES, 0, "features"),
        (R::GET_PROTOCOL_FEATURES, PROTOCOL & !8, "REPLY_ACK"),
        (R::GET_PROTOCOL_FEATURES, PROTOCOL & !0x200, "CONFIG"),
        (R::GET_PROTOCOL_FEATURES, PROTOCOL & !1, "queues"),
        (R::GET_QUEUE_NUM, 1, "2 queues"),
    ] {
        let say = move || Act::Say(message(at as u32, 5, &value.to_ne_bytes()));
        let error = connect(misbehave(at, say)).err().unwrap().to_string();
        assert!(error.contains(missing), "{error}");
    }
}

#[test]
fn garbage_is_no_answer() {
    let at = R::GET_FEATURES as u32;
    let body = FEATURES.to_ne_bytes();
    for (what, answer) in [
        ("another request", message(2, 5, &body)),
        ("no reply", message(at, 1, &body)),
        ("another version", message(at, 6, &body)),
        ("a longer body", message(at, 5, &[body, body].concat())),
        ("a shorter body", message(at, 5, &body[..4])),
        ("no body", message(at, 5, &[])),
        (
            "4 GiB",
            [message(at, 5, &body)[..8].to_vec(), vec![0xff; 4]].concat(),
        ),
        ("noise", vec![0xa5; 4096]),
        ("half a header", message(at, 5, &body)[..7].to_vec()),
        ("half a body", message(at, 5, &body)[..16].to_vec()),
    ] {
        let answer = answer.clone();
        let error = connect(misbehave(R::GET_FEATURES, move || Act::Say(answer.clone())))
            .err()
            .unwrap();
        assert!(
            matches!(error, BackendError::Garbled(_) | BackendError::Late(_)),
            "{what}: {error}"
        );
    }
    // The configuration comes with a header of its own.
    let wrong = message(R::GET_CONFIG as u32, 5, &[1; 72]);
    let error = connect(misbehave(R::GET_CONFIG, move || Act::Say(wrong.clone()))).err();
    assert!(matches!(error, Some(BackendError::Garbled(R::GET_CONFIG))));
}

#[test]
fn silence_has_an_end() {
    for at in [R::GET_FEATURES, R::GET_QUEUE_NUM, R::GET_CONFIG] {
        let began = Instant::now();
        let error = connect(misbehave(at, || Act::Nothing)).err().unwrap();
        assert!(matches!(error, BackendError::Late(request) if request == at));
        assert!(
            began.elapsed() < 20 * connection::PATIENCE,
            "a hang would not end at all"
        );
        let error = connect(misbehave(at, || Act::Close)).err().unwrap();
        assert!(matches!(error, BackendError::Gone), "{error}");
    }
}

#[test]
fn a_back_end_that_fails_at_activation_breaks_its_device() {
    for at in [
        R::SET_FEATURES,
        R::SET_MEM_TABLE,
        R::SET_VRING_NUM,
        R::SET_VRING_BASE,
        R::SET_VRING_ADDR,
        R::SET_VRING_ERR,
        R::SET_VRING_CALL,
        R::SET_VRING_KICK,
        R::SET_VRING_ENABLE,
    ] {
        let refusal = message(at as u32, 5, &1u64.to_ne_bytes());
        let mut device = connect(misbehave(at, move || Act::Say(refusal.clone()))).unwrap();
        let mut rig = Rig::shared(2);
        let doorbells = doorbells();
        let error = activate(&mut device, &mut rig, &doorbells).unwrap_err();
        assert!(error.to_string().contains("refused"), "{error}");
        device.reset();
        // It is not trusted a second time.
        let error = activate(&mut device, &mut rig, &doorbells).unwrap_err();
        assert!(error.to_string().contains("gone"), "{error}");
        assert!(device.counters().contains(&("backend_failures", 1)));
    }
}

#[test]
fn memory_that_is_not_shared_is_refused() {
    let mut device = connect(|_| Act::Well).unwrap();
    let error = activate(&mut device, &mut Rig::new(2), &doorbells()).unwrap_err();
    assert!(error.to_string().contains("`shared` memory"), "{error}");
}

#[test]
fn what_comes_unasked_breaks_the_device() {
    for close in [false, true] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let other = theirs.try_clone().unwrap();
        thread::spawn(move || serve(theirs, &Mutex::default(), |_| Act::Well));
        let mut device = VhostUser::new(&block(2), ours.into()).unwrap();
        let mut rig = Rig::shared(2);
        activate(&mut device, &mut rig, &doorbells()).unwrap();
        if close {
            other.shutdown(std::net::Shutdown::Both).unwrap();
        } else {
            (&other).write_all(b"surprise").unwrap();
        }
        let socket = device.connection.socket().as_raw_fd();
        assert!(device.process_backend(socket, &mut rig.io()).is_err());
        device.reset();
        assert_eq!(device.counters()[1], ("backend_failures", 1));
    }
}

/// The event loop is told of a reply that a vCPU waits for, and comes when the vCPU has taken it.
#[test]
fn a_reply_that_was_taken_meanwhile_is_not_held_against_the_back_end() {
    let mut device = connect(|_| Act::Well).unwrap();
    let mut rig = Rig::shared(2);
    let doorbells = doorbells();
    activate(&mut device, &mut rig, &doorbells).unwrap();
    device.reset();
    activate(&mut device, &mut rig, &doorbells).unwrap();
    let socket = device.connection.socket().as_raw_fd();
    let progress = device.process_backend(socket, &mut rig.io()).unwrap();
    assert_eq!(progress, Progress::Idle);
    assert!(device.connection.alive());
}

#[test]
fn queues_that_a_back_end_reports_broken_break_the_device() {
    let mut device = connect(|_| Act::Well).unwrap();
    let mut rig = Rig::shared(2);
    activate(&mut device, &mut rig, &doorbells()).unwrap();
    let errors = device.errors.as_raw_fd();
    let error = device.process_backend(errors, &mut rig.io()).unwrap_err();
    assert!(error.to_string().contains("broken queue"), "{error}");
}

#[test]
fn a_back_end_cannot_make_its_descriptors_block_the_loop() {
    let (socket, given, _thread) = back_end(|_| Act::Well);
    let mut device = VhostUser::new(&block(2), socket).unwrap();
    let mut rig = Rig::shared(2);
    activate(&mut device, &mut rig, &doorbells()).unwrap();
    // The file status flags of an eventfd belong to all who share it.
    for file in &given.lock().unwrap().files {
        fcntl_setfl(file, OFlags::empty()).unwrap();
    }
    let calls: Vec<RawFd> = device.calls.iter().map(AsRawFd::as_raw_fd).collect();
    for fd in calls {
        // Nothing is to be read there: whoever tried would wait for ever.
        let _ = device.process_backend(fd, &mut rig.io()).unwrap();
    }
}

#[test]
fn a_reset_waits_for_the_back_end_but_not_for_ever() {
    for act in [|| Act::Nothing, || Act::Close, || Act::Say(vec![7; 40])] {
        let mut device = connect(misbehave(R::GET_VRING_BASE, act)).unwrap();
        let mut rig = Rig::shared(2);
        let doorbells = doorbells();
        activate(&mut device, &mut rig, &doorbells).unwrap();
        device.reset();
        assert_eq!(device.counters()[1], ("backend_failures", 1));
        assert!(activate(&mut device, &mut rig, &doorbells).is_err());
    }
}

#[test]
fn descriptors_that_a_back_end_sends_are_not_kept() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = thread::spawn(move || {
        let gift = File::open("/dev/null").unwrap();
        let mut head = [0; 12];
        let mut theirs = theirs;
        // SET_OWNER, then GET_FEATURES.
        theirs.read_exact(&mut head).unwrap();
        theirs.read_exact(&mut head).unwrap();
        let answer = message(R::GET_FEATURES as u32, 5, &0u64.to_ne_bytes());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        let gifts = [gift.as_fd()];
        control.push(rustix::net::SendAncillaryMessage::ScmRights(&gifts));
        let slices = [io::IoSlice::new(&answer)];
        rustix::net::sendmsg(
            &theirs,
            &slices,
            &mut control,
            rustix::net::SendFlags::empty(),
        )
        .unwrap();
    });
    let error = VhostUser::new(&block(1), ours.into()).err().unwrap();
    assert!(matches!(error, BackendError::Lacks(_)), "{error}");
    thread.join().unwrap();
}
