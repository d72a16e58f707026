//! Kernels that say in older ways that they are for PV, as domains and in dom0's place; and one that lzma compressed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tests::{Machine, Scratch};
use xtask::deps::{self, Need};
use xtask::machine::Boot;
use xtask::session::Outcome;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![kernels:
        kernels_with_older_notes_run_as_domains,
        kernels_with_older_notes_run_in_dom0s_place,
        acpi_powers_the_machine_off,
    ])
}

/// The forms of `programs/kernel.S`, and where each is linked: notes in a section alone; text in a section, and all
/// addresses from 0; the same, with physical addresses that are virtual ones.
const FORMS: [(&str, &str); 3] =
    [("NOTES", "0xffffffff80000000"), ("GUEST", "0"), ("HIGH", "0xffffffff80000000")];

/// `programs/kernel.S` in one form, linked.
fn kernel(scratch: &Scratch, form: &str, base: &str) -> Result<PathBuf> {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
    let kernel = scratch.path(form);
    let script = programs.join("kernel.ld");
    let status = Command::new("gcc")
        .args(["-nostdlib", "-static", &format!("-D{form}")])
        .arg(format!("-Wl,--build-id=none,--no-warn-rwx-segments,-zmax-page-size=4096,--defsym=BASE={base}"))
        .arg(format!("-Wl,-T,{}", script.display()))
        .arg("-o")
        .arg(&kernel)
        .arg(programs.join("kernel.S"))
        .status()
        .context("cannot run gcc")?;
    ensure!(status.success(), "{form}: gcc: {status}");
    Ok(kernel)
}

/// What a program of the host makes of a file.
fn packed(scratch: &Scratch, file: &Path, program: &[&str], name: &str) -> Result<PathBuf> {
    let [program, words @ ..] = program else { anyhow::bail!("no program") };
    let mut command = Command::new(program);
    command.args(words).arg("-c").arg(file).stdout(Stdio::piped());
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program}: {}", output.status);
    scratch.file(name, &output.stdout)
}

/// Each powers off by its hypercall page, whose place its notes say.
fn kernels_with_older_notes_run_as_domains() -> Result<()> {
    let scratch = Scratch::new("old-notes")?;
    let mut machine = Machine::new("old-notes");
    let mut add = |path: &Path, name: &str| {
        let create = format!("xl create -c 'name=\"{name}\";kernel=\"/boot/{name}\";memory=16'");
        machine = machine.clone().module(path, name).line(&create);
    };
    for (form, base) in FORMS {
        let kernel = kernel(&scratch, form, base)?;
        add(&kernel, &form.to_lowercase());
        let name = format!("{}-gz", form.to_lowercase());
        add(&packed(&scratch, &kernel, &["gzip"], &name)?, &name);
    }
    let hello = xtask::images::find("hello")?.bootable();
    add(&packed(&scratch, &hello, &["xz", "--format=lzma"], "hello-lzma")?, "hello-lzma");
    machine.run()?.succeeded()?.says("hello")?;
    Ok(())
}

fn kernels_with_older_notes_run_in_dom0s_place() -> Result<()> {
    let scratch = Scratch::new("old-dom0")?;
    for (form, base) in FORMS {
        let kernel = kernel(&scratch, form, base)?;
        let machine = Machine::new(&format!("old-dom0-{form}")).with(|machine| machine.dom0 = kernel);
        machine.run()?.says(&format!("kernel: {form} runs"))?;
    }
    Ok(())
}

/// A report port that ends no emulator: ACPI's registers alone end the machine.
fn acpi_powers_the_machine_off() -> Result<()> {
    deps::ensure(&[Need::Grub, Need::Uefi])?;
    let scratch = Scratch::new("acpi-off")?;
    let [(form, base), ..] = FORMS;
    let kernel = kernel(&scratch, form, base)?;
    for boot in [Boot::Direct, Boot::Uefi] {
        let machine = Machine::new(&format!("acpi-off-{boot:?}")).boot(boot).with(|machine| {
            machine.dom0 = kernel.clone();
            machine.hypervisor_arguments = "debug-exit=0x80".into();
        });
        machine.run()?.ended_with(&Outcome::Silent)?.says(&format!("kernel: {form} runs"))?;
    }
    Ok(())
}
