//! The same images in Bochs, whose CPUs and whose TLB are others than QEMU's.

use anyhow::Result;
use tests::{Machine, Run};
use xtask::deps::{self, Need};
use xtask::machine::{Boot, Emulator};

use crate::Case;
use crate::hostile::DEADLY;

/// Models of CPUs: one of AMD's, one of Intel's with AVX-512.
const MODELS: [&str; 2] = ["ryzen", "corei7_skylake_x"];

/// The conformance cases that need the hypervisor alone, but for those of the FIFO, which take as long as all others: these run as a guest.
const HYPERCALLS: &str = "calls,version,memory,mmu,grant,mmuext,descriptors,event,upcall,sched,vcpu,time,traps,user,debug,emulation";
/// Why some of these are skipped in dom0's place, on any machine.
const NOT_DOM0: [&str; 5] = [
    "this is the control domain",
    "one vCPU alone",
    "no map was set",
    "in dom0 all tables may be seen",
    "dom0 knows no other domain here",
];
/// Why cases are skipped as a guest: Bochs has no disk that dom0 drives, the cases of networks would take minutes, our dom0 serves this
/// guest's frontends alone, and with two CPUs no other vCPU comes between.
const NOT_FOR_A_GUEST: [&str; 9] = [
    "not the control domain",
    "this vCPU has its CPU alone: nothing was loaded again",
    "no disk that can be written",
    "no read-only disk",
    "no disk with sectors larger than 512 bytes",
    "no two network interfaces",
    "no network interfaces that outlive a ruined ring",
    "no frontend of another domain to try",
    "only one end of the rings is here",
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![bochs:
        a_guest_runs_to_its_end,
        cpus_are_started_and_asked_by_each_kind_of_apic,
        the_abis_rules_hold_there_too,
        what_must_die_dies_alone_there_too,
    ]);
    let soak = crate::cases![bochs:
        everything_is_refused_there_too,
        the_abis_rules_hold_for_a_guest_there_too,
    ];
    // Bochs takes a minute or two for all that each does, on each CPU.
    cases.extend(soak.map(|case| Case { soak: true, ..case }));
    cases
}

/// A machine in Bochs, or none where Bochs cannot be had.
fn machine(name: &str, model: &str) -> Option<Machine> {
    if let Err(error) = deps::ensure(&[Need::Bochs, Need::Grub]) {
        eprintln!("SKIPPED {name}: no Bochs: {error:#}");
        return None;
    }
    let machine = Machine::new(&format!("bochs-{name}-{model}"));
    Some(machine.with(|machine| {
        machine.emulator = Emulator::Bochs;
        machine.boot = Boot::Direct; // whatever the others are started by
        machine.cpu_model = model.into();
        machine.memory_mib = 512;
    }))
}

/// How a script ends is known there too, and not by what the console says.
fn a_guest_runs_to_its_end() -> Result<()> {
    for model in MODELS {
        let Some(booted) = machine("boot", model) else { return Ok(()) };
        let run = booted.line("xl create -c /boot/hello.cfg").run()?.succeeded()?.says("hello: goodbye")?;
        run.says("SMEP: on; SMAP: on")?;
    }
    let Some(booted) = machine("failure", MODELS[0]) else { return Ok(()) };
    booted.line("xl create /boot/none.cfg").run()?.line_failed()?;
    Ok(())
}

/// The emulator of QEMU offers no x2APIC, and no process-context identifiers: this model has them, and Meltdown. A guest runs on
/// both CPUs: each is started, kicked and asked to flush.
fn cpus_are_started_and_asked_by_each_kind_of_apic() -> Result<()> {
    for (words, told) in
        [("x2apic=true", "x2APIC, by the command line"), ("x2apic=false", "xAPIC, by the command line")]
    {
        let Some(booted) = machine(words, MODELS[1]) else { return Ok(()) };
        let booted = booted.with(|machine| {
            machine.cpus = 2;
            machine.hypervisor_arguments = words.into();
        });
        let booted =
            booted.line("xl vcpu-pin Domain-0 all 0").line("xl create -c /boot/hello.cfg vcpus=2 cpus='1'");
        let run = booted.run()?.succeeded()?.says(&format!("local APIC: {told}"))?;
        let run = run.says("side channels: Meltdown: on (")?.says("own, with process-context identifiers")?;
        run.says("2 CPU(s) found, 2 used")?.says("hello: goodbye")?;
    }
    Ok(())
}

/// What the emulator of QEMU forgets by itself, this one keeps: the refusals are the same.
fn everything_is_refused_there_too() -> Result<()> {
    for model in MODELS {
        let Some(booted) = machine("hostile", model) else { return Ok(()) };
        booted
            .line("xl create -c /boot/hostile.cfg")
            .line("xl create -c /boot/hello.cfg")
            .run()?
            .succeeded()?
            .says("hostile: PASS")?
            .says("hello: goodbye")?;
    }
    Ok(())
}

/// Each deadly case ends its own domain alone, on these CPUs as on QEMU's.
fn what_must_die_dies_alone_there_too() -> Result<()> {
    for model in MODELS {
        let Some(mut booted) = machine("deadly", model) else { return Ok(()) };
        for case in DEADLY {
            booted = booted.line(&format!("try xl create -c /boot/hostile.cfg extra='case={case}'"));
        }
        let mut run = booted.line("xl create -c /boot/hello.cfg").run()?.succeeded()?;
        for case in DEADLY {
            run = run.says(&format!("hostile: {case} must die"))?;
        }
        let crashed = run.console().matches("error: hostile crashed").count();
        let survived = run.console().lines().find(|line| line.contains("hostile: FAIL"));
        run.require(crashed == DEADLY.len() && survived.is_none(), survived.unwrap_or("one did not crash"))?;
        run.says("hello: goodbye")?;
    }
    Ok(())
}

/// In dom0's place.
fn the_abis_rules_hold_there_too() -> Result<()> {
    let kernel = xtask::images::find(xtask::conformance::IMAGE)?.bootable();
    for model in MODELS {
        let Some(booted) = machine("conformance-dom0", model) else { return Ok(()) };
        let booted = booted.with(|machine| {
            machine.dom0 = kernel.clone();
            machine.dom0_arguments = format!("filter={HYPERCALLS}");
        });
        passes(&booted.run()?.succeeded()?, 400, |reason| NOT_DOM0.contains(&reason))?;
    }
    Ok(())
}

/// All conformance cases as a guest.
fn the_abis_rules_hold_for_a_guest_there_too() -> Result<()> {
    for model in MODELS {
        let Some(booted) = machine("conformance", model) else { return Ok(()) };
        let run = booted.line("xl create -c /boot/conformance.cfg").run()?.succeeded()?;
        passes(&run, 700, |reason| NOT_FOR_A_GUEST.contains(&reason))?;
    }
    Ok(())
}

/// No case failed, and more than `most` passed. Those that were skipped were so for a reason that is known.
fn passes(run: &Run, most: usize, known: impl Fn(&str) -> bool) -> Result<()> {
    let results = run.console().lines().filter_map(|line| line.split_once("conformance: result "));
    let (mut passed, mut unknown) = (0, None);
    for (_, result) in results {
        let [_, outcome, _, reason @ ..] = &result.trim_end().splitn(4, ' ').collect::<Vec<_>>()[..] else {
            continue;
        };
        match (*outcome, reason) {
            ("pass", _) => passed += 1,
            ("skip", [reason]) if known(reason) => {}
            _ => unknown = Some(result.to_string()),
        }
    }
    run.require(unknown.is_none(), &unknown.unwrap_or_default())?;
    run.require(passed > most, &format!("only {passed} cases passed"))?;
    let ended = run.console().contains(" 0 fail ") && run.console().contains(" 0 error");
    run.require(ended, "the cases did not come to their end")
}
