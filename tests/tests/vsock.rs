//! Promise: host processes and a guest reach each other by vsock, with Firecracker's conventions;
//! what is sent arrives whole, and each side learns of the other's end.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod lab {
    use std::fs::{self, File};
    use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
    use std::mem::MaybeUninit;
    use std::net::Shutdown;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;
    use std::sync::mpsc::Receiver;
    use std::thread;

    use bulkhead_machine::Jail;
    use bulkhead_machine::control::vsock::{Connect, Connected};
    use bulkhead_machine::control::{Ended, Event};
    use bulkhead_machine::device::{Device, DeviceKind, Vsock};
    use bulkhead_tests::bulkhead::Bulkhead;
    use bulkhead_tests::initramfs::with_script;
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;
    use bulkhead_tests::vmm::Vmm;
    use rustix::net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        SocketFlags, SocketType, recv, sendmsg, socketpair,
    };

    /// Where the guest finds somebody who sends back what they get.
    const ECHO: u32 = 80;
    /// Where the guest waits for the test's end.
    const LAST: u32 = 83;

    /// Plays the supervisor until the VMM is gone: [`ECHO`] and [`LAST`] may be reached, no others.
    fn supervise(connector: &OwnedFd, last: Receiver<()>) {
        let mut last = Some(last);
        let mut buffer = [0; 512];
        while let Ok((len @ 1.., _)) = recv(connector, &mut buffer[..], RecvFlags::empty()) {
            let question: Connect = serde_json::from_slice(&buffer[..len]).unwrap();
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            let accepted = match question.port {
                ECHO => {
                    thread::spawn(move || {
                        let mut back = ours.try_clone().unwrap();
                        io::copy(&mut ours, &mut back).unwrap();
                        back.shutdown(Shutdown::Write).unwrap();
                    });
                    true
                }
                LAST => {
                    let last = last.take().expect("once");
                    thread::spawn(move || {
                        let _ = last.recv();
                        drop(ours);
                    });
                    true
                }
                _ => false,
            };
            let answer = Connected {
                id: question.id,
                accepted,
            };
            let text = serde_json::to_vec(&answer).unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let fds = [theirs.as_fd()];
            if accepted {
                assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
            }
            let parts = [IoSlice::new(&text)];
            sendmsg(connector, &parts, &mut ancillary, SendFlags::empty()).unwrap();
        }
    }

    /// A connection to the guest's `port`, as any host process makes it.
    fn connect(socket: &Path, port: u32) -> UnixStream {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .unwrap();
        // Byte by byte: what follows the line is the guest's.
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            if stream.read(&mut byte).unwrap() == 0 {
                panic!("refused");
            }
            line.push(byte[0]);
        }
        let line = String::from_utf8(line).unwrap();
        assert!(line.starts_with("OK "), "{line}");
        stream
    }

    #[test]
    fn what_is_sent_arrives_whole_both_ways() {
        let bulkhead = Bulkhead::built();
        let before = Census::take();
        let scratch = Scratch::new();
        let mut data = vec![0; 1 << 20];
        File::open("/dev/urandom")
            .unwrap()
            .read_exact(&mut data)
            .unwrap();
        let sent = scratch.path().join("data");
        fs::write(&sent, &data).unwrap();
        let path = scratch.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let (connector, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let (done, last) = std::sync::mpsc::channel();
        let supervisor = thread::spawn(move || supervise(&connector, last));
        let peer = bulkhead.library("tests/vsock-peer");
        let script = format!(
            "/peer echo 52 &
/peer connect {ECHO} </data >/back
cmp /data /back && echo 'echoed whole'
/peer connect 81 </dev/null || echo 'refused'
/peer repeat {ECHO} 1000 && echo 'repeated'
/peer connect {LAST} </dev/null"
        );
        let files = [("peer", peer.as_path()), ("data", sent.as_path())];
        let initrd = with_script(&bulkhead, &scratch, &files, &script);
        let mut vmm = Vmm::linux(&bulkhead, &initrd, |description, fds| {
            description.jail = Jail::Full;
            let kind = DeviceKind::Vsock(Vsock {
                cid: 42,
                listener: fds.pass(listener),
                connector: fds.pass(theirs),
            });
            let name = "vsock".into();
            description.devices = vec![Device { name, kind }];
        });
        vmm.wait_for("echoed whole");
        vmm.wait_for("refused");
        vmm.wait_for("repeated");

        // The guest sends back while we send, and after we have ended our direction.
        let mut stream = connect(&path, 52);
        let mut out = stream.try_clone().unwrap();
        let portion = data.clone();
        let sender = thread::spawn(move || {
            out.write_all(&portion).unwrap();
            out.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        sender.join().unwrap();
        assert!(back == data, "{} bytes came back", back.len());

        // Nobody listens there.
        let mut refused = UnixStream::connect(&path).unwrap();
        refused.write_all(b"CONNECT 53\n").unwrap();
        assert_eq!(refused.read(&mut [0; 16]).unwrap(), 0);

        for number in 0..100 {
            let mut stream = connect(&path, 52);
            writeln!(stream, "{number}").unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            assert_eq!(line.trim_end(), number.to_string());
        }
        drop(done);
        let how = Ended::PowerOff;
        assert_eq!(vmm.event(), Event::Ended { how }, "{}", vmm.said());
        drop(vmm);
        supervisor.join().unwrap();
        before.expect_nothing_new();
    }
}
