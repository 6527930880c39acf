//! What the supervisor has given to a VMM: its descriptors, environment and memory, looked at before
//! the jail.

use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use bulkhead_machine::{Boot, MachineDescription};
use rustix::net::AddressFamily;

use crate::{Outcome, Rogue};

/// Bytes in a page of memory.
const PAGE: usize = 4096;

/// Descriptors that are open, without those of the looking itself.
pub(crate) fn open(description: i32) -> Vec<(i32, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let number: i32 = entry.file_name().to_string_lossy().parse().unwrap();
        if number != description
            && let Ok(target) = fs::read_link(entry.path())
        {
            found.push((number, target));
        }
    }
    let own = format!("/proc/{}/fd", std::process::id());
    found.retain(|(_, target)| target.to_str() != Some(&own));
    found
}

/// Those that the description names.
pub(crate) fn named(description: &MachineDescription) -> Vec<i32> {
    let mut fds = vec![
        description.kvm,
        description.control,
        description.boot.kernel(),
    ];
    if let Boot::Bulkhead { modules, .. } = &description.boot {
        fds.extend(modules.iter().map(|module| module.file));
    }
    if let Some(console) = &description.console {
        fds.push(console.output);
        fds.extend(console.input);
        fds.extend(console.error);
    }
    for device in &description.devices {
        fds.extend(device.kind.descriptors());
    }
    fds.extend(description.network_namespace);
    fds.into_iter().map(|fd| fd.0).collect()
}

/// Tells what there is, and whether the secret is in any of it.
pub(crate) fn look(rogue: &mut Rogue, inherited: &[(i32, PathBuf)], description: &[u8]) {
    let named = named(&rogue.description);
    for (number, target) in inherited {
        let target = target.display().to_string();
        let what = match target.starts_with("socket:") {
            true => domain(*number),
            false => target,
        };
        // The first three are every process's.
        let kind = match *number < 3 || named.contains(number) {
            true => "descriptor",
            false => "left open",
        };
        rogue.say(&format!("{kind} {number}: {what}\n"));
    }
    let variables: Vec<String> = std::env::vars().map(|(name, _)| name).collect();
    let told = match variables.as_slice() {
        [] => Err("there is no environment".to_owned()),
        some => Ok(format!("{some:?}")),
    };
    rogue.tell("the environment", &told);
    let secret = rogue.targets.secret.clone();
    let told = found("the description", description, &secret);
    rogue.tell("a secret in the description", &told);
    let mut told = Err("no descriptor has it".to_owned());
    let granted = inherited
        .iter()
        .filter(|(number, _)| named.contains(number));
    for (number, target) in granted {
        let path = format!("/proc/self/fd/{number}");
        // A namespace is a file that cannot be read.
        let is_file = fs::metadata(&path).is_ok_and(|data| data.is_file());
        if !is_file || target.to_string_lossy().starts_with("net:") {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        if let Ok(what) = found(&target.display().to_string(), &bytes, &secret) {
            told = Ok(what);
        }
    }
    rogue.tell("a secret in the descriptors", &told);
    let told = memory(&secret);
    rogue.tell("a secret in memory", &told);
}

/// What kind of addresses a socket has.
fn domain(number: i32) -> String {
    // SAFETY: the borrow ends with this function, and nobody closes descriptors meanwhile.
    let socket = unsafe { BorrowedFd::borrow_raw(number) };
    let domain = rustix::net::sockopt::socket_domain(socket).unwrap();
    match domain == AddressFamily::UNIX {
        true => "a Unix socket".to_owned(),
        false => format!("a socket of family {}", domain.as_raw()),
    }
}

/// Whether `bytes` has the text that `backwards` is from behind: nobody here writes it down.
fn found(place: &str, bytes: &[u8], backwards: &str) -> Outcome {
    assert!(!backwards.is_empty(), "a secret to look for");
    let is_it = |window: &[u8]| window.iter().rev().eq(backwards.as_bytes());
    match bytes.windows(backwards.len()).any(is_it) {
        true => Ok(format!("in {place}")),
        false => Err(format!("{} bytes do not have it", bytes.len())),
    }
}

/// Looks through all of this process's memory. It changes while it is looked at: what is gone of a
/// mapping takes nothing else of it along.
fn memory(backwards: &str) -> Outcome {
    let memory = fs::File::open("/proc/self/mem").unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut looked = 0;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        let (start, end) = range.split_once('-').unwrap();
        let start = u64::from_str_radix(start, 16).unwrap();
        let end = u64::from_str_radix(end, 16).unwrap();
        if !rights.starts_with('r') {
            continue;
        }
        // What follows upon itself, without what cannot be read: the kernel keeps some for itself.
        let mut bytes = Vec::with_capacity((end - start) as usize);
        for page in (start..end).step_by(PAGE) {
            let mut content = [0; PAGE];
            let readable = memory.read_exact_at(&mut content, page).is_ok();
            if readable {
                bytes.extend_from_slice(&content);
            }
            if !readable || page + PAGE as u64 >= end {
                looked += bytes.len();
                if let Ok(what) = found(line, &bytes, backwards) {
                    return Ok(what);
                }
                bytes.clear();
            }
        }
    }
    Err(format!("{looked} bytes do not have it"))
}
