//! What multiboot1 and multiboot2 loaders hand over.
//!
//! Shape: the Multiboot Specification 0.6.96 section 3.3, the Multiboot2 Specification 2.0 section 3.6.
//! The loader is trusted, its structures are not assumed to be whole: what is missing reads as absent.
#![forbid(unsafe_code)]

use arrayvec::ArrayVec;
use zerocopy::FromBytes;

use super::memory_map::{FirmwareRange, MAX_RANGES, Range};

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
    pub memory: ArrayVec<FirmwareRange, MAX_RANGES>,
    /// The ACPI root pointer as a copy, from multiboot2.
    pub rsdp: Option<Range>,
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

/// Reads what a loader with the entry magic `magic` left at `info` into `out`, which is empty (and large: hence no
/// return value); `false` if the magic is not known.
pub fn parse(memory: &impl Physical, magic: u32, info: u64, out: &mut BootInformation) -> bool {
    match magic {
        MAGIC1 => parse1(memory, info, out),
        MAGIC2 => parse2(memory, info, out),
        _ => return false,
    }
    true
}

fn parse1(memory: &impl Physical, info: u64, out: &mut BootInformation) {
    let Some(words) = memory.read::<[u32; 17]>(info) else { return };
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
}

fn parse2(memory: &impl Physical, info: u64, out: &mut BootInformation) {
    let Some(total) = memory.read::<u32>(info) else { return };
    let end = info + u64::from(total);
    let mut at = info + 8;
    while at + 8 <= end
        && let Some([kind, size]) = memory.read::<[u32; 2]>(at)
    {
        let size = u64::from(size);
        if kind == 0 || size < 8 || at + size > end {
            break;
        }
        match kind {
            1 => out.command_line = memory.string(at + 8),
            3 => {
                if let Some([start, end]) = memory.read::<[u32; 2]>(at + 8) {
                    out.take_module(memory, start, end, at + 16);
                }
            }
            6 => parse2_memory(memory, at, size, out),
            // Type 15 (ACPI 2) is preferred to type 14.
            15 => out.rsdp = Some(Range::sized(at + 8, size - 8)),
            14 if out.rsdp.is_none() => out.rsdp = Some(Range::sized(at + 8, size - 8)),
            _ => {}
        }
        at = (at + size).next_multiple_of(8);
    }
}

fn parse2_memory(memory: &impl Physical, tag: u64, size: u64, out: &mut BootInformation) {
    let entry_bytes = u64::from(memory.read::<u32>(tag + 8).unwrap_or(0));
    let mut at = tag + 16;
    while entry_bytes >= size_of::<MemoryEntry>() as u64
        && at + entry_bytes <= tag + size
        && out.take_memory(memory, at).is_some()
    {
        at += entry_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    struct Memory(Vec<u8>);

    impl Physical for Memory {
        fn bytes(&self, range: Range) -> Option<&[u8]> {
            self.0.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
        }
    }

    impl Memory {
        fn new() -> Self {
            Self(std::vec![0; 0x1000])
        }

        fn put(&mut self, at: usize, bytes: &[u8]) {
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
        }

        fn put32(&mut self, at: usize, value: u32) {
            self.put(at, &value.to_le_bytes());
        }

        fn put64(&mut self, at: usize, value: u64) {
            self.put(at, &value.to_le_bytes());
        }

        fn text(&self, range: Range) -> &str {
            std::str::from_utf8(self.bytes(range).unwrap()).unwrap()
        }
    }

    fn parsed(memory: &Memory, magic: u32, info: u64) -> Option<BootInformation> {
        let mut out = BootInformation::default();
        parse(memory, magic, info, &mut out).then_some(out)
    }

    #[test]
    fn multiboot1() {
        let mut memory = Memory::new();
        memory.put32(0x100, 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9);
        memory.put32(0x140, 0x500);
        memory.put(0x500, b"qemu\0");
        memory.put32(0x110, 0x200);
        memory.put(0x200, b"com1 dom0_mem=24M\0");
        memory.put32(0x114, 1);
        memory.put32(0x118, 0x300);
        for (n, value) in [0x40_0000, 0x50_0123, 0x340, 0].into_iter().enumerate() {
            memory.put32(0x300 + 4 * n, value);
        }
        memory.put(0x340, b"dom0 x\0");
        memory.put32(0x12c, 24);
        memory.put32(0x130, 0x400);
        memory.put32(0x400, 20);
        memory.put64(0x404, 0x10_0000);
        memory.put64(0x40c, 0x2000);
        memory.put32(0x414, 1);
        let info = parsed(&memory, MAGIC1, 0x100).unwrap();
        assert_eq!(memory.text(info.command_line.unwrap()), "com1 dom0_mem=24M");
        assert!(info.names_first);
        assert_eq!(info.modules.len(), 1);
        assert_eq!(info.modules[0].range, Range { start: 0x40_0000, end: 0x50_0123 });
        assert_eq!(memory.text(info.modules[0].string), "dom0 x");
        assert_eq!(
            info.memory[..],
            [FirmwareRange { range: Range { start: 0x10_0000, end: 0x10_2000 }, kind: 1 }]
        );
    }

    #[test]
    fn multiboot2() {
        let mut memory = Memory::new();
        let mut at = 0x108;
        let mut tag = |memory: &mut Memory, kind: u32, body: &[u8]| {
            memory.put32(at, kind);
            memory.put32(at + 4, 8 + body.len() as u32);
            memory.put(at + 8, body);
            at = (at + 8 + body.len()).next_multiple_of(8);
            at
        };
        tag(&mut memory, 1, b"loglvl=all\0");
        tag(&mut memory, 3, b"\0\x10\0\0\0\x20\0\0boot bundle\0");
        tag(&mut memory, 14, b"RSD PTR old");
        tag(&mut memory, 15, b"RSD PTR new");
        tag(&mut memory, 14, b"RSD PTR old");
        let mut map = [0u8; 8 + 24];
        map[0] = 24;
        map[8..16].copy_from_slice(&0x1000u64.to_le_bytes());
        map[16..24].copy_from_slice(&0x9000u64.to_le_bytes());
        map[24] = 1;
        tag(&mut memory, 6, &map);
        let end = tag(&mut memory, 0, &[]);
        memory.put32(0x100, end as u32 - 0x100);
        let info = parsed(&memory, MAGIC2, 0x100).unwrap();
        assert_eq!(memory.text(info.command_line.unwrap()), "loglvl=all");
        assert_eq!(info.modules[0].range, Range { start: 0x1000, end: 0x2000 });
        assert_eq!(memory.text(info.modules[0].string), "boot bundle");
        assert!(memory.text(info.rsdp.unwrap()).ends_with("new"));
        assert_eq!(info.memory[0].range, Range { start: 0x1000, end: 0xa000 });
    }

    #[test]
    fn file_names_are_no_arguments() {
        assert_eq!(arguments("dom0 quiet a=b", true), "quiet a=b");
        assert_eq!(arguments("dom0", true), "");
        assert_eq!(arguments("quiet a=b", false), "quiet a=b");
        assert_eq!(arguments("/boot/dom0 quiet", false), "quiet");
        assert_eq!(arguments("(cd)/dom0", false), "");
        assert_eq!(arguments("", false), "");
    }

    #[test]
    fn broken_structures_end_the_walk() {
        let mut memory = Memory::new();
        memory.put32(0x100, u32::MAX);
        memory.put32(0x10c, 3); // a tag of 3 bytes
        assert!(parsed(&memory, MAGIC2, 0x100).unwrap().memory.is_empty());
        assert!(parsed(&memory, MAGIC2, 0xffff_f000).unwrap().modules.is_empty());
        memory.put32(0x100, u32::MAX);
        memory.put32(0x114, u32::MAX);
        memory.put32(0x118, 0xfff);
        memory.put32(0x12c, 0x100);
        memory.put32(0x130, 0xff0);
        let info = parsed(&memory, MAGIC1, 0x100).unwrap();
        assert!(info.modules.is_empty() && info.memory.is_empty());
        assert!(parsed(&memory, 0, 0x100).is_none());
    }
}
