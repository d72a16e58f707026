//! Domains and their vCPUs: what each is, who may act on a domain, how a domain begins and ends.

mod cpu;
mod current;
mod debug;
mod history;
mod info;
mod list;
#[cfg(test)]
mod tests;
mod vcpu;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use ring_abi::shared::SharedBytes;
use ring_abi::types::{DomId, Mfn, Port};
use ring_abi::vm_assist::{
    VMASST_TYPE_4GB_SEGMENTS, VMASST_TYPE_4GB_SEGMENTS_NOTIFY, VMASST_TYPE_ARCHITECTURAL_IOPL,
    VMASST_TYPE_M2P_STRICT, VMASST_TYPE_PAE_EXTENDED_CR3, VMASST_TYPE_RUNSTATE_UPDATE_FLAG,
    VMASST_TYPE_WRITABLE_PAGETABLES,
};

pub use cpu::{Callback, CallbackCell, EntryPoints, GateCell, GuestCpu, KernelStack, TrapGate};
pub use current::Current;
pub use debug::DebugRegisterError;
pub(crate) use debug::checked_debug_value;
pub use history::CallHistory;
pub use info::{INFO_BYTES, InfoCell};
pub use list::{DomainError, DomainList, FIRST_RESERVED};
pub(crate) use vcpu::MAX_FRAME;
pub use vcpu::{FpuArea, FrameSlot, PauseFlags, Vcpu};

use crate::emul::state::Levels;
use crate::evtchn::state::Ports;
use crate::gnttab::state::GrantTable;
use crate::mem::state::DomainMm;
use crate::nospec::At;
use crate::rangeset::RangeSet;
use crate::return_stack::FillAtEnd;
use crate::sched::state::DomainSched;
use crate::sync::{Mutex, rank, words};

/// vCPUs of a domain at most (`XEN_LEGACY_MAX_VCPUS` have their `vcpu_info` in `shared_info` from the start).
pub const MAX_VCPUS: u32 = 128;
/// Grant table frames that a domain may have at most: 2 million grants.
pub const MAX_GRANT_FRAMES: u32 = 4096;
/// Maptrack frames that a domain may have at most: 16 million mappings.
pub const MAX_MAPTRACK_FRAMES: u32 = 65536;
/// vCPUs whose `vcpu_info` lies in `shared_info`: `XEN_LEGACY_MAX_VCPUS`.
pub const LEGACY_MAX_VCPUS: u32 = 32;

/// Assists that a guest may switch.
pub const VALID_ASSISTS: u64 = 1 << VMASST_TYPE_4GB_SEGMENTS
    | 1 << VMASST_TYPE_4GB_SEGMENTS_NOTIFY
    | 1 << VMASST_TYPE_WRITABLE_PAGETABLES
    | 1 << VMASST_TYPE_PAE_EXTENDED_CR3
    | 1 << VMASST_TYPE_ARCHITECTURAL_IOPL
    | 1 << VMASST_TYPE_RUNSTATE_UPDATE_FLAG
    | 1 << VMASST_TYPE_M2P_STRICT;

/// What `createdomain` fixes about a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainConfig {
    /// The toolstack's name for the domain.
    pub handle: [u8; 16],
    /// Security label; kept and given back.
    pub ssidref: u32,
    /// Whether the domain may act on all other domains and on the machine.
    pub privileged: bool,
    /// Number of vCPUs that the domain may have: 1 to [`MAX_VCPUS`].
    pub max_vcpus: u32,
    /// The highest event channel port; `None` for no limit but the ABI's.
    pub max_evtchn_port: Option<Port>,
    /// Grant table frames at most.
    pub max_grant_frames: u32,
    /// The highest version of its grant table, 1 or 2.
    pub max_grant_version: u32,
    /// Maptrack frames at most.
    pub max_maptrack_frames: u32,
    /// `XEN_DOMCTL_CDF_*`, kept for `getdomaininfo`.
    pub flags: u32,
    /// The number of the CPU pool in which the domain begins.
    pub pool: u32,
}

impl Default for DomainConfig {
    fn default() -> Self {
        Self {
            handle: [0; 16],
            ssidref: 0,
            privileged: false,
            max_vcpus: 1,
            max_evtchn_port: None,
            max_grant_frames: 64,
            max_grant_version: 2,
            max_maptrack_frames: 1024,
            flags: 0,
            pool: 0,
        }
    }
}

/// How far a domain is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DyingState {
    /// The domain lives.
    Alive = 0,
    /// The domain is being destroyed, and gets no new resource.
    Dying = 1,
    /// All that the domain had was given back, except pages that others still map.
    Dead = 2,
}

/// `shutdown` and its reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShutdownState {
    /// The guest asked, or crashed.
    pub is_shut_down: bool,
    /// `SHUTDOWN_*`.
    pub code: Option<u32>,
}

/// The I/O rights of a domain.
#[derive(Clone, Debug, Default)]
pub struct Permissions {
    /// I/O ports.
    pub ports: RangeSet,
    /// Machine frames that are no RAM.
    pub iomem: RangeSet,
    /// PIRQs.
    pub irqs: RangeSet,
}

/// Settings of a domain that the toolstack may change while the domain lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TscSettings {
    /// As told by `settscinfo`.
    pub elapsed_ns: u64,
    /// As told by `settscinfo`.
    pub gtsc_khz: u32,
    /// As told by `settscinfo`.
    pub incarnation: u32,
}

/// A virtual machine. Always behind an [`Arc`].
pub struct Domain {
    /// The domain's number.
    pub id: DomId,
    /// Whether the domain may act on other domains and the machine.
    pub privileged: bool,
    /// The configuration with which the domain was created.
    pub config: DomainConfig,
    /// The domain's vCPUs, by id. A vCPU is never moved while anybody refers to the domain.
    pub vcpus: Vec<Vcpu>,
    /// The domain's memory.
    pub mm: DomainMm,
    /// The domain's event channels.
    pub events: Ports,
    /// The domain's grant table.
    pub grants: GrantTable,
    /// The frame of the domain's `shared_info`.
    pub shared_info_mfn: Mfn,
    /// The domain's `shared_info`.
    pub shared_info: SharedBytes<'static>,
    /// I/O rights.
    pub permissions: Mutex<rank::Permissions, Permissions>,
    /// Guards the domain's shutdown state.
    pub shutdown: Mutex<rank::Shutdown, ShutdownState>,
    /// Held while one of the domain's vCPUs gets a context: one vCPU at a time.
    pub(crate) contexts: Mutex<rank::Contexts, ()>,
    /// [`DyingState`]. a change sends `VIRQ_DOM_EXC` to dom0.
    dying: AtomicU8,
    /// Whether a CPU is about to end the domain.
    pub(crate) is_being_ended: AtomicBool,
    /// Number of the hypervisor's holds: the domain's vCPUs run only at 0.
    pub pause_count: words::AtomicU32,
    /// Number of the toolstack's holds. `pause_count` counts each of these at most once.
    pub controller_pause_count: AtomicU32,
    /// `VMASST_TYPE_*` bits.
    pub assist: AtomicU64,
    /// Seconds by which the domain's wall clock differs from the machine's.
    pub time_offset: Mutex<rank::TimeOffset, i64>,
    /// `XEN_CPUID_TSC_MODE_*`/`settscinfo`: 0 default, 1 always emulate, 2 never. Outside of the lock, for each switch of
    /// vCPUs.
    pub tsc_mode: AtomicU32,
    /// TSC emulation.
    pub tsc: Mutex<rank::Tsc, TscSettings>,
    /// The handle, which `setdomainhandle` may change.
    pub handle: Mutex<rank::Handle, [u8; 16]>,
    /// CPUs whose TLB may hold entries of this domain, a bit each.
    pub dirty_cpus: words::AtomicU64,
    /// Which watchdogs the domain has. The lock is held while the watchdogs' timers are set.
    pub(crate) watchdogs: Mutex<rank::Watchdogs, [bool; 2]>,
    /// How far the end of the domain's grant mappings has come.
    pub(crate) teardown_at: AtomicU32,
    /// `TimeParams::generation` that the clocks of the domain's vCPUs show; `u32::MAX`: none.
    pub(crate) clock_shown: AtomicU32,
    /// What the scheduler keeps of the domain.
    pub(crate) sched: DomainSched,
    /// What the domain's guest does not see of the CPU.
    pub(crate) levels: Levels,
    /// The last field to be dropped: ports, above, may hold the last reference on another domain, whose ports may likewise.
    _filled: FillAtEnd,
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d{}", self.id.raw())
    }
}

impl Domain {
    /// A domain without memory whose vCPUs are down, paused once by the toolstack. `shared_info` is the hypervisor's view of
    /// the zeroed frame `shared_info_mfn`.
    #[inline(never)]
    pub(crate) fn with_vcpus(
        id: DomId,
        config: DomainConfig,
        shared_info_mfn: Mfn,
        shared_info: SharedBytes<'static>,
        vcpus: Vec<Vcpu>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            privileged: config.privileged,
            config,
            vcpus,
            mm: DomainMm::default(),
            events: Ports::new(config.max_evtchn_port, &shared_info),
            grants: GrantTable::new(config.max_maptrack_frames),
            shared_info_mfn,
            shared_info,
            permissions: Mutex::new(Permissions::default()),
            shutdown: Mutex::new(ShutdownState::default()),
            contexts: Mutex::new(()),
            dying: AtomicU8::new(DyingState::Alive as u8),
            is_being_ended: AtomicBool::new(false),
            pause_count: words::AtomicU32::new(1),
            controller_pause_count: AtomicU32::new(1),
            assist: AtomicU64::new(0),
            time_offset: Mutex::new(0),
            tsc_mode: AtomicU32::new(0),
            tsc: Mutex::new(TscSettings::default()),
            handle: Mutex::new(config.handle),
            dirty_cpus: words::AtomicU64::new(0),
            watchdogs: Mutex::new([false; 2]),
            teardown_at: AtomicU32::new(0),
            clock_shown: AtomicU32::new(u32::MAX),
            sched: DomainSched::new(config.pool),
            levels: Levels::default(),
            _filled: FillAtEnd::default(),
        })
    }

    /// vCPU number `id`, if there is one.
    pub fn vcpu(&self, id: u32) -> Option<&Vcpu> {
        self.vcpus.at(id as usize)
    }

    /// vCPU number `id`, which the hypervisor keeps since it found the vCPU, and no guest chooses now.
    #[inline]
    pub(crate) fn known_vcpu(&self, id: u32) -> Option<&Vcpu> {
        self.vcpus.get(id as usize)
    }

    /// How far the domain is from its end.
    pub fn dying(&self) -> DyingState {
        match self.dying.load(Ordering::Acquire) {
            0 => DyingState::Alive,
            1 => DyingState::Dying,
            _ => DyingState::Dead,
        }
    }

    /// Whether the domain's destruction has begun.
    #[inline]
    pub fn is_dying(&self) -> bool {
        self.dying.load(Ordering::Acquire) != DyingState::Alive as u8
    }

    pub(crate) fn set_dying(&self, state: DyingState) {
        self.dying.store(state as u8, Ordering::Release);
    }

    /// Whether the `VMASST_TYPE_*` bit is on.
    pub fn assists(&self, bit: u32) -> bool {
        self.assist.load(Ordering::Relaxed) & 1 << bit != 0
    }
}

/// A counted reference to a vCPU.
#[derive(Clone)]
pub struct VcpuRef {
    domain: Arc<Domain>,
    index: u32,
}

impl VcpuRef {
    /// vCPU `id` of `domain`, if there is one.
    pub fn new(domain: &Arc<Domain>, id: u32) -> Option<Self> {
        let index = domain.vcpu(id)?.id.raw();
        Some(Self { domain: domain.clone(), index })
    }

    /// The domain to which the vCPU belongs.
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// The vCPU itself. Each call, and each field reached through the reference, looks the vCPU up: code that uses
    /// several fields takes the vCPU by this call.
    #[inline]
    pub fn vcpu(&self) -> &Vcpu {
        &self.domain.vcpus[self.index as usize]
    }

    /// Whether both references lead to the same vCPU.
    pub fn same(&self, other: &Self) -> bool {
        self.index == other.index && Arc::ptr_eq(&self.domain, &other.domain)
    }
}

impl Deref for VcpuRef {
    type Target = Vcpu;

    fn deref(&self) -> &Vcpu {
        self.vcpu()
    }
}

impl fmt::Debug for VcpuRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d{}v{}", self.domain.id.raw(), self.index)
    }
}
