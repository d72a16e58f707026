//! A CPU's set-up, and the start of the CPUs but the boot CPU: each gets an area, is started by INIT and two start-up
//! interrupts, says that it is up, and waits for work. One starts at a time.
#![allow(unsafe_code)] // other CPUs' stacks and first instructions

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use microhv::boot::local_apic;
use microhv::emul::msr::PAT_VALUE;
use microhv::platform::{CpuId, CpuSet, Cpus, MachineMemory, Paging};
use ring_abi::types::Mfn;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};

use super::machine::{Hv, hypervisor};
use super::paging::{self, StartTables};
use super::percpu::{self, AREA_BYTES, Area, LOCAL_OFFSET, this_cpu};
use super::{apic, cpu, fpu, leave, machine_check, roots, smap, speculation, time, tsc};

/// How long a CPU may take until it says that it is up. An emulator on a busy host lets a CPU wait for hundreds of milliseconds,
/// and a CPU that is left out is lost until the machine boots anew.
const START_NS: u64 = 2_000_000_000;
/// How long a CPU takes for an INIT.
const INIT_NS: u64 = 10_000_000;
/// How long after the first start-up interrupt the second comes, for a CPU that missed the first.
const AGAIN_NS: u64 = 1_000_000;

unsafe extern "C" {
    static start_page: u8;
    static start_page_end: u8;
    static start_gdt_address: u8;
    static start_target: u8;
    static start_cr3: u8;
}

/// Top of the stack for the CPU that is being started; 0: for none.
#[unsafe(no_mangle)]
static start_stack: AtomicU64 = AtomicU64::new(0);

/// Sets this CPU up, with the final tables and on its own stack: its descriptor tables and entries, what guards the
/// hypervisor, and what guests expect of the CPU.
pub(crate) fn set_up() {
    // SAFETY: each CPU does this once, at its start. Of the PAT's entries the first four are those of power-on, and of
    // the others our mappings use one, for the screen, which is mapped after this.
    unsafe {
        Area::load_tables(percpu::this_area(), this_cpu());
        cpu::write_msr(cpu::msr::PAT, PAT_VALUE);
    }
    // SAFETY: ring 0 uses no breakpoint, and a machine check has a handler.
    unsafe {
        Cr0::update(|cr0| cr0.insert(Cr0Flags::ALIGNMENT_MASK));
        Cr4::update(|cr4| {
            cr4.insert(Cr4Flags::DEBUGGING_EXTENSIONS | Cr4Flags::MACHINE_CHECK_EXCEPTION);
        });
    }
    machine_check::set_up();
    fpu::init();
    speculation::set_up();
    smap::set_up();
}

/// Starts other CPUs on the page `page`, until `most` are up with the boot CPU. A CPU that does not come up is reported and
/// left out.
#[inline(never)]
pub(crate) fn start_others(hv: &'static Hv, page: Option<u64>, most: u32) {
    let others = hv.platform.apic_ids.len().min(most as usize) as u32;
    if hv.platform.acpi.cpus_too_many != 0 {
        log::warn!("{} CPUs more than can be used are left out", hv.platform.acpi.cpus_too_many);
    }
    if others <= 1 {
        return;
    }
    let Some(page) = page else {
        log::warn!("there is no page below 1 MiB for the start of other CPUs");
        return;
    };
    let tables = StartTables::for_page(page);
    write_start_page(hv, page, tables.base());
    for cpu in (1..others).filter_map(CpuId::new) {
        let apic_id = hv.platform.apic_ids[cpu.index()];
        let started = start_one(hv, cpu, apic_id, page);
        let added = started.and_then(|()| hv.add_cpu(cpu).then_some(()).ok_or("has no memory for vCPUs"));
        if let Err(why) = added {
            // A CPU that runs nothing is not to be asked for flushes.
            if percpu::online().contains(cpu) {
                wait_for(START_NS, || hv.platform.park(cpu));
            }
            log::warn!("CPU {} (APIC id {apic_id}) {why}, and is left out", cpu.raw());
        }
    }
}

/// Copies the first instructions to `page`, with the addresses that they need.
fn write_start_page(hv: &Hv, page: u64, base: u32) {
    let (start, end) = (&raw const start_page, &raw const start_page_end);
    // SAFETY: both symbols are of the image, one behind the other.
    let code = unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) };
    let to = Mfn::new(page / 4096).maddr();
    hv.platform.write_bytes(to, code);
    let place = |symbol: *const u8| (symbol as u64 - start as u64) as usize;
    for symbol in [&raw const start_gdt_address, &raw const start_target] {
        let at = place(symbol);
        let offset = u32::from_le_bytes([code[at], code[at + 1], code[at + 2], code[at + 3]]);
        hv.platform.write_bytes(to.add(at as u64), &(page as u32 + offset).to_le_bytes());
    }
    hv.platform.write_bytes(to.add(place(&raw const start_cr3) as u64), &base.to_le_bytes());
}

/// Waits until `is_over`, at most for `ns`; whether it was.
fn wait_for(ns: u64, is_over: impl Fn() -> bool) -> bool {
    let began = time::now_ns();
    while !is_over() {
        if time::now_ns().saturating_sub(began) > ns {
            return is_over();
        }
        core::hint::spin_loop();
    }
    true
}

fn start_one(hv: &Hv, cpu: CpuId, apic_id: u32, page: u64) -> Result<(), &'static str> {
    if let Some(why) = local_apic::unreachable(apic::access(), apic_id) {
        return Err(why);
    }
    let order = (AREA_BYTES / 4096).trailing_zeros() as u8;
    let memory = hv.alloc_frames(order, 0).ok_or("gets no memory")?;
    for n in 0..AREA_BYTES as u64 / 4096 {
        hv.platform.zero_frame(memory.add(n));
    }
    paging::map_area(cpu, Some(memory.maddr().raw()));
    let area = NonNull::new(percpu::area_address(cpu) as *mut Area).ok_or("has no place")?;
    // SAFETY: the area was mapped just now, and the CPU does not run yet.
    unsafe { Area::begin(area) };
    // What was made so far stays: the CPU is left out for good.
    roots::prepare(cpu).ok_or("gets no memory for page tables")?;
    start_stack.store(area.as_ptr() as u64 + LOCAL_OFFSET as u64, Ordering::Release);
    tsc::await_cpu();
    let is_up = || {
        tsc::meet_if_here(cpu);
        percpu::online().contains(cpu)
    };
    apic::send_init(apic_id);
    wait_for(INIT_NS, || false);
    for limit in [AGAIN_NS, START_NS] {
        apic::send_start(apic_id, page);
        if wait_for(limit, is_up) {
            return Ok(());
        }
    }
    // The CPU must not come up later: INIT stops it wherever it is.
    apic::send_init(apic_id);
    wait_for(INIT_NS, || false);
    start_stack.store(0, Ordering::Release);
    percpu::forget(cpu);
    paging::map_area(cpu, None);
    hv.platform.flush_tlb(CpuSet::ALL);
    hv.frames.release(memory, order);
    Err("did not come up within 2 s")
}

/// The first Rust code of another CPU, on its own stack, with the tables of the start.
#[unsafe(no_mangle)]
extern "C" fn other_main() -> ! {
    // SAFETY: the stack is in this CPU's area, which the final tables map.
    unsafe { paging::load() };
    set_up();
    apic::init_local();
    apic::enable_timer();
    tsc::meet_boot_cpu();
    percpu::local().begin(hypervisor());
    percpu::on_empty_stack(leave::leave_afresh)
}
