//! `mmu_update` and `update_va_mapping`: changing entries of page tables.

use alloc::sync::Arc;

use ring_abi::mmu::{
    MMU_MACHPHYS_UPDATE, MMU_NORMAL_PT_UPDATE, MMU_PT_UPDATE_NO_TRANSLATE, MMU_PT_UPDATE_PRESERVE_AD,
    MmuUpdate, UVMF_ALL, UVMF_FLUSHTYPE_MASK, UVMF_INVLPG, UVMF_LOCAL, UVMF_TLB_FLUSH,
};
use ring_abi::types::{DOMID_IO, DOMID_SELF, DOMID_XEN, GuestVa, Mfn, Pfn};

use super::batch::{self, Batch};
use super::{Answer, Args, Current, HypercallError, HypercallResult, Outcome, flush};
use crate::Hypervisor;
use crate::domain::Domain;
use crate::frames::pte::Pte;
use crate::mem::session::Mm;
use crate::mem::{FrameOwner, Update};
use crate::platform::{CpuSet, Platform};

/// Requests that are read together, and done without a look at what else waits.
const TOGETHER: usize = 8;

/// Whose frames a call is about: the caller's, another domain's, or none's.
#[derive(Debug)]
pub(super) enum Subject {
    Caller,
    Other(Arc<Domain>),
    Devices,
    Hypervisor,
}

impl Subject {
    /// What the caller may mean by `raw`.
    pub(super) fn new<P: Platform>(cur: &Current<'_, P>, raw: u16) -> Answer<Self> {
        match raw {
            DOMID_SELF => Ok(Self::Caller),
            DOMID_IO => Ok(Self::Devices),
            DOMID_XEN if cur.domain.privileged => Ok(Self::Hypervisor),
            DOMID_XEN => Err(HypercallError::NotPermitted),
            _ => Ok(Self::Other(cur.hv.domains.target(cur.domain, raw)?)),
        }
    }

    pub(super) fn owner<'a>(&'a self, caller: &'a Domain) -> FrameOwner<'a> {
        match self {
            Self::Caller => FrameOwner::Domain(caller),
            Self::Other(dom) => FrameOwner::Domain(dom),
            Self::Devices => FrameOwner::Devices(caller),
            Self::Hypervisor => FrameOwner::Hypervisor,
        }
    }

    /// The domain meant.
    pub(super) fn domain<'a>(&'a self, caller: &'a Arc<Domain>) -> Answer<&'a Arc<Domain>> {
        match self {
            Self::Caller => Ok(caller),
            Self::Other(dom) => Ok(dom),
            Self::Devices | Self::Hypervisor => Err(HypercallError::Invalid),
        }
    }
}

/// `mmu_update(requests, count, &done, domain)`: each request changes one entry of a page table, or of the M2P.
///
/// `domain`: low half whose frames the new entries name, high half 1 + whose tables are changed, or 0 for the caller's.
///
/// # Errors
/// `Fault`; `NoSuchDomain`, `NotPermitted`; `Invalid`, `Busy` and others of the first request that is refused: those
/// before it are done, and counted; `NoSys`: no such command.
pub fn mmu_update<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    // The most frequent case by far: the guest's own tables, a new list, and no count to return. This case has a
    // function of its own, so that it need not save the registers that the other cases use.
    if args[3] as u32 == u32::from(DOMID_SELF) && batch::is_plain(args) {
        update_own(cur, args)
    } else {
        update_any(cur, args)
    }
}

#[inline(never)]
fn update_own<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let domain = cur.domain;
    let (done, result, drained) = {
        let mut mm = cur.tables(domain);
        mm.begin_alive()?;
        let (requests, count) = (GuestVa::new(args[0]), u64::from(args[1] as u32));
        let (done, result) = perform(&mut mm, requests, count, FrameOwner::Domain(domain));
        (done, result, mm.finish_deferred())
    };
    if drained && result.is_ok() {
        Ok(Outcome::OK)
    } else {
        batch::ended::<MmuUpdate, P>(cur, args, done, result, drained)
    }
}

fn update_any<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let batch = Batch::new(cur, args);
    let whose = if batch.only_finish { u32::from(DOMID_SELF) } else { args[3] as u32 };
    let frames_of = Subject::new(cur, whose as u16)?;
    let tables_of = match (whose >> 16) as u16 {
        0 => Subject::Caller,
        id => Subject::new(cur, id.wrapping_sub(1))?,
    };
    let caller = cur.domain;
    let dom = tables_of.domain(caller)?;
    let mut mm = cur.tables(dom);
    mm.begin_alive()?;
    if batch.only_finish {
        return Ok(batch::saved_result(args));
    }
    let (done, result) = perform(&mut mm, GuestVa::new(args[0]), batch.count.into(), frames_of.owner(caller));
    let drained = mm.finish_deferred();
    drop(mm);
    batch.tell(cur, done)?;
    batch::ended::<MmuUpdate, P>(cur, args, done, result, drained)
}

/// Does requests in their order, until one cannot be or something else waits: how many, and why no more.
///
/// Requests are read by guest addresses, some at a time: each such reading ends the flush that is owed.
#[inline(always)]
fn perform<P: Platform>(
    mm: &mut Mm<'_, P>,
    requests: GuestVa,
    count: u64,
    owner: FrameOwner<'_>,
) -> (u64, Answer) {
    let hv = mm.hv;
    if count == 1 {
        let Ok([ptr, val]) = hv.platform.read_frame(mm.settle(), requests) else {
            return (0, Err(HypercallError::Fault));
        };
        return match update_one(hv, mm, &MmuUpdate { ptr, val }, owner) {
            Ok(true) => (1, Ok(())),
            Ok(false) => (1, Err(HypercallError::Again)),
            Err(error) => (0, Err(error)),
        };
    }
    let mut words = [0; 2 * TOGETHER];
    let mut together = TOGETHER as u64;
    let mut done = 0;
    while done < count {
        if done != 0 && hv.platform.work_pending() {
            return (done, Err(HypercallError::Again));
        }
        let now = together.min(count - done);
        let at = requests.wrapping_add(done * size_of::<MmuUpdate>() as u64);
        let words = &mut words[..2 * now as usize];
        if hv.platform.read_words(mm.settle(), words, at).is_err() {
            if now == 1 {
                return (done, Err(HypercallError::Fault));
            }
            together = 1; // those before the fault are done, as if each had been read by itself
            continue;
        }
        for &[ptr, val] in words.as_chunks::<2>().0 {
            match update_one(hv, mm, &MmuUpdate { ptr, val }, owner) {
                Ok(true) => done += 1,
                Ok(false) => return (done + 1, Err(HypercallError::Again)),
                Err(error) => return (done, Err(error)),
            }
        }
    }
    (done, Ok(()))
}

#[inline(always)]
fn update_one<P: Platform>(
    hv: &Hypervisor<P>,
    mm: &mut Mm<'_, P>,
    request: &MmuUpdate,
    owner: FrameOwner<'_>,
) -> Answer<bool> {
    let mfn = Mfn::new(request.ptr >> 12);
    let update = match request.ptr & 7 {
        MMU_NORMAL_PT_UPDATE | MMU_PT_UPDATE_NO_TRANSLATE => Update::Plain,
        MMU_PT_UPDATE_PRESERVE_AD => Update::PreserveAccessedDirty,
        MMU_MACHPHYS_UPDATE => {
            let FrameOwner::Domain(dom) = owner else { return Err(HypercallError::Invalid) };
            let page = hv.get_page(mfn, dom).ok_or(HypercallError::Invalid)?;
            hv.platform.set_m2p(page.mfn(), Pfn::new(request.val));
            page.moved();
            return Ok(true);
        }
        _ => return Err(HypercallError::NoSys),
    };
    Ok(mm.update_entry(mfn, request.ptr & 0xff8, Pte::new(request.val), owner, update)?)
}

/// `update_va_mapping(va, entry, flags)`: changes the level 1 entry of an address under the loaded tables.
///
/// `flags`: 1 flush, 2 flush that page; plus 4 on all CPUs of the domain, or the address of a vCPU bitmap.
///
/// # Errors
/// `Invalid`: no level 1 table there, or an entry that may not be; `NotPermitted`, `Busy` as `mmu_update`.
pub fn update_va_mapping<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let domain = cur.domain;
    update_mapping(cur, args, FrameOwner::Domain(domain))
}

/// `update_va_mapping_otherdomain(va, entry, flags, domain)`: the entry names a frame of `domain`.
///
/// # Errors
/// The errors of [`update_va_mapping`]; `NoSuchDomain`; `NotPermitted`.
pub fn update_va_mapping_otherdomain<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let subject = Subject::new(cur, args[3] as u16)?;
    let domain = cur.domain;
    update_mapping(cur, args, subject.owner(domain))
}

fn update_mapping<P: Platform>(
    cur: &mut Current<'_, P>,
    args: &Args,
    owner: FrameOwner<'_>,
) -> HypercallResult {
    let [va, entry, flags, ..] = *args;
    let (va, domain) = (GuestVa::new(va), cur.domain);
    let base = cur.vcpu.cr3_kernel.get().ok_or(HypercallError::Invalid)?;
    {
        let mut mm = cur.tables(domain);
        mm.begin()?;
        let (table, slot) = mm.find_leaf(base, va)?;
        mm.update_leaf(table, slot, Pte::new(entry), owner, Update::Plain)?;
    }
    if flags & UVMF_FLUSHTYPE_MASK != 0 {
        flush_as_asked(cur, flags, va);
    }
    Ok(Outcome::OK)
}

/// The flush that `UVMF_*` flags ask for. A vCPU bitmap that cannot be read is taken for all the domain's vCPUs: more than was
/// asked is flushed, never less.
fn flush_as_asked<P: Platform>(cur: &Current<'_, P>, flags: u64, va: GuestVa) {
    let cpus = match flags & !UVMF_FLUSHTYPE_MASK {
        UVMF_LOCAL if flags & UVMF_FLUSHTYPE_MASK == UVMF_INVLPG => return cur.hv.platform.invlpg(va),
        UVMF_LOCAL => CpuSet::only(cur.hv.platform.cpu()),
        UVMF_ALL => flush::all_cpus(cur),
        at => flush::cpus_of_set(cur, GuestVa::new(at)).unwrap_or_else(|_| flush::all_cpus(cur)),
    };
    match flags & UVMF_FLUSHTYPE_MASK {
        UVMF_TLB_FLUSH => flush::flush(cur, cpus),
        UVMF_INVLPG => flush::invlpg(cur, cpus, va),
        _ => {}
    }
}
