//! Promise: a guest's network interface carries its frames whole, to a tap of the host and to a
//! user-mode network process, and the guest learns when that is gone.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod tap;

mod lab {
    use std::fs::{self, File};
    use std::os::fd::OwnedFd;
    use std::path::Path;
    use std::process::{Child, Command};
    use std::thread;

    use bulkhead_machine::Jail;
    use bulkhead_machine::control::{Ended, Event};
    use bulkhead_machine::device::{Device, DeviceKind, Net, NetBackend, RateLimit};
    use bulkhead_tests::bulkhead::Bulkhead;
    use bulkhead_tests::initramfs::with_script;
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;
    use bulkhead_tests::vmm::Vmm;
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
    };

    use super::tap::{self, ip};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn run(command: &mut Command) -> String {
        let output = command.output().expect("the lab has this tool");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{command:?}: {output:?}");
        text
    }

    fn sha256(path: &Path) -> String {
        let text = run(Command::new("sha256sum").arg(path));
        text.split(' ').next().unwrap().to_owned()
    }

    fn random(path: &Path, bytes: u64) {
        let mut file = File::create(path).unwrap();
        let mut source = std::io::Read::take(File::open("/dev/urandom").unwrap(), bytes);
        std::io::copy(&mut source, &mut file).unwrap();
    }

    fn powers_off(mut vmm: Vmm) {
        let how = Ended::PowerOff;
        assert_eq!(vmm.event(), Event::Ended { how }, "{}", vmm.said());
    }

    fn net(backend: NetBackend, queue_pairs: u16) -> Vec<Device> {
        let kind = DeviceKind::Net(Net {
            backend,
            mac: MAC,
            mtu: None,
            queue_pairs,
            receive_rate: RateLimit::default(),
            transmit_rate: RateLimit::default(),
        });
        let name = "eth".into();
        vec![Device { name, kind }]
    }

    /// A server of files, ended with the test.
    struct Server(Child);

    impl Server {
        fn of(address: &str, directory: &Path) -> Self {
            let mut command = Command::new("httpd");
            let command = command.args(["-f", "-p", address, "-h"]).arg(directory);
            Self(command.spawn().expect("the lab has httpd"))
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn files_cross_a_tap(name: &str, net_id: u8, queue_pairs: u16) {
        let bulkhead = Bulkhead::built();
        let scratch = Scratch::new();
        let (host, guest) = (format!("10.9.{net_id}.1"), format!("10.9.{net_id}.2"));
        let shared = scratch.path().join("shared");
        fs::create_dir(&shared).unwrap();
        random(&shared.join("file"), 3 << 20);
        let script = format!(
            "ip link set lo up
ip address add {guest}/24 dev eth0
ip link set eth0 up
wget -q -O /got http://{host}:8080/file
echo \"fetched: $(sha256sum </got)\"
dd if=/dev/urandom of=/www/own bs=1M count=3 2>/dev/null
echo \"made: $(sha256sum </www/own)\"
httpd -p 80 -h /www
echo serving
until wget -q -O /dev/null http://{host}:8080/done; do sleep 1; done"
        );
        let initrd = with_script(&bulkhead, &scratch, &[], &script);
        let mut vmm = Vmm::linux(&bulkhead, &initrd, |description, fds| {
            description.jail = Jail::Full;
            let taps: Vec<_> = (0..queue_pairs).map(|_| tap::queue(name)).collect();
            ip(&format!("address add {host}/24 dev {name}"));
            ip(&format!("link set {name} up"));
            let queues = taps.into_iter().map(|tap| fds.pass(tap)).collect();
            description.devices = net(NetBackend::Tap { queues }, queue_pairs);
        });
        let _server = Server::of(&format!("{host}:8080"), &shared);
        let got = vmm.wait_for("fetched: ");
        assert!(got.contains(&sha256(&shared.join("file"))), "{got}");
        let own = vmm.wait_for("made: ");
        vmm.wait_for("serving");
        let fetched = scratch.path().join("fetched");
        let url = format!("http://{guest}/own");
        run(Command::new("wget")
            .args(["-q", "-O"])
            .arg(&fetched)
            .arg(url));
        assert!(own.contains(&sha256(&fetched)), "{own}");
        fs::write(shared.join("done"), "").unwrap();
        powers_off(vmm);
    }

    #[test]
    fn files_cross_a_tap_both_ways() {
        let before = Census::take();
        files_cross_a_tap("lab-tap1", 1, 1);
        before.expect_nothing_new();
    }

    #[test]
    fn files_cross_a_tap_with_two_queues_both_ways() {
        let before = Census::take();
        files_cross_a_tap("lab-tap2", 2, 2);
        before.expect_nothing_new();
    }

    /// A network of one host that answers ARP (RFC 826) and echo requests (RFC 792); ends after
    /// `count` echoes.
    fn answer(socket: &OwnedFd, count: usize) {
        let mut echoed = 0;
        let mut buffer = vec![0; 70_000];
        while echoed < count {
            let (len, _) = recv(socket, &mut buffer[..], RecvFlags::empty()).unwrap();
            assert!(len >= 14, "a frame, or the guest's end");
            let mut frame = buffer[..len].to_vec();
            assert_eq!(frame[6..12], MAC);
            let is_arp = frame[12..14] == [8, 6] && frame[20..22] == [0, 1];
            let is_echo = frame[12..14] == [8, 0] && frame[23] == 1 && frame[34] == 8;
            frame.copy_within(6..12, 0);
            frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
            if is_arp {
                frame[21] = 2;
                let (sender, target) = (frame[22..32].to_vec(), frame[38..42].to_vec());
                frame[22..28].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
                frame[28..32].copy_from_slice(&target);
                frame[32..42].copy_from_slice(&sender);
            } else if is_echo {
                let (from, to) = (frame[26..30].to_vec(), frame[30..34].to_vec());
                frame[26..30].copy_from_slice(&to);
                frame[30..34].copy_from_slice(&from);
                frame[34] = 0;
                // A request's checksum, with 8 less in its first word.
                let sum = u16::from_be_bytes([frame[36], frame[37]]);
                let (sum, carry) = sum.overflowing_add(0x800);
                frame[36..38].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
                echoed += 1;
            } else {
                continue;
            }
            send(socket, &frame, SendFlags::NOSIGNAL).unwrap();
        }
    }

    #[test]
    fn a_process_is_the_network_until_it_ends() {
        let bulkhead = Bulkhead::built();
        let before = Census::take();
        let scratch = Scratch::new();
        let script = "ip address add 192.0.2.2/24 dev eth0
ip link set eth0 up
echo \"carrier $(cat /sys/class/net/eth0/carrier)\"
ping -c 2 192.0.2.1 && ping -c 2 -s 1472 192.0.2.1 && echo 'all echoed'
while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do usleep 100000; done
echo 'carrier lost'
ping -c 1 -W 1 192.0.2.1 || echo 'nobody there'";
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let initrd = with_script(&bulkhead, &scratch, &[], script);
        let mut vmm = Vmm::linux(&bulkhead, &initrd, |description, fds| {
            description.jail = Jail::Full;
            let socket = fds.pass(theirs);
            description.devices = net(NetBackend::Socket { socket }, 1);
        });
        let network = thread::spawn(move || {
            answer(&ours, 4);
            ours
        });
        vmm.wait_for("carrier 1");
        vmm.wait_for("all echoed");
        drop(network.join().unwrap());
        vmm.wait_for("carrier lost");
        vmm.wait_for("nobody there");
        powers_off(vmm);
        before.expect_nothing_new();
    }
}
