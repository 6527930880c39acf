//! `bulkhead pause`, `resume`, `attach`, `detach`, `resize`, `dump`: something with one running
//! partition, done by its supervisor.

use crate::cli::{AttachArgs, DetachArgs, DumpArgs, ResizeArgs};
use crate::failure::Failure;
use bulkhead_manifest::parse_memory_mib;
use bulkhead_supervisor::{Act, Answer, Found, NewDevice, Standing, StateRoot, act, reason};
use std::env;
use std::path::{Path, PathBuf};

/// Finds `NAME/PARTITION`; a system with one partition is named by NAME alone.
pub(crate) fn find(name: &str) -> Result<(Found, String), Failure> {
    let (system, partition) = match name.split_once('/') {
        Some((system, partition)) => (system, Some(partition)),
        None => (name, None),
    };
    let found = StateRoot::locate()?.find(system)?;
    let mut all = found
        .record
        .partitions
        .iter()
        .map(|partition| &partition.name);
    let partition = match (partition, all.next(), all.next()) {
        (Some(partition), ..) => partition.to_owned(),
        (None, Some(only), None) => only.clone(),
        (None, first, _) => {
            let example = first.map_or("PARTITION", String::as_str);
            return Err(
                Failure::new("usage", format!("`{name}` names no partition"))
                    .help(format!("name one of the system's: {name}/{example}")),
            );
        }
    };
    Ok((found, partition))
}

/// Does it, and takes a refusal for a failure.
pub(crate) fn ask(name: &str, what: Act) -> Result<Answer, Failure> {
    let (found, partition) = find(name)?;
    if found.standing == Standing::Finished {
        let message = format!("system `{}` has ended", found.name);
        return Err(Failure::new("not-running", message));
    }
    match act(&found, &partition, what)? {
        Answer::Refused {
            code,
            message,
            help,
        } => Err(Failure::complain(code, message, help)),
        answer => Ok(answer),
    }
}

/// Does it without having anything to print.
pub(crate) fn quietly(name: &str, what: Act) -> Result<(), Failure> {
    ask(name, what).map(|_| ())
}

/// Plugs a device in, and prints its name.
pub(crate) fn attach(args: &AttachArgs) -> Result<(), Failure> {
    let answer = ask(&args.partition, Act::Attach(new_device(args)?))?;
    match answer {
        Answer::Done { device: Some(name) } => crate::print(format!("{name}\n").as_bytes()),
        _ => Ok(()),
    }
}

fn new_device(args: &AttachArgs) -> Result<NewDevice, Failure> {
    let mut device = NewDevice {
        name: args.name.clone(),
        format: args.format.clone(),
        base: working_directory()?,
        ..NewDevice::default()
    };
    if let Some(disk) = &args.disk {
        device.grants.push(disk_grant(disk));
    }
    if let Some(share) = &args.share {
        let (grant, tag) = share_grant(share)?;
        device.grants.push(grant);
        device.tag = Some(tag);
    }
    let rules = args.net.iter().map(|rule| format!("net.connect:{rule}"));
    device.grants.extend(rules);
    let listens = args.publish.iter();
    device
        .grants
        .extend(listens.map(|listen| format!("net.listen:{listen}")));
    Ok(device)
}

/// `FILE[:ro]` as a grant.
pub(crate) fn disk_grant(disk: &str) -> String {
    match disk.strip_suffix(":ro") {
        Some(path) => format!("block.read:{path}"),
        None => format!("block.write:{disk}"),
    }
}

/// `DIR:TAG[:ro]` as a grant and a tag.
pub(crate) fn share_grant(share: &str) -> Result<(String, String), Failure> {
    let (rest, name) = match share.strip_suffix(":ro") {
        Some(rest) => (rest, "fs.read"),
        None => (share, "fs.write"),
    };
    match rest.rsplit_once(':') {
        Some((path, tag)) if !path.is_empty() => Ok((format!("{name}:{path}"), tag.to_owned())),
        _ => Err(
            Failure::new("share", format!("`{share}` is no shared directory"))
                .help("write DIR:TAG or DIR:TAG:ro, such as ./data:data"),
        ),
    }
}

/// Takes a device out.
pub(crate) fn detach(args: &DetachArgs) -> Result<(), Failure> {
    let device = args.device.clone();
    quietly(&args.partition, Act::Detach { device })
}

/// Changes a size.
pub(crate) fn resize(args: &ResizeArgs) -> Result<(), Failure> {
    let mib = |text: &str| {
        parse_memory_mib(text).map_err(|why| {
            let message = format!("`{text}` is no size of memory: {why}");
            Failure::new("usage", message).help("write a whole number and a unit: 64MiB, 2GiB")
        })
    };
    let what = match (&args.memory, &args.balloon, &args.disk) {
        (Some(memory), ..) => Act::ResizeMemory { mib: mib(memory)? },
        (None, Some(balloon), _) => Act::ResizeBalloon { mib: mib(balloon)? },
        (None, None, disk) => Act::ResizeDisk {
            device: disk.clone().unwrap_or_default(),
        },
    };
    quietly(&args.partition, what)
}

/// Writes memory and registers into a file.
pub(crate) fn dump(args: &DumpArgs) -> Result<(), Failure> {
    let file = working_directory()?.join(&args.file);
    quietly(&args.partition, Act::Dump { file })
}

fn working_directory() -> Result<PathBuf, Failure> {
    env::current_dir().map_err(|error| {
        let why = reason(&error);
        Failure::new(
            "system",
            format!("cannot find the working directory: {why}"),
        )
    })
}

/// True when `path` is the name of a Unix socket and no address.
pub(crate) fn is_socket_path(path: &str) -> bool {
    Path::new(path).components().count() > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_becomes_a_grant() {
        for (text, grant) in [
            ("a", "block.write:a"),
            ("a:ro", "block.read:a"),
            ("a:rox", "block.write:a:rox"),
        ] {
            assert_eq!(disk_grant(text), grant);
        }
        for (text, grant, tag) in [
            ("./d:t", "fs.write:./d", "t"),
            ("/a:b:t:ro", "fs.read:/a:b", "t"),
        ] {
            let share = share_grant(text).unwrap();
            assert_eq!((share.0.as_str(), share.1.as_str()), (grant, tag));
        }
        for text in ["", "dir", ":t", "dir:ro"] {
            assert!(share_grant(text).is_err(), "{text}");
        }
    }
}
