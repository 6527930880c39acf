//! Promise: `bulkhead doctor` tells the truth about the host, because it measures.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

use bulkhead_tests::bulkhead::Bulkhead;
use serde_json::Value;

/// The report of `bulkhead doctor`.
fn report() -> Value {
    let report = Bulkhead::built().run(["doctor", "--format", "json"]);
    report.expect_status(0);
    serde_json::from_str(&report.stdout()).expect("the report is JSON")
}

/// What came of an instruction class at CPL0.
fn outcome<'r>(report: &'r Value, instruction: &str) -> &'r str {
    let outcome = &report["guest_mode"]["instructions"][instruction];
    outcome.as_str().unwrap_or("not tried")
}

mod kvm {
    use super::*;
    use bulkhead_tests::skip;
    use std::process::Command;

    #[test]
    fn every_instruction_class_has_an_outcome() {
        let report = report();
        let instructions = report["guest_mode"]["instructions"].as_object().unwrap();
        assert!(instructions.len() >= 39, "{instructions:#?}");
        for (name, outcome) in instructions {
            let outcome = outcome.as_str().unwrap();
            let known = ["ok", "wrong", "ends-vm"].contains(&outcome);
            assert!(known || outcome.starts_with("fault-"), "{name}: {outcome}");
        }
        // What every KVM can do, or nothing of ours would run.
        for name in [
            "xadd",
            "cmpxchg8b",
            "movdqa",
            "swapgs",
            "invlpg",
            "mov-cr3",
            "rdmsr",
        ] {
            assert_eq!(outcome(&report, name), "ok", "{name}");
        }
    }

    #[test]
    fn what_was_measured_agrees_with_itself() {
        let report = report();
        let mode = &report["guest_mode"];
        let interpreted = report["kvm"] == "interpreted";
        assert_eq!(mode["kind"], report["kvm"]);
        // The three are independent measurements of one fact.
        let landing = if interpreted { "page-fault" } else { "cpl0" };
        assert_eq!(mode["syscall"], landing, "{mode:#}");
        let atomic = if interpreted { "ends-vm" } else { "ok" };
        assert_eq!(outcome(&report, "cmpxchg16b"), atomic, "{mode:#}");
        assert_eq!(
            (&mode["iretq"], &mode["sysretq"]),
            (&"ok".into(), &"ok".into())
        );
    }

    #[test]
    fn the_probe_boots_under_another_vmm() {
        let report = |what: &str| {
            Command::new("qemu-system-x86_64")
                .args([
                    "-M",
                    "microvm,accel=tcg,auto-kernel-cmdline=off",
                    "-cpu",
                    "max",
                ])
                .args([
                    "-m",
                    "16",
                    "-nodefaults",
                    "-no-user-config",
                    "-display",
                    "none",
                ])
                .args(["-serial", "stdio", "-no-reboot", "-append", what, "-kernel"])
                .arg(Bulkhead::built().library("probe"))
                .output()
        };
        let Ok(speed) = report("probe=speed") else {
            return skip("no qemu-system-x86_64 here");
        };
        let speed = String::from_utf8_lossy(&speed.stdout).into_owned();
        assert!(speed.starts_with("\ninstructions=200\n"), "{speed:?}");
        assert!(speed.ends_with("\nend\n"), "{speed:?}");
        let nothing = report("").unwrap();
        assert_eq!(nothing.stdout, b"\n");
        let unknown = report("probe=no-such-thing").unwrap();
        assert_eq!(unknown.stdout, b"\nunknown\n");
    }
}

mod lab {
    use super::*;

    #[test]
    fn hardware_virtualization_is_recognised() {
        let report = report();
        assert_eq!(report["kvm"], "native", "{report:#}");
        for verdict in report["verdicts"].as_array().unwrap() {
            assert_eq!(verdict["runs"], true, "{verdict}");
        }
        let instructions = report["guest_mode"]["instructions"].as_object().unwrap();
        for (name, outcome) in instructions {
            // #UD is right where the emulated CPU lacks the instruction.
            assert!(outcome == "ok" || outcome == "fault-6", "{name}: {outcome}");
        }
    }
}
