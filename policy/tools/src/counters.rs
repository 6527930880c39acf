//! A file in which calls are counted, so that a count is never lost: not when whoever writes it is killed
//! on the way, and not when the file is damaged. Used by the limiter.
//!
//! It has two places, written in turn. Each holds a number, which tells the newer one, and a sum, which
//! tells a whole one: what is being written when its process ends leaves the other.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use sha2::{Digest, Sha256};

/// How far it is from one place to the other.
const PLACE: u64 = 512 * 1024;
/// What comes before the text: a sum of what follows it, a number, a length.
const SUM: usize = 32;
const HEAD: usize = SUM + 16;
/// Longest text of a place.
const MAX_TEXT: usize = PLACE as usize - HEAD;

/// A file in which one thing stands.
#[derive(Debug)]
pub(crate) struct Counters(Mutex<File>);

/// What was found in a file.
pub(crate) enum Found<T> {
    /// What was written last; in a new file, nothing.
    Whole(T),
    /// Neither place is whole.
    Damaged,
}

impl Counters {
    pub(crate) fn new(file: File) -> Self {
        Self(Mutex::new(file))
    }

    /// What stands there.
    ///
    /// # Errors
    /// The host refuses.
    pub(crate) fn read<T: DeserializeOwned + Default>(&self) -> io::Result<Found<T>> {
        let file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(look(&file)?.0)
    }

    /// Writes over what stands there.
    ///
    /// # Errors
    /// The host refuses, or it is too long; nothing is changed then.
    pub(crate) fn write(&self, value: &impl Serialize) -> io::Result<()> {
        let file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, last) = look::<IgnoredAny>(&file)?;
        write(&file, last.wrapping_add(1), value)
    }

    /// Changes what stands there, while nobody else does. `change` says what is to stand there, and what
    /// to give back.
    ///
    /// # Errors
    /// The host refuses, or it is too long; nothing is changed then.
    pub(crate) fn change<T: DeserializeOwned + Default + Serialize, R>(
        &self,
        change: impl FnOnce(Found<T>) -> (Option<T>, R),
    ) -> io::Result<R> {
        let file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever holds it is a process of ours, and holds it for a moment.
        flock(&*file, FlockOperation::LockExclusive)?;
        let changed = look(&file).and_then(|(found, last)| {
            let (new, result) = change(found);
            new.map_or(Ok(()), |new| write(&file, last.wrapping_add(1), &new))?;
            Ok(result)
        });
        flock(&*file, FlockOperation::Unlock)?;
        changed
    }
}

/// What stands there, and its number.
fn look<T: DeserializeOwned + Default>(file: &File) -> io::Result<(Found<T>, u64)> {
    if file.metadata()?.len() == 0 {
        return Ok((Found::Whole(T::default()), 0));
    }
    let mut places = vec![read_place(file, 0)?, read_place(file, 1)?];
    places.sort_by_key(|place| place.as_ref().map(|(number, _)| *number));
    // The last is the newest, and none is before any.
    Ok(match places.pop().flatten() {
        Some((number, value)) => (Found::Whole(value), number),
        None => (Found::Damaged, 0),
    })
}

/// What a place holds, if it is whole.
fn read_place<T: DeserializeOwned>(file: &File, place: u64) -> io::Result<Option<(u64, T)>> {
    let at = place * PLACE;
    let mut head = [0; HEAD];
    if !read_whole(file, &mut head, at)? {
        return Ok(None);
    }
    let (sum, rest) = head.split_at(SUM);
    let (Some(number), Some(length)) = (rest.first_chunk(), rest.last_chunk()) else {
        return Ok(None);
    };
    let (number, length) = (u64::from_le_bytes(*number), u64::from_le_bytes(*length));
    let Some(length) = usize::try_from(length).ok().filter(|l| *l <= MAX_TEXT) else {
        return Ok(None);
    };
    let mut text = vec![0; length];
    let whole = read_whole(file, &mut text, at + HEAD as u64)? && *sum == *summed(rest, &text);
    let value = whole.then(|| serde_json::from_slice(&text).ok()).flatten();
    Ok(value.map(|value| (number, value)))
}

/// Whether there was as much.
fn read_whole(file: &File, buffer: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(buffer, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn summed(numbers: &[u8], text: &[u8]) -> Vec<u8> {
    let mut sum = Sha256::new();
    sum.update(numbers);
    sum.update(text);
    sum.finalize().to_vec()
}

fn write(file: &File, number: u64, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(value)?;
    if text.len() > MAX_TEXT {
        return Err(io::Error::other("there are too many"));
    }
    let mut numbers = number.to_le_bytes().to_vec();
    numbers.extend((text.len() as u64).to_le_bytes());
    let mut place = summed(&numbers, &text);
    place.extend(numbers);
    place.extend(text);
    file.write_all_at(&place, number % 2 * PLACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(counters: &Counters) -> Option<u64> {
        let add = |found: Found<u64>| match found {
            Found::Whole(last) => (Some(last + 1), Some(last + 1)),
            Found::Damaged => (None, None),
        };
        counters.change(add).unwrap()
    }

    #[test]
    fn whatever_was_written_of_the_newer_place_the_older_one_is_there() {
        let file = tempfile::tempfile().unwrap();
        let counters = Counters::new(file.try_clone().unwrap());
        assert_eq!([(); 4].map(|()| next(&counters)), [1, 2, 3, 4].map(Some));
        let place = || {
            let mut bytes = vec![0; HEAD + 1];
            file.read_exact_at(&mut bytes, PLACE).unwrap();
            bytes
        };
        let before = place();
        assert_eq!(next(&counters), Some(5));
        let after = place();
        for written in 0..after.len() {
            let torn = [&after[..written], &before[written..]].concat();
            file.write_all_at(&torn, PLACE).unwrap();
            let found = counters.read::<u64>().unwrap();
            assert!(matches!(found, Found::Whole(4)), "after {written} bytes");
        }
    }

    #[test]
    fn what_is_whole_nowhere_is_damaged() {
        let file = tempfile::tempfile().unwrap();
        let counters = Counters::new(file.try_clone().unwrap());
        assert!(matches!(counters.read::<u64>().unwrap(), Found::Whole(0)));
        for nonsense in [&b"nonsense"[..], &[0; 100], &[0xff; 100]] {
            file.set_len(0).unwrap();
            file.write_all_at(nonsense, 0).unwrap();
            assert!(matches!(counters.read::<u64>().unwrap(), Found::Damaged));
            // It can be written over.
            let anew = |_: Found<u64>| (Some(7), ());
            counters.change(anew).unwrap();
            assert!(matches!(counters.read::<u64>().unwrap(), Found::Whole(7)));
        }
    }

    #[test]
    fn what_is_too_long_changes_nothing() {
        let counters = Counters::new(tempfile::tempfile().unwrap());
        let long = |_: Found<String>| (Some("x".repeat(MAX_TEXT)), ());
        assert!(counters.change(long).is_err());
        assert!(
            matches!(counters.read::<String>().unwrap(), Found::Whole(text) if text.is_empty())
        );
    }
}
