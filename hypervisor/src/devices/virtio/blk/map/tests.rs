//! Maps as they are written, grown, cut and forged.

use vmm_sys_util::tempfile::TempFile;

use super::*;

const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// A disk whose bitmap takes two blocks.
const DISK: u64 = (BLOCK_CLUSTERS + 10) * CLUSTER;

fn file() -> File {
    TempFile::new().unwrap().into_file()
}

fn open(file: &File, disk: u64, base: u64) -> Result<Map, MapError> {
    Map::open(file.try_clone().unwrap(), disk, base)
}

fn set(map: &Map) -> Vec<u64> {
    let clusters = map.disk_bytes().div_ceil(CLUSTER);
    (0..clusters).filter(|c| map.run(*c, c + 1).0).collect()
}

fn flush(map: &Map) {
    map.flush(|| Ok(())).unwrap();
}

#[test]
fn what_was_flushed_is_there_and_nothing_else() {
    let file = file();
    let map = open(&file, DISK, 7).unwrap();
    flush(&map);
    assert_eq!(
        length(&file).unwrap(),
        0,
        "without bits, nothing is written"
    );
    map.set(0, 2);
    map.set(BLOCK_CLUSTERS + 3, BLOCK_CLUSTERS + 4);
    assert!(map.is_dirty());
    assert!(set(&open(&file, DISK, 7).unwrap()).is_empty());
    flush(&map);
    assert!(!map.is_dirty());
    map.set(9, 10);
    let reopened = open(&file, DISK, 7).unwrap();
    assert_eq!(set(&reopened), [0, 1, BLOCK_CLUSTERS + 3]);
    assert_eq!(reopened.run(0, 100), (true, 2));
    assert_eq!(reopened.run(2, 100), (false, 98));
}

#[test]
fn bits_set_during_a_flush_wait_for_the_next() {
    let file = file();
    let map = open(&file, DISK, 0).unwrap();
    map.set(1, 2);
    let sync = || {
        map.set(2, 3);
        Ok(())
    };
    map.flush(sync).unwrap();
    assert_eq!(set(&open(&file, DISK, 0).unwrap()), [1]);
    flush(&map);
    assert_eq!(set(&open(&file, DISK, 0).unwrap()), [1, 2]);
}

#[test]
fn a_flush_that_fails_is_tried_again() {
    let file = file();
    let map = open(&file, DISK, 0).unwrap();
    map.set(1, 2);
    let failed = map.flush(|| Err(io::ErrorKind::StorageFull.into()));
    assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(length(&file).unwrap(), 0, "data comes first");
    flush(&map);
    assert_eq!(set(&open(&file, DISK, 0).unwrap()), [1]);
}

#[test]
fn a_disk_may_grow_but_not_shrink() {
    let file = file();
    let map = open(&file, 3 * CLUSTER, 0).unwrap();
    map.set(2, 3);
    flush(&map);
    assert!(map.grow(CLUSTER).is_err());
    map.grow(DISK).unwrap();
    flush(&map);
    assert_eq!(
        length(&file).unwrap(),
        2 * BLOCK as u64,
        "nothing to say yet"
    );
    map.set(BLOCK_CLUSTERS, BLOCK_CLUSTERS + 1);
    flush(&map);
    let error = open(&file, 3 * CLUSTER, 0).err().unwrap();
    assert_eq!(error.code(), "overlay-top-shrunk");
    assert_eq!(set(&open(&file, DISK, 0).unwrap()), [2, BLOCK_CLUSTERS]);
    assert!(map.grow(u64::MAX).is_err());
    assert_eq!(map.disk_bytes(), DISK);
    // Grown while nobody looked.
    let map = open(&file, 2 * DISK, 0).unwrap();
    assert_eq!(set(&map), [2, BLOCK_CLUSTERS]);
}

#[test]
fn forged_maps_are_refused() {
    let good = file();
    let map = open(&good, 3 * CLUSTER, 5).unwrap();
    map.set(0, 1);
    flush(&map);
    let code = |change: &dyn Fn(&File), base| {
        let forged = file();
        let mut bytes = vec![0; length(&good).unwrap() as usize];
        good.read_exact_at(&mut bytes, 0).unwrap();
        forged.write_all_at(&bytes, 0).unwrap();
        change(&forged);
        open(&forged, 3 * CLUSTER, base).err().map(|e| e.code())
    };
    let put =
        |at: u64, bytes: &'static [u8]| move |file: &File| file.write_all_at(bytes, at).unwrap();
    let cut = |len| move |file: &File| file.set_len(len).unwrap();
    let long_disk = (1u64 << 62).to_le_bytes();
    for (change, base, want) in [
        (&cut(0) as &dyn Fn(&File), 5, None),
        (&put(0, &[]), 5, None),
        (&put(0, &[]), 6, Some("overlay-other-base")),
        (&put(0, b"QFI\xfb"), 5, Some("overlay-map-foreign")),
        (&put(8, &[2]), 5, Some("overlay-map-version")),
        (&put(12, &[11]), 5, Some("overlay-map-damaged")),
        (&put(12, &[22]), 5, Some("overlay-map-damaged")),
        (&put(12, &[255; 4]), 5, Some("overlay-map-damaged")),
        (&put(16, &[1]), 5, Some("overlay-map-damaged")),
        (&put(16, &[0; 8]), 5, Some("overlay-map-damaged")),
        (&put(32, &[1]), 5, Some("overlay-map-damaged")),
        (&put(4095, &[1]), 5, Some("overlay-map-damaged")),
        (&put(4096, &[8]), 5, Some("overlay-map-damaged")),
        (&put(4096 + 4095, &[1]), 5, Some("overlay-map-damaged")),
        (&cut(4096), 5, Some("overlay-map-damaged")),
        (&cut(8191), 5, Some("overlay-map-damaged")),
        (&cut(100), 5, Some("overlay-map-damaged")),
        (&cut(2), 5, Some("overlay-map-foreign")),
    ] {
        assert_eq!(code(change, base), want);
    }
    let refused = |file: &File| file.write_all_at(&long_disk, 16).unwrap();
    assert_eq!(code(&refused, 5), Some("overlay-top-shrunk"));
    let error = open(&file(), 1 << 62, 0).err().unwrap();
    assert_eq!(error.code(), "overlay-too-long");
}
