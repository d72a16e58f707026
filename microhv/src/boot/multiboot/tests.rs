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

fn parsed(memory: &Memory, magic: u32, info: u64) -> Result<BootInformation, Malformed> {
    let mut out = BootInformation::default();
    parse(memory, magic, info, &mut out).map(|()| out)
}

/// Information of multiboot2 at 0x100 with these tags, and the end tag behind them.
fn with_tags(tags: &[(u32, &[u8])]) -> Memory {
    let mut memory = Memory::new();
    let mut at = 0x108;
    for (kind, body) in tags.iter().copied().chain([(0, &[][..])]) {
        memory.put32(at, kind);
        memory.put32(at + 4, 8 + body.len() as u32);
        memory.put(at + 8, body);
        at = (at + 8 + body.len()).next_multiple_of(8);
    }
    memory.put32(0x100, at as u32 - 0x100);
    memory
}

/// The body of a memory map with one entry of each of these kinds, a page each.
fn map(kinds: &[u32]) -> Vec<u8> {
    let mut body = std::vec![24, 0, 0, 0, 0, 0, 0, 0];
    for (n, kind) in (0u64..).zip(kinds) {
        body.extend([(0x1000 * n).to_le_bytes(), 0x1000u64.to_le_bytes()].as_flattened());
        body.extend([kind.to_le_bytes(), [0; 4]].as_flattened());
    }
    body
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
    let memory = with_tags(&[
        (1, b"loglvl=all\0"),
        (3, b"\0\x10\0\0\0\x20\0\0boot bundle\0"),
        (14, b"RSD PTR old"),
        (15, b"RSD PTR new"),
        (14, b"RSD PTR old"),
        (12, &[0; 8]),
        (8, b"\0\0\0\xc0\0\0\0\0\0\x14\0\0\0\x05\0\0\0\x03\0\0\x20\x01\0\0\x10\x08\x08\x08\0\x08"),
        (17, &[0; 48]),
        (6, &map(&[2, 1])),
    ]);
    let info = parsed(&memory, MAGIC2, 0x100).unwrap();
    assert_eq!(memory.text(info.command_line.unwrap()), "loglvl=all");
    assert_eq!(info.modules[0].range, Range { start: 0x1000, end: 0x2000 });
    assert_eq!(memory.text(info.modules[0].string), "boot bundle");
    assert_eq!(memory.text(info.rsdp.unwrap()), "RSD PTR new");
    let Framebuffer { address, pitch, width, height, bits, kind } = info.screen.unwrap();
    assert_eq!((address, pitch, width, height, bits, kind), (0xc000_0000, 5120, 1280, 768, 32, 1));
    assert_eq!(
        info.memory[..],
        [(0, 2), (0x1000, 1)].map(|(at, kind)| FirmwareRange { range: Range::sized(at, 0x1000), kind })
    );
}

#[test]
fn the_old_root_pointer_serves_where_there_is_no_new_one() {
    let memory = with_tags(&[(14, b"RSD PTR old")]);
    assert_eq!(memory.text(parsed(&memory, MAGIC2, 0x100).unwrap().rsdp.unwrap()), "RSD PTR old");
}

#[test]
fn boot_services_that_still_run_are_refused() {
    let memory = with_tags(&[(6, &map(&[1])), (18, &[])]);
    assert_eq!(parsed(&memory, MAGIC2, 0x100).unwrap_err(), Malformed::BootServices);
}

#[test]
fn tags_that_contradict_themselves_are_named() {
    for (kind, body) in [
        (1, &b"no end"[..]),
        (1, b""),
        (3, b"\0\x10\0\0\0\x20\0"),
        (3, b"\0\x10\0\0\0\x20\0\0no end"),
        (3, b"\0\x20\0\0\0\x10\0\0ends before its start\0"),
        (6, b"\x18\0\0\0\0\0\0"),
        (6, b"\x13\0\0\0\0\0\0\0"),
        (6, b"\0\0\0\0\0\0\0\0"),
        (8, &[1; 21]),
    ] {
        // Behind the tag stands what would make a careless reader content.
        let memory = with_tags(&[(kind, body), (1, b"\0\0\0\0\0\0\0\0\0")]);
        let error = parsed(&memory, MAGIC2, 0x100).unwrap_err();
        assert_eq!(error, Malformed::Tag(0x108, kind, 8 + body.len() as u32));
        assert!(std::format!("{error}").contains("0x108"));
    }
}

#[test]
fn a_map_that_ends_amid_an_entry_has_the_entries_before_it() {
    let whole = map(&[1, 2, 3]);
    for cut in 1..24 {
        let memory = with_tags(&[(6, &whole[..whole.len() - cut])]);
        assert_eq!(parsed(&memory, MAGIC2, 0x100).unwrap().memory.len(), 2);
    }
}

#[test]
fn entries_too_many_are_left_out() {
    let memory = with_tags(&[(6, &map(&[1; FIRMWARE_RANGES + 9]))]);
    assert!(parsed(&memory, MAGIC2, 0x100).unwrap().memory.is_full());
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
    memory.put32(0x10c, 3);
    assert_eq!(parsed(&memory, MAGIC2, 0x100).unwrap_err(), Malformed::Tag(0x108, 0, 3));
    assert_eq!(parsed(&memory, MAGIC2, 0xffff_f000).unwrap_err(), Malformed::Unreachable);
    assert_eq!(parsed(&memory, MAGIC1, 0xffff_f000).unwrap_err(), Malformed::Unreachable);
    memory.put32(0x100, u32::MAX);
    memory.put32(0x114, u32::MAX);
    memory.put32(0x118, 0xfff);
    memory.put32(0x12c, 0x100);
    memory.put32(0x130, 0xff0);
    let info = parsed(&memory, MAGIC1, 0x100).unwrap();
    assert!(info.modules.is_empty() && info.memory.is_empty());
    assert_eq!(parsed(&memory, 7, 0x100).unwrap_err(), Malformed::Magic(7));
}

/// Memory that notes whether anything outside of the information was read.
struct Guarded(Vec<u8>);

impl Physical for Guarded {
    fn bytes(&self, range: Range) -> Option<&[u8]> {
        assert!(range.start >= 0x100, "{range:x?} is before the information");
        self.0.get(usize::try_from(range.start - 0x100).ok()?..usize::try_from(range.end - 0x100).ok()?)
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

    /// Whatever the tags say: what comes out lies in the information, and is what the tags can hold.
    #[test]
    fn any_tags_give_ranges_within_or_an_error(
        tags in proptest::collection::vec((0u32..24, 0u32..80, proptest::collection::vec(0u8..40, 0..64)), 0..8),
        lie in 0u32..600,
    ) {
        let mut bytes = std::vec![0u8; 8];
        for (kind, size, body) in tags {
            bytes.extend([kind.to_le_bytes(), size.to_le_bytes()].as_flattened());
            bytes.extend(body);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes[..4].copy_from_slice(&lie.to_le_bytes());
        let end = 0x100 + u64::from(lie);
        let mut out = BootInformation::default();
        if parse(&Guarded(bytes), MAGIC2, 0x100, &mut out).is_ok() {
            let strings = out.modules.iter().map(|module| module.string).chain(out.command_line);
            for range in strings.chain(out.rsdp) {
                assert!(range.start >= 0x108 && range.start <= range.end && range.end <= end, "{range:x?}");
            }
            assert!(out.modules.iter().all(|module| module.range.start <= module.range.end));
        }
    }
}
