//! A hostile driver of virtio-console, over a pipe with something to read and one nobody reads.
#![no_main]

mod driver;

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
    drive(Box::new(Console::new(Some(input.into()), output.into(), false)), script);
});
