//! Building dom0: any PV ELF kernel, and a ramdisk, whose frames become dom0's where they are.
//!
//! Layout, ascending from the kernel's base, one page-table mapped run: kernel, \[ramdisk\], \[P2M list\], `start_info`,
//! page tables, boot stack, slack to 4 MiB. Behind that run, unmapped: the P2M list with its own tables when the kernel
//! wants the list elsewhere, free pages, and the ramdisk when the kernel can take an unmapped one.
//!
//! ABI: `xen/include/public/xen.h`, "initial memory layout".
#![forbid(unsafe_code)]

mod layout;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::start_info::{MAGIC, SIF_INITDOMAIN, SIF_MOD_START_PFN, SIF_PRIVILEGED, StartInfo};
use ring_abi::types::{DomId, GuestVa, Mfn, Pfn};
use zerocopy::{FromZeros, IntoBytes};

use super::kernel_image::{ImageError, KernelImage};
use super::memory_map::Range;
use crate::Hypervisor;
use crate::domain::{Domain, DomainConfig, PauseFlags};
use crate::frames::FrameTable;
use crate::frames::pte::{self, Pte};
use crate::hypercall::page::write_hypercall_page;
use crate::lifecycle::LifecycleError;
use crate::mem::MemError;
use crate::platform::Platform;
use layout::Layout;

const PAGE: u64 = 4096;
/// Largest piece that memory is taken in: 2 MiB.
const CHUNK_ORDER: u8 = 9;
/// Entries of the tables that are built.
const TABLE: u64 = pte::P | pte::RW | pte::US | pte::A | pte::D;
const LEAF: u64 = pte::P | pte::RW | pte::A;

/// What dom0 is built from.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The kernel's file.
    pub image: &'a [u8],
    /// The kernel's command line.
    pub command_line: &'a str,
    /// The ramdisk: it starts on a page boundary, and its frames have no owner.
    pub ramdisk: Option<Range>,
    /// dom0's memory, the ramdisk not counted.
    pub memory_bytes: u64,
    /// dom0's vCPUs at most.
    pub vcpus: u32,
}

/// Why there is no dom0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dom0Error {
    /// The kernel's file cannot be used.
    Image(ImageError),
    /// The machine has not as much free memory.
    NoMemory,
    /// Kernel, tables and the rest need more than `dom0_mem`; so many KiB would do.
    TooSmall(u64),
    /// The ramdisk does not start on a page boundary.
    RamdiskUnaligned,
    /// The checks refused dom0's page tables: the kernel's notes contradict each other.
    Tables(MemError),
    /// The domain could not be made.
    Domain(LifecycleError),
}

impl fmt::Display for Dom0Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => write!(f, "the first module: {error}"),
            Self::NoMemory => f.write_str("not enough free memory for dom0_mem"),
            Self::TooSmall(kib) => write!(f, "dom0_mem is too small for this kernel: {kib}K would do"),
            Self::RamdiskUnaligned => f.write_str("the second module does not start on a page boundary"),
            Self::Tables(error) => write!(f, "its page tables were refused: {error:?}"),
            Self::Domain(error) => write!(f, "no domain: {error:?}"),
        }
    }
}

/// dom0 under construction: its frames by pfn.
struct Builder<'a, P: Platform> {
    hv: &'a Hypervisor<P>,
    image: KernelImage<'a>,
    ramdisk: Option<Range>,
    p2m: Vec<Mfn>,
    layout: Layout,
}

/// Builds dom0, paused once by the toolstack.
///
/// # Errors
/// See [`Dom0Error`]; the machine cannot go on then.
#[inline(never)]
pub fn build<P: Platform>(hv: &Hypervisor<P>, request: &Request<'_>) -> Result<Arc<Domain>, Dom0Error> {
    let image = KernelImage::parse(request.image).map_err(Dom0Error::Image)?;
    let ramdisk = request.ramdisk.filter(|range| !range.is_empty());
    let ramdisk_pages = ramdisk.map_or(0, |range| range.bytes().div_ceil(PAGE));
    if ramdisk.is_some_and(|range| !range.start.is_multiple_of(PAGE)) {
        return Err(Dom0Error::RamdiskUnaligned);
    }
    if request.memory_bytes / PAGE > hv.frames.free_pages() {
        return Err(Dom0Error::NoMemory);
    }
    let layout = Layout::new(&image, request.memory_bytes / PAGE, ramdisk_pages)?;
    let config = DomainConfig {
        privileged: true,
        max_vcpus: request.vcpus,
        max_grant_frames: 64,
        max_maptrack_frames: 1024,
        ..DomainConfig::default()
    };
    let domain = hv.create_domain(Some(DomId::DOM0), config).map_err(Dom0Error::Domain)?;
    domain.mm.set_max_pages(u64::MAX >> 12);
    let mut builder = Builder { hv, image, ramdisk, p2m: Vec::new(), layout };
    builder.take_memory(&domain)?;
    builder.load();
    builder.write_start_info(&domain, request.command_line);
    let l4 = builder.write_tables();
    builder.write_p2m();
    // Each attempt goes on where an interrupt ended the one before.
    while let Err(error) = hv.pin_table(&domain, l4, 4) {
        if error != MemError::Restart {
            return Err(Dom0Error::Tables(error));
        }
    }
    hv.install_bases(&domain, &domain.vcpus[0], l4, None).map_err(Dom0Error::Tables)?;
    builder.start(&domain);
    give_rights(&hv.frames, &domain, hv.platform.cpuid(ADDRESS_SIZES, 0).eax & 0xff);
    Ok(domain)
}

impl<P: Platform> Builder<'_, P> {
    /// Takes dom0's frames, zeroed, and the ramdisk's as they are; sets the M2P.
    fn take_memory(&mut self, domain: &Domain) -> Result<(), Dom0Error> {
        let &Layout { nr_pages, ramdisk: ramdisk_pfn, ramdisk_pages, .. } = &self.layout;
        self.p2m.reserve_exact(nr_pages as usize);
        let mut order = CHUNK_ORDER;
        while (self.p2m.len() as u64) < nr_pages {
            let pfn = self.next_page();
            if let Some(ramdisk) = self.ramdisk.filter(|_| pfn == ramdisk_pfn) {
                self.adopt(domain, Mfn::new(ramdisk.start / PAGE), ramdisk_pages);
                continue;
            }
            let end = if pfn < ramdisk_pfn { ramdisk_pfn.raw() } else { nr_pages };
            order = order.min((end - pfn.raw()).ilog2() as u8);
            let Some(mfn) = self.hv.alloc_frames(order, 0) else {
                order = order.checked_sub(1).ok_or(Dom0Error::NoMemory)?;
                continue;
            };
            (0..1 << order).for_each(|n| self.hv.platform.zero_frame(mfn.add(n)));
            self.adopt(domain, mfn, 1 << order);
            order = CHUNK_ORDER;
        }
        Ok(())
    }

    /// Makes `count` frames from `first` on the domain's next pages.
    fn adopt(&mut self, domain: &Domain, first: Mfn, count: u64) {
        let added = self.hv.assign(domain, &[first], count, false);
        debug_assert!(added, "a domain that is built is not torn down");
        for mfn in (0..count).map(|n| first.add(n)) {
            self.hv.platform.set_m2p(mfn, self.next_page());
            self.p2m.push(mfn);
        }
    }

    /// The page whose frame is taken next.
    fn next_page(&self) -> Pfn {
        Pfn::new(self.p2m.len() as u64)
    }

    fn frame(&self, pfn: Pfn) -> Mfn {
        self.p2m[pfn.raw() as usize]
    }

    fn va(&self, pfn: Pfn) -> GuestVa {
        self.image.virt_base.wrapping_add(pfn.raw() * PAGE)
    }

    /// Writes bytes at a pseudo-physical address.
    fn write(&self, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (here, rest) = bytes.split_at(bytes.len().min((PAGE - at % PAGE) as usize));
            self.hv.platform.write_bytes(self.frame(Pfn::new(at / PAGE)).maddr().add(at % PAGE), here);
            at += here.len() as u64;
            bytes = rest;
        }
    }

    /// Copies the kernel in; frames are zero already.
    #[inline(never)]
    fn load(&self) {
        let image = &self.image;
        for (va, bytes) in &image.segments {
            self.write(va.bytes_from(image.virt_base), bytes);
        }
        if let Some(page) = image.hypercall_page.map(|va| va.bytes_from(image.virt_base))
            && page / PAGE < self.layout.mapped
        {
            write_hypercall_page(&self.hv.platform.shared(self.frame(Pfn::new(page / PAGE))));
        }
    }

    #[inline(never)]
    fn write_start_info(&self, domain: &Domain, command_line: &str) {
        let Self { image, layout, .. } = self;
        let mut info = StartInfo::new_zeroed();
        info.magic[..MAGIC.len()].copy_from_slice(MAGIC);
        info.nr_pages = layout.nr_pages;
        info.shared_info = domain.shared_info_mfn.maddr().raw();
        info.flags = SIF_PRIVILEGED | SIF_INITDOMAIN;
        info.pt_base = self.va(layout.tables.start).raw();
        info.nr_pt_frames = layout.tables.end.raw() - layout.tables.start.raw();
        info.mfn_list = image.init_p2m.unwrap_or(self.va(layout.p2m)).raw();
        if image.init_p2m.is_some() {
            info.first_p2m_pfn = layout.p2m.raw();
            info.nr_p2m_frames = layout.p2m_tables.end.raw() - layout.p2m.raw();
        }
        if let Some(ramdisk) = self.ramdisk {
            info.mod_len = ramdisk.bytes();
            info.mod_start = self.va(layout.ramdisk).raw();
            if image.mod_start_pfn {
                info.mod_start = layout.ramdisk.raw();
                info.flags |= SIF_MOD_START_PFN;
            }
        }
        let [place @ .., _nul] = &mut info.cmd_line;
        place.iter_mut().zip(command_line.bytes()).for_each(|(to, from)| *to = from);
        self.write(layout.start_info.raw() * PAGE, info.as_bytes());
    }

    /// Writes all page tables; the L4.
    fn write_tables(&self) -> Mfn {
        let Self { image, layout, .. } = self;
        let l4 = self.frame(layout.tables.start);
        let mut tables = Tables { builder: self, l4, next: layout.tables.start.add(1) };
        for pfn in (0..layout.mapped).map(Pfn::new) {
            tables.map(self.va(pfn), self.entry(pfn));
        }
        debug_assert!(tables.next <= layout.tables.end);
        if let Some(va) = image.init_p2m {
            tables.next = layout.p2m_tables.start;
            for page in 0..layout.p2m_pages {
                tables.map(va.wrapping_add(page * PAGE), self.entry(layout.p2m.add(page)));
            }
        }
        l4
    }

    /// The level 1 entry of a page: page tables are mapped read-only.
    fn entry(&self, pfn: Pfn) -> Pte {
        let bits = if self.layout.is_table(pfn) { LEAF & !pte::RW } else { LEAF };
        Pte::new(self.frame(pfn).maddr().raw() | bits)
    }

    fn write_p2m(&self) {
        for (n, page) in self.p2m.chunks(PAGE as usize / 8).enumerate() {
            self.write((self.layout.p2m.raw() + n as u64) * PAGE, page.as_bytes());
        }
    }

    /// Sets vCPU 0 up at the kernel's entry.
    #[inline(never)]
    fn start(&self, domain: &Domain) {
        let vcpu = &domain.vcpus[0];
        let stack = self.va(self.layout.stack.add(1)).raw();
        vcpu.set_saved_regs(&CpuUserRegs {
            rip: self.image.entry.raw(),
            rsi: self.va(self.layout.start_info).raw(),
            rsp: stack,
            rflags: 0x202,
            cs: 0xe033,
            ss: 0xe02b,
            ..CpuUserRegs::default()
        });
        vcpu.kernel_stack.set(0xe02b, stack);
        vcpu.initialised.store(true, Ordering::Release);
        vcpu.pause_flags.fetch_and(!PauseFlags::DOWN, Ordering::AcqRel);
    }
}

/// The page tables that are being written.
struct Tables<'a, 'b, P: Platform> {
    builder: &'a Builder<'b, P>,
    l4: Mfn,
    /// Page of the next table.
    next: Pfn,
}

impl<P: Platform> Tables<'_, '_, P> {
    fn map(&mut self, va: GuestVa, entry: Pte) {
        let mut table = self.l4;
        for level in (2..=4).rev() {
            let slot = &self.builder.hv.platform.table(table)[pte::index(va.raw(), level)];
            let found = Pte::load(slot);
            if found.is_present() {
                table = found.frame();
                continue;
            }
            table = self.builder.frame(self.next);
            self.next = self.next.add(1);
            slot.store(table.maddr().raw() | TABLE, Ordering::Relaxed);
        }
        self.builder.hv.platform.table(table)[pte::index(va.raw(), 1)].store(entry.raw(), Ordering::Relaxed);
    }
}

/// CPUID leaf whose eax holds the bits of machine addresses, in bits 0-7.
const ADDRESS_SIZES: u32 = 0x8000_0008;

/// dom0 has the machine but for what is the hypervisor's, as far as `address_bits` reach: the bits above are reserved.
fn give_rights(frames: &FrameTable, domain: &Domain, address_bits: u32) {
    /// COM1, the interrupt controllers and the timers that run the machine.
    const OURS: [(u64, u64); 5] = [(0x20, 0x21), (0x40, 0x43), (0xa0, 0xa1), (0x3f8, 0x3ff), (0xcf8, 0xcff)];
    /// Interrupt controllers.
    const DEVICES: [(u64, u64); 2] = [(0xfec00, 0xfec00), (0xfee00, 0xfee00)];
    /// The HPET, whose counter may be read: firmware's AML does.
    const HPET: Mfn = Mfn::new(0xfed00);
    let mut rights = domain.permissions.lock();
    rights.ports.add(0, 0xffff);
    let mut fits = OURS.iter().all(|&(first, last)| rights.ports.remove(first, last));
    rights.iomem.add(0, (1 << (address_bits.clamp(32, 52) - 12)) - 1);
    fits &= DEVICES.iter().all(|&(first, last)| rights.iomem.remove(first, last));
    assert!(fits, "what is the hypervisor's own are a few ranges");
    rights.irqs.add(0, 255);
    frames.protect_device_frames(HPET, HPET);
}

#[cfg(test)]
mod tests;
