//! Checks the machine that a person asked for, before anything is built.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;

use crate::bundle::Bundle;
use crate::machine::{Disk, Machine, Module, Way};
use crate::usage;

/// The least memory of a machine whose boot bundle has the example guests alone, in MiB.
pub const LEAST_MIB: u32 = 32;
/// What a disk's size is a multiple of.
const SECTOR_BYTES: u64 = 512;
const MIB: u64 = 1 << 20;

/// Reads `--mem`.
///
/// # Errors
/// The text is no number, or too little for any machine: the message names the least.
pub fn memory(text: &str) -> Result<u32, String> {
    let mib: u32 = text.parse().map_err(|_| "a number of MiB is expected".to_string())?;
    if mib < LEAST_MIB {
        return Err(format!(
            "the least is {LEAST_MIB} MiB: the hypervisor, dom0 and the boot bundle take them"
        ));
    }
    Ok(mib)
}

/// Checks the disks: each file exists and has whole sectors, and no two disks have the same id.
///
/// # Errors
/// Wrong usage, which names the disk. No file was touched.
pub fn disks(disks: &[Disk]) -> Result<()> {
    if let Some(disk) = disks.iter().find(|disk| disk.way == Way::Ahci && disk.read_only) {
        let path = disk.path.display();
        return Err(usage(format!("disk {path}: QEMU has no read-only disk as=ahci")));
    }
    let mut ids = BTreeSet::new();
    for disk in disks {
        file("disk", &disk.path)?;
        let bytes = std::fs::metadata(&disk.path).map_or(0, |data| data.len());
        if !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(usage(format!(
                "disk {}: its {bytes} bytes are no multiple of {SECTOR_BYTES}, a sector's size",
                disk.path.display()
            )));
        }
        if let Some(id) = disk.id.as_deref().filter(|id| !ids.insert(*id)) {
            return Err(usage(format!("disk {}: another disk has the id {id} already", disk.path.display())));
        }
    }
    Ok(())
}

/// Checks that the machine has enough memory: files in the boot bundle beside the example guests need more
/// than [`LEAST_MIB`].
///
/// # Errors
/// Wrong usage: the message names the least memory.
pub fn memory_for(machine: &Machine) -> Result<()> {
    let size = |module: &Module| std::fs::metadata(&module.path).map_or(0, |data| data.len());
    let modules: u64 = machine.modules.iter().map(size).sum();
    let least = u64::from(LEAST_MIB) + modules.div_ceil(MIB);
    if u64::from(machine.memory_mib) < least {
        return Err(usage(format!(
            "{} MiB of memory are too few: the least is {least} MiB with these modules",
            machine.memory_mib
        )));
    }
    Ok(())
}

/// Warnings about options that are allowed but may be a mistake: modules that hide a file of the same name.
///
/// # Errors
/// The example guests cannot be read.
pub fn warnings(modules: &[Module]) -> Result<Vec<String>> {
    let built_in = Bundle::guest_names()?;
    let mut warnings = Vec::new();
    for (at, module) in modules.iter().enumerate() {
        let (path, name) = (module.path.display(), &module.name);
        if built_in.contains(name) {
            warnings.push(format!("module {path}: it hides the example guests' own /boot/{name}"));
        }
        if let Some(other) = modules[..at].iter().rfind(|other| other.name == *name) {
            warnings.push(format!("module {path}: it hides {} as /boot/{name}", other.path.display()));
        }
    }
    Ok(warnings)
}

/// Checks before a long build that a file exists.
///
/// # Errors
/// Wrong usage: the file does not exist, or is a directory.
pub fn file(what: &str, path: &Path) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(data) if data.is_dir() => Err(usage(format!("{what} {}: is a directory", path.display()))),
        Ok(_) => Ok(()),
        Err(error) => Err(usage(format!("{what} {}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::RunDirectory;

    fn disk(path: &Path, options: &str) -> Disk {
        format!("{}{options}", path.display()).parse().expect("a disk")
    }

    #[test]
    fn a_disk_with_a_part_of_a_sector_is_refused_and_not_touched() {
        let directory = RunDirectory::new().expect("a directory");
        let path = directory.file("d.img");
        for (bytes, sound) in [(0, true), (511, false), (512, true), (513, false), (1024, true)] {
            let content = vec![7; bytes];
            std::fs::write(&path, &content).expect("writable");
            for options in ["", ",ro"] {
                let answer = disks(&[disk(&path, options)]);
                assert_eq!(answer.is_ok(), sound, "{bytes} {answer:?}");
                if let Err(error) = answer {
                    assert!(
                        error.to_string().contains("d.img") && error.to_string().contains("512"),
                        "{error}"
                    );
                }
            }
            assert_eq!(std::fs::read(&path).expect("readable"), content);
        }
    }

    #[test]
    fn ahci_disks_can_be_written() {
        let scratch = RunDirectory::new().expect("a directory");
        let path = scratch.file("d");
        std::fs::write(&path, [0; 512]).expect("writable");
        assert!(disks(&vec![disk(&path, ",as=ahci"); 7]).is_ok(), "more than an adapter has ports");
        assert!(
            disks(&[disk(&path, ",as=ahci,ro")]).is_err() && disks(&[disk(&path, ",as=nvme,ro")]).is_ok()
        );
    }

    #[test]
    fn two_disks_of_one_id_are_refused() {
        let directory = RunDirectory::new().expect("a directory");
        let path = directory.file("d.img");
        std::fs::write(&path, [0; 512]).expect("writable");
        let two = |first, second| disks(&[disk(&path, first), disk(&path, second)]);
        assert!(two("", "").is_ok());
        assert!(two(",id=a", ",id=b").is_ok());
        let error = two(",id=a", ",ro,id=a").expect_err("one id");
        assert!(error.is::<crate::Usage>() && error.to_string().contains("the id a"), "{error}");
    }

    #[test]
    fn too_little_memory_is_refused_with_the_least() {
        assert_eq!(memory("32"), Ok(32));
        assert!(memory("31").is_err_and(|text| text.contains("32 MiB")));
        assert!(memory("-1").is_err());
        let directory = RunDirectory::new().expect("a directory");
        let path = directory.file("big");
        std::fs::write(&path, vec![0; (3 << 20) + 1]).expect("writable");
        let module = Module { path, name: "big".into() };
        let machine =
            |memory_mib| Machine { memory_mib, modules: vec![module.clone()], ..Machine::default() };
        assert!(memory_for(&machine(36)).is_ok());
        let error = memory_for(&machine(35)).expect_err("too little");
        assert!(error.is::<crate::Usage>() && error.to_string().contains("36 MiB"), "{error}");
    }

    #[test]
    fn a_module_that_hides_another_file_is_told() {
        let module = |text: &str| text.parse::<Module>().expect("a module");
        let told = |modules: &[Module]| warnings(modules).expect("the sources are there");
        assert!(told(&[module("a"), module("b")]).is_empty());
        for name in ["hello", "hello.cfg"] {
            let told = told(&[module(&format!("x={name}"))]);
            assert!(told.len() == 1 && told[0].contains(&format!("/boot/{name}")), "{told:?}");
        }
        let told = told(&[module("a=k"), module("b=k"), module("c=k")]);
        assert!(told.len() == 2 && told[1].contains("it hides b as /boot/k"), "{told:?}");
    }
}
