//! From the loader to the first guest.
#![allow(unsafe_code)] // what the loader left, and one-time set-up

use alloc::string::String;
use core::str;
use core::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use microhv::boot::acpi::{self, Acpi};
use microhv::boot::memory_map::{MemoryMap, Range};
use microhv::boot::multiboot::{self, BootInformation, Physical};
use microhv::boot::speculation::{Facts, Measures, table};
use microhv::boot::{Options, dom0, topology};
use microhv::frames::{FrameInfo, FrameTable};
use microhv::platform::{Clock, CpuId, MachineFacts};
use microhv::sync::{Mutex, Once, rank};
use ring_abi::types::Mfn;

use super::machine::{self, Hv, Machine};
use super::percpu::{self, Area};
use super::{
    apic, cpu, cpus, descriptors, devices, heap, leave, paging, panic, screen, serial, smap, speculation,
    switch, time,
};

/// End of what the boot tables map 1:1.
const IDENTITY_END: u64 = 4 << 30;
/// Below this: firmware's data, and the page on which other CPUs start.
const LOW_MEMORY: u64 = 1 << 20;
/// A CPU that starts executes a page below this.
const START_PAGE_END: u64 = 0xa_0000;

/// Physical memory through the boot tables.
struct Identity;

impl Physical for Identity {
    fn bytes(&self, range: Range) -> Option<&[u8]> {
        if range.start == 0 || range.end > IDENTITY_END || range.start > range.end {
            return None;
        }
        // SAFETY: the boot tables map all of this 1:1; what is read is the loader's and firmware's, which nobody writes.
        Some(unsafe { core::slice::from_raw_parts(range.start as *const u8, range.bytes() as usize) })
    }
}

/// What start-up found: static, since this is too much for a stack frame.
#[derive(Default)]
struct Found {
    information: BootInformation,
    memory: MemoryMap,
    line: &'static str,
    dom0_line: &'static str,
    /// The page on which other CPUs start.
    start_page: Option<u64>,
}

static FOUND: Once<Mutex<rank::Found, Found>> = Once::new();
/// What ACPI told.
static ACPI: Once<Acpi> = Once::new();

/// Entry from assembly, on the boot stack with the boot tables.
#[unsafe(no_mangle)]
extern "C" fn boot_main(magic: u32, info: u64) -> ! {
    serial::init();
    serial::install_logger(log::LevelFilter::Info);
    serial::write(b"\n");
    log::info!("microhv {} build id {}", env!("CARGO_PKG_VERSION"), panic::Hex(panic::build_id()));
    // SAFETY: once, now.
    unsafe {
        descriptors::fill_gdt();
        descriptors::fill_idt();
        Area::load_tables(percpu::boot_area(), CpuId::BOOT);
    }
    let found = FOUND.call_once(Mutex::default);
    look(magic, info, &mut found.lock());
    paging::build(&mut found.lock().memory);
    // SAFETY: the tables were built; the boot stack is in the image.
    unsafe { paging::load() };
    percpu::begin_on_stack(CpuId::BOOT, on_own_stack)
}

/// A copy of the arguments in a command line of the loader's.
fn copy_line(range: Option<Range>, names_first: bool) -> &'static str {
    let text = range.and_then(|range| str::from_utf8(Identity.bytes(range)?).ok()).unwrap_or("");
    String::from(multiboot::arguments(text, names_first)).leak()
}

/// Reads what the loader and firmware left.
#[inline(never)]
fn look(magic: u32, info: u64, found: &mut Found) {
    if let Err(error) = multiboot::parse(&Identity, magic, info, &mut found.information) {
        panic!("{error}");
    }
    let information = &found.information;
    if information.memory.is_full() {
        log::warn!("of firmware's memory map, no more than {} entries are used", information.memory.len());
    }
    found.memory.fill(information.memory.iter().copied());
    let dom0_line = information.modules.first().map(|module| module.string);
    // The copies of the lines are made in the heap: its memory is not where the loader left the lines.
    let lines = [information.command_line, dom0_line].into_iter().flatten();
    let modules = information.modules.iter().map(|module| module.range);
    let used = modules.chain(lines).chain([paging::image_range()]);
    used.for_each(|range| found.memory.reserve(range));
    // What is kept of the last start may lie where the loader left its information, so that is read first.
    read_acpi(found);
    if found.memory.is_free(panic::KEPT) {
        panic::tell_of_the_last();
    }
    found.start_page = found.memory.set_aside([panic::KEPT].into_iter(), START_PAGE_END, LOW_MEMORY);
    // Below the end of what the boot tables map: the heap is in use from now on.
    heap::begin(found.memory.take(heap::EARLY_HEAP_BYTES, 4096, IDENTITY_END).expect("RAM for the heap"));
    found.line = copy_line(information.command_line, information.names_first);
    found.dom0_line = copy_line(dom0_line, information.names_first);
}

#[inline(never)]
fn read_acpi(found: &Found) {
    ACPI.call_once(|| acpi::read(&Identity, found.information.rsdp));
}

/// Start-up with the final tables, on the CPU's own stack.
extern "C" fn on_own_stack() -> ! {
    cpus::set_up();
    let found = FOUND.get().expect("set at boot");
    let acpi = ACPI.get().expect("read at boot");
    let command_line = found.lock().line;
    let options =
        Options::parse(command_line, |word, why| log::warn!("command line: {word} is ignored: {why}"));
    panic::DEBUG_EXIT.call_once(|| options.debug_exit);
    panic::RESTARTS.store(options.debug_exit.is_none() && !options.no_reboot, Ordering::Relaxed);
    log::set_max_level(options.log_level);
    if !options.serial {
        serial::turn_off();
    }
    begin_screen(&options);
    let measures = Measures::of(&Facts::read(cpu::cpuid, cpu::read_msr), &options.speculation);
    speculation::apply(&measures);
    smap::apply(&measures);
    apic::init(acpi, options.x2apic);
    time::init(acpi);
    let hv = make_hypervisor(acpi, command_line, &options);
    if measures.refuse_absent_memory {
        hv.frames.refuse_absent_memory();
    }
    heap::return_early(hv);
    percpu::local().begin(hv);
    microhv::sync::serve_by(switch::serve);
    let start_page = found.lock().start_page;
    cpus::start_others(hv, start_page, options.max_cpus);
    let thread_bits = topology::thread_bits(cpu::cpuid);
    hv.sched.set_cores(|cpu| topology::siblings(&hv.platform.apic_ids, thread_bits, cpu), options.gran_core);
    describe(hv, &options);
    let serial_line = hv.platform.acpi.isa(serial::ISA_IRQ);
    apic::route(serial_line, apic::SERIAL_VECTOR, apic::id());
    serial::enable_interrupts();
    start_dom0(hv, &options);
    percpu::on_empty_stack(leave::leave_afresh)
}

#[inline(never)]
fn begin_screen(options: &Options) {
    let found = FOUND.get().expect("set at boot").lock();
    screen::begin(found.information.screen.as_ref(), &found.memory, options);
}

#[inline(never)]
fn make_hypervisor(acpi: &'static Acpi, command_line: &'static str, options: &Options) -> &'static Hv {
    let frames = frame_table();
    let apic_ids = apic::ids(acpi);
    let info = devices::cpu_info();
    let platform = Machine { acpi, apic_ids, command_line, info, no_reboot: options.no_reboot };
    // SAFETY: once, before guests and interrupts.
    let hv = unsafe { machine::install(Hv::new(platform, frames)) };
    hv.set_wall_clock(time::wall_ns(), time::now_ns());
    hv
}

/// Makes the frame table, and gives it all RAM that is still free.
#[inline(never)]
fn frame_table() -> FrameTable {
    let mut found = FOUND.get().expect("set at boot").lock();
    let memory = &mut found.memory;
    let count = (memory.ram_end() / 4096) as usize;
    let bytes = (count * size_of::<FrameInfo>()) as u64;
    let at = memory.take(bytes, 4096, u64::MAX).expect("RAM for the frame table");
    let start = paging::direct(at);
    // SAFETY: the memory is ours alone for ever, and all-zero entries are frames without an owner, as `over`
    // wants them.
    let infos: &'static [FrameInfo] = unsafe {
        core::ptr::write_bytes(start as *mut u8, 0, bytes as usize);
        core::slice::from_raw_parts(start as *const FrameInfo, count)
    };
    let frames = |range: &Range| (Mfn::new(range.start / 4096), Mfn::new(range.end / 4096));
    let ram: ArrayVec<(Mfn, Mfn), 32> = memory.ram().map(|range| frames(&range)).take(32).collect();
    let table = FrameTable::over(infos, &ram);
    for range in memory.free() {
        let (start, end) = frames(range);
        table.add_free(start, end);
    }
    table
}

#[inline(never)]
fn describe(hv: &Hv, options: &Options) {
    log::info!(
        "{} MiB of RAM, {} MiB free, heap {} KiB, {} CPU(s) found, {} used",
        hv.frames.total_pages() / 256,
        hv.frames.free_pages() / 256,
        hv.platform.machine_info().heap_bytes / 1024,
        hv.platform.acpi.cpus.len(),
        percpu::online().count(),
    );
    if hv.platform.acpi.power_off.is_empty() {
        log::warn!("ACPI tells no way to power off");
    }
    let vendor = cpu::cpuid(0, 0);
    let vendor = [vendor.ebx.to_le_bytes(), vendor.edx.to_le_bytes(), vendor.ecx.to_le_bytes()];
    log::info!(
        "CPU {}, XCR0 {:#x}",
        str::from_utf8(vendor.as_flattened()).unwrap_or("?"),
        hv.platform.xcr0_mask()
    );
    let (name, cpus) = if options.gran_core { ("core", hv.sched.threads_per_core()) } else { ("cpu", 1) };
    let plural = if cpus == 1 { "" } else { "s" };
    log::info!("Scheduling granularity: {name}, {cpus} CPU{plural} per sched-resource");
    let facts = Facts::read(cpu::cpuid, cpu::read_msr);
    let (threads, choices) = (hv.sched.threads_per_core(), &options.speculation);
    let measures = Measures::of(&facts, choices);
    let told = |has, is_on| match (has, is_on) {
        (false, _) => "not of this CPU",
        (true, true) => "on",
        (true, false) => "off, by the command line",
    };
    let (smep, smap) = (told(facts.has_smep(), measures.smep), told(facts.has_smap(), measures.smap));
    log::info!("SMEP: {smep}; SMAP: {smap}");
    for row in table(&facts, choices, &measures, threads, options.gran_core) {
        log::info!("side channels: {row}");
    }
}

#[inline(never)]
fn start_dom0(hv: &'static Hv, options: &Options) {
    let mut found = FOUND.get().expect("set at boot").lock();
    let found = &mut *found;
    let modules = &found.information.modules;
    let Some(kernel) = modules.first().map(|module| module.range) else {
        panic!("no dom0 kernel: the first module of the loader is to be one");
    };
    // SAFETY: a module is RAM that was reserved at start and is not freed before the builder gives it away.
    let image = unsafe {
        core::slice::from_raw_parts(paging::direct(kernel.start) as *const u8, kernel.bytes() as usize)
    };
    let request = dom0::Request {
        image,
        command_line: found.dom0_line,
        ramdisk: modules.get(1).map(|module| module.range),
        memory_bytes: options.dom0_memory_bytes,
        vcpus: options.dom0_max_vcpus,
    };
    match dom0::build(hv, &request) {
        Ok(domain) => {
            let range = kernel.outer_pages();
            hv.frames.add_free(Mfn::new(range.start / 4096), Mfn::new(range.end / 4096));
            let ms = hv.platform.now_ns() / 1_000_000;
            log::info!("dom0 built: {} pages, {ms} ms after the clock was set", domain.mm.tot_pages());
            domain.controller_pause_count.store(0, Ordering::Release);
            hv.unpause_domain(&domain);
        }
        Err(error) => {
            log::error!("dom0 is refused: {error}");
            panic::debug_exit(panic::EXIT_REFUSED);
            panic::restart_if_wanted();
            serial::drain();
            cpu::halt_for_ever()
        }
    }
}
