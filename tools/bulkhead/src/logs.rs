//! `bulkhead logs`: what a partition has written, and with `-f` what it writes.

use crate::cli::LogsArgs;
use crate::failure::Failure;
use bulkhead_supervisor::{Error, Found, Standing, StateRoot, log_paths, reason};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How often a followed log is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// Prints the log.
pub(crate) fn run(args: &LogsArgs) -> Result<(), Failure> {
    let Some((system, partition)) = args.partition.split_once('/') else {
        let message = format!("`{}` is no system and partition", args.partition);
        return Err(Failure::new("no-such-log", message).help("write NAME/PARTITION, as in `ps`"));
    };
    let root = StateRoot::locate()?;
    let found = root.find(system)?;
    let no_log = || Error::NoSuchLog {
        system: system.to_owned(),
        partition: partition.to_owned(),
    };
    // The name becomes a path: only one that the system has may.
    if !found
        .record
        .partitions
        .iter()
        .any(|record| record.name == partition)
    {
        return Err(no_log().into());
    }
    let [old, current] = log_paths(&found.path, partition);
    if let Ok(mut old) = File::open(old) {
        copy(&mut old)?;
    }
    let mut file = File::open(&current).map_err(|_| no_log())?;
    copy(&mut file)?;
    if args.follow {
        follow(&root, &found, &current, file)?;
    }
    Ok(())
}

/// Passes on what is added, through the change to a new file, until the system is over.
fn follow(root: &StateRoot, found: &Found, path: &Path, mut file: File) -> Result<(), Failure> {
    loop {
        let over = !root
            .find(&found.name)
            .is_ok_and(|found| found.standing == Standing::Live);
        copy(&mut file)?;
        if over {
            return Ok(());
        }
        let inode = file.metadata().map(|metadata| metadata.ino());
        if let (Ok(inode), Ok(new)) = (inode, File::open(path))
            && new.metadata().is_ok_and(|metadata| metadata.ino() != inode)
        {
            copy(&mut file)?;
            file = new;
            continue;
        }
        thread::sleep(INTERVAL);
    }
}

fn copy(from: &mut impl Read) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match io::copy(from, &mut stdout).and_then(|_| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            // Nobody reads on; there is nothing left to do, and nothing went wrong.
            std::process::exit(0)
        }
        Err(error) => Err(Failure::new(
            "output",
            format!("cannot copy the log: {}", reason(&error)),
        )),
    }
}
