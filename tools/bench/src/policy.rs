//! What mediation costs: rates of the ledger, each beside what the disk or SHA-256 alone can do in the
//! same run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead_ledger::{Log, Record, Signer, directory, verify};
use bulkhead_record::{Entry, Kind, Verdict};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::stats::Stats;

/// How long each rate is measured.
const SPAN: Duration = Duration::from_millis(200);
/// Records of the ledger that is verified.
const RECORDS: usize = 100_000;
/// Records of a commit of it.
const BATCH: usize = 100;
/// The key: what it is does not matter here.
const SEED: [u8; 32] = [7; 32];

/// How often something can be done in a second.
#[derive(Debug, Serialize)]
pub(crate) struct Rate {
    /// Stable name.
    pub(crate) id: &'static str,
    /// What it is.
    pub(crate) what: &'static str,
    /// A second.
    #[serde(flatten)]
    pub(crate) stats: Stats,
    /// The rate that this one cannot be above.
    pub(crate) floor: Option<&'static str>,
    /// What it has to reach.
    pub(crate) bar: Option<u32>,
}

/// A directory that goes when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> Result<Self, Error> {
        let path = parent.join(format!("bulkhead-bench-policy-{}", std::process::id()));
        for name in ["ledger", "second"] {
            fs::create_dir_all(path.join(name)).map_err(Error::io("making a directory"))?;
        }
        Ok(Self(path))
    }

    fn log(&self) -> Result<Log, Error> {
        let open = |name| directory(&self.0.join(name)).map_err(Error::io("opening a directory"));
        Ok(Log::open(
            open("ledger")?,
            &open("second")?,
            Signer::new(&SEED),
        )?)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Whoever finds it knows by its name whose it was.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A record of ordinary length.
fn entry() -> Entry {
    Entry {
        kind: Kind::Intent,
        actor: "system/partition".to_owned(),
        action: "net.connect".to_owned(),
        object: "api.example.com:443".to_owned(),
        verdict: Verdict::Allowed,
        reason: "grant 3: net.connect:*.example.com:443".to_owned(),
        intent: None,
        detail: BTreeMap::from([("method".to_owned(), "GET".to_owned())]),
    }
}

/// Measures everything, in turns.
pub(crate) fn run(scratch: &Path, runs: u32) -> Result<Vec<Rate>, Error> {
    let scratch = Scratch::new(scratch)?;
    let mut log = scratch.log()?;
    let file = File::create(scratch.0.join("floor")).map_err(Error::io("making a file"))?;
    let length = record_bytes()?;
    let mut rates = Rates::default();
    for _ in 0..runs {
        rates.add("fdatasync", "fdatasync behind a write", None, None, || {
            repeated(1, || synced(&file, length))
        })?;
        for (batch, id, what, bar) in [
            (1, "durable-1", "durable records, one at a time", None),
            (16, "durable-16", "durable records, 16 at once", None),
            (
                256,
                "durable-256",
                "durable records, 256 at once",
                Some(10_000),
            ),
        ] {
            // Of a commit, which is one write and one fdatasync.
            let floor = (batch == 1).then_some("fdatasync");
            rates.add(id, what, floor, bar, || {
                repeated(batch, || {
                    let entries = (0..batch).map(|_| entry()).collect();
                    log.append(entries)?;
                    Ok(())
                })
            })?;
        }
    }
    drop(log);
    let verified = Scratch::new(&scratch.0)?;
    let mut log = verified.log()?;
    for _ in 0..RECORDS / BATCH {
        log.append((0..BATCH).map(|_| entry()).collect())?;
    }
    drop(log);
    let ledger = directory(&verified.0.join("ledger"));
    let ledger = ledger.map_err(Error::io("opening a directory"))?;
    let signer = Signer::new(&SEED);
    let bytes = vec![b'x'; length + 1];
    for _ in 0..runs {
        rates.add(
            "sha256",
            "records hashed twice, by SHA-256 alone, on one CPU",
            None,
            None,
            || {
                repeated(1, || {
                    // A record's leaf, and on average one node above it.
                    black_box(Sha256::digest(&bytes));
                    black_box(Sha256::digest([1; 65]));
                    Ok(())
                })
            },
        )?;
        let floor = Some("sha256");
        rates.add("verified", "records verified", floor, Some(500_000), || {
            repeated(RECORDS, || {
                let report = verify(Some(&ledger), None, signer.verifier(), &[])?;
                match report.problem {
                    None if report.records == RECORDS as u64 => Ok(()),
                    _ => Err(Error::Answer(
                        "the ledger is not as it was written".to_owned(),
                    )),
                }
            })
        })?;
    }
    rates.finish()
}

/// How long a record is in its canonical form.
fn record_bytes() -> Result<usize, Error> {
    let record = Record::new(entry(), RECORDS as u64, 1_700_000_000_000, None);
    let json = record
        .to_json()
        .map_err(|error| Error::Answer(error.to_string()))?;
    Ok(json.len())
}

fn synced(mut file: &File, length: usize) -> Result<(), Error> {
    let written = file.write_all(&vec![b'x'; length]);
    written
        .and_then(|()| file.sync_data())
        .map_err(Error::io("writing a file"))
}

/// How often a second something is done that is `each` at once.
fn repeated(each: usize, mut act: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    let begun = Instant::now();
    let mut count = 0;
    loop {
        act()?;
        count += each;
        let passed = begun.elapsed();
        if passed >= SPAN {
            return Ok(count as f64 / passed.as_secs_f64());
        }
    }
}

/// Rates in the making, in the order in which they were first measured.
#[derive(Default)]
pub(crate) struct Rates(Vec<Series>);

struct Series {
    id: &'static str,
    what: &'static str,
    floor: Option<&'static str>,
    bar: Option<u32>,
    samples: Vec<f64>,
}

impl Rates {
    /// Takes another sample of this rate.
    pub(crate) fn add(
        &mut self,
        id: &'static str,
        what: &'static str,
        floor: Option<&'static str>,
        bar: Option<u32>,
        measure: impl FnOnce() -> Result<f64, Error>,
    ) -> Result<(), Error> {
        let sample = measure()?;
        match self.0.iter_mut().find(|series| series.id == id) {
            Some(series) => series.samples.push(sample),
            None => self.0.push(Series {
                id,
                what,
                floor,
                bar,
                samples: vec![sample],
            }),
        }
        Ok(())
    }

    /// What they come down to.
    pub(crate) fn finish(self) -> Result<Vec<Rate>, Error> {
        let rate = |series: Series| {
            let stats = Stats::of_values(&series.samples);
            let stats = stats.ok_or_else(|| Error::Answer("nothing was measured".to_owned()))?;
            Ok(Rate {
                id: series.id,
                what: series.what,
                stats,
                floor: series.floor,
                bar: series.bar,
            })
        };
        self.0.into_iter().map(rate).collect()
    }
}
