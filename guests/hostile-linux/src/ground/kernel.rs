//! The kernel's memory as `/proc` shows it to root: the frame of each page, and the contents.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use ring_abi::types::PAGE_SIZE;

/// Where the kernel maps all memory. KASLR would move this address, but a PV kernel does not have it.
pub(super) const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// Bits of a P2M entry that are flags, not part of the frame number.
const P2M_FLAGS: u64 = 3 << 62;

struct Kernel {
    /// `/proc/kcore`: the kernel's memory as an ELF file.
    core: File,
    /// The file's parts: address, length, place in the file.
    parts: Vec<(u64, u64, u64)>,
    /// The frame of each of this guest's pages.
    p2m: Vec<u64>,
}

static KERNEL: OnceLock<Kernel> = OnceLock::new();

/// Opens the kernel's memory and reads the list of this guest's frames.
///
/// # Errors
/// What could not be read.
pub(super) fn install() -> Result<(), String> {
    let core = File::open("/proc/kcore").map_err(|error| format!("/proc/kcore: {error}"))?;
    let parts = parts(&core).ok_or("/proc/kcore: no ELF file")?;
    let mut kernel = Kernel { core, parts, p2m: Vec::new() };
    let list = symbol("xen_p2m_addr").and_then(|at| kernel.word(at)).ok_or("no xen_p2m_addr")?;
    let pages = symbol("max_pfn").and_then(|at| kernel.word(at)).ok_or("no max_pfn")?;
    kernel.p2m = (0..pages).map(|page| kernel.word(list + page * 8).unwrap_or(u64::MAX)).collect();
    let known = kernel.p2m.iter().filter(|frame| **frame & P2M_FLAGS == 0).count();
    if known < 1024 {
        return Err(format!("the list of frames holds {known} alone"));
    }
    KERNEL.set(kernel).map_err(|_| "installed twice".into())
}

fn kernel() -> &'static Kernel {
    KERNEL.get().expect("installed at the start")
}

/// The loadable parts of an ELF file.
fn parts(file: &File) -> Option<Vec<(u64, u64, u64)>> {
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).ok()?;
    let word = |bytes: &[u8], at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let (table, count) = (word(&header, 32)?, u16::from_le_bytes([header[56], header[57]]));
    let mut parts = Vec::new();
    for n in 0..u64::from(count) {
        let mut entry = [0; 56];
        file.read_exact_at(&mut entry, table + n * 56).ok()?;
        if entry[0] == 1 {
            parts.push((word(&entry, 16)?, word(&entry, 40)?, word(&entry, 8)?));
        }
    }
    Some(parts)
}

/// The address of one of the kernel's symbols.
fn symbol(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/kallsyms").ok()?;
    let line = text.lines().find(|line| line.split_whitespace().nth(2) == Some(name))?;
    u64::from_str_radix(line.split_whitespace().next()?, 16).ok()
}

impl Kernel {
    /// A word of the kernel's memory.
    fn word(&self, at: u64) -> Option<u64> {
        let inside =
            |(start, len, _): &&(u64, u64, u64)| at.checked_sub(*start).is_some_and(|off| off < *len);
        let (start, _, place) = self.parts.iter().find(inside)?;
        let mut bytes = [0; 8];
        self.core.read_exact_at(&mut bytes, place + (at - start)).ok()?;
        Some(u64::from_le_bytes(bytes))
    }
}

/// The number of pages that this guest can have.
pub(super) fn pages() -> u64 {
    kernel().p2m.len() as u64
}

/// The frame of one of its pages.
pub(super) fn frame(page: u64) -> Option<u64> {
    kernel().p2m.get(page as usize).copied().filter(|frame| frame & P2M_FLAGS == 0)
}

/// Word `n` of one of its pages.
pub(super) fn word(page: u64, n: usize) -> Option<u64> {
    kernel().word(DIRECT_MAP + page * PAGE_SIZE as u64 + n as u64 * 8)
}
