//! Builds a domain: memory, kernel, page tables and the first vCPU.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pvrt::event::Port;
use pvrt::executor::sync::Mutex;
use pvrt::hypercall::{domctl, memory, mmu, sysctl};
use pvrt::mem::map_foreign;
use pvrt::yield_now;
use ring_abi::errno::Errno;
use ring_abi::grant::{GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE, GTF_PERMIT_ACCESS, GrantEntryV1};
use ring_abi::guest_context::{VGCF_IN_KERNEL, VGCF_ONLINE, VcpuGuestContext, XEN_LEGACY_MAX_VCPUS};
use ring_abi::segment::{FLAT_KERNEL_CS, FLAT_KERNEL_SS};
use ring_abi::start_info::{MAGIC, MAX_GUEST_CMDLINE, SIF_MOD_START_PFN, StartInfo};
use ring_abi::types::{DomId, Mfn, PAGE_SIZE, Port as PortNumber};
use zerocopy::IntoBytes;

use super::domain::OwnedDomain;
use super::error::BuildError;
use super::frames::Frames;
use super::image::{self, Kernel};
use super::layout::{Layout, LayoutError, Parts};
use super::payload::{self, Limits, PayloadError};
use crate::bundle::File;
use crate::config::{DomainConfig, TscMode};

const PAGE: u64 = PAGE_SIZE as u64;
/// Bytes of one `vcpu_info` in `shared_info`, and of its `evtchn_upcall_mask`.
const VCPU_INFO_BYTES: usize = 64;
const UPCALL_MASK: usize = 1;
const IF_FLAG: u64 = 0x200;
/// How much memory a domain may have beyond its target, in KiB, as with libxl (`LIBXL_MAXMEM_CONSTANT`): a
/// kernel takes a page before it gives another back.
pub const SLACK_KIB: u64 = 1024;

/// What to build.
pub struct Request<'a> {
    /// The configuration.
    pub config: &'a DomainConfig,
    /// The domain's UUID.
    pub uuid: [u8; 16],
    /// The number of the domain's CPU pool.
    pub pool: u32,
    /// The kernel.
    pub kernel: File,
    /// The ramdisk.
    pub ramdisk: Option<File>,
    /// A lock that is held only while the domain is populated: one domain is populated at a time.
    pub populating: &'a Mutex<()>,
    /// Called with the domain's number as soon as the hypervisor has made the domain.
    pub begun: &'a (dyn Fn(DomId) + Sync),
}

/// A domain that is ready to run, paused.
#[derive(Debug)]
pub struct Built {
    /// The domain.
    pub domain: OwnedDomain,
    /// The domain's rings.
    pub rings: Rings,
}

/// How the daemons reach a domain.
#[derive(Debug)]
pub struct Rings {
    /// Machine frame of its xenstore ring.
    pub store_mfn: Mfn,
    /// The domain's port to the xenstore daemon.
    pub store_port: PortNumber,
    /// Machine frame of its console ring.
    pub console_mfn: Mfn,
    /// The domain's port to the console daemon.
    pub console_port: PortNumber,
}

pub(super) fn refused(what: &'static str) -> impl Fn(Errno) -> BuildError {
    move |errno| BuildError::Refused(what, errno)
}

/// Builds a domain. After a failure nothing of the domain stays. The work is done in pieces, each a small part of a
/// millisecond; dom0's other tasks run between them.
///
/// # Errors
/// See [`BuildError`].
pub async fn build(request: &Request<'_>) -> Result<Built, BuildError> {
    let config = request.config;
    if config.cmdline.len() >= MAX_GUEST_CMDLINE {
        let text = format!("the command line is longer than {} bytes", MAX_GUEST_CMDLINE - 1);
        return Err(BuildError::Config(text));
    }
    let domain = OwnedDomain::create(config, request.uuid, request.pool).map_err(refused("createdomain"))?;
    (request.begun)(domain.id());
    match fill(request, domain.id()).await {
        Ok(rings) => Ok(Built { domain, rings }),
        Err(error) => {
            domain.discard().await;
            Err(error)
        }
    }
}

/// Gives the new domain `id` its memory, and fills the memory.
async fn fill(request: &Request<'_>, id: DomId) -> Result<Rings, BuildError> {
    let config = request.config;
    domctl::max_vcpus(id, config.maxvcpus).map_err(refused("max_vcpus"))?;
    domctl::max_mem(id, (config.memory_mib << 10) + SLACK_KIB).map_err(refused("max_mem"))?;
    memory::set_memory_map(id, config.maxmem_mib << 10).map_err(refused("set_memory_map"))?;
    set_clock(id, config)?;
    set_cpuid(id, config)?;
    let store_port = Port::alloc_unbound_in(id, DomId::DOM0).map_err(refused("xenstore port"))?;
    let console_port = Port::alloc_unbound_in(id, DomId::DOM0).map_err(refused("console port"))?;

    let mut frames = Frames::new(id, populate(request, id).await?);
    let kernel_error = |error| BuildError::Kernel(format!("/boot/{}", request.kernel.name), error);
    let kernel = image::load(request.kernel.bytes, config.memory_mib << 20, &mut frames)
        .await
        .map_err(kernel_error)?;
    let ramdisk = request.ramdisk.map(Ramdisk::new).transpose()?;
    let layout = Layout::new(&Parts {
        virt_base: kernel.notes.virt_base,
        kernel_end: frames.kernel_end,
        ramdisk_pages: ramdisk.as_ref().map_or(0, |ramdisk| ramdisk.bytes.div_ceil(PAGE)),
        map_ramdisk: !kernel.notes.mod_start_pfn,
        init_p2m: kernel.notes.init_p2m,
        nr_pages: frames.mfns().len() as u64,
    })
    .map_err(BuildError::Layout)?;
    if let Some(ramdisk) = &ramdisk {
        ramdisk.copy(&mut frames, &layout).await?;
    }

    let shared_info = domctl::info(id).map_err(refused("getdomaininfo"))?.shared_info_frame;
    let info = start_info(
        &kernel,
        &layout,
        &frames,
        config,
        ramdisk.as_ref(),
        shared_info,
        (store_port, console_port),
    );
    write_memory(&mut frames, &layout, &info).await.map_err(|why| BuildError::Map("domain memory", why))?;
    frames.close();
    mask_events(id, Mfn::new(shared_info))?;
    grant_rings(id, frames.mfn(layout.store), frames.mfn(layout.console))?;
    if let Some(va) = kernel.notes.hypercall_page {
        let pfn = va.wrapping_sub(layout.virt_base) / PAGE;
        if pfn >= frames.kernel_end {
            return Err(BuildError::Layout(LayoutError::Address { what: "hypercall page", va }));
        }
        domctl::hypercall_init(id, frames.mfn(pfn)).map_err(refused("hypercall_init"))?;
    }
    pin_tables(id, &frames, &layout).await.map_err(refused("pinning the page tables"))?;
    let context = first_vcpu(&kernel, &layout, frames.mfn(layout.tables.start));
    domctl::set_vcpu_context(id, 0, &context).map_err(refused("setvcpucontext"))?;
    Ok(Rings {
        store_mfn: frames.mfn(layout.store),
        store_port,
        console_mfn: frames.mfn(layout.console),
        console_port,
    })
}

pub(super) fn set_clock(id: DomId, config: &DomainConfig) -> Result<(), BuildError> {
    let mode = match config.tsc_mode {
        TscMode::Default | TscMode::NativeParavirt => 0,
        TscMode::AlwaysEmulate => 1,
        TscMode::Native => 2,
    };
    domctl::set_tsc_mode(id, mode).map_err(refused("settscinfo"))?;
    if config.rtc_timeoffset != 0 {
        domctl::set_time_offset(id, config.rtc_timeoffset.into()).map_err(refused("settimeoffset"))?;
    }
    Ok(())
}

/// Hides from the guest what its configuration hides of the CPU.
fn set_cpuid(id: DomId, config: &DomainConfig) -> Result<(), BuildError> {
    if config.cpuid.is_default() {
        return Ok(());
    }
    let mut leaves = domctl::cpu_policy(id).map_err(refused("get_cpu_policy"))?;
    config.cpuid.apply(&mut leaves).map_err(|text| BuildError::Config(format!("cpuid: {text}")))?;
    domctl::set_cpu_policy(id, &leaves).map_err(|(errno, _)| refused("set_cpu_policy")(errno))
}

/// Page tables that the builder fills, and the hypervisor checks, at a time.
const TABLES_AT_A_TIME: usize = 8;
/// Bytes of a ramdisk that are inflated and copied at a time.
const BUFFER_BYTES: usize = 64 << 10;
/// Pages that the builder asks for at a time, since the hypervisor clears each page.
const POPULATE_PAGES: u64 = 256;

/// Gives the domain its memory, and returns the machine frames in order.
async fn populate(request: &Request<'_>, id: DomId) -> Result<Vec<u64>, BuildError> {
    let memory_mib = request.config.memory_mib;
    let _turn = request.populating.lock().await;
    let pages = memory_mib << 8;
    let free = sysctl::physinfo().map_or(u64::MAX, |info| info.free_pages);
    if free < pages {
        return Err(BuildError::Memory(memory_mib, free >> 8));
    }
    let mut frames = Vec::new();
    let too_large = |_| BuildError::Config(format!("memory: {memory_mib} MiB are more than dom0 can list"));
    frames.try_reserve_exact(pages as usize).map_err(too_large)?;
    while (frames.len() as u64) < pages {
        let first = frames.len();
        frames.extend(first as u64..pages.min(first as u64 + POPULATE_PAGES));
        let asked = &mut frames[first..];
        let got = memory::populate_physmap(id, asked, 0).map_err(refused("populate_physmap"))?;
        if got < asked.len() {
            return Err(BuildError::Memory(memory_mib, (first + got) as u64 >> 8));
        }
        yield_now().await;
    }
    Ok(frames)
}

/// A ramdisk and how large it is in the domain.
struct Ramdisk {
    file: File,
    bytes: u64,
    inflate: bool,
}

impl Ramdisk {
    /// Opens a ramdisk. A gzip file is decompressed, as with libxl; its last four bytes state the size.
    fn new(file: File) -> Result<Self, BuildError> {
        let inflate = image::ramdisk_is_inflated(file.bytes);
        let bytes = match file.bytes.last_chunk::<4>() {
            Some(size) if inflate => u64::from(u32::from_le_bytes(*size)),
            _ => file.bytes.len() as u64,
        };
        Ok(Self { file, bytes, inflate })
    }

    fn error(&self, error: String) -> BuildError {
        BuildError::Ramdisk(format!("/boot/{}", self.file.name), error)
    }

    async fn copy(&self, frames: &mut Frames, layout: &Layout) -> Result<(), BuildError> {
        frames.set_end(layout.ramdisk.end);
        let start = layout.ramdisk.start * PAGE;
        if !self.inflate {
            return frames.put_in_pieces(start, self.file.bytes).await.map_err(|why| self.error(why));
        }
        let payload = |error: PayloadError| self.error(error.to_string());
        let mut source =
            payload::open(self.file.bytes, 0, Limits::for_memory(self.bytes)).map_err(payload)?;
        let mut buffer = Vec::new();
        buffer
            .try_reserve_exact(BUFFER_BYTES)
            .map_err(|_| self.error("not enough memory to decompress it".into()))?;
        buffer.resize(BUFFER_BYTES, 0);
        let mut done = 0;
        loop {
            let got = source.read_full(&mut buffer).await.map_err(payload)?;
            if got == 0 {
                break;
            }
            frames.put(start + done, &buffer[..got]).map_err(|why| self.error(why))?;
            done += got as u64;
            yield_now().await;
        }
        if done == self.bytes { Ok(()) } else { Err(self.error("smaller than its last bytes say".into())) }
    }
}

fn start_info(
    kernel: &Kernel,
    layout: &Layout,
    frames: &Frames,
    config: &DomainConfig,
    ramdisk: Option<&Ramdisk>,
    shared_info: u64,
    (store_port, console_port): (PortNumber, PortNumber),
) -> StartInfo {
    let mut info = StartInfo {
        nr_pages: layout.nr_pages,
        shared_info: shared_info * PAGE,
        store_mfn: frames.mfn(layout.store).raw(),
        store_evtchn: store_port.raw(),
        console_mfn: frames.mfn(layout.console).raw(),
        console_evtchn: console_port.raw(),
        pt_base: layout.va(layout.tables.start),
        nr_pt_frames: layout.tables.end - layout.tables.start,
        mfn_list: layout.p2m_va,
        ..Default::default()
    };
    info.magic[..MAGIC.len()].copy_from_slice(MAGIC);
    info.cmd_line[..config.cmdline.len()].copy_from_slice(&config.cmdline);
    if let Some(ramdisk) = ramdisk {
        info.mod_len = ramdisk.bytes;
        info.mod_start = layout.va(layout.ramdisk.start);
        if kernel.notes.mod_start_pfn {
            info.mod_start = layout.ramdisk.start;
            info.flags |= SIF_MOD_START_PFN;
        }
    }
    if let Some(range) = &layout.p2m_frames {
        info.first_p2m_pfn = range.start;
        info.nr_p2m_frames = range.end - range.start;
    }
    info
}

/// Writes start_info, the P2M list and the page tables.
async fn write_memory(frames: &mut Frames, layout: &Layout, info: &StartInfo) -> Result<(), String> {
    let mfns = frames.mfns();
    // The pages are written in the order of their frames, so that the window moves only once.
    frames.set_end(layout.stack);
    if layout.p2m_frames.is_none() {
        write_list(frames, layout, &mfns).await?;
    }
    frames.put(layout.start_info * PAGE, info.as_bytes())?;
    let mut elsewhere = false;
    for (count, (pfn, entries)) in layout.page_tables(|pfn| mfns[pfn as usize]).enumerate() {
        if !layout.tables.contains(&pfn) && !elsewhere {
            elsewhere = true;
            frames.set_end(layout.p2m_frames.as_ref().map_or(0, |range| range.end));
            write_list(frames, layout, &mfns).await?;
        }
        frames.put(pfn * PAGE, entries.as_bytes())?;
        if (count + 1).is_multiple_of(TABLES_AT_A_TIME) {
            yield_now().await;
        }
    }
    Ok(())
}

/// Writes the P2M list. Entries of the last page beyond the domain's memory are invalid.
async fn write_list(frames: &mut Frames, layout: &Layout, mfns: &[u64]) -> Result<(), String> {
    let start = layout.p2m.start * PAGE;
    let bytes = mfns.as_bytes();
    frames.put_in_pieces(start, bytes).await?;
    let end = start + bytes.len() as u64;
    frames.put(end, &[0xff; PAGE_SIZE][..(layout.p2m.end * PAGE - end) as usize])
}

/// Makes the hypervisor check the page tables, and pins the top one. Of many tables the lowest are pinned first and
/// unpinned at the end, so that no single call has to check all of them.
async fn pin_tables(id: DomId, frames: &Frames, layout: &Layout) -> Result<(), Errno> {
    let lowest: Vec<Mfn> = layout.lowest_tables().map(|pfn| frames.mfn(pfn)).collect();
    let many = lowest.len() > TABLES_AT_A_TIME;
    let pieces = || lowest.chunks(TABLES_AT_A_TIME).filter(|_| many);
    for piece in pieces() {
        mmu::pin_foreign(id, 1, piece)?;
        yield_now().await;
    }
    mmu::pin_foreign(id, 4, &[frames.mfn(layout.tables.start)])?;
    for piece in pieces() {
        mmu::unpin_foreign(id, piece)?;
        yield_now().await;
    }
    Ok(())
}

/// Masks the events of every vCPU. The rest of shared_info is zero, but for the hypervisor's clock.
fn mask_events(id: DomId, frame: Mfn) -> Result<(), BuildError> {
    let map = map_foreign(id, &[frame], true)
        .map_err(|error| BuildError::Map("shared_info", error.errno.to_string()))?;
    for vcpu in 0..XEN_LEGACY_MAX_VCPUS {
        map.bytes().store_u8(vcpu * VCPU_INFO_BYTES + UPCALL_MASK, 1);
    }
    Ok(())
}

/// Grants the rings to the daemons, by the reserved entries.
pub(super) fn grant_rings(id: DomId, store: Mfn, console: Mfn) -> Result<(), BuildError> {
    let mut table = [0];
    memory::grant_table_frames(id, 0, &mut table).map_err(refused("its grant table"))?;
    let map = map_foreign(id, &[Mfn::new(table[0])], true)
        .map_err(|error| BuildError::Map("its grant table", error.errno.to_string()))?;
    for (entry, frame) in [(GNTTAB_RESERVED_CONSOLE, console), (GNTTAB_RESERVED_XENSTORE, store)] {
        let value =
            GrantEntryV1 { flags: GTF_PERMIT_ACCESS, domid: DomId::DOM0.raw(), frame: frame.raw() as u32 };
        map.bytes().write_value(entry as usize * size_of::<GrantEntryV1>(), &value);
    }
    Ok(())
}

/// The registers with which the kernel starts.
fn first_vcpu(kernel: &Kernel, layout: &Layout, top_table: Mfn) -> alloc::boxed::Box<VcpuGuestContext> {
    let mut context = alloc::boxed::Box::<VcpuGuestContext>::default();
    let stack = layout.va(layout.stack + 1);
    context.flags = VGCF_IN_KERNEL | VGCF_ONLINE;
    context.user_regs.rip = kernel.notes.entry;
    context.user_regs.rsi = layout.va(layout.start_info);
    context.user_regs.rsp = stack;
    context.user_regs.rflags = IF_FLAG;
    context.user_regs.cs = FLAT_KERNEL_CS;
    context.user_regs.ss = FLAT_KERNEL_SS;
    context.kernel_ss = FLAT_KERNEL_SS.into();
    context.kernel_sp = stack;
    context.ctrlreg[3] = top_table.maddr().raw();
    context
}
