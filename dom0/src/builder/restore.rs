//! Building a domain from a stream into which a running one was saved.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::mem::offset_of;

use migration::format::{MAX_PFN, PageEntry, TscInfo};
use migration::tables::{self, ENTRIES};
use migration::{Reader, Record, Source, VcpuPart, contexts};
use pvrt::event::Port;
use pvrt::hypercall::{domctl, memory, mmu, saved, sysctl};
use pvrt::mem::map_foreign;
use pvrt::yield_now;
use ring_abi::domctl::{XenDomctlExtVcpucontext, XenDomctlTscInfo};
use ring_abi::guest_context::VcpuGuestContext;
use ring_abi::pte::{FRAME, P};
use ring_abi::shared_info::*;
use ring_abi::start_info::{MAGIC, StartInfo};
use ring_abi::types::{DomId, Mfn, PAGE_SIZE, Port as PortNumber};
use zerocopy::{FromBytes, IntoBytes};

use super::build::{Built, Rings, SLACK_KIB, grant_rings, refused, set_clock};
use super::domain::OwnedDomain;
use super::error::BuildError;
use super::policy::set_policy;
use crate::config::DomainConfig;

/// What stands for a frame that the domain does not have.
const ABSENT: u64 = u64::MAX;
/// Pages that are mapped, and tables that are checked, at a time.
const AT_A_TIME: usize = 32;
const TABLES_AT_A_TIME: usize = 8;
/// Frames that a guest may number beside twice its memory: 256 MiB.
const HOLES: u64 = 1 << 16;

/// How many frames a domain may number, those that it does not have included. This bounds what dom0 keeps for their list.
pub fn most_frames(config: &DomainConfig) -> u64 {
    (config.maxmem_mib << 8).saturating_mul(2).saturating_add(HOLES).min(MAX_PFN + 1)
}

/// Pages that are asked for at a time.
const POPULATE_PAGES: usize = 256;
/// Words of a page of the P2M list.
const WORDS: usize = PAGE_SIZE / 8;

/// What to restore.
pub struct Restored<'a, S> {
    /// The configuration.
    pub config: &'a DomainConfig,
    /// The domain's UUID.
    pub uuid: [u8; 16],
    /// The number of the domain's CPU pool.
    pub pool: u32,
    /// The stream, behind its configuration.
    pub reader: Reader<S>,
    /// Called with the domain's number as soon as the hypervisor has made the domain.
    pub begun: &'a (dyn Fn(DomId) + Sync),
}

/// Restores a domain. After a failure nothing of the domain stays.
///
/// # Errors
/// See [`BuildError`].
pub async fn restore<S: Source + Send>(mut request: Restored<'_, S>) -> Result<Built, BuildError> {
    let config = request.config;
    let domain = OwnedDomain::create(config, request.uuid, request.pool).map_err(refused("createdomain"))?;
    (request.begun)(domain.id());
    match fill(config, &mut request.reader, domain.id()).await {
        Ok(rings) => Ok(Built { domain, rings }),
        Err(error) => {
            domain.discard().await;
            Err(error)
        }
    }
}

async fn fill<S: Source + Send>(
    config: &DomainConfig,
    reader: &mut Reader<S>,
    id: DomId,
) -> Result<Rings, BuildError> {
    domctl::max_vcpus(id, config.maxvcpus).map_err(refused("max_vcpus"))?;
    domctl::max_mem(id, (config.maxmem_mib << 10) + SLACK_KIB).map_err(refused("max_mem"))?;
    memory::set_memory_map(id, config.maxmem_mib << 10).map_err(refused("set_memory_map"))?;
    set_clock(id, config)?;
    // What is claimed here nobody else can take while the stream comes, however long that takes.
    if memory::claim_pages(id, config.memory_mib << 8).is_err() {
        let free = sysctl::physinfo().map_or(0, |info| info.free_pages);
        return Err(BuildError::Memory(config.memory_mib, free >> 8));
    }
    let store_port = Port::alloc_unbound_in(id, DomId::DOM0).map_err(refused("xenstore port"))?;
    let console_port = Port::alloc_unbound_in(id, DomId::DOM0).map_err(refused("console port"))?;
    let mut guest = Guest { id, mfns: Vec::new(), kinds: Vec::new(), list: Vec::new(), populated: 0 };
    let mut state = State::default();
    loop {
        match reader.next().await.map_err(BuildError::Stream)? {
            Record::Cpuid(leaves) => set_policy(id, &leaves).map_err(|why| wrong(reader, why))?,
            Record::Msrs(_) => {} // the machine's own facts about itself; guests have no MSRs of their own
            Record::P2mFrames(last, list) => {
                guest.begin(config, last, list).map_err(|why| wrong(reader, why))?
            }
            Record::Pages(list) => guest.pages(reader, &list).await?,
            Record::Tsc(tsc) => state.tsc = Some(tsc),
            Record::SharedInfo(page) => state.shared_info = Some(page),
            Record::Vcpu(vcpu, ..) if vcpu >= config.maxvcpus => {
                let there_are = config.maxvcpus;
                return Err(wrong(reader, format!("vCPU {vcpu} of a domain that has {there_are}")));
            }
            Record::Vcpu(vcpu, part, bytes) => state.vcpus.push((vcpu, part, bytes)),
            Record::End => break,
        }
    }
    // What the guest had given up before it was saved, others may have.
    memory::claim_pages(id, 0).map_err(refused("the claim's end"))?;
    let most = guest.populated.max(config.memory_mib << 8) * 4 + SLACK_KIB;
    domctl::max_mem(id, most).map_err(refused("max_mem"))?;
    let rings = guest.finish(&state, (store_port, console_port)).await;
    rings.map_err(BuildError::Saved)
}

fn wrong<S: Source>(reader: &Reader<S>, why: impl core::fmt::Display) -> BuildError {
    BuildError::Stream(reader.wrong(why))
}

/// What a stream says beside memory.
#[derive(Default)]
struct State {
    tsc: Option<TscInfo>,
    shared_info: Option<Box<[u8; PAGE_SIZE]>>,
    vcpus: Vec<(u32, VcpuPart, Vec<u8>)>,
}

/// The memory of a domain that is being restored.
struct Guest {
    id: DomId,
    /// Machine frame of each pseudo-physical one.
    mfns: Vec<u64>,
    /// What each is, as the stream said last.
    kinds: Vec<u8>,
    /// The P2M list's pages.
    list: Vec<u64>,
    populated: u64,
}

impl Guest {
    fn begin(&mut self, config: &DomainConfig, last: u32, list: Vec<u64>) -> Result<(), String> {
        let count = last as usize + 1;
        let most = most_frames(config);
        if count as u64 > most {
            return Err(format!(
                "{count:#x} frames of a domain that may have {most:#x} at most, by its maxmem"
            ));
        }
        let no_room = |_| format!("no memory to list {count} frames");
        // A guest that ran while it was sent may have moved its list, or made it longer.
        let count = count.max(self.mfns.len());
        self.mfns.try_reserve_exact(count - self.mfns.len()).map_err(no_room)?;
        self.kinds.try_reserve_exact(count - self.kinds.len()).map_err(no_room)?;
        self.mfns.resize(count, ABSENT);
        self.kinds.resize(count, 0);
        self.list = list;
        Ok(())
    }

    fn mfn(&self, pfn: u64) -> Option<u64> {
        let pfn = usize::try_from(pfn).ok()?;
        self.mfns.get(pfn).copied().filter(|mfn| *mfn != ABSENT)
    }

    fn frame(&self, pfn: u64, what: &str) -> Result<Mfn, String> {
        self.mfn(pfn)
            .map(Mfn::new)
            .ok_or_else(|| format!("{what} is frame {pfn:#x}, which the stream does not have"))
    }

    /// Gives the domain those of `pfns` that it does not have yet.
    async fn populate(&mut self, mut pfns: Vec<u64>) -> Result<(), BuildError> {
        pfns.retain(|pfn| self.mfn(*pfn).is_none());
        pfns.sort_unstable();
        pfns.dedup();
        for chunk in pfns.chunks(POPULATE_PAGES) {
            let mut extents = chunk.to_vec();
            let got =
                memory::populate_physmap(self.id, &mut extents, 0).map_err(refused("populate_physmap"))?;
            if got < chunk.len() {
                return Err(BuildError::Memory(
                    (self.populated + pfns.len() as u64) >> 8,
                    self.populated >> 8,
                ));
            }
            for (pfn, mfn) in chunk.iter().zip(&extents) {
                self.mfns[*pfn as usize] = *mfn;
            }
            self.populated += got as u64;
            yield_now().await;
        }
        Ok(())
    }

    /// Takes frames back that the guest had when they were sent, and has given up since.
    async fn give_back(&mut self, pfns: impl Iterator<Item = u64>) -> Result<(), BuildError> {
        let had: Vec<u64> = pfns.filter(|pfn| self.mfn(*pfn).is_some()).collect();
        for chunk in had.chunks(POPULATE_PAGES) {
            let mut frames: Vec<u64> = chunk.iter().filter_map(|pfn| self.mfn(*pfn)).collect();
            let gone = memory::decrease_reservation(self.id, &mut frames, 0);
            let gone = gone.map_err(refused("decrease_reservation"))?;
            for pfn in &chunk[..gone] {
                (self.mfns[*pfn as usize], self.kinds[*pfn as usize]) = (ABSENT, 0);
            }
            self.populated -= gone as u64;
            if gone < chunk.len() {
                return Err(BuildError::Saved(format!("page {:#x} cannot be taken back", chunk[gone])));
            }
            yield_now().await;
        }
        Ok(())
    }

    /// Takes a record of pages.
    async fn pages<S: Source + Send>(
        &mut self,
        reader: &mut Reader<S>,
        list: &[PageEntry],
    ) -> Result<(), BuildError> {
        if let Some(broken) = list.iter().find(|page| page.kind() == PageEntry::BROKEN) {
            return Err(wrong(
                reader,
                format!("page {:#x} was lost where the domain was saved", broken.pfn()),
            ));
        }
        self.give_back(list.iter().filter(|page| page.kind() == PageEntry::XTAB).map(|page| page.pfn()))
            .await?;
        let there = list.iter().filter(|page| page.kind() != PageEntry::XTAB);
        self.populate(there.map(|page| page.pfn()).collect()).await?;
        let with_data: Vec<PageEntry> = list.iter().copied().filter(|page| page.has_data()).collect();
        let mut words = Box::new([0; ENTRIES]);
        for chunk in with_data.chunks(AT_A_TIME) {
            let frames: Vec<Mfn> =
                chunk.iter().filter_map(|page| self.mfn(page.pfn())).map(Mfn::new).collect();
            let map = map_foreign(self.id, &frames, true)
                .map_err(|error| BuildError::Map("domain memory", error.errno.to_string()))?;
            for (index, page) in chunk.iter().enumerate() {
                let bytes: &mut [u8; PAGE_SIZE] = zerocopy::transmute_mut!(&mut *words);
                reader.page(bytes).await.map_err(BuildError::Stream)?;
                if page.level() > 0 {
                    self.localise(page.level(), &mut words)
                        .await?
                        .map_err(|why| wrong(reader, format!("page {:#x}: {why}", page.pfn())))?;
                }
                map.page(index).write(0, words.as_bytes());
                self.kinds[page.pfn() as usize] = page.kind();
            }
            drop(map);
            yield_now().await;
        }
        Ok(())
    }

    /// Makes a table name machine frames. Frames that the table names and that the domain does not have yet, the domain gets: their
    /// contents come later, or are 0.
    async fn localise(
        &mut self,
        level: u8,
        words: &mut [u64; ENTRIES],
    ) -> Result<Result<(), tables::TableError>, BuildError> {
        let named = words.iter().filter(|entry| **entry & P != 0).map(|entry| (entry & FRAME) >> 12);
        let known = self.mfns.len() as u64;
        let missing: Vec<u64> = named.filter(|pfn| *pfn < known && self.mfn(*pfn).is_none()).collect();
        self.populate(missing).await?;
        Ok(tables::localise(level, words, |pfn| self.mfn(pfn)))
    }

    /// Does what needs all of memory: the P2M list, the pages that domain and toolstack share, page tables, vCPUs.
    async fn finish(&self, state: &State, ports: (PortNumber, PortNumber)) -> Result<Rings, String> {
        let basic = |(id, part, bytes): &(u32, VcpuPart, Vec<u8>)| {
            (*id == 0 && *part == VcpuPart::Basic).then(|| VcpuGuestContext::read_from_bytes(bytes).ok())
        };
        let first = state.vcpus.iter().find_map(basic).flatten().ok_or("vCPU 0's state has another size")?;
        self.write_list().await?;
        let frame =
            domctl::info(self.id).map_err(|errno| format!("getdomaininfo: {errno}"))?.shared_info_frame;
        if let Some(page) = &state.shared_info {
            self.write_shared_info(page, Mfn::new(frame))?;
        }
        let start_info = first.user_regs.rdx;
        let (store, console) = self.write_start_info(start_info, frame, ports)?;
        grant_rings(self.id, store, console).map_err(|error| error.to_string())?;
        self.pin().await?;
        if let Some(tsc) = &state.tsc {
            let info = XenDomctlTscInfo {
                tsc_mode: tsc.mode,
                gtsc_khz: tsc.khz,
                elapsed_nsec: tsc.nsec,
                incarnation: tsc.incarnation.wrapping_add(1),
                ..Default::default()
            };
            saved::set_tsc_info(self.id, &info).map_err(|errno| format!("how it sees the TSC: {errno}"))?;
        }
        for (vcpu, part, bytes) in &state.vcpus {
            self.vcpu(*vcpu, *part, bytes).map_err(|why| format!("vCPU {vcpu}: {why}"))?;
            yield_now().await;
        }
        Ok(Rings { store_mfn: store, store_port: ports.0, console_mfn: console, console_port: ports.1 })
    }

    /// Writes the machine frames into the P2M list. What stands there for frames that the domain does not have stays: the guest's
    /// kernel knows more than one reason for that.
    async fn write_list(&self) -> Result<(), String> {
        for (index, pfn) in self.list.iter().enumerate() {
            let frame = self.frame(*pfn, "a page of the P2M list")?;
            let map = map_foreign(self.id, &[frame], true)
                .map_err(|error| format!("the P2M list: {}", error.errno))?;
            let first = index * WORDS;
            let entries = &self.mfns[first..self.mfns.len().min(first + WORDS)];
            for (slot, mfn) in entries.iter().enumerate().filter(|(_, mfn)| **mfn != ABSENT) {
                map.page(0).write_value(slot * 8, mfn);
            }
            drop(map);
            yield_now().await;
        }
        Ok(())
    }

    /// Gives the new domain what the old page said. Event channels are new: none is pending, and all are masked.
    fn write_shared_info(&self, old: &[u8; PAGE_SIZE], frame: Mfn) -> Result<(), String> {
        let map =
            map_foreign(self.id, &[frame], true).map_err(|error| format!("shared_info: {}", error.errno))?;
        let page = map.page(0);
        page.write(0, &old[..EVTCHN_PENDING_OFFSET]);
        for vcpu in 0..XEN_LEGACY_MAX_VCPUS {
            page.write_value(vcpu * size_of::<VcpuInfo>() + PENDING_SEL_OFFSET, &0u64);
        }
        page.write(EVTCHN_PENDING_OFFSET, &[0; EVTCHN_MASK_OFFSET - EVTCHN_PENDING_OFFSET]);
        page.write(EVTCHN_MASK_OFFSET, &[0xff; WC_VERSION_OFFSET - EVTCHN_MASK_OFFSET]);
        page.write(ARCH_OFFSET, &old[ARCH_OFFSET..size_of::<SharedInfo>()]);
        page.write_value(ARCH_OFFSET + offset_of!(ArchSharedInfo, pfn_to_mfn_frame_list_list), &0u64);
        Ok(())
    }

    /// Tells the guest of its new frames and ports; gives the frames of the rings of xenstore and of the console.
    fn write_start_info(
        &self,
        pfn: u64,
        shared_info: u64,
        (store_port, console_port): (PortNumber, PortNumber),
    ) -> Result<(Mfn, Mfn), String> {
        let frame = self.frame(pfn, "start_info")?;
        let map =
            map_foreign(self.id, &[frame], true).map_err(|error| format!("start_info: {}", error.errno))?;
        let page = map.page(0);
        let magic: [u8; 32] = page.read_value(0);
        if !magic.starts_with(&MAGIC[..4]) {
            return Err(format!("frame {pfn:#x} is no start_info"));
        }
        let ring = |at: usize, what| self.frame(page.read_value(at), what);
        let store = ring(offset_of!(StartInfo, store_mfn), "xenstore's ring")?;
        let console = ring(offset_of!(StartInfo, console_mfn), "the console's ring")?;
        for (at, value) in [
            (offset_of!(StartInfo, nr_pages), self.mfns.len() as u64),
            (offset_of!(StartInfo, shared_info), shared_info * PAGE_SIZE as u64),
            (offset_of!(StartInfo, store_mfn), store.raw()),
            (offset_of!(StartInfo, console_mfn), console.raw()),
        ] {
            page.write_value(at, &value);
        }
        page.write_value(offset_of!(StartInfo, flags), &0u32);
        page.write_value(offset_of!(StartInfo, store_evtchn), &store_port.raw());
        page.write_value(offset_of!(StartInfo, console_evtchn), &console_port.raw());
        Ok((store, console))
    }

    /// Has the hypervisor check the tables that were pinned, the lowest first, so that no call has to check many.
    async fn pin(&self) -> Result<(), String> {
        for level in 1..=4 {
            let is_meant = |kind: u8| kind == level | PageEntry::PINNED;
            let pinned = self.kinds.iter().enumerate().filter(|(_, kind)| is_meant(**kind));
            let tables: Vec<u64> = pinned.map(|(pfn, _)| pfn as u64).collect();
            for chunk in tables.chunks(TABLES_AT_A_TIME) {
                let frames: Vec<Mfn> = chunk.iter().filter_map(|pfn| self.mfn(*pfn)).map(Mfn::new).collect();
                mmu::pin_foreign(self.id, level, &frames).map_err(|errno| {
                    format!("page tables of level {level}, of {:#x} and after: {errno}", chunk[0])
                })?;
                yield_now().await;
            }
        }
        Ok(())
    }

    fn vcpu(&self, vcpu: u32, part: VcpuPart, bytes: &[u8]) -> Result<(), String> {
        let refused = |errno| format!("{}: {errno}", part.name());
        match part {
            VcpuPart::Basic => {
                let mut context = Box::<VcpuGuestContext>::default();
                if bytes.len() != size_of::<VcpuGuestContext>() {
                    return Err(format!("the context has {} bytes", bytes.len()));
                }
                context.as_mut_bytes().copy_from_slice(bytes);
                contexts::localise(&mut context, vcpu == 0, |pfn, what| self.frame(pfn, what).map(Mfn::raw))?;
                domctl::set_vcpu_context(self.id, vcpu, &context).map_err(refused)
            }
            VcpuPart::Extended => {
                let mut context = XenDomctlExtVcpucontext::default();
                let Some(to) = context.as_mut_bytes().get_mut(..bytes.len()) else {
                    return Err(format!("the extended context has {} bytes", bytes.len()));
                };
                to.copy_from_slice(bytes);
                context.vcpu = vcpu;
                saved::set_ext_vcpu_context(self.id, &context).map_err(refused)
            }
            VcpuPart::Xsave => saved::set_vcpu_xstate(self.id, vcpu, bytes).map_err(refused),
            VcpuPart::Msrs if bytes.is_empty() => Ok(()),
            VcpuPart::Msrs => {
                Err(format!("{} bytes of MSRs, which this hypervisor does not keep", bytes.len()))
            }
        }
    }
}
