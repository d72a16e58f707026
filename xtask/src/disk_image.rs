//! A disk image that a BIOS and UEFI start: a table of partitions (GPT), GRUB for both, and a FAT file system whose files can be
//! replaced: the hypervisor, dom0, the boot bundle, and GRUB's menu.
//!
//! A BIOS starts the sector that GRUB calls `boot.img`, which reads GRUB's core from a partition of its own: the sector and the
//! core name each other by sectors, which `grub-bios-setup` would write. UEFI starts `EFI/BOOT/BOOTX64.EFI`, as from any removable disk.
//!
//! Source: UEFI Specification 2.10, 3.5.1 and 5.3; GRUB's manual, "BIOS installation"; the places that GRUB's core keeps for those
//! numbers are those of `include/grub/offsets.h`.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use gpt::disk::LogicalBlockSize;
use gpt::partition_types::{BIOS, EFI, Type};

use crate::iso::{self, Files};

/// Makes GRUB's core of its modules.
pub const PROGRAM: &str = "grub-mkimage";
/// GRUB's modules for a BIOS.
pub const BIOS_MODULES: &str = "/usr/lib/grub/i386-pc";
/// GRUB's modules for UEFI.
pub const EFI_MODULES: &str = "/usr/lib/grub/x86_64-efi";

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Where the core's partition begins, and how long the partition is.
const CORE: (u64, u64) = (2048, 2048);
/// Where the files' partition begins.
pub const FILES: u64 = CORE.0 + CORE.1;
/// What the files' partition has room for besides its files, so that they can be replaced by larger ones. FAT32 has 33 MiB at least.
const ROOM_BYTES: u64 = 64 << 20;
/// Sectors behind the last partition: the second copy of the table.
const LAST: u64 = 2048;
/// In `boot.img`: the first sector of the core.
const CORE_SECTOR: usize = 0x5c;
/// In the core's first sector, its last list of sectors: where the rest begins (u64), how long the rest is (u16), and the segment
/// at which the rest is put (u16).
const REST: usize = 0x1f4;
const REST_SEGMENT: u16 = 0x820;
/// Bytes of a disk's first sector before the table that old systems look at.
const BOOT_CODE: usize = 440;

/// What GRUB's core has built in: enough to read the menu and to boot.
const MODULES: [&str; 12] = [
    "part_gpt",
    "fat",
    "normal",
    "configfile",
    "multiboot2",
    "serial",
    "terminal",
    "echo",
    "test",
    "ls",
    "halt",
    "reboot",
];

/// Makes the disk image `image`.
///
/// # Errors
/// A file cannot be read or written, or a tool fails: its output is in the error.
pub fn make(image: &Path, files: &Files<'_>, hypervisor_line: &str, dom0_line: &str) -> Result<()> {
    let tree = image.with_extension("tree");
    iso::lay_out(&tree, files, hypervisor_line, dom0_line)?;
    let efi = tree.join("EFI/BOOT");
    std::fs::create_dir_all(&efi).with_context(|| format!("cannot make {}", efi.display()))?;
    core("x86_64-efi", EFI_MODULES, "/boot/grub", &["all_video"], &efi.join("BOOTX64.EFI"))?;
    let core_file = image.with_extension("core");
    core("i386-pc", BIOS_MODULES, "(,gpt2)/boot/grub", &["biosdisk"], &core_file)?;

    let bytes = [files.hypervisor, files.dom0, files.bundle].iter().try_fold(0, |sum, file| {
        let about = std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok::<_, anyhow::Error>(sum + about.len())
    })?;
    let sectors = (bytes + ROOM_BYTES).div_ceil(SECTOR).next_multiple_of(2048);
    let boot_sector = std::fs::read(Path::new(BIOS_MODULES).join("boot.img")).context("GRUB's boot.img")?;
    let core = std::fs::read(&core_file).with_context(|| format!("cannot read {}", core_file.display()))?;
    write_sectors(image, sectors, boot_sector, core)
        .with_context(|| format!("cannot write {}", image.display()))?;
    let at = format!("{}@@{}", image.display(), FILES * SECTOR);
    tool(
        "mformat",
        &["-i", &at, "-F", "-v", "MICROHV", "-T", &sectors.to_string(), "-h", "255", "-s", "63", "::"],
    )?;
    let parts = ["EFI", "boot"].map(|name| tree.join(name).display().to_string());
    tool("mcopy", &["-i", &at, "-s", &parts[0], &parts[1], "::/"])?;
    std::fs::remove_file(&core_file).with_context(|| format!("cannot remove {}", core_file.display()))?;
    std::fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))
}

/// Makes GRUB's core for a platform.
fn core(platform: &str, modules: &str, prefix: &str, more: &[&str], output: &Path) -> Result<()> {
    let output = output.display().to_string();
    let mut arguments = vec!["-O", platform, "-d", modules, "-p", prefix, "-o", &output];
    arguments.extend(MODULES.iter().chain(more));
    tool(PROGRAM, &arguments)
}

fn tool(program: &str, arguments: &[&str]) -> Result<()> {
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

/// A partition behind that of GRUB's core: its name, its kind, and its size in sectors, which 2048 divides.
pub type Partition<'a> = (&'a str, Type, u64);

/// Makes a disk's file with a table of partitions: that of GRUB's core for a BIOS, and behind it these, in their order.
///
/// # Errors
/// The file cannot be written.
pub fn partitioned(disk: &Path, partitions: &[Partition<'_>]) -> Result<File> {
    let all = FILES + partitions.iter().map(|(_, _, sectors)| sectors).sum::<u64>() + LAST;
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(disk)?;
    file.set_len(all * SECTOR)?;
    gpt::mbr::ProtectiveMBR::with_lb_size(u32::try_from(all - 1).unwrap_or(u32::MAX))
        .overwrite_lba0(&mut file)?;
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(file, None)?;
    table.add_partition_at("core", 1, CORE.0, CORE.1, BIOS, 0)?;
    let mut first = FILES;
    for (number, (name, kind, sectors)) in (2..).zip(partitions) {
        table.add_partition_at(name, number, first, *sectors, kind.clone(), 0)?;
        first += sectors;
    }
    Ok(table.write()?)
}

/// Writes the table, whose second partition has `sectors` sectors, and what a BIOS reads.
fn write_sectors(image: &Path, sectors: u64, boot_sector: Vec<u8>, core: Vec<u8>) -> Result<()> {
    let mut file = partitioned(image, &[("microhv", EFI, sectors)])?;
    let (boot_code, core) = bios_code(boot_sector, core)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&boot_code)?;
    file.seek(SeekFrom::Start(CORE.0 * SECTOR))?;
    file.write_all(&core)?;
    Ok(())
}

/// GRUB's first sector and its core, each with the numbers of the sectors that it reads next.
fn bios_code(mut boot_sector: Vec<u8>, mut core: Vec<u8>) -> Result<(Vec<u8>, Vec<u8>)> {
    let sectors = core.len().div_ceil(SECTOR as usize);
    ensure!(
        boot_sector.len() == SECTOR as usize && sectors > 1,
        "GRUB's boot.img or core is no whole sector"
    );
    ensure!(sectors as u64 <= CORE.1, "GRUB's core has {sectors} sectors: there is room for {}", CORE.1);
    boot_sector[CORE_SECTOR..][..8].copy_from_slice(&CORE.0.to_le_bytes());
    boot_sector.truncate(BOOT_CODE);
    core[REST..][..8].copy_from_slice(&(CORE.0 + 1).to_le_bytes());
    core[REST + 8..][..2].copy_from_slice(&(sectors as u16 - 1).to_le_bytes());
    core[REST + 10..][..2].copy_from_slice(&REST_SEGMENT.to_le_bytes());
    Ok((boot_sector, core))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sectors_name_what_comes_next() {
        let (first, core) = bios_code(vec![0xaa; 512], vec![0x55; 512 * 3 + 1]).expect("whole sectors");
        assert_eq!((first.len(), &first[0x5c..0x64]), (440, &2048u64.to_le_bytes()[..]));
        assert_eq!(core[0x1f4..0x200], [1, 8, 0, 0, 0, 0, 0, 0, 3, 0, 0x20, 8]);
        assert_eq!((core[0x1f3], core[0x200], first[0x64]), (0x55, 0x55, 0xaa));
    }

    #[test]
    fn a_core_that_does_not_fit_is_refused() {
        assert!(bios_code(vec![0; 512], vec![0; 2049 * 512]).is_err());
        assert!(bios_code(vec![0; 511], vec![0; 1024]).is_err());
        assert!(bios_code(vec![0; 512], vec![0; 512]).is_err());
    }
}
