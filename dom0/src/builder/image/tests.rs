use super::*;
use crate::builder::notes::tests::note;
use alloc::boxed::Box;
use core::task::{Context, Poll, Waker};
use proptest::prelude::*;
use pvrt::executor::block_on_test;
use pvrt::{Account, yield_now};
use ring_abi::elfnote::{
    XEN_ELFNOTE_LOADER, XEN_ELFNOTE_PADDR_OFFSET, XEN_ELFNOTE_VIRT_BASE, XEN_ELFNOTE_XEN_VERSION,
};

const MEMORY: u64 = 1 << 20;
/// The size of a window's piece.
const PIECE: usize = 256 << 10;

/// A domain of 1 MiB.
#[derive(Default)]
struct Memory {
    bytes: Vec<u8>,
    range: Option<(u64, u64)>,
}

impl ImageSink for Memory {
    fn begin(&mut self, first: u64, end: u64) -> Result<(), String> {
        if end > MEMORY {
            return Err("too large".into());
        }
        self.bytes = alloc::vec![0; end as usize];
        self.range = Some((first, end));
        Ok(())
    }

    fn write(&mut self, paddr: u64, bytes: &[u8]) -> Result<(), String> {
        let (first, end) = self.range.expect("begun");
        assert!(paddr >= first && paddr + bytes.len() as u64 <= end, "{paddr:#x}");
        self.bytes[paddr as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// `type, offset, paddr, bytes in the file, bytes in memory`.
type Segment = (u32, u64, u64, u64, u64);

fn elf(segments: &[Segment], body: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(2u16.to_le_bytes());
    file.extend(EM_X86_64.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for word in [0x1234u64, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, segments.len() as u16, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for &(kind, offset, paddr, filesz, memsz) in segments {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for word in [offset, paddr, paddr, filesz, memsz, 8] {
            file.extend(word.to_le_bytes());
        }
    }
    file.resize(0x200, 0);
    file.extend(body);
    file
}

fn notes() -> Vec<u8> {
    [note(XEN_ELFNOTE_XEN_VERSION, b"xen-3.0\0"), note(XEN_ELFNOTE_LOADER, b"generic\0")].concat()
}

/// Notes at 0x200, then 100,000 bytes, so that segments end behind the first chunk.
fn sample() -> Vec<u8> {
    let notes = notes();
    let data: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    let at = 0x200 + notes.len() as u64;
    let segments = [
        (PT_LOAD, at, 0x1000, 90_000, 95_000),
        (PT_LOAD, at + 90_000, 0x2_0800, 10_000, 10_000),
        (PT_NOTE, 0x200, 0, notes.len() as u64, notes.len() as u64),
    ];
    elf(&segments, &[notes, data].concat())
}

fn run(file: &[u8]) -> (Result<Kernel, ImageError>, Memory) {
    let mut memory = Memory::default();
    let result = block_on_test(load(file, MEMORY, &mut memory));
    (result, memory)
}

fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = alloc::vec![0; 2 * 512];
    file[0x1f1] = 1;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    file[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
    file.extend([0; 16]);
    file.extend(payload);
    file.extend([0; 4]);
    file
}

fn check(result: Result<Kernel, ImageError>, memory: &Memory) {
    let kernel = result.unwrap();
    assert_eq!((kernel.first, kernel.end), (0x1000, 0x2_3000));
    assert_eq!(kernel.notes.entry, 0x1234);
    let want = |n: u64| (n % 251) as u8;
    assert!((0..90_000).all(|n| memory.bytes[0x1000 + n as usize] == want(n)));
    assert!((0..10_000).all(|n| memory.bytes[0x2_0800 + n as usize] == want(90_000 + n)));
    assert!(memory.bytes[0x1000 + 90_000..0x2_0800].iter().all(|&byte| byte == 0));
}

#[test]
fn segments_go_to_their_physical_addresses() {
    let (result, memory) = run(&sample());
    check(result, &memory);
    let packed = ruzstd::encoding::compress_to_vec(&*sample(), ruzstd::encoding::CompressionLevel::Fastest);
    let (result, memory) = run(&packed);
    check(result, &memory);
    let (result, memory) = run(&bzimage(&packed));
    check(result, &memory);
}

/// A zstd stream of the sample kernel and 10 MiB behind it, with a window of 16 MiB.
fn with_a_large_window() -> Vec<u8> {
    const REPEATED: u32 = 1 << 1 | (128 << 10) << 3;
    let kernel = sample();
    let mut file = alloc::vec![0x28, 0xb5, 0x2f, 0xfd, 0, 14 << 3];
    file.extend(&((kernel.len() as u32) << 3).to_le_bytes()[..3]);
    file.extend(&kernel);
    for n in 0..80 {
        file.extend(&(REPEATED | u32::from(n == 79)).to_le_bytes()[..3]);
        file.push(7);
    }
    file
}

/// Runs `future` for the account, for at most `polls` polls, and on until no piece of a window is left. Returns the
/// result, the most bytes that the account used after a poll, and the most bytes that the account got back in one
/// poll.
fn watch<T>(account: &Account, polls: usize, future: impl Future<Output = T>) -> (Option<T>, [usize; 2]) {
    let used = || account.figures().map_or(0, |figures| figures.used);
    let (before, mut most, mut dearest) = (used(), 0, 0);
    let mut future = Some(Box::pin(account.charge_future(future)));
    block_on_test(async {
        let mut result = None;
        for poll in 0.. {
            let at = used();
            if let Some(running) = &mut future {
                let mut context = Context::from_waker(Waker::noop());
                match running.as_mut().poll(&mut context) {
                    Poll::Ready(value) => (result, future) = (Some(value), None),
                    Poll::Pending if poll == polls => future = None,
                    Poll::Pending => {}
                }
            } else if used() < before + PIECE {
                // Only the result and the sink's bytes are left.
                break;
            } else {
                // The task that gives the rest back has one turn.
                yield_now().await;
            }
            (most, dearest) = (most.max(used()), dearest.max(at.saturating_sub(used())));
        }
        (result, [most, dearest])
    })
}

#[test]
fn no_poll_gives_a_whole_window_back() {
    pvrt::host::set_memory(256 << 20);
    let account = Account::claim(64 << 20).unwrap();
    let file = with_a_large_window();
    let run = |memory, polls| {
        let mut sink = Memory::default();
        watch(&account, polls, load(&file, memory, &mut sink))
    };
    // The kernel is loaded; refused, since its output exceeds the domain's memory; or dropped on the way.
    for (memory, polls, pieces) in
        [(64 << 20, usize::MAX, 40), (4 << 20, usize::MAX, 16), (64 << 20, 100, 20)]
    {
        let (result, [most, dearest]) = run(memory, polls);
        assert!(most > pieces * PIECE, "{most} bytes");
        assert!(dearest < 10 * PIECE, "{dearest} bytes back in one poll, of {most}");
        match result {
            Some(Ok(_)) => assert_eq!((memory, polls), (64 << 20, usize::MAX)),
            Some(Err(error)) => {
                let limit = 4 << 20;
                assert_eq!(error, PayloadError::TooLarge { format: Format::Zstd, limit }.into());
            }
            None => assert_eq!(polls, 100),
        }
    }
}

#[test]
fn every_cut_is_an_error() {
    let file = sample();
    for end in (0..600).chain((600..file.len()).step_by(997)) {
        assert!(run(&file[..end]).0.is_err(), "cut at {end}");
    }
    let packed = ruzstd::encoding::compress_to_vec(&*file, ruzstd::encoding::CompressionLevel::Fastest);
    let image = bzimage(&packed);
    for end in (0..image.len() - 1).step_by(61) {
        assert!(run(&image[..end]).0.is_err(), "bzImage cut at {end}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    assert_eq!(run(b"#!/bin/sh").0, Err(ImageError::NotAKernel));
    assert_eq!(run(b"").0, Err(ImageError::NotAKernel));
    assert_eq!(
        run(&elf(&[], b"")).0,
        Err(ImageError::Malformed("the number or size of its program headers"))
    );
    let mut other = sample();
    other[18] = 3;
    assert_eq!(run(&other).0, Err(ImageError::WrongMachine));
    let no_notes = elf(&[(PT_LOAD, 0x200, 0, 16, 16)], &[0; 16]);
    assert_eq!(run(&no_notes).0, Err(ImageError::Notes(NoteError::Missing)));
    for segment in [
        (PT_LOAD, 0x200, 0, 17, 16),
        (PT_LOAD, u64::MAX, 0, 16, 16),
        (PT_LOAD, 0x200, u64::MAX - 8, 16, 16),
        (PT_LOAD, 0x200, 0, 0, u64::MAX),
        (PT_NOTE, 0x200, 0, u64::MAX / 2, 0),
    ] {
        assert!(matches!(run(&elf(&[segment], &[0; 16])).0, Err(ImageError::Malformed(_))), "{segment:x?}");
    }
    // A small file whose bytes would be copied again and again.
    let same = [(PT_LOAD, 0x200, 0x1000, 16, 16); 64];
    let overlap = Err(ImageError::Malformed("two segments have bytes for the same place"));
    assert_eq!(run(&elf(&same, &[0; 8192])).0, overlap);
    let by_a_byte = [(PT_LOAD, 0x200, 0x2000, 16, 16), (PT_LOAD, 0x200, 0x1ff1, 16, 16)];
    assert_eq!(run(&elf(&by_a_byte, &[0; 16])).0, overlap);
    // Segments without bytes lie between the two: one, or many.
    let apart =
        [(PT_LOAD, 0x200, 0x2000, 16, 16), (PT_LOAD, 0x200, 0x2004, 0, 1), (PT_LOAD, 0x200, 0x2008, 16, 16)];
    assert_eq!(run(&elf(&apart, &[0; 16])).0, overlap);
    let mut pairs = Vec::new();
    for at in 0..32 {
        pairs
            .extend([(PT_LOAD, 0x200, 0x2000 + 2 * at, 4096, 4096), (PT_LOAD, 0x200, 0x2001 + 2 * at, 0, 1)]);
    }
    assert_eq!(run(&elf(&pairs, &[0; 8192])).0, overlap);
    let many_notes = [(PT_NOTE, 0x200, 0, MAX_NOTE_BYTES / 2 + 1, 0); 2];
    assert!(matches!(run(&elf(&many_notes, &[0; 16])).0, Err(ImageError::Malformed(_))));
    let large = elf(&[(PT_LOAD, 0x200, MEMORY, 16, 16)], &[0; 16]);
    assert_eq!(run(&large).0, Err(ImageError::Memory("too large".into())));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_header_can_make_it_panic(changes in prop::collection::vec((0usize..0x260, any::<u8>()), 1..6)) {
        let mut file = sample();
        for (at, byte) in changes {
            file[at] = byte;
        }
        let _ = run(&file);
    }
}

/// A kernel without note segments: `parts` are sections of that name and type behind the code.
fn with_sections(paddr: u64, entry: u64, parts: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let code: Vec<u8> = (0..70_000u32).map(|n| (n % 251) as u8).collect();
    let mut file = elf(&[(PT_LOAD, 0x200, paddr, 70_000, 70_000)], &code);
    let mut names = b"\0.shstrtab\0".to_vec();
    let mut headers = alloc::vec![[0; 64]];
    let mut add = |file: &mut Vec<u8>, name: usize, kind: u32, bytes: &[u8]| {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&(name as u32).to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[0x18..0x20].copy_from_slice(&(file.len() as u64).to_le_bytes());
        header[0x20..0x28].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        file.extend(bytes);
        headers.push(header);
    };
    for (name, kind, bytes) in parts {
        add(&mut file, names.len(), *kind, bytes);
        names.extend(name.bytes().chain([0]));
    }
    add(&mut file, 1, 3, &names);
    let at = file.len() as u64;
    file[0x18..0x20].copy_from_slice(&entry.to_le_bytes());
    file[0x28..0x30].copy_from_slice(&at.to_le_bytes());
    for (at, half) in [(0x3a, 64u16), (0x3c, headers.len() as u16), (0x3e, headers.len() as u16 - 1)] {
        file[at..at + 2].copy_from_slice(&half.to_le_bytes());
    }
    file.extend(headers.concat());
    file
}

fn packed(file: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(file, ruzstd::encoding::CompressionLevel::Fastest)
}

const TEXT: &[u8] = b"GUEST_OS=small,XEN_VER=xen-3.0,VIRT_BASE=0x0,HYPERCALL_PAGE=0x2,LOADER=generic\0";

#[test]
fn notes_in_sections_alone_are_found() {
    let other = [4u32.to_le_bytes(), 0u32.to_le_bytes(), 3u32.to_le_bytes(), *b"GNU\0"].concat();
    let both = with_sections(0, 0x20, &[("a", 7, &other), (".notes", 7, &notes()), ("__xen_guest", 1, TEXT)]);
    let old = with_sections(0, 0x20, &[("__xen_guest", 1, TEXT)]);
    for (file, page) in [(&both, None), (&old, Some(0x2000))] {
        for file in [file.clone(), packed(file), bzimage(&packed(file))] {
            let (kernel, memory) = run(&file);
            let kernel = kernel.unwrap();
            assert_eq!((kernel.notes.hypercall_page, kernel.notes.entry, kernel.first), (page, 0x20, 0));
            assert!((0..70_000).all(|n| memory.bytes[n] == (n % 251) as u8));
        }
    }
    // A note segment comes first, whatever the sections say.
    let mut first = sample();
    let at = first.len() as u64;
    first[0x28..0x30].copy_from_slice(&at.to_le_bytes());
    first.extend(&both[both.len() - 5 * 64..]);
    check(run(&first).0, &run(&first).1);
    assert_eq!(run(&with_sections(0, 0x20, &[("a", 7, &other)])).0, Err(NoteError::Missing.into()));
}

#[test]
fn physical_addresses_that_are_virtual_ones_are_counted_from_0() {
    const BASE: u64 = 0xffff_ffff_8000_0000;
    let text = b"XEN_VER=xen-3.0,VIRT_BASE=0xffffffff80000000,LOADER=generic";
    let file = with_sections(BASE + 0x1000, BASE + 0x1010, &[("__xen_guest", 1, text)]);
    for file in [file.clone(), packed(&file)] {
        let (kernel, memory) = run(&file);
        let kernel = kernel.unwrap();
        assert_eq!((kernel.first, kernel.end, kernel.notes.virt_base), (0x1000, 0x1_3000, BASE));
        assert!((0..70_000).all(|n| memory.bytes[0x1000 + n] == (n % 251) as u8));
    }
    // The notes may also be in note segments that lie behind the head.
    let word = |kind, value: u64| note(kind, &value.to_le_bytes());
    let offset = [notes(), word(XEN_ELFNOTE_VIRT_BASE, BASE), word(XEN_ELFNOTE_PADDR_OFFSET, BASE)].concat();
    let body = [alloc::vec![7; 80_000], offset.clone()].concat();
    let place = |paddr| {
        let segments =
            [(PT_LOAD, 0x200, paddr, 80_000, 80_000), (PT_NOTE, 0x200 + 80_000, 0, offset.len() as u64, 0)];
        let mut file = elf(&segments, &body);
        file[0x18..0x20].copy_from_slice(&BASE.to_le_bytes());
        file
    };
    for file in [place(BASE), packed(&place(BASE))] {
        assert_eq!(run(&file).0.unwrap().first, 0);
    }
    assert_eq!(run(&place(0)).0, Err(NoteError::PaddrOffset(BASE).into()));
}

#[test]
fn an_entry_outside_the_image_is_refused() {
    let parts: [(&str, u32, &[u8]); 1] = [("__xen_guest", 1, TEXT)];
    assert_eq!(run(&with_sections(0, 0x1_3000, &parts)).0, Err(NoteError::Entry(0x1_3000).into()));
    assert!(run(&with_sections(0, 0x1_2000, &parts)).0.is_ok());
    assert_eq!(run(&with_sections(0x1000, 0xfff, &parts)).0, Err(NoteError::Entry(0xfff).into()));
}

#[test]
fn sections_that_lie_are_survived() {
    let text = with_sections(0, 0x20, &[("__xen_guest", 1, TEXT)]);
    let notes = with_sections(0, 0x20, &[(".notes", 7, &notes())]);
    for file in [text, notes] {
        let table = file.len() - 3 * 64;
        for at in (0x28..0x40).chain(table..file.len()) {
            for byte in [0, 0x7f, 0xff] {
                let mut bad = file.clone();
                bad[at] = byte;
                let _ = run(&bad);
            }
        }
        for cut in [table - 1, table, table + 1, file.len() - 1] {
            let cut = run(&file[..cut]).0;
            assert_eq!(cut, Err(ImageError::Truncated { what: "its sections" }));
        }
    }
    let huge = with_sections(0, 0x20, &[(".notes", 7, &alloc::vec![0; 65 << 10])]);
    assert_eq!(run(&huge).0, Err(ImageError::Malformed("its notes are larger than 64 KiB")));
}
