//! `bulkhead stop --all --now`, the emergency stop, and `bulkhead resume --all`, its end.

use crate::cli::StopArgs;
use crate::failure::Failure;
use crate::{recorder, table};
use bulkhead_record::{Entry, Kind, Recorder, Verdict};
use bulkhead_supervisor::{HaltEnd, Halted, StateRoot, go_on_all, halt_all};

/// Halts everything, says what became of each system, and records it: in this order, since a ledger
/// that cannot be written must not keep anything running.
pub(crate) fn run(_confirmed: &StopArgs) -> Result<(), Failure> {
    let halted = halt_all(&StateRoot::locate()?)?;
    let recorded = recorder::open().and_then(|ledger| Ok(ledger.record(&entry(&halted))?));
    let row = |system: &Halted| {
        let end = system
            .end
            .as_ref()
            .map_or("still there", |end| end.as_str());
        [system.system.clone(), end.to_owned()]
    };
    crate::print(table::lines(["SYSTEM", "STATE"], halted.iter().map(row)).as_bytes())?;
    for system in halted {
        system.end?;
    }
    recorded.map_err(|failure| failure.help("everything is halted; only the record is missing"))?;
    Ok(())
}

fn entry(halted: &[Halted]) -> Entry {
    let count = |wanted: Option<HaltEnd>| {
        let same = halted
            .iter()
            .filter(|system| system.end.as_ref().ok().copied() == wanted);
        same.count().to_string()
    };
    let whole = halted.iter().all(|system| system.end.is_ok());
    let detail = [
        ("halted", Some(HaltEnd::Halted)),
        ("killed", Some(HaltEnd::Killed)),
        ("gone", Some(HaltEnd::Gone)),
        ("still-there", None),
    ];
    Entry {
        kind: Kind::Policy,
        actor: "operator".to_owned(),
        action: "emergency.stop".to_owned(),
        object: "all".to_owned(),
        verdict: if whole {
            Verdict::Done
        } else {
            Verdict::Failed
        },
        reason: "bulkhead stop --all --now".to_owned(),
        intent: None,
        detail: detail
            .map(|(name, end)| (name.to_owned(), count(end)))
            .into(),
    }
}

/// Lets everything go on, once that is recorded.
pub(crate) fn resume() -> Result<(), Failure> {
    let root = StateRoot::locate()?;
    if !root.is_halted() {
        let failure = Failure::new("not-halted", "nothing is halted");
        return Err(failure.help("`bulkhead resume NAME/PARTITION` lets a paused one go on"));
    }
    recorder::open()?.record(&Entry {
        kind: Kind::Policy,
        actor: "operator".to_owned(),
        action: "emergency.resume".to_owned(),
        object: "all".to_owned(),
        verdict: Verdict::Allowed,
        reason: "bulkhead resume --all".to_owned(),
        intent: None,
        detail: [].into(),
    })?;
    let silent = go_on_all(&root)?.into_iter().next();
    silent.map_or(Ok(()), |error| Err(error.into()))
}
