//! The vhost-user front end against a back end that somebody else wrote: the block export of
//! Debian's `qemu-storage-daemon`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod driver;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use bulkhead_machine::Fd;
use bulkhead_machine::device::{VhostUser as Described, VhostUserDevice};
use driver::Driver;
use hypervisor::devices::virtio::vhost_user::VhostUser;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

const DAEMON: &str = "qemu-storage-daemon";
const SECTORS: u64 = 2048;
const DRIVER_OK: u32 = 4;
const NEEDS_RESET: u32 = 64;

fn main() -> ExitCode {
    let trials = vec![
        Trial::ignorable_test("a disk of qemu-storage-daemon", || with_daemon(disk)),
        Trial::ignorable_test("qemu-storage-daemon dies", || with_daemon(death)),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs `test` with a disk image, the daemon that exports it, and a front end.
fn with_daemon(test: impl FnOnce(&Path, &mut Child, Driver)) -> Result<Completion, Failed> {
    let installed = Command::new(DAEMON)
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if installed.is_err() {
        let why = "qemu-storage-daemon is not installed";
        if std::env::var_os("CI").is_some() {
            return Err(why.into());
        }
        return Ok(Completion::ignored_with(why));
    }
    let scratch = vmm_sys_util::tempdir::TempDir::new().unwrap();
    let image = scratch.as_path().join("disk");
    let contents: Vec<u8> = (0..SECTORS * 512).map(|n| (n / 512) as u8).collect();
    fs::write(&image, contents).unwrap();
    let socket = scratch.as_path().join("socket");
    let (image_name, socket_name) = (image.display(), socket.display());
    let mut daemon = Command::new(DAEMON)
        .args([
            "--blockdev",
            &format!("driver=file,node-name=disk,filename={image_name}"),
        ])
        .args([
            "--export",
            &format!(
                "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=2,\
             addr.type=unix,addr.path={socket_name}"
            ),
        ])
        .spawn()
        .unwrap();
    let began = Instant::now();
    let stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(_) if began.elapsed() < Duration::from_secs(20) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => panic!("{DAEMON} does not listen: {error}"),
        }
    };
    let described = Described {
        socket: Fd(-1),
        device: VhostUserDevice::Block { queues: 2 },
        queue_size: 64,
    };
    let device = VhostUser::new(&described, stream.into()).unwrap();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        test(&image, &mut daemon, Driver::new(Box::new(device), 2));
    }));
    let _ = daemon.kill();
    let _ = daemon.wait();
    match outcome {
        Ok(()) => Ok(Completion::Completed),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The head of a request: type, and sector.
fn head(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn disk(image: &Path, _: &mut Child, mut driver: Driver) {
    let mut config = [0; 36];
    driver.transport.read(0x100, &mut config);
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[34..36], [2, 0]);
    // Twice: the second time after a reset.
    for round in 0..2u8 {
        assert_eq!(driver.bring_up() & (DRIVER_OK | NEEDS_RESET), DRIVER_OK);
        for queue in [0, 1] {
            let read = driver
                .request(queue, &head(0, 300), &[512, 512, 1])
                .unwrap();
            let expected = [[44; 512], [45; 512]].concat();
            assert_eq!(read, [&expected[..], &[0]].concat());
            let data = [7 + round + queue as u8; 512];
            let write = [&head(1, 10 + queue as u64), &data[..]].concat();
            assert_eq!(driver.request(queue, &write, &[1]).unwrap(), [0]);
            assert_eq!(driver.request(queue, &head(4, 0), &[1]).unwrap(), [0]);
            let at = (10 + queue) * 512;
            assert_eq!(fs::read(image).unwrap()[at..at + 512], data);
        }
        // Behind the end.
        let error = driver.request(0, &head(0, SECTORS), &[512, 1]).unwrap();
        assert_eq!(error.last(), Some(&1));
    }
    let counters = driver.transport.transport().counters();
    assert!(
        counters
            .iter()
            .any(|(name, count)| *name == "interrupts" && *count >= 14)
    );
    assert!(counters.contains(&("backend_failures", 0)));
}

fn death(_: &Path, daemon: &mut Child, mut driver: Driver) {
    driver.bring_up();
    driver.request(0, &head(0, 0), &[512, 1]).unwrap();
    daemon.kill().unwrap();
    assert!(driver.wait(|driver| driver.status() & NEEDS_RESET != 0));
    assert!(
        driver.transport.interrupt().status() & 2 != 0,
        "the driver is told"
    );
    let counters = driver.transport.transport().counters();
    assert!(counters.contains(&("backend_failures", 1)));
    // It can be reset, and stays broken.
    assert_ne!(driver.bring_up() & NEEDS_RESET, 0);
}
