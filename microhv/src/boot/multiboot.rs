//! What multiboot1 and multiboot2 loaders hand over.
//!
//! Shape: the Multiboot Specification 0.6.96 section 3.3, the Multiboot2 Specification 2.0 section 3.6.
//! The loader is trusted, its structures are not assumed to be whole: what is missing reads as absent, and a tag whose
//! size contradicts its content is an error. Under UEFI, too, the entry is that of 32-bit protected mode: GRUB ends the boot
//! services, since nothing here needs any of them.
#![forbid(unsafe_code)]

use core::fmt;

use arrayvec::ArrayVec;
use zerocopy::FromBytes;

use crate::console::screen::Framebuffer;

use super::memory_map::{FIRMWARE_RANGES, FirmwareRange, Range};

/// eax at the entry point for multiboot1.
pub const MAGIC1: u32 = 0x2bad_b002;
/// eax at the entry point for multiboot2.
pub const MAGIC2: u32 = 0x36d7_6289;
/// The most modules that are looked at.
pub const MAX_MODULES: usize = 8;

/// A file that the loader placed in memory, with its command line's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// Where the file's bytes are.
    pub range: Range,
    /// The file's command line: NUL-terminated bytes.
    pub string: Range,
}

/// All that is used of a loader's information.
#[derive(Clone, Debug, Default)]
pub struct BootInformation {
    /// The hypervisor's command line: NUL-terminated bytes.
    pub command_line: Option<Range>,
    /// Modules, in order.
    pub modules: ArrayVec<Module, MAX_MODULES>,
    /// Firmware's memory map.
    pub memory: ArrayVec<FirmwareRange, FIRMWARE_RANGES>,
    /// The ACPI root pointer as a copy, from multiboot2.
    pub rsdp: Option<Range>,
    /// The screen, from multiboot2.
    pub screen: Option<Framebuffer>,
    /// Strings begin with the file's name: QEMU's own loader puts the name there, GRUB does not.
    pub names_first: bool,
}

/// The arguments in a kernel's command line, without the file's name: always the first word when `names_first`, else
/// only a path.
pub fn arguments(line: &str, names_first: bool) -> &str {
    let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
    if names_first || first.starts_with('/') || first.starts_with('(') { rest } else { line }
}

/// Reads of physical memory, each bounds-checked by the implementor.
pub trait Physical {
    /// The bytes of `range`, or `None` if it cannot be reached.
    fn bytes(&self, range: Range) -> Option<&[u8]>;

    /// The value at `at`, in the machine's byte order.
    fn read<T: FromBytes>(&self, at: u64) -> Option<T> {
        T::read_from_bytes(self.bytes(Range::sized(at, size_of::<T>() as u64))?).ok()
    }

    /// The NUL-terminated string at `at`, of at most 4095 bytes, without the NUL.
    fn string(&self, at: u64) -> Option<Range> {
        let mut bytes = (0..4096).map_while(|offset| self.read::<u8>(at + offset));
        Some(Range::sized(at, bytes.position(|byte| byte == 0)? as u64))
    }
}

/// An entry of the memory map: the same in both protocols, but for the size that multiboot1 has in front.
#[derive(FromBytes)]
#[repr(C, packed)]
struct MemoryEntry {
    start: u64,
    bytes: u64,
    kind: u32,
}

impl BootInformation {
    /// Takes the entry of the memory map at `at`; `None` when it cannot be read or there is no room.
    fn take_memory(&mut self, memory: &impl Physical, at: u64) -> Option<()> {
        let MemoryEntry { start, bytes, kind } = memory.read(at)?;
        self.memory.try_push(FirmwareRange { range: Range::sized(start, bytes), kind }).ok()
    }

    /// Takes the module `start..end`, whose string is at `string`, if there is room.
    fn take_module(&mut self, memory: &impl Physical, start: u32, end: u32, string: u64) {
        let string = memory.string(string).unwrap_or(Range::sized(0, 0));
        let range = Range { start: start.into(), end: end.into() };
        let _ = self.modules.try_push(Module { range, string });
    }
}

/// Why the loader's information cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// No loader that is known: eax at the entry point.
    Magic(u32),
    /// The information's head is not in reach.
    Unreachable,
    /// The tag at this address, by type and size.
    Tag(u64, u32, u32),
    /// UEFI's boot services still run, and with them devices and a memory map that changes.
    BootServices,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(magic) => write!(f, "not started by a multiboot loader: magic {magic:#x}"),
            Self::Unreachable => f.write_str("the loader's information is out of reach"),
            Self::Tag(at, kind, size) => {
                write!(f, "the loader's tag of type {kind} at {at:#x} is malformed: {size} bytes")
            }
            Self::BootServices => f.write_str("the loader did not end UEFI's boot services"),
        }
    }
}

/// Reads what a loader with the entry magic `magic` left at `info` into `out`, which is empty (and large: hence no
/// return value).
///
/// # Errors
/// The magic is not known, or a structure of multiboot2 contradicts itself: `out` is then not whole.
pub fn parse(
    memory: &impl Physical,
    magic: u32,
    info: u64,
    out: &mut BootInformation,
) -> Result<(), Malformed> {
    match magic {
        MAGIC1 => parse1(memory, info, out).ok_or(Malformed::Unreachable),
        MAGIC2 => parse2(memory, info, out),
        _ => Err(Malformed::Magic(magic)),
    }
}

fn parse1(memory: &impl Physical, info: u64, out: &mut BootInformation) -> Option<()> {
    let words = memory.read::<[u32; 17]>(info)?;
    // The words that count here; each is there if its flag is set.
    let [flags, _, _, _, line, modules, modules_at, _, _, _, _, map_bytes, map_at, _, _, _, loader] = words;
    let has = |flag: u32| flags & 1 << flag != 0;
    if has(2) {
        out.command_line = memory.string(line.into());
    }
    if has(3) {
        for n in 0..u64::from(modules).min(MAX_MODULES as u64) {
            let entry = u64::from(modules_at) + n * 16;
            let Some([start, end, string, _]) = memory.read::<[u32; 4]>(entry) else { break };
            out.take_module(memory, start, end, string.into());
        }
    }
    if has(9) {
        let name = memory.string(loader.into()).and_then(|range| memory.bytes(range));
        out.names_first = name.is_some_and(|name| name.starts_with(b"qemu"));
    }
    if has(6) {
        let mut at = u64::from(map_at);
        let end = at + u64::from(map_bytes);
        while at < end
            && let Some(size) = memory.read::<u32>(at)
            && out.take_memory(memory, at + 4).is_some()
        {
            at += u64::from(size) + 4;
        }
    }
    Some(())
}

fn parse2(memory: &impl Physical, info: u64, out: &mut BootInformation) -> Result<(), Malformed> {
    let total = memory.read::<u32>(info).ok_or(Malformed::Unreachable)?;
    let end = info + u64::from(total);
    let mut at = info + 8;
    while at < end {
        let [kind, size] = memory.read::<[u32; 2]>(at).ok_or(Malformed::Unreachable)?;
        let tag = Range::sized(at, size.into());
        if size < 8 || tag.end > end {
            return Err(Malformed::Tag(at, kind, size));
        }
        match kind {
            0 => break,
            BOOT_SERVICES_RUN => return Err(Malformed::BootServices),
            _ => parse2_tag(memory, kind, tag, out).ok_or(Malformed::Tag(at, kind, size))?,
        }
        at = tag.end.next_multiple_of(8);
    }
    Ok(())
}

/// The type of the tag that says that UEFI's boot services run on: only a kernel that asks for that gets the tag.
const BOOT_SERVICES_RUN: u32 = 18;

/// Takes what a tag tells; `None`: the tag is too short for what it is to hold, or its parts contradict its size.
///
/// UEFI's own memory map (type 17) is not read: the loader makes the plain map (type 6) of it, in which what runtime services and
/// ACPI keep is not RAM. Nor is UEFI's system table (types 11 and 12), since microhv calls no runtime service.
fn parse2_tag(memory: &impl Physical, kind: u32, tag: Range, out: &mut BootInformation) -> Option<()> {
    let body = |at: u64, bytes: usize| Some(at).filter(|at| at + bytes as u64 <= tag.end);
    let string = |at| memory.string(at).filter(|string| string.end < tag.end);
    match kind {
        1 => out.command_line = Some(string(tag.start + 8)?),
        3 => {
            let [start, end] = memory.read::<[u32; 2]>(body(tag.start + 8, 8)?)?;
            (start <= end).then_some(())?;
            out.take_module(memory, start, end, string(tag.start + 16)?.start);
        }
        6 => {
            let bytes = memory.read::<u32>(body(tag.start + 8, 8)?)?;
            (bytes as usize >= size_of::<MemoryEntry>()).then_some(())?;
            let entries = (tag.start + 16..=tag.end).step_by(bytes as usize);
            let mut entries = entries.map_while(|at| body(at, bytes as usize));
            // Entries too many are left out.
            while !out.memory.is_full()
                && let Some(at) = entries.next()
            {
                out.take_memory(memory, at)?;
            }
        }
        8 => out.screen = Some(memory.read(body(tag.start + 8, size_of::<Framebuffer>())?)?),
        // Type 15 (ACPI 2) is preferred to type 14.
        15 => out.rsdp = Some(Range { start: tag.start + 8, ..tag }),
        14 if out.rsdp.is_none() => out.rsdp = Some(Range { start: tag.start + 8, ..tag }),
        _ => {}
    }
    Some(())
}

#[cfg(test)]
mod tests;
