//! A hostile driver of virtio-console, over pipes with something to read and one
//! nobody reads, with or without ports.
#![no_main]

mod driver;

use std::fs::File;
use std::io::{Write, pipe};

use driver::{Script, drive};
use hypervisor::devices::virtio::console::Console;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let (input, mut typed) = pipe().expect("pipe");
    let (_unread, output) = pipe().expect("pipe");
    let len = usize::from(script.byte());
    typed.write_all(&vec![b'x'; len * 16]).expect("write");
    let shape = script.byte();
    let mut console = Console::new(Some(input.into()), output.into(), shape & 1 != 0);
    for name in ["agent", "log"].iter().take(usize::from(shape >> 6)) {
        let (input, mut typed) = pipe().expect("pipe");
        typed.write_all(&[b'y'; 100]).expect("write");
        let null = File::options()
            .write(true)
            .open("/dev/null")
            .expect("/dev/null");
        console.add_port((*name).into(), Some(input.into()), null.into());
    }
    drive(Box::new(console), script);
});
