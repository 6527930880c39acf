//! A disk's life around its requests: resets, pauses, limits, sizes, and what its ring may do.

use super::*;

#[test]
fn a_reset_waits_for_what_is_under_way_and_answers_nothing() {
    for by in ENGINES {
        let (mut device, _) = disk(4, true, by);
        let mut rig = Rig::new(1);
        put_header(&rig, VIRTIO_BLK_T_IN, 0);
        let descriptors = [
            (HEADER, 16, NEXT, 1),
            (BUFFER, 512, NEXT | WRITE, 2),
            (STATUS, 1, WRITE, 0),
        ];
        rig.describe(0, 0, &descriptors);
        for _ in 0..SIZE {
            rig.offer(0, 0);
        }
        let _ = device.process_queue(0, &mut rig.io()).unwrap();
        assert_eq!(device.engine.in_flight(), usize::from(SIZE));
        device.reset();
        assert_eq!(device.engine.in_flight(), 0);
        rig.fill(BUFFER, &[0x55; 512]);
        let event = device.engine.event();
        let _ = device.process_backend(event, &mut rig.io()).unwrap();
        assert_eq!(
            (rig.used(0), rig.bytes(STATUS, 1)),
            (vec![], vec![UNTOUCHED])
        );
        assert_eq!(rig.bytes(BUFFER, 512), [0x55; 512]);
    }
}

#[test]
fn a_pause_completes_what_is_under_way() {
    for by in ENGINES {
        let (mut device, _) = disk(4, true, by);
        let mut rig = Rig::new(1);
        put_header(&rig, VIRTIO_BLK_T_IN, 3);
        rig.describe(0, 0, &[(HEADER, 16, NEXT, 1), (BUFFER, 513, WRITE, 0)]);
        rig.offer(0, 0);
        let _ = device.process_queue(0, &mut rig.io()).unwrap();
        device.quiesce(&mut rig.io()).unwrap();
        assert_eq!(rig.used(0), [(0, 513)]);
        assert_eq!(rig.bytes(BUFFER, 513), [vec![4; 512], vec![OK]].concat());
    }
}

#[test]
fn requests_under_way_are_bounded_whatever_the_driver_offers() {
    let (mut device, _) = disk(4, true, By::Workers);
    let mut rig = Rig::new(1);
    put_header(&rig, VIRTIO_BLK_T_FLUSH, 0);
    rig.describe(0, 0, &[(HEADER, 16, NEXT, 1), (STATUS, 1, WRITE, 0)]);
    // No worker answers while nobody reaps.
    for _ in 0..2 * MAX_IN_FLIGHT / usize::from(SIZE) {
        for _ in 0..SIZE {
            rig.offer(0, 0);
        }
        let _ = device.process_queue(0, &mut rig.io()).unwrap();
        assert!(device.engine.in_flight() <= MAX_IN_FLIGHT);
    }
    assert_eq!(device.engine.in_flight(), MAX_IN_FLIGHT);
}

#[test]
fn an_overlay_that_is_let_go_of_is_flushed() {
    let (top, map, base) = (image(8), image(0), image(8));
    let base_image = |file| description::BaseImage {
        file,
        format: description::ImageFormat::Raw,
    };
    let described = description::Block {
        overlay: Some(description::Overlay {
            map: Fd(1),
            base: vec![base_image(Fd(2))],
        }),
        ..raw(false)
    };
    let files = [&top, &map, &base];
    let mut device = build(&described, &files, By::Ring).unwrap();
    let mut rig = Rig::new(1);
    device
        .activate(rig.activation(1 << VIRTIO_BLK_F_FLUSH))
        .unwrap();
    rig.fill(BUFFER, &[0x66; 512]);
    let got = request(
        &mut device,
        &mut rig,
        VIRTIO_BLK_T_OUT,
        2,
        &[(BUFFER, 512, 0, 0)],
    );
    assert_eq!((got, map.metadata().unwrap().len()), ((OK, 1), 0));
    drop(device);
    let mut device = build(&described, &files, By::Ring).unwrap();
    let data = [(BUFFER, 1024, WRITE, 0)];
    assert_eq!(
        request(&mut device, &mut rig, VIRTIO_BLK_T_IN, 2, &data),
        (OK, 1025)
    );
    assert_eq!(rig.bytes(BUFFER, 1024), [[0x66; 512], [4; 512]].concat());
}

#[test]
fn a_rate_limit_holds_requests_back_until_its_timer() {
    // After the first request, a debt of 511 s in one case, of a millisecond in the other.
    for (per_second, goes_on) in [(1, false), (511_000, true)] {
        let bytes = Some(TokenBucket {
            per_second,
            burst: 1,
        });
        let rate = RateLimit {
            bytes,
            operations: None,
        };
        let block = description::Block { rate, ..raw(true) };
        let mut device = build(&block, &[&image(1)], By::Ring).unwrap();
        let mut rig = Rig::new(1);
        put_header(&rig, VIRTIO_BLK_T_IN, 0);
        rig.describe(0, 0, &[(HEADER, 16, NEXT, 1), (BUFFER, 513, WRITE, 0)]);
        rig.offer(0, 0);
        rig.offer(0, 0);
        settle(&mut device, &mut rig).unwrap();
        if goes_on {
            while rig.used(0).len() < 2 {
                for interest in device.interests() {
                    let _ = device.process_backend(interest.fd, &mut rig.io()).unwrap();
                }
                device.quiesce(&mut rig.io()).unwrap();
            }
        } else {
            assert_eq!(rig.used(0).len(), 1);
            assert_eq!(device.interests().len(), 2, "the timer is waited for");
            let count = |name| move |(of, _): &&(&str, u64)| *of == name;
            let throttled = device.counters();
            let throttled = throttled.iter().find(count("throttled")).unwrap();
            assert!(throttled.1 > 0);
            device.reset();
            assert_eq!(device.interests().len(), 1);
        }
    }
}

#[test]
fn a_grown_file_is_a_longer_disk() {
    let (mut device, file) = disk(4, false, By::Ring);
    let mut rig = Rig::new(1);
    let resize = Resize::Block {
        name: "root".into(),
    };
    device.resize(&resize, &mut rig.io()).unwrap();
    assert!(!rig.config_changed);
    file.set_len(8 * 512).unwrap();
    device.resize(&resize, &mut rig.io()).unwrap();
    assert!(std::mem::take(&mut rig.config_changed));
    let data = [(BUFFER, 512, WRITE, 0)];
    assert_eq!(
        request(&mut device, &mut rig, VIRTIO_BLK_T_IN, 7, &data),
        (OK, 513)
    );
    for len in [0, 513] {
        file.set_len(len).unwrap();
        let error = device.resize(&resize, &mut rig.io()).unwrap_err();
        assert_eq!(error.code(), "resize-out-of-range");
    }
    let other = Resize::Balloon { target_mib: 1 };
    let error = device.resize(&other, &mut rig.io()).unwrap_err();
    assert_eq!(error.code(), "resize-unsupported");
}

#[test]
fn a_ring_does_nothing_but_its_disks_work() {
    let (allowed, other) = (image(1), image(1));
    let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    let mut ring = match ring::Ring::new(&[allowed.as_raw_fd()], event.as_raw_fd()) {
        Ok(ring) => ring.into_inner(),
        Err(error) => {
            eprintln!("skipped: this host refuses io_uring: {error}");
            return;
        }
    };
    let fixed = io_uring::types::Fixed(0);
    let foreign = io_uring::types::Fd(other.as_raw_fd());
    use io_uring::opcode::*;
    let mut byte = [0u8; 1];
    let mut iovec = [libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    }];
    for (entry, answer) in [
        (Readv::new(fixed, iovec.as_mut_ptr(), 1).build(), 1),
        (
            Readv::new(foreign, iovec.as_mut_ptr(), 1).build(),
            -libc::EACCES,
        ),
        (
            Read::new(fixed, byte.as_mut_ptr(), 1).build(),
            -libc::EACCES,
        ),
        (Nop::new().build(), -libc::EACCES),
        (Close::new(foreign).build(), -libc::EACCES),
        (
            Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            -libc::EACCES,
        ),
    ] {
        // SAFETY: buffers live to the end of the test, and each entry is waited for.
        unsafe { ring.submission().push(&entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        assert_eq!(
            ring.completion().next().unwrap().result(),
            answer,
            "{entry:?}"
        );
    }
    let late = ring
        .submitter()
        .register_files_update(0, &[other.as_raw_fd()]);
    assert_eq!(late.unwrap_err().raw_os_error(), Some(libc::EACCES));
}
