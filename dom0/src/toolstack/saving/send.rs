//! A suspended guest's memory and vCPUs, into a stream.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use migration::format::{PageEntry, TscInfo};
use migration::tables::{self, ENTRIES};
use migration::{Sink, StreamError, VcpuPart, Writer, contexts};
use pvrt::hypercall::{domctl, saved};
use pvrt::mem::map_foreign;
use pvrt::yield_now;
use ring_abi::domctl::XEN_DOMCTL_SHADOW_OP_OFF;
use ring_abi::errno::Errno;
use ring_abi::shared_info::{ARCH_OFFSET, ArchSharedInfo};
use ring_abi::types::{DomId, Mfn, PAGE_SIZE};
use zerocopy::{FromBytes, IntoBytes};

use super::super::Domain;
use super::memory::P2m;
use crate::builder::most_frames;

/// Pages that are looked at, mapped and written at a time.
const AT_A_TIME: usize = 64;
/// Where the kind stands in what `getpageframeinfo3` says.
const KIND_SHIFT: u32 = 28;

fn told(error: StreamError) -> String {
    error.to_string()
}

/// Writes all of a suspended domain behind the headers.
pub(super) async fn send<S: Sink + Send>(
    domain: &Domain,
    mut writer: Writer<S>,
) -> Result<Writer<S>, String> {
    let id = domain.id;
    let refused = |what: &'static str| move |errno: Errno| format!("{what}: {errno}");
    // Entries of page tables are the guest's own again: nobody else's look at what the guest writes goes on beside a save.
    domctl::shadow_op(id, XEN_DOMCTL_SHADOW_OP_OFF, None).map_err(refused("shadow_op"))?;
    let mut leaves = domctl::cpu_policy(id).map_err(refused("get_cpu_policy"))?;
    // Leaves that say nothing Xen's tools may know as ones with subleaves.
    leaves.retain(|leaf| [leaf.a, leaf.b, leaf.c, leaf.d] != [0; 4]);
    writer.static_data(&leaves, &[]).await.map_err(told)?;
    let info = domctl::info(id).map_err(refused("getdomaininfo"))?;
    let mut shared_info = Box::new([0; PAGE_SIZE]);
    {
        let map = map_foreign(id, &[Mfn::new(info.shared_info_frame)], false);
        let map = map.map_err(|error| format!("shared_info: {}", error.errno))?;
        map.page(0).read(0, &mut *shared_info);
    }
    let arch = ArchSharedInfo::read_from_prefix(&shared_info[ARCH_OFFSET..]);
    let (arch, _) = arch.map_err(|_| "shared_info has no such place".to_string())?;
    let p2m = P2m::read(id, most_frames(&domain.config), &arch).await?;
    writer.p2m_frames(p2m.count() as u32 - 1, &p2m.list).await.map_err(told)?;
    send_pages(id, &mut writer, &p2m).await?;
    let tsc = saved::tsc_info(id).map_err(refused("gettscinfo"))?;
    let tsc = TscInfo {
        mode: tsc.tsc_mode,
        khz: tsc.gtsc_khz,
        nsec: tsc.elapsed_nsec,
        incarnation: tsc.incarnation,
        reserved: 0,
    };
    writer.tsc(&tsc).await.map_err(told)?;
    writer.shared_info(&shared_info).await.map_err(told)?;
    for vcpu in 0..=info.max_vcpu_id {
        let is_online = domctl::vcpu_info(id, vcpu).is_ok_and(|info| info.online != 0);
        if vcpu == 0 || is_online {
            send_vcpu(id, vcpu, &mut writer, &p2m).await.map_err(|why| format!("vCPU {vcpu}: {why}"))?;
            yield_now().await;
        }
    }
    Ok(writer)
}

/// Writes all pages that the list has.
async fn send_pages<S: Sink + Send>(id: DomId, writer: &mut Writer<S>, p2m: &P2m) -> Result<(), String> {
    let mut words = Box::new([0; ENTRIES]);
    let mut next = 0;
    while next < p2m.count() {
        // The frames, and the pseudo-physical numbers.
        let mut frames: Vec<u64> = Vec::with_capacity(AT_A_TIME);
        let mut pfns = Vec::with_capacity(AT_A_TIME);
        while next < p2m.count() && pfns.len() < AT_A_TIME {
            if let Some(mfn) = p2m.mfn(next) {
                frames.push(mfn);
                pfns.push(next);
            }
            next += 1;
        }
        let mut kinds = frames.clone();
        saved::page_types(id, &mut kinds).map_err(|errno| format!("getpageframeinfo3: {errno}"))?;
        let kind = |word: &u64| (*word >> KIND_SHIFT) as u8 & 0xf;
        // What the guest maps of others is in its list, too, and is not its own.
        let own = pfns.iter().zip(&frames).zip(&kinds).filter(|(_, word)| kind(word) < PageEntry::BROKEN);
        let (mut list, mut mfns) = (Vec::with_capacity(AT_A_TIME), Vec::with_capacity(AT_A_TIME));
        for ((pfn, mfn), word) in own {
            // Listed under two numbers, a frame would be two pages of the restored domain, and the stream of any length.
            if p2m.pfn(*mfn) != Some(*pfn) {
                return Err(format!(
                    "page {pfn:#x}: its frame {mfn:#x} has another number in the machine's table"
                ));
            }
            list.push(PageEntry::new(*pfn, kind(word)));
            mfns.push(Mfn::new(*mfn));
        }
        if list.is_empty() {
            yield_now().await;
            continue;
        }
        let map = map_foreign(id, &mfns, false)
            .map_err(|error| format!("page {:#x}: {}", list[error.index].pfn(), error.errno))?;
        writer.pages(&list).await.map_err(told)?;
        for (index, page) in list.iter().enumerate() {
            let bytes: &mut [u8; PAGE_SIZE] = zerocopy::transmute_mut!(&mut *words);
            map.page(index).read(0, bytes);
            if page.level() > 0 {
                tables::canonicalise(page.level(), &mut words, |mfn| p2m.pfn(mfn))
                    .map_err(|why| format!("page {:#x}, a page table: {why}", page.pfn()))?;
            }
            let bytes: &[u8; PAGE_SIZE] = zerocopy::transmute_ref!(&*words);
            writer.page(bytes).await.map_err(told)?;
        }
        drop(map);
        yield_now().await;
    }
    Ok(())
}

async fn send_vcpu<S: Sink + Send>(
    id: DomId,
    vcpu: u32,
    writer: &mut Writer<S>,
    p2m: &P2m,
) -> Result<(), String> {
    let refused = |what: &'static str| move |errno: Errno| format!("{what}: {errno}");
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
