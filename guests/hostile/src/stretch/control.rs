//! Calls of a control domain: making, filling and ending domains.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use pvrt::hypercall::domctl;
use pvrt::println;
use pvrt::probe;
use pvrt::space::*;
use ring_abi::domctl::XenDomctlCreatedomain;
use ring_abi::errno::Errno;
use ring_abi::evtchn::*;
use ring_abi::hypercall::*;
use ring_abi::memory::*;
use ring_abi::mmu::*;
use ring_abi::types::{DOMID_SELF, DomId};

use super::{TABLE, case};
use crate::memory::reservation;

/// vCPUs of a domain that has the most.
const MANY: u32 = 128;

/// Ports of a domain that has many.
const MANY_PORTS: u64 = 4000;

/// Runs all cases.
pub(super) fn run() {
    vcpus();
    memory();
    tables();
    ports();
    console();
}

/// Makes a domain, paused, without a limit of its memory.
fn create(vcpus: u32) -> Result<DomId, Errno> {
    let config = XenDomctlCreatedomain {
        max_vcpus: vcpus,
        max_evtchn_port: u32::MAX,
        max_grant_frames: 64,
        max_maptrack_frames: 1024,
        grant_opts: 1,
        ..Default::default()
    };
    let dom = domctl::create(&config)?;
    domctl::max_mem(dom, end_of_memory() * 4)?;
    Ok(dom)
}

fn number<T>(result: Result<T, Errno>) -> i64 {
    result.map_or_else(Errno::negated, |_| 0)
}

fn vcpus() {
    let mut made = None;
    case(&format!("createdomain with {MANY} vCPUs"), || {
        made = create(MANY).ok();
        i64::from(made.is_none())
    });
    let Some(dom) = made else { return };
    case("max_vcpus", || number(domctl::max_vcpus(dom, MANY)));
    case("pausedomain of it", || number(domctl::pause(dom)));
    case("unpausedomain of it", || number(domctl::unpause(dom)));
    case("destroydomain", || number(domctl::destroy(dom)));
}

/// Populates `dom` with frames, as far as there are any, and returns their numbers.
fn populate(dom: DomId, count: u64, order: u32) -> (i64, Vec<u64>) {
    let mut list: Vec<u64> = (0..count).map(|n| n << order).collect();
    let mut arg =
        XenMemoryReservation { domid: dom.raw(), ..reservation(list.as_mut_ptr() as u64, count, order) };
    let got = op(__HYPERVISOR_MEMORY_OP, XENMEM_POPULATE_PHYSMAP, &mut arg);
    list.truncate(got.max(0) as usize);
    (got, list)
}

fn memory() {
    let pages = end_of_memory() / 4;
    for order in [0, 9, 10] {
        let Ok(dom) = create(1) else { return };
        let mut list = Vec::new();
        case(&format!("populate_physmap of {pages} pages for another, order {order}"), || {
            let got;
            (got, list) = populate(dom, pages >> order, order);
            got
        });
        if order > 0 {
            case("decrease_reservation of them", || {
                let count = list.len() as u64;
                let mut arg = XenMemoryReservation {
                    domid: dom.raw(),
                    ..reservation(list.as_mut_ptr() as u64, count, order)
                };
                op(__HYPERVISOR_MEMORY_OP, XENMEM_DECREASE_RESERVATION, &mut arg)
            });
        }
        case("destroydomain", || number(domctl::destroy(dom)));
    }
}

/// Makes a domain with many page tables, pins and unpins them, and ends the domain with the tables pinned.
fn tables() {
    let count = (end_of_memory() / 16).min(8192) as usize;
    let Ok(dom) = create(1) else { return };
    let (_, frames) = populate(dom, count as u64 + 64, 0);
    let scratch = Scratch::new(1);
    let (at, entry) = (scratch.at(0), scratch.entry_address(0));
    // Frame 0: data. Then the L1s, and the L2s and the L3 behind them.
    let l2 = count.div_ceil(512);
    if frames.len() < count + l2 + 2 {
        return println!("stretch: no memory for tables of another");
    }
    let fill = |frame: u64, entries: &mut dyn Iterator<Item = u64>| {
        update_as(entry, frame << 12 | RW, dom.raw().into());
        for (slot, value) in entries.enumerate() {
            probe::write(at + slot as u64 * 8, value);
        }
        map(at, 0);
    };
    let data = frames[0] << 12 | RW;
    for n in 0..count {
        fill(frames[1 + n], &mut core::iter::repeat_n(data, 512));
    }
    for n in 0..l2 {
        let below = &frames[1 + n * 512..1 + count.min((n + 1) * 512)];
        fill(frames[1 + count + n], &mut below.iter().map(|frame| frame << 12 | TABLE));
    }
    let l3 = frames[1 + count + l2];
    fill(l3, &mut frames[1 + count..][..l2].iter().map(|frame| frame << 12 | TABLE));
    let pin = |cmd: u32| extended_as(cmd, l3, 0, dom.raw().into());
    case(&format!("pin of another's {count} tables"), || pin(MMUEXT_PIN_L3_TABLE));
    case("unpin of them", || pin(MMUEXT_UNPIN_TABLE));
    case("pin again", || pin(MMUEXT_PIN_L3_TABLE));
    case("destroydomain with them", || number(domctl::destroy(dom)));
}

/// Opens ports of `dom`, at most [`MANY_PORTS`], and returns how many.
fn open_ports(dom: DomId) -> u64 {
    let open = |_: &u64| {
        let mut arg = EvtchnAllocUnbound { dom: dom.raw(), remote_dom: DOMID_SELF, ..Default::default() };
        op(__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_ALLOC_UNBOUND, &mut arg) == 0
    };
    (0..MANY_PORTS).take_while(open).count() as u64
}

fn ports() {
    let Ok(dom) = create(1) else { return };
    if let Err(errno) = domctl::max_vcpus(dom, 1) {
        return println!("stretch: no vCPU: {errno:?}");
    }
    let count = open_ports(dom);
    case(&format!("reset of {count} ports of another's"), || {
        op(__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_RESET, &mut EvtchnReset { dom: dom.raw() })
    });
    let count = open_ports(dom);
    case(&format!("destroydomain with {count} ports"), || number(domctl::destroy(dom)));
}

fn console() {
    let mut text = vec![b'.'; 16_000];
    text.push(b'\n');
    let write =
        |text: &[u8]| call(__HYPERVISOR_CONSOLE_IO, [0, text.len() as u64, text.as_ptr() as u64, 0, 0]);
    case("16,001 bytes to the console", || write(&text));
    let lines = vec![b'\n'; 4_000];
    case("4,000 newlines to it", || write(&lines));
}
