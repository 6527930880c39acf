//! Images made by hand, right and wrong. Those that `qemu-img` makes are read by the tests of
//! overlays.

use vmm_sys_util::tempfile::TempFile;

use super::*;

const CLUSTER: u64 = 65536;

/// The smallest image: header, first-level table, one second-level table, then data.
struct Image(Vec<u8>);

impl Image {
    /// A disk of `bytes` in version `version`.
    fn new(version: u32, bytes: u64) -> Self {
        let mut image = Self(vec![0; 4 * CLUSTER as usize]);
        image.word(0, MAGIC);
        image.word(4, version);
        image.word(20, 16);
        image.long(24, bytes);
        image.word(36, 1);
        image.long(40, CLUSTER);
        if version == 3 {
            image.word(100, 112);
        }
        image.long(CLUSTER as usize, (2 * CLUSTER) | (1 << 63));
        image
    }

    fn word(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    fn long(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    /// Sets the second-level entry of a cluster.
    fn entry(&mut self, cluster: usize, value: u64) {
        self.long(2 * CLUSTER as usize + 8 * cluster, value);
    }

    fn open(&self) -> Result<Qcow2, Qcow2Error> {
        let file = TempFile::new().unwrap().into_file();
        file.write_all_at(&self.0, 0).unwrap();
        Qcow2::open(file)
    }
}

#[test]
fn clusters_are_found() {
    for version in [2, 3] {
        let mut image = Image::new(version, 6 * CLUSTER);
        image.entry(1, (3 * CLUSTER) | (1 << 63));
        image.entry(2, (4 * CLUSTER) | (1 << 63));
        image.entry(3, ZERO);
        image.entry(4, COMPRESSED | (3 << 54) | 0x1234);
        let image = image.open().unwrap();
        let map = |at, len| image.map(at, len).unwrap();
        assert_eq!(map(5, 100), (Mapping::Below, 100));
        assert_eq!(map(0, 2 * CLUSTER), (Mapping::Below, CLUSTER));
        let data = Mapping::Data {
            host: 3 * CLUSTER + 7,
        };
        assert_eq!(map(CLUSTER + 7, 10 * CLUSTER), (data, 2 * CLUSTER - 7));
        let zero = if version == 3 {
            Mapping::Zero
        } else {
            Mapping::Below
        };
        assert_eq!(map(3 * CLUSTER, CLUSTER), (zero, CLUSTER));
        let place = Place {
            host: 0x1234,
            len: 4 * 512 - 0x34,
        };
        let compressed = (Mapping::Compressed(place), CLUSTER - 1);
        assert_eq!(map(4 * CLUSTER + 1, 2 * CLUSTER), compressed);
        assert_eq!(map(5 * CLUSTER, CLUSTER), (Mapping::Below, CLUSTER));
    }
}

#[test]
fn headers_are_checked() {
    let code = |version, change: &dyn Fn(&mut Image)| {
        let mut image = Image::new(version, CLUSTER);
        change(&mut image);
        image.open().err().map(|error| error.code())
    };
    type Change = fn(&mut Image);
    let cases: [(u32, Change, Option<&str>); 21] = [
        (2, |_| {}, None),
        (3, |_| {}, None),
        (3, |i| i.long(72, DIRTY), None),
        (3, |i| i.long(80, u64::MAX), None),
        (2, |i| i.word(0, 0), Some("qcow2-format")),
        (2, |i| i.word(4, 1), Some("qcow2-format")),
        (2, |i| i.word(4, 4), Some("qcow2-format")),
        (2, |i| i.0.truncate(71), Some("qcow2-format")),
        (3, |i| i.long(72, CORRUPT), Some("qcow2-damaged")),
        (3, |i| i.long(72, EXTERNAL_DATA), Some("qcow2-unsupported")),
        (3, |i| i.long(72, EXTENDED_L2), Some("qcow2-unsupported")),
        (
            3,
            |i| i.long(72, COMPRESSION_TYPE),
            Some("qcow2-unsupported"),
        ),
        (3, |i| i.long(72, 1 << 5), Some("qcow2-unsupported")),
        (3, |i| i.long(72, 1 << 63), Some("qcow2-unsupported")),
        (2, |i| i.word(32, 1), Some("qcow2-unsupported")),
        (2, |i| i.word(20, 8), Some("qcow2-damaged")),
        (2, |i| i.word(20, u32::MAX), Some("qcow2-damaged")),
        (2, |i| i.long(24, u64::MAX), Some("qcow2-damaged")),
        (2, |i| i.long(24, 1 << 50), Some("qcow2-unsupported")),
        (2, |i| i.word(36, 0), Some("qcow2-damaged")),
        (2, |i| i.long(40, 1 << 40), Some("qcow2-damaged")),
    ];
    for (index, (version, change, want)) in cases.into_iter().enumerate() {
        assert_eq!(code(version, &change), want, "case {index}");
    }
}

#[test]
fn wrong_positions_are_errors_of_the_read() {
    let mut image = Image::new(3, 4 * CLUSTER);
    image.entry(0, 3 * CLUSTER + 512);
    image.entry(1, COMPRESSED | ((1 << 54) - 1));
    image.entry(2, COMPRESSED | (3 * CLUSTER));
    let opened = image.open().unwrap();
    assert!(opened.map(0, 512).is_err());
    let mut buffer = [1; 512];
    for cluster in [1, 2] {
        let (mapping, _) = opened.map(cluster * CLUSTER, 512).unwrap();
        let Mapping::Compressed(place) = mapping else {
            panic!("{mapping:?}");
        };
        let slice = VolatileSlice::from(&mut buffer[..]);
        let read = opened.read_compressed(place, cluster * CLUSTER, &[slice]);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
    for table in [2 * CLUSTER + 512, 1 << 50] {
        image.long(CLUSTER as usize, table);
        assert!(image.open().unwrap().map(0, 512).is_err());
    }
    image.long(CLUSTER as usize, 0);
    assert_eq!(
        image.open().unwrap().map(0, 512).unwrap(),
        (Mapping::Below, 512)
    );
}

#[test]
fn a_cluster_behind_the_file_is_zeroes() {
    let mut image = Image::new(3, CLUSTER);
    image.entry(0, 3 * CLUSTER);
    image.0.truncate(3 * CLUSTER as usize + 10);
    image.0[3 * CLUSTER as usize..].fill(9);
    let image = image.open().unwrap();
    let mut buffer = [1; 20];
    let slice = VolatileSlice::from(&mut buffer[..]);
    image.read_data(3 * CLUSTER, &[slice]).unwrap();
    assert_eq!(buffer, *[[9; 10], [0; 10]].as_flattened());
}
