//! A guest's memory and vCPUs, into a stream. The guest is suspended, or runs while its pages are sent.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::mem::offset_of;

use migration::format::{PageEntry, TscInfo};
use migration::tables::{self, ENTRIES};
use migration::{Sink, StreamError, VcpuPart, Writer, contexts};
use pvrt::executor::time;
use pvrt::hypercall::{domctl, saved};
use pvrt::mem::{ForeignMap, map_foreign};
use pvrt::yield_now;
use ring_abi::domctl::XenDomctlGetdomaininfo;
use ring_abi::errno::Errno;
use ring_abi::pte::{MARK, P};
use ring_abi::shared_info::{ARCH_OFFSET, ArchSharedInfo};
use ring_abi::start_info::StartInfo;
use ring_abi::types::{DomId, Mfn, PAGE_SIZE};
use zerocopy::{FromBytes, IntoBytes};

use super::super::Domain;
use super::bits::Bits;
use super::memory::P2m;
use crate::builder::most_frames;

/// Pages that are looked at, mapped and written at a time.
const AT_A_TIME: usize = 64;
/// Where the kind stands in what `getpageframeinfo3` says.
const KIND_SHIFT: u32 = 28;
/// How often, and how long after one another, a guest that changes its list is looked at.
const LOOKS: usize = 100;
const LOOK_NS: u64 = 1_000_000;

fn told(error: StreamError) -> String {
    error.to_string()
}

fn refused(what: &'static str) -> impl Fn(Errno) -> String {
    move |errno| format!("{what}: {errno}")
}

/// A domain that is sent.
pub(super) struct Sender<S> {
    id: DomId,
    info: XenDomctlGetdomaininfo,
    /// Frames that the guest may number.
    most: u64,
    writer: Writer<S>,
    p2m: P2m,
    /// Pages that the stream has.
    sent: Bits,
}

/// A page that is about to be sent.
struct Page {
    entry: PageEntry,
    mfn: u64,
    /// What a page table says, without machine frames.
    table: Option<Box<[u64; ENTRIES]>>,
}

impl<S: Sink + Send> Sender<S> {
    /// Writes what stands before pages.
    pub(super) async fn begin(domain: &Domain, mut writer: Writer<S>) -> Result<Self, String> {
        let id = domain.id;
        let mut leaves = domctl::cpu_policy(id).map_err(refused("get_cpu_policy"))?;
        // Leaves that say nothing Xen's tools may know as ones with subleaves.
        leaves.retain(|leaf| [leaf.a, leaf.b, leaf.c, leaf.d] != [0; 4]);
        writer.static_data(&leaves, &[]).await.map_err(told)?;
        let info = domctl::info(id).map_err(refused("getdomaininfo"))?;
        let most = most_frames(&domain.config);
        let arch = settled(id, &info).await?;
        let p2m = P2m::read(id, most, &arch).await?;
        writer.p2m_frames(p2m.count() as u32 - 1, &p2m.list).await.map_err(told)?;
        Ok(Self { id, info, most, writer, p2m, sent: Bits::none(most)? })
    }

    /// No frame.
    pub(super) fn none(&self) -> Result<Bits, String> {
        Bits::none(self.most)
    }

    /// All frames that the guest's list has.
    pub(super) fn all(&self) -> Result<Bits, String> {
        let mut all = self.none()?;
        (0..self.p2m.count()).filter(|pfn| self.p2m.mfn(*pfn).is_some()).for_each(|pfn| all.insert(pfn));
        Ok(all)
    }

    /// Bytes of the stream so far.
    pub(super) fn bytes(&self) -> u64 {
        self.writer.offset()
    }

    /// The guest has written `written` since its list was read last, or since this was called. What must be sent for another
    /// reason than that goes into `due`.
    pub(super) async fn look_again(&mut self, written: &Bits, due: &mut Bits) -> Result<(), String> {
        let arch = settled(self.id, &self.info).await?;
        if self.p2m.update(self.id, self.most, &arch, written, due).await? {
            self.writer.p2m_frames(self.p2m.count() as u32 - 1, &self.p2m.list).await.map_err(told)?;
        }
        Ok(())
    }

    /// Sends the pages of `due`. `left`: the guest runs, and what cannot be sent since the guest is changing it goes there, to be sent
    /// later; `None`: the guest is suspended, and all has to be right. Gives the number of pages sent.
    pub(super) async fn pages(&mut self, due: &Bits, mut left: Option<&mut Bits>) -> Result<u64, String> {
        let (mut next, mut count) = (0, 0);
        while let Some(first) = due.next(next) {
            let mut pfns = Vec::with_capacity(AT_A_TIME);
            let mut at = Some(first);
            while let Some(pfn) = at.filter(|_| pfns.len() < AT_A_TIME) {
                pfns.push(pfn);
                at = due.next(pfn + 1);
            }
            next = pfns.last().map_or(u64::MAX, |pfn| pfn + 1);
            count += self.some(pfns, left.as_deref_mut()).await?;
            yield_now().await;
        }
        Ok(count)
    }

    /// Sends some pages.
    async fn some(&mut self, pfns: Vec<u64>, mut left: Option<&mut Bits>) -> Result<u64, String> {
        let (there, gone): (Vec<u64>, Vec<u64>) =
            pfns.into_iter().partition(|pfn| self.p2m.mfn(*pfn).is_some());
        self.without(gone).await?;
        let mut kinds: Vec<u64> = there.iter().filter_map(|pfn| self.p2m.mfn(*pfn)).collect();
        saved::page_types(self.id, &mut kinds).map_err(refused("getpageframeinfo3"))?;
        let mut pages = Vec::with_capacity(AT_A_TIME);
        let mut others = Vec::new();
        for (pfn, word) in there.into_iter().zip(&kinds) {
            let kind = (*word >> KIND_SHIFT) as u8 & 0xf;
            let Some(mfn) = self.p2m.mfn(pfn) else { continue };
            // What the guest maps of others is in its list, too, and is not its own.
            if kind >= PageEntry::BROKEN {
                others.push(pfn);
            } else if self.p2m.pfn(mfn) == Some(pfn) {
                pages.push(Page { entry: PageEntry::new(pfn, kind), mfn, table: None });
            } else if let Some(left) = &mut left {
                left.insert(pfn);
            } else {
                // Listed under two numbers, a frame would be two pages of the restored domain, and the stream of any length.
                return Err(format!(
                    "page {pfn:#x}: its frame {mfn:#x} has another number in the machine's table"
                ));
            }
        }
        self.without(others).await?;
        let map = self.map(&mut pages, left.as_deref_mut())?;
        let Some(map) = map else { return Ok(0) };
        let written = self.read_tables(&mut pages, &map, left)?;
        let list: Vec<PageEntry> = written.iter().map(|index| pages[*index].entry).collect();
        if list.is_empty() {
            return Ok(0);
        }
        self.writer.pages(&list).await.map_err(told)?;
        let mut bytes = Box::new([0; PAGE_SIZE]);
        for index in &written {
            let page = &pages[*index];
            let contents = match &page.table {
                Some(table) => zerocopy::transmute_ref!(&**table),
                None => {
                    map.page(*index).read(0, &mut *bytes);
                    &*bytes
                }
            };
            self.writer.page(contents).await.map_err(told)?;
            self.sent.insert(page.entry.pfn());
        }
        Ok(list.len() as u64)
    }

    /// Says of pages that the stream has that the guest has them no longer.
    async fn without(&mut self, pfns: Vec<u64>) -> Result<(), String> {
        let gone: Vec<PageEntry> = pfns
            .into_iter()
            .filter(|pfn| self.sent.has(*pfn))
            .map(|pfn| PageEntry::new(pfn, PageEntry::XTAB))
            .collect();
        if gone.is_empty() {
            return Ok(());
        }
        gone.iter().for_each(|page| self.sent.remove(page.pfn()));
        self.writer.pages(&gone).await.map_err(told)
    }

    /// Maps pages. Of a guest that runs, some may be gone.
    fn map(&self, pages: &mut Vec<Page>, mut left: Option<&mut Bits>) -> Result<Option<ForeignMap>, String> {
        while !pages.is_empty() {
            let mfns: Vec<Mfn> = pages.iter().map(|page| Mfn::new(page.mfn)).collect();
            let error = match map_foreign(self.id, &mfns, false) {
                Ok(map) => return Ok(Some(map)),
                Err(error) => error,
            };
            let pfn = pages[error.index].entry.pfn();
            match &mut left {
                Some(left) if matches!(error.errno, Errno::EINVAL | Errno::EPERM | Errno::ENOENT) => {
                    left.insert(pfn);
                    pages.remove(error.index);
                }
                _ => return Err(format!("page {pfn:#x}: {}", error.errno)),
            }
        }
        Ok(None)
    }

    /// Reads page tables. Gives the places of the pages that can be sent.
    fn read_tables(
        &self,
        pages: &mut [Page],
        map: &ForeignMap,
        mut left: Option<&mut Bits>,
    ) -> Result<Vec<usize>, String> {
        let mut good = Vec::with_capacity(pages.len());
        for (index, page) in pages.iter_mut().enumerate() {
            let (pfn, level) = (page.entry.pfn(), page.entry.level());
            if level > 0 {
                let mut table = Box::new([0; ENTRIES]);
                let bytes: &mut [u8; PAGE_SIZE] = zerocopy::transmute_mut!(&mut *table);
                map.page(index).read(0, bytes);
                if level == 1 && left.is_some() {
                    unmark(&mut table);
                }
                let read = tables::canonicalise(level, &mut table, |mfn| self.p2m.pfn(mfn));
                match (read, &mut left) {
                    (Ok(()), _) => page.table = Some(table),
                    (Err(_), Some(left)) => {
                        left.insert(pfn);
                        continue;
                    }
                    (Err(why), None) => return Err(format!("page {pfn:#x}, a page table: {why}")),
                }
            }
            good.push(index);
        }
        Ok(good)
    }

    /// The frames of a suspended guest that dom0 writes by mappings of its own, into `due`: the rings of xenstore and of the console.
    pub(super) fn add_rings(&self, due: &mut Bits) -> Result<(), String> {
        let context = saved::vcpu_context(self.id, 0).map_err(refused("getvcpucontext"))?;
        let map = map_foreign(self.id, &[Mfn::new(context.user_regs.rdx)], false);
        let map = map.map_err(|error| format!("start_info: {}", error.errno))?;
        for at in [offset_of!(StartInfo, store_mfn), offset_of!(StartInfo, console_mfn)] {
            // A guest that suspends puts its own numbers there.
            let pfn: u64 = map.page(0).read_value(at);
            if self.p2m.mfn(pfn).is_some() {
                due.insert(pfn);
            }
        }
        Ok(())
    }

    /// Writes what stands behind pages, of a suspended guest.
    pub(super) async fn state(self) -> Result<Writer<S>, String> {
        let Self { id, info, mut writer, p2m, .. } = self;
        let tsc = saved::tsc_info(id).map_err(refused("gettscinfo"))?;
        let tsc = TscInfo {
            mode: tsc.tsc_mode,
            khz: tsc.gtsc_khz,
            nsec: tsc.elapsed_nsec,
            incarnation: tsc.incarnation,
            reserved: 0,
        };
        writer.tsc(&tsc).await.map_err(told)?;
        writer.shared_info(&*shared_info(id, &info)?).await.map_err(told)?;
        for vcpu in 0..=info.max_vcpu_id {
            let is_online = domctl::vcpu_info(id, vcpu).is_ok_and(|info| info.online != 0);
            if vcpu == 0 || is_online {
                send_vcpu(id, vcpu, &mut writer, &p2m).await.map_err(|why| format!("vCPU {vcpu}: {why}"))?;
                yield_now().await;
            }
        }
        Ok(writer)
    }
}

/// Dirty tracking takes RW from entries and marks them. Sent, such an entry is one without RW, to which the guest's kernel gives RW back when
/// somebody writes. With RW the entry would be wrong: the
/// guest may copy the entry before the table is read again, and share the frame by that.
fn unmark(table: &mut [u64; ENTRIES]) {
    table.iter_mut().filter(|entry| **entry & P != 0).for_each(|entry| *entry &= !MARK);
}

fn shared_info(id: DomId, info: &XenDomctlGetdomaininfo) -> Result<Box<[u8; PAGE_SIZE]>, String> {
    let mut page = Box::new([0; PAGE_SIZE]);
    let map = map_foreign(id, &[Mfn::new(info.shared_info_frame)], false);
    let map = map.map_err(|error| format!("shared_info: {}", error.errno))?;
    map.page(0).read(0, &mut *page);
    Ok(page)
}

/// Where a guest says that its list of frames is, while the guest does not change that.
async fn settled(id: DomId, info: &XenDomctlGetdomaininfo) -> Result<ArchSharedInfo, String> {
    for _ in 0..LOOKS {
        let page = shared_info(id, info)?;
        let arch = ArchSharedInfo::read_from_prefix(&page[ARCH_OFFSET..]);
        let (arch, _) = arch.map_err(|_| "shared_info has no such place".to_string())?;
        if arch.p2m_cr3 == 0 || arch.p2m_generation.is_multiple_of(2) {
            return Ok(arch);
        }
        time::sleep(LOOK_NS).await;
    }
    Err("it goes on changing its P2M list".into())
}

async fn send_vcpu<S: Sink + Send>(
    id: DomId,
    vcpu: u32,
    writer: &mut Writer<S>,
    p2m: &P2m,
) -> Result<(), String> {
    let mut context = saved::vcpu_context(id, vcpu).map_err(refused("getvcpucontext"))?;
    contexts::canonicalise(&mut context, vcpu == 0, |mfn, what| {
        p2m.pfn(mfn).ok_or_else(|| format!("{what} is frame {mfn:#x}, which is not the domain's"))
    })?;
    writer.vcpu(vcpu, VcpuPart::Basic, context.as_bytes()).await.map_err(told)?;
    let extended = saved::ext_vcpu_context(id, vcpu).map_err(refused("get_ext_vcpucontext"))?;
    writer.vcpu(vcpu, VcpuPart::Extended, extended.as_bytes()).await.map_err(told)?;
    let xstate = saved::vcpu_xstate(id, vcpu).map_err(refused("getvcpuextstate"))?;
    if !xstate.is_empty() {
        writer.vcpu(vcpu, VcpuPart::Xsave, &xstate).await.map_err(told)?;
    }
    Ok(())
}
