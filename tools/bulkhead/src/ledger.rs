//! `bulkhead ledger`: what partitions did, read and verified. It is written by the supervisor's
//! `bulkhead-ledger`; here it is only read.

use crate::cli::{LedgerCommand, LedgerFormat, LedgerTailArgs, LedgerVerifyArgs};
use crate::failure::Failure;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bulkhead_ledger::{
    Problem, Proof, Reader, Record, Report, Verifier, Voucher, directory, latest, verify,
};
use bulkhead_places::Place;
use bulkhead_supervisor::reason;
use serde::Serialize;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Exit status when the ledger is not what it was.
const STATUS_BAD: u8 = 1;
/// How often a followed ledger is looked at.
const INTERVAL: Duration = Duration::from_millis(200);
/// Most bytes of a file that somebody names here.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

pub(crate) fn run(command: &LedgerCommand) -> Result<(), Failure> {
    match command {
        LedgerCommand::Verify(args) => match &args.proof {
            Some(file) => verify_proof(file, args),
            None => verify_ledger(args),
        },
        LedgerCommand::Tail(args) => tail(args),
        LedgerCommand::Prove { index } => prove(*index),
        LedgerCommand::Export => export(),
    }
}

/// A private directory of ours, if it exists.
fn existing(place: &Place) -> Result<Option<OwnedFd>, Failure> {
    let Some(path) = place.existing()? else {
        return Ok(None);
    };
    let opened = directory(path).map_err(|error| unreadable(path, &error))?;
    Ok(Some(opened))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let message = format!("cannot read `{}`: {}", path.display(), reason(error));
    Failure::new("file-unusable", message)
}

fn place() -> Result<Place, Failure> {
    Ok(Place::data()?.below("ledger"))
}

fn reader() -> Result<Reader, Failure> {
    let place = place()?;
    let directory = existing(&place)?;
    directory.map(Reader::new).ok_or_else(|| no_ledger(&place))
}

fn no_ledger(place: &Place) -> Failure {
    let message = format!("there is no ledger at `{}`", place.path().display());
    Failure::new("no-ledger", message).help("it is made by the first `bulkhead run` or `up`")
}

/// The public key: the file that was named, else ours.
fn verifier(file: Option<&Path>) -> Result<Verifier, Failure> {
    if let Some(file) = file {
        let no_key = |error| {
            let message = format!("`{}` {error}", file.display());
            Failure::new("ledger-key", message)
        };
        return Verifier::from_text(&read(file)?).map_err(no_key);
    }
    let keys = Place::config()?.below("keys");
    match existing(&keys)? {
        Some(keys) => Ok(bulkhead_ledger::verifier(&keys)?),
        None => Err(no_ledger(&place()?)),
    }
}

/// The text of a small file.
fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    (file.take(MAX_FILE_BYTES).read_to_string(&mut text))
        .map_err(|error| unreadable(path, &error))?;
    Ok(text)
}

/// What `verify --format json` prints.
#[derive(Serialize)]
struct Verified<'a> {
    ledger: &'a str,
    records: u64,
    segments: usize,
    root: String,
    unfinished_bytes: u64,
    problem: Option<Bad<'a>>,
}

#[derive(Serialize)]
struct Bad<'a> {
    /// The first bad record, or the first that may be it.
    first: u64,
    /// The last that may be it.
    last: u64,
    segment: Option<&'a str>,
    what: &'a str,
}

fn verify_ledger(args: &LedgerVerifyArgs) -> Result<(), Failure> {
    let verifier = verifier(args.key.as_deref())?;
    let mut kept = Vec::new();
    for file in &args.checkpoint {
        let text = fs::read(file).map_err(|error| unreadable(file, &error))?;
        let Some((_, checkpoint)) = latest(&text, &verifier) else {
            let message = format!("`{}` is no checkpoint of this ledger", file.display());
            return Err(Failure::new("no-checkpoint", message).status(STATUS_BAD));
        };
        let of = format!("in `{}`", file.display());
        kept.push(Voucher { of, checkpoint });
    }
    let ledger = existing(&place()?)?;
    let second = existing(&Place::checkpoints()?)?;
    let report = verify(ledger.as_ref(), second.as_ref(), &verifier, &kept)?;
    if args.format == LedgerFormat::Json {
        json(&report, &verifier)?;
    }
    if let Some(problem) = &report.problem {
        return Err(bad(problem));
    }
    if args.format == LedgerFormat::Text {
        text(&report, &verifier)?;
    }
    Ok(())
}

fn bad(problem: &Problem) -> Failure {
    let Problem { first, last, .. } = problem;
    let which = match first == last {
        true => format!("record {first} is bad"),
        false => format!("one of the records {first} to {last} is bad"),
    };
    let message = format!("{which}: {}", problem.what.escape_debug());
    let help = "keep the ledger and its second place as they are: docs/ledger.md";
    Failure::new("ledger-bad", message)
        .help(help)
        .status(STATUS_BAD)
}

fn text(report: &Report, verifier: &Verifier) -> Result<(), Failure> {
    let mut text = format!(
        "{}: all as they were written: records {}, segments {}\nroot {}\n",
        verifier.name(),
        report.records,
        report.segments,
        STANDARD.encode(report.root)
    );
    if report.unfinished > 0 {
        text += &format!(
            "{} bytes of a commit that was not finished and not relied upon\n",
            report.unfinished
        );
    }
    crate::print(text.as_bytes())
}

fn json(report: &Report, verifier: &Verifier) -> Result<(), Failure> {
    print_json(&Verified {
        ledger: verifier.name(),
        records: report.records,
        segments: report.segments,
        root: STANDARD.encode(report.root),
        unfinished_bytes: report.unfinished,
        problem: report.problem.as_ref().map(|problem| Bad {
            first: problem.first,
            last: problem.last,
            segment: problem.segment.as_deref(),
            what: &problem.what,
        }),
    })
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string(value);
    let json = json.map_err(|error| Failure::new("output", error.to_string()))?;
    crate::print(format!("{json}\n").as_bytes())
}

fn verify_proof(file: &Path, args: &LedgerVerifyArgs) -> Result<(), Failure> {
    let verifier = verifier(args.key.as_deref())?;
    let proof = Proof::from_text(&read(file)?);
    let checked = proof.and_then(|proof| proof.check(&verifier));
    let (record, checkpoint) = checked.map_err(|error| {
        let message = format!("`{}` proves nothing: {error}", file.display());
        Failure::new("ledger-bad", message).status(STATUS_BAD)
    })?;
    match args.format {
        LedgerFormat::Json => print_json(&record),
        LedgerFormat::Text => {
            let (origin, size) = (&checkpoint.origin, checkpoint.size);
            let line = line(&record);
            crate::print(format!("{origin}: proven among {size} records\n{line}").as_bytes())
        }
    }
}

fn prove(index: u64) -> Result<(), Failure> {
    let verifier = verifier(None)?;
    match reader()?.prove(index, &verifier)? {
        Some(proof) => crate::print(proof.to_text().as_bytes()),
        None => {
            let message = format!("the ledger has no record {index}");
            Err(Failure::new("no-record", message))
        }
    }
}

fn export() -> Result<(), Failure> {
    let reader = reader()?;
    for first in reader.segments()? {
        let mut lines = Vec::new();
        for (_, json) in reader.segment(first)?.records {
            lines.extend(json);
            lines.push(b'\n');
        }
        crate::print(&lines)?;
    }
    Ok(())
}

fn tail(args: &LedgerTailArgs) -> Result<(), Failure> {
    let reader = reader()?;
    let mut last = VecDeque::new();
    let mut next = 0;
    for first in reader.segments()?.into_iter().rev() {
        let records = reader.segment(first)?.records;
        next = next.max(first + records.len() as u64);
        for (index, json) in records.into_iter().rev() {
            if last.len() >= args.lines {
                break;
            }
            let shown = show(index, &json, args)?;
            shown.into_iter().for_each(|shown| last.push_front(shown));
        }
        if last.len() >= args.lines {
            break;
        }
    }
    let last: Vec<u8> = last.into_iter().flatten().collect();
    crate::print(&last)?;
    match args.follow {
        true => follow(&reader, next, args),
        false => Ok(()),
    }
}

/// Passes on what is added from record `next` on, until nobody reads it any more.
fn follow(reader: &Reader, mut next: u64, args: &LedgerTailArgs) -> Result<(), Failure> {
    loop {
        thread::sleep(INTERVAL);
        let segments = reader.segments()?;
        // Those in which something can be new.
        let known = segments.iter().rposition(|first| *first <= next);
        let mut new = Vec::new();
        for first in segments.into_iter().skip(known.unwrap_or(0)) {
            for (index, json) in reader.segment(first)?.records {
                if index >= next {
                    next = index + 1;
                    new.extend(show(index, &json, args)?.unwrap_or_default());
                }
            }
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(&new).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => {
                let message = format!("cannot write to standard output: {}", reason(&error));
                return Err(Failure::new("output", message));
            }
            Ok(()) => {}
        }
    }
}

/// Calls `look` with each record of a system or partition, or with all, the oldest first. Nothing is verified.
pub(crate) fn each(partition: Option<&str>, mut look: impl FnMut(&Record)) -> Result<(), Failure> {
    let reader = reader()?;
    for first in reader.segments()? {
        for (index, json) in reader.segment(first)?.records {
            let record = parsed(index, &json)?;
            if is_of(&record, partition) {
                look(&record);
            }
        }
    }
    Ok(())
}

fn parsed(index: u64, json: &[u8]) -> Result<Record, Failure> {
    Record::from_json(json).map_err(|error| {
        let message = format!("record {index} is bad: {error}");
        Failure::new("ledger-bad", message).status(STATUS_BAD)
    })
}

/// Whether that system or partition did it, if it matters.
fn is_of(record: &Record, partition: Option<&str>) -> bool {
    let below = |of: &str| record.entry.actor.strip_prefix(of);
    partition
        .is_none_or(|of| below(of).is_some_and(|below| below.is_empty() || below.starts_with('/')))
}

/// A record as it is printed, if it is asked for.
fn show(index: u64, json: &[u8], args: &LedgerTailArgs) -> Result<Option<Vec<u8>>, Failure> {
    let record = parsed(index, json)?;
    if !is_of(&record, args.partition.as_deref()) {
        return Ok(None);
    }
    Ok(Some(match args.format {
        LedgerFormat::Json => [json, b"\n"].concat(),
        LedgerFormat::Text => line(&record).into_bytes(),
    }))
}

/// A record for people. Guests choose some of the words: nothing in them is obeyed by a terminal.
fn line(record: &Record) -> String {
    let entry = &record.entry;
    let mut line = format!(
        "{} {} {} {} {} {} {}",
        record.index,
        moment(record.time),
        entry.kind,
        entry.verdict,
        entry.actor.escape_debug(),
        entry.action.escape_debug(),
        entry.object.escape_debug()
    );
    if let Some(intent) = entry.intent {
        line += &format!(" (intent {intent})");
    }
    if !entry.reason.is_empty() {
        line += &format!(": {}", entry.reason.escape_debug());
    }
    for (name, value) in &entry.detail {
        line += &format!(" {}={}", name.escape_debug(), value.escape_debug());
    }
    line + "\n"
}

/// A time as ISO 8601 has it, in UTC.
fn moment(millis: u64) -> String {
    let (days, in_day) = (millis / 86_400_000, millis % 86_400_000);
    let (seconds, millis) = (in_day / 1000, in_day % 1000);
    // Years that begin in March, in eras of 400 of them, as the calendar repeats itself.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let (month, next_year) = match shifted_month {
        0..10 => (shifted_month + 3, 0),
        _ => (shifted_month - 9, 1),
    };
    let year = era * 400 + year_of_era + next_year;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{millis:03}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_799_999, "2000-02-29T23:59:59.999Z"),
            (1_764_230_400_123, "2025-11-27T08:00:00.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(moment(millis), text);
        }
    }
}
