//! The same images in Bochs, whose CPUs and whose TLB are others than QEMU's.

use anyhow::Result;
use tests::Machine;
use xtask::deps::{self, Need};
use xtask::machine::{Boot, Emulator};

use crate::Case;

/// Models of CPUs: one of AMD's, one of Intel's with AVX-512.
const MODELS: [&str; 2] = ["ryzen", "corei7_skylake_x"];

pub(crate) fn cases() -> Vec<Case> {
    let [boots, apics, mut refused] = crate::cases![bochs:
        a_guest_runs_to_its_end,
        cpus_are_started_and_asked_by_each_kind_of_apic,
        everything_is_refused_there_too,
    ];
    // Bochs takes a minute or two for all that `hostile` does, on each CPU.
    refused.soak = true;
    vec![boots, apics, refused]
}

/// A machine in Bochs, or none where Bochs cannot be had.
fn machine(name: &str, model: &str) -> Option<Machine> {
    if let Err(error) = deps::ensure(&[Need::Bochs, Need::Grub]) {
        eprintln!("SKIPPED {name}: no Bochs: {error:#}");
        return None;
    }
    let machine = Machine::new(&format!("bochs-{name}-{model}")).seconds(600);
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
