//! What one vCPU does while another takes away what the first is just using: the deeds of all hypercalls that take something
//! away, and of those that use it.
//!
//! All deeds are about one page of guest 1, one table of it, one entry of its grant table, one port and one spare vCPU, so that any
//! two of them meet.

mod control;
mod events;
mod grants;
mod memory;
mod vcpus;

use ring_abi::guest_context::{VGCF_IN_KERNEL, VcpuGuestContext};
use ring_abi::types::DOMID_SELF;
use zerocopy::FromZeros;

use super::*;
use crate::frames::pte::{P, RW, US};

/// Where the page is mapped in the beginning, in the first table.
pub(super) const HOME: u64 = (ARGS_PAGE + 4) << 12;
/// An address in the region of the second table, and its slot there.
pub(super) const AWAY: u64 = (1 << 9 | AWAY_SLOT) << 12;
pub(super) const AWAY_SLOT: u64 = 3;
/// The slot of the level 2 table that leads to the second table, and one that is empty.
pub(super) const SECOND: u64 = 1;
pub(super) const EMPTY: u64 = 2;
/// The address at which the second table is mapped, to be read.
const SECOND_SEEN: u64 = 6 << 12;
const ALL: u64 = P | RW | US;
/// The vCPU that no CPU runs.
const SPARE: u32 = VCPUS;

/// Domains: who owns what the deeds are about, who uses it, and who may do everything.
const GUEST: usize = 1;
const PEER: usize = 2;

/// What the deeds are about.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stake {
    /// A page of the guest.
    pub(super) page: u64,
    /// The guest's two level 4 tables, and its level 2 table.
    pub(super) bases: [u64; 2],
    pub(super) l2: u64,
    /// The guest's second level 1 table, of which the level 2 table's entry has the only reference.
    pub(super) second: u64,
}

/// Which hypercalls a deed is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Entries that map a page.
    Map,
    /// Tables: links, pins, bases.
    Table,
    /// Reservations and exchanges.
    Memory,
    /// GDT and LDT.
    Descriptor,
    /// Grants.
    Grant,
    /// Event channels, the FIFO's pages.
    Event,
    /// Contexts, areas and timers of vCPUs.
    Vcpu,
    /// What the toolstack does to a domain.
    Control,
}

/// The domain whose vCPU does a deed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// A vCPU of the guest.
    Own,
    /// Another guest.
    Peer,
    /// The control domain.
    Control,
}

/// What a deed does, with its arguments at an address that is the acting vCPU's own. `Some(true)`: no call
/// of the deed was refused.
type Act = fn(&Wild, &Stake, u64) -> Option<bool>;

/// Something that a vCPU does.
pub struct Deed {
    /// The deed's name in a report.
    pub name: &'static str,
    /// Which hypercalls it is of.
    pub family: Family,
    pub(super) by: By,
    /// Deeds that come before, so that this one may succeed.
    pub(super) needs: &'static [&'static str],
    act: Act,
}

impl core::fmt::Debug for Deed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}: {}", self.family, self.name)
    }
}

/// A list of deeds of one family.
macro_rules! deeds {
    ($family:ident: $($by:ident $name:literal [$($needs:literal),*] $act:expr;)*) => {
        [$($crate::testing::wild::play::deeds::Deed {
            name: $name,
            family: $crate::testing::wild::play::deeds::Family::$family,
            by: $crate::testing::wild::play::deeds::By::$by,
            needs: &[$($needs),*],
            act: $act,
        }),*]
    };
}
use deeds;

/// All deeds.
pub fn all() -> impl Iterator<Item = &'static Deed> {
    let lists: [&'static [Deed]; 8] = [
        &memory::MAPS,
        &memory::TABLES,
        &memory::MEMORY,
        &vcpus::DESCRIPTORS,
        &grants::GRANTS,
        &events::EVENTS,
        &vcpus::VCPUS,
        &control::CONTROL,
    ];
    lists.into_iter().flatten()
}

/// The deed of a name.
///
/// # Panics
/// If there is none.
pub(super) fn named(name: &str) -> &'static Deed {
    all().find(|deed| deed.name == name).unwrap_or_else(|| panic!("there is no deed `{name}`"))
}

impl Wild {
    /// Does a deed, by the vCPU that the acting CPU has loaded. `true`: no call of the deed was refused.
    pub(super) fn deed(&self, deed: &Deed, stake: &Stake) -> bool {
        let at = self.loaded().map(|(_, vcpu)| ARGS + u64::from(vcpu) * 0x1000);
        at.and_then(|at| (deed.act)(self, stake, at)).unwrap_or(false)
    }

    fn done(&self, number: u32, args: &[u64]) -> Option<bool> {
        self.call(number, args).map(|result| result.is_ok())
    }

    /// Makes a call of the kind `(command, argument)`.
    fn ask<T: IntoBytes + Immutable + ?Sized>(
        &self,
        at: u64,
        number: u32,
        command: u32,
        op: &T,
    ) -> Option<bool> {
        self.put(at, op)?;
        self.done(number, &[command.into(), at])
    }

    /// Some pages in a row for a vCPU's context, which is longer than its page of arguments.
    fn put_context(&self, context: &VcpuGuestContext) -> Option<u64> {
        let (_, vcpu) = self.loaded()?;
        let at = ARGS + if vcpu == 0 { 0x2000 } else { 0x5000 };
        self.put(at, context)?;
        Some(at)
    }

    /// A context on the guest's own tables, with a GDT of the page if so asked.
    fn context(stake: &Stake, has_gdt: bool) -> Box<VcpuGuestContext> {
        let mut context = VcpuGuestContext::new_box_zeroed().expect("memory");
        context.flags = VGCF_IN_KERNEL;
        [context.ctrlreg[3], context.ctrlreg[1]] = stake.bases.map(|base| base << 12);
        if has_gdt {
            (context.gdt_frames[0], context.gdt_ents) = (stake.page, 512);
        }
        context
    }

    /// A page of the acting domain's own, which no deed is about.
    fn own_page(&self) -> Option<u64> {
        Some(self.hv.platform.translate(ARGS + 0x2000, true)?.raw() >> 12)
    }
}

const SELF: u64 = DOMID_SELF as u64;
