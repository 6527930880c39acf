//! Programs that go on while calls are done: what `process.start` began. Used by the family
//! `process`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use crate::error::ToolError;
use crate::programs::{Killer, Launcher, Output, Program};
use crate::registry::Deadline;

/// Most programs that go on, and those that have ended whose output is kept, together.
pub const MAX_JOBS: usize = 8;
/// How long a program may go on.
pub const MAX_TIME: Duration = Duration::from_secs(3600);

/// All of them, by the number that each got.
#[derive(Debug, Default)]
pub struct Jobs {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    jobs: BTreeMap<u64, Job>,
}

#[derive(Debug)]
struct Job {
    program: String,
    killer: Killer,
    output: Arc<Mutex<Output>>,
    /// Its exit status, or why it was ended; absent while it goes on.
    end: Arc<Mutex<Option<Result<i32, String>>>>,
}

/// How a program stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) job: u64,
    pub(crate) program: String,
    pub(crate) end: Option<Result<i32, String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Jobs {
    /// Begins one.
    ///
    /// # Errors
    /// Too many go on, or it cannot be started.
    pub(crate) fn begin(&self, launcher: &Launcher, program: Program) -> Result<u64, ToolError> {
        let mut table = lock(&self.table);
        if table.jobs.len() >= MAX_JOBS {
            let over = (table.jobs.iter()).find(|(_, job)| lock(&job.end).is_some());
            let over = over.map(|(number, _)| *number);
            let over = over.ok_or_else(|| {
                ToolError::refused(format!("{MAX_JOBS} programs go on already; end one"))
            })?;
            table.jobs.remove(&over);
        }
        let name = program.path.display().to_string();
        let output = Arc::<Mutex<Output>>::default();
        let end = Arc::<Mutex<_>>::default();
        let (told, started) = mpsc::sync_channel(1);
        let (launcher, theirs) = (launcher.clone(), (output.clone(), end.clone()));
        // It ends with the thread that started it, which therefore waits for it.
        let spawned = thread::Builder::new()
            .name("job".to_owned())
            .spawn(move || {
                let deadline = Deadline::after(MAX_TIME);
                match launcher.start(program, &deadline) {
                    Ok(mut running) => {
                        let _ = told.send(Ok(running.killer()));
                        let (output, end) = theirs;
                        let status = running.finish(&output, &deadline);
                        *lock(&end) = Some(status.map_err(|error| error.to_string()));
                    }
                    Err(error) => {
                        let _ = told.send(Err(error));
                    }
                }
            });
        spawned.map_err(|error| ToolError::refused(format!("it cannot go on: {error}")))?;
        let lost = |_| ToolError::refused("it was not started");
        let killer = started.recv().map_err(lost).flatten()?;
        table.last += 1;
        let number = table.last;
        let job = Job {
            program: name,
            killer,
            output,
            end,
        };
        table.jobs.insert(number, job);
        Ok(number)
    }

    /// All of them.
    pub(crate) fn list(&self) -> Vec<Standing> {
        let table = lock(&self.table);
        let standing = |(number, job): (&u64, &Job)| Standing {
            job: *number,
            program: job.program.clone(),
            end: lock(&job.end).clone(),
        };
        table.jobs.iter().map(standing).collect()
    }

    /// What one has written and not been asked for yet, and how it stands.
    ///
    /// # Errors
    /// There is none of this number.
    pub(crate) fn output(&self, number: u64) -> Result<(Standing, Output), ToolError> {
        let table = lock(&self.table);
        let job = table.jobs.get(&number).ok_or_else(|| unknown(number))?;
        // In this order, so that all is there when it has ended.
        let end = lock(&job.end).clone();
        let output = lock(&job.output).take();
        let program = job.program.clone();
        let standing = Standing {
            job: number,
            program,
            end,
        };
        Ok((standing, output))
    }

    /// Ends one.
    ///
    /// # Errors
    /// There is none of this number.
    pub(crate) fn kill(&self, number: u64) -> Result<(), ToolError> {
        let table = lock(&self.table);
        let job = table.jobs.get(&number).ok_or_else(|| unknown(number))?;
        job.killer.kill();
        Ok(())
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        for job in lock(&self.table).jobs.values() {
            job.killer.kill();
        }
    }
}

fn unknown(number: u64) -> ToolError {
    ToolError::refused(format!("there is no job {number}; process.list lists them"))
}
