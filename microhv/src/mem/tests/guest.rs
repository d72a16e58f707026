//! A guest with page tables of its own, which makes hypercalls with arguments in its own memory.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::memory::*;
use ring_abi::mmu::*;
use ring_abi::types::{DOMID_SELF, Mfn};
use zerocopy::IntoBytes;

use super::{World, entry};
use crate::domain::Current;
use crate::domain::Domain;
use crate::frames::pte::{P, Pte, RW};
use crate::hypercall::{Args, HypercallError, HypercallResult, Outcome, memory, mmu, mmuext};
use crate::mem::{FrameOwner, Update};
use crate::platform::*;
use crate::testing::TestMachine;

/// A domain with loaded tables and a page for arguments.
pub(super) struct Guest {
    pub(super) dom: Arc<Domain>,
    /// L4, L3, L2, L1.
    pub(super) tables: [Mfn; 4],
    /// Mapped for writing at [`ARGS`].
    pub(super) args: Mfn,
    /// A page of its own, mapped nowhere.
    pub(super) page: Mfn,
}

pub(super) const ARGS: u64 = 0x10_000;
pub(super) const DONE: u64 = ARGS + 0xff0;
pub(super) const FREE_VA: u64 = 0x20_000;
pub(super) const FREE_SLOT: usize = 0x20;

pub(super) type Handler = fn(&mut Current<'_, TestMachine>, &Args) -> HypercallResult;

impl World {
    pub(super) fn guest(&self, id: u16, privileged: bool) -> Guest {
        self.guest_in(self.domain(id, privileged, 200))
    }

    /// Tables and a page for arguments in a new domain.
    pub(super) fn guest_in(&self, dom: Arc<Domain>) -> Guest {
        let tables = self.address_space(&dom);
        let [args, page] = self.pages(&dom);
        self.poke(tables[3], (ARGS >> 12) as usize, entry(args, P | RW));
        self.hv.install_bases(&dom, &dom.vcpus[0], tables[0], None).expect("valid");
        self.check();
        Guest { dom, tables, args, page }
    }

    pub(super) fn write(&self, guest: &Guest, offset: usize, bytes: &[u8]) {
        let at = ring_abi::types::Maddr::new(guest.args.raw() * 4096 + offset as u64);
        self.hv.platform.write_bytes(at, bytes);
    }

    pub(super) fn word(&self, guest: &Guest, offset: usize) -> u64 {
        self.peek(guest.args, offset / 8)
    }

    /// Makes the call, and makes it again while it is to be continued. Returns rax.
    pub(super) fn call(&self, guest: &Guest, handler: Handler, args: [u64; 4]) -> i64 {
        let mut args: Args = [args[0], args[1], args[2], args[3], 0, 0];
        for _ in 0..10_000 {
            match self.run(&guest.dom, |cur| handler(cur, &args)) {
                Ok(Outcome::Done(value)) => return value as i64,
                Ok(Outcome::Continue) => args = guest.dom.vcpus[0].continuation(),
                Ok(Outcome::NoReturn) => panic!("it returns"),
                Err(HypercallError::Again) => {}
                Err(error) => return error.errno(),
            }
            self.check();
        }
        panic!("no progress");
    }

    pub(super) fn mmu(&self, guest: &Guest, requests: &[(u64, u64)], whose: u32) -> i64 {
        for (n, &(ptr, val)) in requests.iter().enumerate() {
            self.write(guest, n * 16, MmuUpdate { ptr, val }.as_bytes());
        }
        self.call(guest, mmu::mmu_update, [ARGS, requests.len() as u64, DONE, whose.into()])
    }

    pub(super) fn ext(&self, guest: &Guest, ops: &[(u32, u64, u64)], whose: u16) -> i64 {
        for (n, &(cmd, arg1, arg2)) in ops.iter().enumerate() {
            self.write(guest, n * 24, MmuextOp { cmd, _pad0: 0, arg1, arg2 }.as_bytes());
        }
        self.call(guest, mmuext::mmuext_op, [ARGS, ops.len() as u64, DONE, whose.into()])
    }
}

pub(super) fn at(table: Mfn, slot: usize) -> u64 {
    table.raw() * 4096 + slot as u64 * 8
}

pub(super) fn neg(errno: i32) -> i64 {
    -i64::from(errno)
}

pub(super) const SELF: u32 = DOMID_SELF as u32;
/// Where the operation's structure is in the page of arguments.
pub(super) const STRUCTURE: usize = 0x800;

pub(super) fn reservation(extent_start: u64, nr_extents: u64, extent_order: u32) -> XenMemoryReservation {
    let domid = DOMID_SELF;
    XenMemoryReservation { extent_start, nr_extents, extent_order, mem_flags: 0, domid, _pad0: [0; 3] }
}

pub(super) fn memory(world: &World, guest: &Guest, command: u32) -> i64 {
    world.call(guest, memory::memory_op, [command.into(), ARGS + STRUCTURE as u64, 0, 0])
}

/// Writes an `XENMEM_exchange` of `frames` for as many in extents of `order`, the first of them for pfn 0x40.
pub(super) fn put_exchange(world: &World, guest: &Guest, frames: &[Mfn], order: u32) {
    for (n, mfn) in frames.iter().enumerate() {
        world.write(guest, n * 8, &mfn.raw().to_le_bytes());
    }
    world.write(guest, 0x100, &0x40u64.to_le_bytes());
    let count = frames.len() as u64;
    let request = XenMemoryExchange {
        r#in: reservation(ARGS, count, 0),
        out: reservation(ARGS + 0x100, count >> order, order),
        nr_exchanged: 0,
    };
    world.write(guest, STRUCTURE, request.as_bytes());
}

pub(super) fn interrupted(world: &World, on: bool) {
    world.hv.platform.pending.store(on, Ordering::Relaxed);
}

/// Puts an entry into the guest's level 1 table.
pub(super) fn map(world: &World, guest: &Guest, slot: usize, entry: u64) {
    let own = FrameOwner::Domain(&guest.dom);
    world
        .hv
        .lock_tables(&guest.dom)
        .update_leaf(guest.tables[3], slot, Pte::new(entry), own, Update::Plain)
        .unwrap();
}
