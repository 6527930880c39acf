//! The little of GDB's remote protocol that counting needs, as its client
//! (<https://sourceware.org/gdb/current/onlinedocs/gdb.html/Remote-Protocol.html>).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use crate::error::Error;

/// How long an answer may take before the benchmark gives up. The lab is slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a byte behind `*` is above the number of repetitions.
const REPEATED: u8 = 29;
/// One step of the one vCPU, and all of them on.
const STEP: &str = "vCont;s:1";
const RUN: &str = "vCont;c";
/// Stops what runs.
const INTERRUPT: u8 = 3;
/// Where the flags stand among the digits of all registers: behind 17 of 8 bytes.
const FLAGS: usize = 17 * 16;
/// In the flags: accesses to the user's pages are meant.
const FLAG_AC: u32 = 1 << 18;

/// Registers as the VMM sends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    /// In GDB's order: rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8 to r15.
    general: [u64; 16],
    /// The next instruction.
    pub(super) rip: u64,
}

impl Registers {
    /// The number of a system call and its first four arguments, at its entry.
    pub(super) fn call(&self) -> (u64, [u64; 4]) {
        let [rax, _, _, rdx, rsi, rdi, _, _, _, _, r10, ..] = self.general;
        (rax, [rdi, rsi, rdx, r10])
    }

    /// The first argument of a function.
    pub(super) fn argument(&self) -> u64 {
        let [_, _, _, _, _, rdi, ..] = self.general;
        rdi
    }

    fn parse(text: &str) -> Option<Self> {
        let bytes = unhex(text)?;
        let (words, _) = bytes.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut general = [0; 16];
        for register in &mut general {
            *register = words.next()?;
        }
        let rip = words.next()?;
        Some(Self { general, rip })
    }
}

/// How the guest came to a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Between two instructions.
    Standing,
    /// For good: it is over.
    Over,
}

/// The connection.
#[derive(Debug)]
pub(super) struct Remote<S = UnixStream> {
    stream: S,
    incoming: Vec<u8>,
}

impl Remote {
    /// Begins the conversation. The guest stands.
    pub(super) fn new(stream: UnixStream) -> Result<Self, Error> {
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let mut remote = Self::over(stream);
        // Acknowledgements are for lines that lose bytes. This one still is acknowledged.
        remote.done("QStartNoAckMode")?;
        remote.stream.write_all(b"+").map_err(failed)?;
        Ok(remote)
    }
}

impl<S: Read + Write> Remote<S> {
    fn over(stream: S) -> Self {
        let incoming = Vec::new();
        Self { stream, incoming }
    }

    /// The registers, while the guest stands. Nothing when it is over: the last instruction of all can
    /// be answered as any other before the VMM ends by it.
    pub(super) fn registers(&mut self) -> Result<Option<Registers>, Error> {
        let answer = match self.ask("g") {
            Err(Error::Io { source, .. }) if is_gone(&source) => return Ok(None),
            answer => answer?,
        };
        let registers = Registers::parse(&answer).ok_or_else(|| unexpected("g", &answer))?;
        Ok(Some(registers))
    }

    /// Reads guest memory at a virtual address.
    pub(super) fn read(&mut self, address: u64, length: u64) -> Result<Vec<u8>, Error> {
        let question = format!("m{address:x},{length:x}");
        let answer = self.ask(&question)?;
        let bytes = unhex(&answer).filter(|bytes| bytes.len() as u64 == length);
        bytes.ok_or_else(|| unexpected(&question, &answer))
    }

    /// Reads memory of the user's while the guest stands in its kernel. Where SMAP is on, KVM finds
    /// no way there unless the flag AC is set: for a moment it is.
    pub(super) fn read_user(&mut self, address: u64, length: u64) -> Result<Vec<u8>, Error> {
        let registers = self.ask("g")?;
        let with_access = with_access(&registers);
        let with_access = with_access.ok_or_else(|| unexpected("g", &registers))?;
        self.done(&format!("G{with_access}"))?;
        let bytes = self.read(address, length);
        self.done(&format!("G{registers}"))?;
        bytes
    }

    /// Writes guest memory at a virtual address.
    pub(super) fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.done(&format!("M{address:x},{:x}:{hex}", bytes.len()))
    }

    /// Lets the guest carry out one instruction.
    pub(super) fn step(&mut self) -> Result<Stop, Error> {
        self.send(STEP)?;
        self.stop(STEP)
    }

    /// Lets the guest go on for a time.
    pub(super) fn run(&mut self, time: Duration) -> Result<Stop, Error> {
        self.send(RUN)?;
        thread::sleep(time);
        // Nobody is left to hear it when the guest has ended meanwhile; the answer says so.
        let _ = self.stream.write_all(&[INTERRUPT]);
        self.stop(RUN)
    }

    fn stop(&mut self, question: &str) -> Result<Stop, Error> {
        let answer = match self.answer(question) {
            // A VMM that has ended may have had no time to say so.
            Err(Error::Io { source, .. }) if is_gone(&source) => return Ok(Stop::Over),
            answer => answer?,
        };
        match answer.as_bytes().first() {
            Some(b'T' | b'S') => Ok(Stop::Standing),
            Some(b'W' | b'X') => Ok(Stop::Over),
            _ => Err(unexpected(question, &answer)),
        }
    }

    fn done(&mut self, question: &str) -> Result<(), Error> {
        match self.ask(question)?.as_str() {
            "OK" => Ok(()),
            other => Err(unexpected(question, other)),
        }
    }

    fn ask(&mut self, question: &str) -> Result<String, Error> {
        self.send(question)?;
        self.answer(question)
    }

    fn send(&mut self, question: &str) -> Result<(), Error> {
        let sum = question.bytes().fold(0, u8::wrapping_add);
        let packet = format!("${question}#{sum:02x}");
        self.stream.write_all(packet.as_bytes()).map_err(failed)
    }

    fn answer(&mut self, question: &str) -> Result<String, Error> {
        loop {
            if let Some((answer, length)) = packet_in(&self.incoming) {
                self.incoming.drain(..length);
                return answer.ok_or_else(|| unexpected(question, "a damaged packet"));
            }
            let mut buffer = [0; 4096];
            let count = self.stream.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            self.incoming.extend(buffer.iter().take(count));
        }
    }
}

/// The first whole packet in `bytes`, and where it ends: its content, if it is as it was sent.
fn packet_in(bytes: &[u8]) -> Option<(Option<String>, usize)> {
    let start = bytes.iter().position(|byte| *byte == b'$')? + 1;
    let content = bytes.get(start..)?;
    let length = content.iter().position(|byte| *byte == b'#')?;
    let (content, rest) = content.split_at_checked(length)?;
    let sum = rest.get(1..3)?;
    let sum = std::str::from_utf8(sum).map(|sum| u8::from_str_radix(sum, 16));
    let is_whole = sum == Ok(Ok(content.iter().copied().fold(0, u8::wrapping_add)));
    let expanded = is_whole.then(|| expand(content)).flatten();
    Some((expanded, start + length + 3))
}

/// Undoes run-length encoding: `0* ` is `0000`.
fn expand(content: &[u8]) -> Option<String> {
    let mut out = String::new();
    let mut bytes = content.iter();
    while let Some(byte) = bytes.next() {
        if *byte == b'*' {
            let count = bytes.next()?.checked_sub(REPEATED)?;
            let last = out.chars().last()?;
            out.extend(std::iter::repeat_n(last, count.into()));
        } else {
            out.push(char::from(*byte));
        }
    }
    Some(out)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.iter().map(byte).collect()
}

/// Registers as the VMM sends them, with the flag AC set.
fn with_access(registers: &str) -> Option<String> {
    let at = FLAGS..FLAGS + 8;
    let flags = u32::from_str_radix(registers.get(at.clone())?, 16).ok()?;
    let mut registers = registers.to_owned();
    // The digits are those of the bytes in memory.
    let flags = (flags.swap_bytes() | FLAG_AC).swap_bytes();
    registers.replace_range(at, &format!("{flags:08x}"));
    Some(registers)
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    [BrokenPipe, ConnectionReset, UnexpectedEof].contains(&error.kind())
}

fn failed(source: io::Error) -> Error {
    Error::io("speaking to the VMM's debugger")(source)
}

fn unexpected(question: &str, answer: &str) -> Error {
    Error::Debugger(format!("{question:?} was answered {answer:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A VMM that has said everything already, and what it was asked.
    struct Script {
        answers: io::Cursor<Vec<u8>>,
        asked: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.answers.read(buffer)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.asked.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn remote(answers: &[&str]) -> Remote<Script> {
        let packets = answers.iter().map(|answer| {
            let sum = answer.bytes().fold(0, u8::wrapping_add);
            format!("+${answer}#{sum:02x}")
        });
        Remote::over(Script {
            answers: io::Cursor::new(packets.collect::<String>().into_bytes()),
            asked: Vec::new(),
        })
    }

    #[test]
    fn registers_come_in_gdbs_order() {
        // rax to r15, rip, and more that nobody asks for.
        let values: String = (0..17).map(|n| format!("{n:02x}0*-")).collect();
        let answer = values.replace("0*-", "0*\"0*\"00") + "46020* ";
        let registers = remote(&[&answer]).registers().unwrap().unwrap();
        assert_eq!(registers.call(), (0, [5, 4, 3, 10]));
        assert_eq!((registers.argument(), registers.rip), (5, 16));
        for bad in ["E01", "xx", "0* "] {
            assert!(remote(&[bad]).registers().is_err(), "{bad}");
        }
        assert_eq!(remote(&[]).registers().unwrap(), None, "it has ended");
    }

    #[test]
    fn the_users_memory_is_read_with_the_flag_for_it() {
        let before = "00".repeat(17 * 8) + "46020000" + "33000000";
        let mut remote = remote(&[&before, "OK", "6162", "OK"]);
        assert_eq!(remote.read_user(0x10, 2).unwrap(), b"ab");
        let asked = String::from_utf8(remote.stream.asked).unwrap();
        let asked: Vec<_> = asked.split(['$', '#']).skip(1).step_by(2).collect();
        let during = "G".to_owned() + &"00".repeat(17 * 8) + "46020400" + "33000000";
        assert_eq!(asked, ["g", &during, "m10,2", &format!("G{before}")]);
    }

    #[test]
    fn questions_are_as_gdb_asks_them() {
        let mut remote = remote(&["6162", "OK", "T05thread:01;", "T02thread:01;", "W07"]);
        assert_eq!(remote.read(0x1000, 2).unwrap(), b"ab");
        remote.write(0x20, &[1, 0xff]).unwrap();
        assert_eq!(remote.step().unwrap(), Stop::Standing);
        assert_eq!(remote.run(Duration::ZERO).unwrap(), Stop::Standing);
        assert_eq!(remote.run(Duration::ZERO).unwrap(), Stop::Over);
        assert_eq!(remote.step().unwrap(), Stop::Over, "it went away");
        let asked = String::from_utf8(remote.stream.asked).unwrap();
        let asked: Vec<_> = asked.split(['$', '#']).skip(1).step_by(2).collect();
        let wanted = ["m1000,2", "M20,2:01ff", STEP, RUN, RUN, STEP];
        assert_eq!(asked, wanted);
    }

    #[test]
    fn bad_answers_are_errors() {
        for bad in ["", "E01", "OK"] {
            assert!(remote(&[bad]).step().is_err(), "{bad:?}");
        }
        for bad in ["61", "616", "61626", "6162 3"] {
            assert!(remote(&[bad]).read(0, 2).is_err(), "{bad:?}");
        }
        assert!(remote(&[]).read(0, 2).is_err(), "it went away");
        assert_eq!(packet_in(b"$OK#9b"), Some((None, 6)), "a wrong sum");
        assert_eq!(packet_in(b"+$OK#9"), None, "not yet whole");
        assert_eq!(expand(b"*!"), None);
        assert_eq!(expand(b"0*"), None);
    }
}
