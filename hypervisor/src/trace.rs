//! Collects the boot trace of [`bulkhead_machine::trace`].
//!
//! Any thread may mark a phase; the main thread writes the marks once, at the end.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::time::{ClockId, clock_gettime};

/// Most marks that are kept; a phase happens once, so this is never reached.
const MAX_MARKS: usize = 32;

/// A phase, and when it was over in nanoseconds.
type Mark = (&'static str, u64);

/// A handle to the marks; clones share them. Costs nothing when tracing is off.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    marks: Option<Arc<Mutex<Vec<Mark>>>>,
}

impl Trace {
    /// A trace that keeps its marks.
    pub fn new() -> Self {
        Self {
            marks: Some(Arc::default()),
        }
    }

    /// True when marks are kept.
    pub fn is_on(&self) -> bool {
        self.marks.is_some()
    }

    /// Notes that `phase` is over now.
    pub fn mark(&self, phase: &'static str) {
        if self.is_on() {
            self.mark_at(phase, now_ns());
        }
    }

    /// Notes that `phase` was over at `ns` of `CLOCK_MONOTONIC`.
    pub fn mark_at(&self, phase: &'static str, ns: u64) {
        if let Some(marks) = &self.marks {
            let mut marks = marks.lock().unwrap_or_else(PoisonError::into_inner);
            if marks.len() < MAX_MARKS {
                marks.push((phase, ns));
            }
        }
    }

    /// Writes all marks, in the order of time.
    ///
    /// # Errors
    /// What the host answers to the write.
    pub fn write_to(&self, out: &mut File) -> std::io::Result<()> {
        let Some(marks) = &self.marks else {
            return Ok(());
        };
        let mut marks = marks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        marks.sort_by_key(|(_, ns)| *ns);
        let text: String = marks.iter().map(|(p, ns)| format!("{p} {ns}\n")).collect();
        out.write_all(text.as_bytes())
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn now_ns() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    // Both parts of a monotonic time are non-negative and fit for 584 years.
    (t.tv_sec as u64) * 1_000_000_000 + (t.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn marks_come_out_in_the_order_of_time() {
        let trace = Trace::new();
        trace.mark_at("run", 30);
        trace.mark_at("start", 10);
        trace.mark_at("vm", 20);
        let mut file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
        trace.write_to(&mut file).unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "start 10\nvm 20\nrun 30\n");
    }

    #[test]
    fn marks_are_bounded() {
        let trace = Trace::new();
        for n in 0..1000 {
            trace.mark_at("x", n);
        }
        assert_eq!(trace.marks.unwrap().lock().unwrap().len(), MAX_MARKS);
    }
}
