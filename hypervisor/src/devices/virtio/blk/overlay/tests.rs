//! Disks against a model: whatever is written, flushed, reopened and lost, the disk is what the
//! model says, and its base is what it was.

use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::LazyLock;

use bulkhead_machine::device::ImageFormat;
use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert, prop_oneof, proptest};
use proptest::test_runner::Config;
use vmm_sys_util::tempdir::TempDir;
use vmm_sys_util::tempfile::TempFile;

use super::super::disk::{Disk, Files};
use super::*;

const SECTOR: u64 = 512;
/// Three clusters and part of a fourth.
const SECTORS: u64 = 3 * 128 + 77;
/// What the base is shorter by.
const SHORT: u64 = 100;

#[derive(Clone, Copy, Debug)]
enum Action {
    Write(u8),
    Read,
    Zero(bool),
    Discard,
    Flush,
    Reopen,
    /// Lose what was not flushed, as far as that can be lost: the map.
    Crash,
}

/// An action, and sectors `.0..` of it.
type Step = (Action, u64, u64);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let action = prop_oneof![
        6 => any::<u8>().prop_map(Action::Write),
        4 => proptest::prelude::Just(Action::Read),
        2 => any::<bool>().prop_map(Action::Zero),
        2 => proptest::prelude::Just(Action::Discard),
        2 => proptest::prelude::Just(Action::Flush),
        1 => proptest::prelude::Just(Action::Reopen),
        1 => proptest::prelude::Just(Action::Crash),
    ];
    let len = prop_oneof![1u64..20, 100u64..SECTORS];
    vec((action, 0..SECTORS, len), 1..40)
}

fn contents() -> Vec<u8> {
    let sector = |n: u64| [(n % 251) as u8 + 1; SECTOR as usize];
    (0..SECTORS - SHORT).flat_map(sector).collect()
}

fn temporary(bytes: &[u8]) -> File {
    let file = TempFile::new().unwrap().into_file();
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// A disk with its files.
struct Rig {
    top: File,
    map: Option<File>,
    base: Vec<(File, ImageFormat)>,
    disk: Option<Disk>,
}

impl Rig {
    fn new(base: Option<Vec<(File, ImageFormat)>>) -> Self {
        let top = temporary(&[]);
        top.set_len(SECTORS * SECTOR).unwrap();
        let mut rig = Self {
            top,
            map: base.is_some().then(|| temporary(&[])),
            base: base.unwrap_or_default(),
            disk: None,
        };
        rig.open();
        rig
    }

    fn open(&mut self) {
        let overlay = self.map.as_ref().map(|map| {
            let base = self.base.iter();
            let base = base.map(|(file, format)| (file.try_clone().unwrap(), *format));
            (map.try_clone().unwrap(), base.collect())
        });
        let files = Files {
            file: self.top.try_clone().unwrap(),
            overlay,
        };
        self.disk = Some(Disk::new("disk", files, false).unwrap());
    }

    /// Brings the files back to where the last flush left the map, with the top as it is now.
    fn crash(&mut self) {
        // What memory knows of the map is lost.
        self.disk = None;
        self.open();
    }

    fn run(&self, operation: Operation, buffer: &mut [u8]) {
        let (head, tail) = buffer.split_at_mut(buffer.len() / 3);
        let slices = [VolatileSlice::from(head), VolatileSlice::from(tail)];
        let disk = self.disk.as_ref().unwrap();
        disk.execute(operation, &slices).unwrap();
    }
}

fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Each sector of the disk: what it may hold.
type Model = Vec<Vec<u8>>;

/// Runs `steps` on `rig`, whose disk holds `start`.
fn check(mut rig: Rig, start: &[u8], steps: &[Step]) {
    let bases: Vec<_> = rig.base.iter().map(|(file, _)| bytes_of(file)).collect();
    let (sectors, _) = start.as_chunks::<512>();
    let mut now: Model = sectors.iter().map(|sector| vec![sector[0]]).collect();
    // What each sector may be after a crash: one of what it was at and since the last flush.
    let mut durable = now.clone();
    for (action, first, len) in steps {
        let (first, end) = (*first as usize, (first + len).min(SECTORS) as usize);
        let (offset, len) = (first as u64 * SECTOR, (end - first) as u64 * SECTOR);
        let mut buffer = vec![0xee; len as usize];
        match *action {
            Action::Write(value) => {
                buffer.fill(value);
                rig.run(Operation::Write { offset, len }, &mut buffer);
                now[first..end].fill(vec![value]);
            }
            Action::Zero(unmap) => {
                rig.run(Operation::WriteZeroes { offset, len, unmap }, &mut []);
                now[first..end].fill(vec![0]);
            }
            Action::Discard => {
                rig.run(Operation::Discard { offset, len }, &mut []);
                now[first..end].iter_mut().for_each(|may| may.push(0));
            }
            Action::Read => {
                rig.run(Operation::Read { offset, len }, &mut buffer);
                for (sector, may) in buffer.chunks(512).zip(&mut now[first..end]) {
                    assert!(sector.iter().all(|byte| *byte == sector[0]));
                    assert!(may.contains(&sector[0]), "{} of {may:?}", sector[0]);
                    *may = vec![sector[0]];
                }
            }
            Action::Flush => rig.run(Operation::Flush, &mut []),
            Action::Reopen => {
                rig.run(Operation::Flush, &mut []);
                rig.disk = None;
                rig.open();
            }
            Action::Crash => {
                rig.crash();
                now.clone_from(&durable);
            }
        }
        match action {
            Action::Flush | Action::Reopen => durable.clone_from(&now),
            Action::Crash | Action::Read => {}
            _ => {
                for (may, now) in durable.iter_mut().zip(&now) {
                    may.extend(now);
                    may.sort_unstable();
                    may.dedup();
                }
            }
        }
    }
    let after: Vec<_> = rig.base.iter().map(|(file, _)| bytes_of(file)).collect();
    assert!(bases == after, "a base does not change");
}

/// The disk's bytes at the start, over [`contents`].
fn full() -> Vec<u8> {
    let mut bytes = contents();
    bytes.resize((SECTORS * SECTOR) as usize, 0);
    bytes
}

/// An image by its name, and the files of its chain.
type Named = (&'static str, Vec<(File, ImageFormat)>);

/// A raw base, and images that `qemu-img` makes of it; empty without that tool.
fn images() -> Vec<Named> {
    static IMAGES: LazyLock<Vec<Named>> = LazyLock::new(make_images);
    let clone = |(name, base): &Named| (*name, clone(base));
    IMAGES.iter().map(clone).collect()
}

fn make_images() -> Vec<Named> {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.as_path().join(name);
    std::fs::write(path("raw"), contents()).unwrap();
    let qemu_img = |arguments: &[&str]| {
        let mut command = Command::new("qemu-img");
        let output = command
            .args(arguments)
            .current_dir(directory.as_path())
            .output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {text}");
        Ok::<_, io::Error>(())
    };
    let convert = |options: &[&str], name: &str| {
        let all = [
            &["convert", "-f", "raw", "-O", "qcow2"],
            options,
            &["raw", name],
        ]
        .concat();
        qemu_img(&all)
    };
    if let Err(error) = convert(&[], "plain") {
        assert!(std::env::var_os("CI").is_none(), "qemu-img: {error}");
        eprintln!("skipped: qemu-img (package qemu-utils): {error}");
        return Vec::new();
    }
    convert(&["-o", "compat=0.10,cluster_size=512"], "old").unwrap();
    convert(&["-c"], "deflate").unwrap();
    convert(
        &["-c", "-o", "compression_type=zstd,cluster_size=4096"],
        "zstd",
    )
    .unwrap();
    // A chain: the upper image has the last cluster's worth of sectors, and zeroes over the first.
    let create = [
        "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "plain", "upper",
    ];
    qemu_img(&create).unwrap();
    let file = |name: &str| File::open(path(name)).unwrap();
    let qcow2 = |names: &[&str]| {
        let image = |name: &&str| (file(name), ImageFormat::Qcow2);
        names.iter().map(image).collect::<Vec<_>>()
    };
    vec![
        ("raw", vec![(file("raw"), ImageFormat::Raw)]),
        ("plain", qcow2(&["plain"])),
        ("old", qcow2(&["old"])),
        ("deflate", qcow2(&["deflate"])),
        ("zstd", qcow2(&["zstd"])),
        ("chain", qcow2(&["upper", "plain"])),
    ]
}

fn clone(base: &[(File, ImageFormat)]) -> Vec<(File, ImageFormat)> {
    let clone = |(file, format): &(File, ImageFormat)| (file.try_clone().unwrap(), *format);
    base.iter().map(clone).collect()
}

#[test]
fn qemus_images_show_through() {
    for (name, base) in images() {
        let rig = Rig::new(Some(base));
        let mut bytes = vec![0xee; (SECTORS * SECTOR) as usize];
        let len = bytes.len() as u64;
        rig.run(Operation::Read { offset: 0, len }, &mut bytes);
        assert!(bytes == full(), "{name}");
        let mut part = [0xee; 1536];
        let offset = 131 * SECTOR;
        rig.run(Operation::Read { offset, len: 1536 }, &mut part);
        assert_eq!(part, full()[offset as usize..][..1536], "{name}");
    }
}

#[test]
fn a_discarded_cluster_does_not_show_its_base_again() {
    let base = temporary(&contents());
    let mut rig = Rig::new(Some(vec![(base, ImageFormat::Raw)]));
    let (offset, len) = (0, 65536);
    rig.run(Operation::Write { offset, len }, &mut vec![9; 65536]);
    rig.run(
        Operation::Discard {
            offset,
            len: 2 * len,
        },
        &mut [],
    );
    rig.run(Operation::Flush, &mut []);
    for _ in 0..2 {
        let mut bytes = vec![1; 2 * 65536];
        rig.run(
            Operation::Read {
                offset,
                len: 2 * len,
            },
            &mut bytes,
        );
        assert!(bytes.iter().all(|byte| *byte == 0));
        rig.crash();
    }
}

#[test]
fn a_wrong_chain_is_refused() {
    let (raw, qcow2) = (ImageFormat::Raw, ImageFormat::Qcow2);
    let code = |images: Vec<(File, ImageFormat)>| {
        Base::open(images)
            .err()
            .map(|(index, error)| (index, error.code()))
    };
    let file = || temporary(&contents());
    assert_eq!(code(vec![]), Some((0, "overlay-bases")));
    assert_eq!(
        code((0..33).map(|_| (file(), raw)).collect()),
        Some((0, "overlay-bases"))
    );
    assert_eq!(
        code(vec![(file(), raw), (file(), raw)]),
        Some((0, "overlay-bases"))
    );
    assert_eq!(code(vec![(file(), qcow2)]), Some((0, "qcow2-format")));
    for (name, mut base) in images() {
        match name {
            "chain" => {
                base.truncate(1);
                assert_eq!(code(base), Some((0, "overlay-base-missing")));
            }
            "plain" => {
                base.push((file(), raw));
                assert_eq!(code(base), Some((0, "overlay-bases")));
            }
            _ => {}
        }
    }
}

#[test]
fn one_transfer_does_what_it_can() {
    let base = temporary(&contents());
    let rig = Rig::new(Some(vec![(base, ImageFormat::Raw)]));
    let (offset, len) = (0, 65536);
    let disk = rig.disk.as_ref().unwrap();
    let read = |offset, len| {
        let route = disk.route(Operation::Read { offset, len }, &[]);
        route.map(|(file, _)| file)
    };
    let write = |len| {
        disk.route(Operation::Write { offset, len }, &[])
            .map(|(f, _)| f)
    };
    assert_eq!((read(0, len), write(len)), (Some(1), None), "base");
    rig.run(Operation::Write { offset, len }, &mut vec![9; 65536]);
    assert_eq!((read(0, len), write(len)), (Some(0), Some(0)), "top");
    assert_eq!((read(512, len), write(len + 512)), (None, None), "both");
    let end = (SECTORS - SHORT) * SECTOR;
    assert_eq!(read(end - 512, 512), Some(1));
    assert_eq!(read(end - 512, 1024), None, "behind the base's end");
    assert_eq!(disk.route(Operation::Flush, &[]), None);
}

#[test]
fn a_longer_top_is_a_longer_disk() {
    let base = temporary(&contents());
    let mut rig = Rig::new(Some(vec![(base, ImageFormat::Raw)]));
    let bytes = (SECTORS + 1000) * SECTOR;
    rig.top.set_len(bytes).unwrap();
    assert_eq!(rig.disk.as_ref().unwrap().resize().unwrap(), bytes);
    let offset = (SECTORS + 900) * SECTOR;
    rig.run(Operation::Write { offset, len: 512 }, &mut [7; 512]);
    rig.run(Operation::Flush, &mut []);
    rig.crash();
    let mut sectors = [1; 1024];
    let before = offset - 512;
    rig.run(
        Operation::Read {
            offset: before,
            len: 1024,
        },
        &mut sectors,
    );
    assert_eq!(sectors, *[[0; 512], [7; 512]].as_flattened());
    rig.top.set_len(bytes - 512).unwrap();
    assert!(rig.disk.as_ref().unwrap().resize().is_err());
}

#[test]
fn writers_of_one_cluster_take_turns() {
    let base = temporary(&contents());
    let rig = Rig::new(Some(vec![(base, ImageFormat::Raw)]));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let rig = &rig;
            scope.spawn(move || {
                for sector in (thread..SECTORS).step_by(4) {
                    let offset = sector * SECTOR;
                    rig.run(Operation::Write { offset, len: 512 }, &mut [0xc3; 512]);
                }
            });
        }
    });
    let mut bytes = vec![0; (SECTORS * SECTOR) as usize];
    let len = bytes.len() as u64;
    rig.run(Operation::Read { offset: 0, len }, &mut bytes);
    assert!(bytes.iter().all(|byte| *byte == 0xc3));
}

proptest! {
    #![proptest_config(Config { cases: 32, ..Config::default() })]

    #[test]
    fn a_raw_disk_is_its_model(steps in steps()) {
        check(Rig::new(None), &vec![0; (SECTORS * SECTOR) as usize], &steps);
    }

    #[test]
    fn an_overlay_is_its_model(steps in steps()) {
        let base = temporary(&contents());
        check(Rig::new(Some(vec![(base, ImageFormat::Raw)])), &full(), &steps);
    }

    #[test]
    fn an_overlay_over_qcow2_is_its_model(steps in vec(steps(), 6)) {
        for ((name, base), steps) in images().iter().zip(&steps) {
            prop_assert!(!name.is_empty());
            check(Rig::new(Some(clone(base))), &full(), steps);
        }
    }
}
