//! `test`: every check of this repository, in order of cost, with one table at the end.

mod checks;
mod coverage;
mod image;
mod libtest;
mod suites;
mod summary;
pub(crate) mod watch;

use std::time::Instant;

use crate::build;
use crate::failure::Result;
use crate::repo::{Repo, in_ci};
use crate::say::Say;
use summary::{Counts, Summary, Tier};

/// The step that counts the kernel's instructions.
const INSTRUCTIONS: &str = "instructions";

/// Options of `cargo xtask test`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Only this tier
    #[arg(long, value_enum)]
    tier: Option<Choice>,
    /// Only tests whose name, after its tier, contains this; no other checks
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Leave out fuzzing, Miri and coverage
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Choice {
    /// What any machine can do
    Host,
    /// The suites on this machine's KVM
    Kvm,
    /// The suites in the lab
    Lab,
}

/// Runs the steps that `options` select; 0 when none failed.
pub(crate) fn run_all(repo: &Repo, options: &Options) -> Result<i32> {
    let say = Say::new("test");
    let mut summary = Summary::default();
    let mut step = |name: &str, tier: Tier, work: &mut dyn FnMut() -> Result<Counts>| {
        say.line(&format!("== {name}"));
        let started = Instant::now();
        let counts = work().unwrap_or_else(|failure| Counts::failed(failure.to_string()));
        let good = counts.failed == 0;
        summary.push(name, tier, counts, started.elapsed());
        good
    };
    let wants = |choice| options.tier.is_none_or(|tier| tier == choice);
    let filter = options.filter.as_deref();
    let everything = filter.is_none();
    if wants(Choice::Host) {
        if everything {
            step("format", Tier::Host, &mut || checks::format(repo));
            step("lints", Tier::Host, &mut || checks::lints(repo));
            step("dependencies", Tier::Host, &mut || {
                checks::dependencies(repo, &say)
            });
            step("count", Tier::Host, &mut || {
                crate::count::run(repo).map(|()| Counts::passed())
            });
            step("docs", Tier::Host, &mut || checks::docs(repo));
        }
        step("host tests", Tier::Host, &mut || checks::host(repo, filter));
        if everything && !options.quick {
            step("coverage", Tier::Host, &mut || coverage::check(repo, &say));
            step("miri", Tier::Host, &mut || checks::miri(repo));
        }
    }
    let built = step("build", Tier::Host, &mut || {
        build::run_all(repo).map(|()| Counts::passed())
    });
    if built && wants(Choice::Host) && everything {
        step("kernel image", Tier::Host, &mut || image::check(repo));
    }
    if built && wants(Choice::Kvm) {
        step("suites", Tier::Kvm, &mut || {
            if suites::kvm_usable() {
                suites::on_host(repo, filter)
            } else {
                say.line("/dev/kvm cannot be used here: these suites run in the lab");
                suites::in_lab(repo, &["kvm"], filter, &say)
            }
        });
    }
    let named = filter.is_none_or(|filter| INSTRUCTIONS.contains(filter));
    if built && wants(Choice::Kvm) && named {
        step(INSTRUCTIONS, Tier::Kvm, &mut || suites::instructions(repo));
    }
    if built && wants(Choice::Lab) {
        step("suites", Tier::Lab, &mut || {
            suites::in_lab(repo, &["kvm", "lab"], filter, &say)
        });
    }
    if wants(Choice::Host) && everything && !options.quick {
        step("fuzz", Tier::Host, &mut || checks::fuzz(repo, &say));
    }
    if in_ci() && !built {
        say.line("the build failed: no suite could run");
    }
    print!("\n{}", summary.render());
    Ok(if summary.good() { 0 } else { 1 })
}
