//! The supervisor: starts cells, gives their threads programs, helps those up that fell, ends cells and
//! looks whether they left anything, until its time is over.
//!
//! | room | what lives there |
//! | --- | --- |
//! | [`cell`] | hostile threads and what they have |
//! | [`checks`] | what the kernel is held to |
//! | [`code`] | what hostile threads execute |
//! | [`nurse`] | answers their faults |

mod cell;
mod checks;
mod code;
mod nurse;

use alloc::string::String;
use alloc::vec::Vec;

use bulkhead_hostile::random::Random;
use bulkhead_hostile::{Script, Step, sensible};
use bulkhead_runtime::abi::layout::PAGE_SIZE;
use bulkhead_runtime::abi::object::TYPE_UNTYPED;
use bulkhead_runtime::abi::syscall::slot;
use bulkhead_runtime::object::{ADDRESS_SPACE, FIRST_THREAD, Untyped};
use bulkhead_runtime::{console, environment, println, program_main, slots, time};

use cell::{CEILING as HIGHEST, Cell, THREADS};
use checks::{Invariants, named};

/// How urgent the supervisor is: more than what it watches.
const PRIORITY: u64 = 200;
const CEILING: u64 = 255;
/// Cells at a time.
const CELLS: u64 = 3;
/// Programs that a thread is given before its cell is ended.
const PROGRAMS: u64 = 40;
/// How often the supervisor looks.
const LOOK_NS: u64 = 2_000_000;
/// A thread is helped up after so many looks without progress, and after [`STALL`] times fewer where
/// nobody made any: then nobody more urgent keeps it waiting.
const PATIENCE: u64 = 40;
const STALL: u64 = 20;
/// After so many times in a row its cell ends.
const HELP: u64 = 4;
/// In how many lives of a cell once all of its memory is looked through.
const LOOK_THROUGH: u64 = 8;
/// Where the supervisor maps what cells have, one behind another; and frames to look through.
const WINDOW: u64 = 0x7d80_0000_0000;
const CELL_WINDOW: u64 = 32 * PAGE_SIZE;
/// Bytes of an untyped that is used up again and again, in bits.
const EXHAUSTED_BITS: u64 = 16;
/// The longest program, in bytes.
const LONGEST: u64 = 2_000;
const S: u64 = 1_000_000_000;

program_main!(main);

fn main() -> u8 {
    match run() {
        Ok(()) => 0,
        Err(why) => {
            println!("\nFAILED: {why}");
            1
        }
    }
}

/// What is asked for.
struct Options {
    seconds: u64,
    seed: u64,
    first: u64,
    corpus: bool,
}

impl Options {
    fn read() -> Result<Self, String> {
        let mut options = Self {
            seconds: 10,
            seed: 1,
            first: 0,
            corpus: false,
        };
        for argument in environment::args().skip(1) {
            let text = core::str::from_utf8(argument).unwrap_or_default();
            let wrong = || alloc::format!("{text:?} is no argument");
            match text.split_once('=') {
                None if text == "corpus" => options.corpus = true,
                Some((name, number)) => {
                    let number = number.parse().map_err(|_| wrong())?;
                    match name {
                        "seconds" => options.seconds = number,
                        "seed" => options.seed = number,
                        "first" => options.first = number,
                        _ => return Err(wrong()),
                    }
                }
                None => return Err(wrong()),
            }
        }
        Ok(options)
    }
}

/// The programs on the console's input, each behind its length.
fn corpus() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut part = [0; 4096];
    loop {
        let read = console::read(&mut part);
        if read == 0 {
            break;
        }
        all.extend_from_slice(part.get(..read).unwrap_or_default());
    }
    let mut programs = Vec::new();
    let mut rest = all.as_slice();
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (program, behind) = behind.split_at(length.min(behind.len()));
        programs.push(program.to_vec());
        rest = behind;
    }
    programs
}

/// What happened so far.
#[derive(Default)]
struct Counts {
    programs: u64,
    steps: u64,
    helped: u64,
    ended: u64,
    looked_through: u64,
    longest_sleep_ns: u64,
}

/// A hostile thread as it was at the last look.
#[derive(Clone, Copy, Default)]
struct Watched {
    cursor: u64,
    stuck: u64,
    helped: u64,
    programs: u64,
}

fn run() -> Result<(), String> {
    let options = Options::read()?;
    let corpus = if options.corpus { corpus() } else { Vec::new() };
    println!(
        "hostile: seed {}, {} s, {} programs of others, from program {}",
        options.seed,
        options.seconds,
        corpus.len(),
        options.first
    );
    FIRST_THREAD
        .set_priority(FIRST_THREAD, PRIORITY, CEILING)
        .map_err(named)?;
    let mut random = Random::new(options.seed, u64::MAX - 1);
    checks::unknown_numbers(&mut random)?;
    println!("hostile: {} unknown numbers", checks::UNKNOWN_NUMBERS);

    let memory = Untyped(slot::MEMORY);
    let small = Untyped(memory.make(TYPE_UNTYPED, EXHAUSTED_BITS).map_err(named)?);
    let pair = slots::take_row(2).ok_or("no free slots")?;
    checks::exhaustion(small, pair, pair + 1)?;
    println!("hostile: memory, slots and threads used up");

    while let Ok(table) = memory.page_table()
        && table.map(ADDRESS_SPACE, WINDOW).is_ok()
    {}
    let handler = nurse::start().map_err(named)?;
    let mut cells = Vec::new();
    for n in 0..CELLS {
        let window = WINDOW + n * CELL_WINDOW;
        let cell = Cell::new(window, handler, 1 + n * THREADS, n).map_err(named)?;
        cell.begin(&mut random).map_err(named)?;
        cells.push((cell, [Watched::default(); THREADS as usize]));
    }
    let mut supervisor = Supervisor {
        invariants: Invariants::now(options.seed)?,
        random,
        corpus,
        seed: options.seed,
        next: options.first,
        counts: Counts::default(),
    };
    supervisor.watch(&mut cells, options.seconds)?;
    for (cell, _) in &cells {
        supervisor.end(*cell, true)?;
    }
    println!(
        "\nresult: ok, {} programs, {} steps, {} faults",
        supervisor.counts.programs,
        supervisor.counts.steps,
        nurse::faults()
    );
    Ok(())
}

struct Supervisor {
    invariants: Invariants,
    random: Random,
    corpus: Vec<Vec<u8>>,
    seed: u64,
    /// The next program's number.
    next: u64,
    counts: Counts,
}

impl Supervisor {
    fn watch(
        &mut self,
        cells: &mut [(Cell, [Watched; THREADS as usize])],
        seconds: u64,
    ) -> Result<(), String> {
        let (began, mut said) = (time::monotonic_ns(), 0);
        loop {
            let before = time::monotonic_ns();
            time::sleep_ns(LOOK_NS);
            let now = time::monotonic_ns();
            if now < before + LOOK_NS {
                return Err(alloc::format!("a sleep lasted {} ns", now - before));
            }
            let longest = &mut self.counts.longest_sleep_ns;
            *longest = (*longest).max(now - before);
            let moves = |(cell, threads): &(Cell, [Watched; THREADS as usize])| {
                (0..).zip(threads).any(|(n, thread)| {
                    let (cursor, _) = cell.memory(n).progress();
                    cursor != thread.cursor
                })
            };
            let wait = if cells.iter().any(moves) { 1 } else { STALL };
            for (cell, threads) in &mut *cells {
                self.look(*cell, threads, wait)?;
            }
            let second = (now - began) / S;
            if second != said {
                said = second;
                self.say(second)?;
            }
            if second >= seconds {
                return Ok(());
            }
        }
    }

    fn say(&mut self, second: u64) -> Result<(), String> {
        self.invariants.check(slot::ADDRESS_SPACE..=slot::CNODE)?;
        let Counts {
            programs,
            steps,
            helped,
            ended,
            looked_through,
            longest_sleep_ns,
        } = self.counts;
        println!(
            "\nhostile: {second} s, {programs} programs to number {}, {steps} steps, {} faults, helped \
             {helped} times, {ended} cells ended, {looked_through} looked through, slept {} us at most",
            self.next,
            nurse::faults(),
            longest_sleep_ns / 1_000
        );
        Ok(())
    }

    fn look(
        &mut self,
        cell: Cell,
        threads: &mut [Watched; THREADS as usize],
        wait: u64,
    ) -> Result<(), String> {
        let mut is_over = threads.iter().all(|thread| thread.programs >= PROGRAMS);
        for (n, thread) in (0..).zip(threads.iter_mut()) {
            let (cursor, count) = cell.memory(n).progress();
            if cursor >= count {
                let number = self.next;
                self.next += 1;
                let steps = self.load(cell, n, number);
                self.counts.programs += 1;
                self.counts.steps += steps;
                thread.programs += 1;
                (thread.cursor, thread.stuck) = (0, 0);
            } else if cursor != thread.cursor {
                (thread.cursor, thread.stuck, thread.helped) = (cursor, 0, 0);
            } else {
                thread.stuck += wait;
            }
            if thread.stuck >= PATIENCE {
                thread.stuck = 0;
                thread.helped += 1;
                self.counts.helped += 1;
                if thread.helped > 1 {
                    cell.repair(n, HIGHEST).map_err(named)?;
                }
                cell.revive(n).map_err(named)?;
            }
            is_over |= thread.helped > HELP;
        }
        if is_over {
            self.counts.ended += 1;
            self.end(cell, self.counts.ended.is_multiple_of(LOOK_THROUGH))?;
            cell.begin(&mut self.random).map_err(named)?;
            *threads = [Watched::default(); THREADS as usize];
        }
        Ok(())
    }

    fn end(&mut self, cell: Cell, look_through: bool) -> Result<(), String> {
        cell.end().map_err(named)?;
        if look_through {
            self.counts.looked_through += 1;
            let window = WINDOW + CELLS * CELL_WINDOW;
            if !cell.is_zero(window).map_err(named)? {
                return Err(String::from("memory that was used is not zero"));
            }
        }
        Ok(())
    }

    /// Gives a thread the program with a number; its steps.
    fn load(&self, cell: Cell, n: u64, number: u64) -> u64 {
        let mut random = Random::new(self.seed, number);
        let mut bytes = Vec::new();
        let known = random.below(self.corpus.len() as u64) as usize;
        match (number % 3, self.corpus.get(known)) {
            // What the fuzzer found, as it is, and changed.
            (0, Some(program)) => bytes.extend_from_slice(program),
            (1, Some(program)) => {
                bytes.extend_from_slice(program);
                for _ in 0..=random.below(8) {
                    let at = random.below(bytes.len() as u64) as usize;
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = random.word() as u8;
                    }
                }
            }
            (0, None) => {
                let length = 1 + random.below(LONGEST) as usize;
                bytes.extend((0..length).map(|_| random.word() as u8));
            }
            _ => {
                let count = 1 + random.below(code::MOST as u64);
                let steps: Vec<Step> = (0..count)
                    .map(|_| {
                        if random.one_in(16) {
                            anything(&mut random)
                        } else {
                            sensible::step(&mut random)
                        }
                    })
                    .collect();
                return cell.memory(n).load(steps.into_iter(), &mut random);
            }
        }
        cell.memory(n).load(Script(&bytes), &mut random)
    }
}

/// A step of any bytes.
fn anything(random: &mut Random) -> Step {
    let words: [[u8; 8]; 16] = core::array::from_fn(|_| random.word().to_le_bytes());
    Script(words.as_flattened()).next().unwrap_or(Step::Time(1))
}
