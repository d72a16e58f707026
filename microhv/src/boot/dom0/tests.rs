use super::*;
use crate::boot::kernel_image::test_image::{elf, note, notes};
use crate::frames::FrameTable;
use crate::platform::{GuestMemory, Paging, Settled};
use crate::testing::TestMachine;
use ring_abi::types::Maddr;
use std::vec::Vec;

const BASE: u64 = 0xffff_ffff_8000_0000;
const FRAMES: usize = 8192;
const RESERVED: u64 = 64;

fn hypervisor() -> Hypervisor<TestMachine> {
    Hypervisor::new(TestMachine::new(FRAMES), FrameTable::for_tests(FRAMES, RESERVED))
}

fn request(image: &[u8]) -> Request<'_> {
    Request {
        image,
        command_line: "a=b c",
        ramdisk: Some(Range { start: 0x3000, end: 0x5123 }),
        memory_bytes: 16 << 20,
        vcpus: 1,
    }
}

fn read64(hv: &Hypervisor<TestMachine>, va: u64) -> u64 {
    hv.platform.load(hv.platform.translate(va, false).expect("mapped"))
}

fn info(hv: &Hypervisor<TestMachine>, domain: &Domain) -> StartInfo {
    let vcpu = &domain.vcpus[0];
    hv.platform.load_cr3(vcpu.cr3_kernel.get().unwrap());
    let mut info = StartInfo::new_zeroed();
    hv.platform
        .copy_from_guest(Settled::new(), info.as_mut_bytes(), GuestVa::new(vcpu.saved_regs().rsi))
        .unwrap();
    info
}

#[test]
fn builds_a_kernel_that_wants_all_mapped() {
    let hv = hypervisor();
    for n in 0..2 {
        hv.platform.store(Maddr::new(0x3000 + n * 0x1000), 0x1111 * (n + 1));
    }
    let contents: Vec<u8> = (0..6000u32).map(|n| n as u8).collect();
    let file = elf(0x1ff0, &contents, 9000, &notes(&[note(2, &(BASE + 0x4000).to_le_bytes())]));
    let domain = build(&hv, &request(&file)).unwrap();
    let info = info(&hv, &domain);
    assert_eq!(&info.magic[..15], MAGIC);
    assert_eq!(info.command_line(), b"a=b c");
    assert_eq!(info.nr_pages, 4096 + 3);
    assert_eq!(domain.mm.tot_pages(), 4096 + 3);
    assert_eq!(info.flags, SIF_PRIVILEGED | SIF_INITDOMAIN);
    assert_eq!(info.shared_info, domain.shared_info_mfn.maddr().raw());
    // The ramdisk is mapped where it lay: it keeps its frames.
    assert_eq!(info.mod_len, 0x2123);
    assert_eq!(read64(&hv, info.mod_start), 0x1111);
    assert_eq!(hv.platform.translate(info.mod_start + 0x1000, true), Some(Maddr::new(0x4000)));
    // The kernel's bytes lie at their place with zeros behind them, and the hypercall page has its stubs.
    for (offset, &byte) in contents.iter().enumerate().step_by(531) {
        let mut found = [0];
        hv.platform
            .copy_from_guest(Settled::new(), &mut found, GuestVa::new(BASE + 0x1ff0 + offset as u64))
            .unwrap();
        assert_eq!(found[0], byte);
    }
    let mut stub = [0; 8];
    hv.platform.copy_from_guest(Settled::new(), &mut stub, GuestVa::new(BASE + 0x4000 + 17 * 32)).unwrap();
    assert_eq!(stub, [0x51, 0x41, 0x53, 0xb8, 17, 0, 0, 0]);
    // P2M and M2P agree.
    for pfn in [0, 1, 5, 100, 4098] {
        let mfn = read64(&hv, info.mfn_list + pfn * 8);
        assert_eq!(hv.platform.m2p(Mfn::new(mfn)), Some(Pfn::new(pfn)), "pfn {pfn} mfn {mfn:#x}");
    }
    // Page tables are read-only, the stack is not.
    assert!(hv.platform.translate(info.pt_base, true).is_none());
    assert!(hv.platform.translate(info.pt_base, false).is_some());
    let regs = domain.vcpus[0].saved_regs();
    assert!(hv.platform.translate(regs.rsp - 8, true).is_some());
    assert_eq!(regs.rip, BASE + 0x1010);
    // All pages up to the slack's end are mapped, and none behind it.
    let end = BASE + (4 << 20);
    assert!(hv.platform.translate(end - 8, true).is_some());
    assert!(hv.platform.translate(end, false).is_none());
    assert!(domain.vcpus[0].is_up() && domain.pause_count.load(Ordering::Relaxed) == 1);
    assert!(hv.check_frames().is_empty());
}

#[test]
fn builds_a_kernel_with_p2m_and_ramdisk_elsewhere() {
    let hv = hypervisor();
    hv.platform.store(Maddr::new(0x3000), 0x77);
    let p2m = 0x80_0000_0000u64;
    let more = [note(15, &p2m.to_le_bytes()), note(16, &1u32.to_le_bytes())];
    let file = elf(0x1000, b"x", 4096, &notes(&more));
    let domain = build(&hv, &request(&file)).unwrap();
    let info = info(&hv, &domain);
    assert_eq!(info.flags, SIF_PRIVILEGED | SIF_INITDOMAIN | SIF_MOD_START_PFN);
    assert_eq!((info.mod_start, info.mfn_list), (4096, p2m));
    let ramdisk = read64(&hv, p2m + info.mod_start * 8);
    assert_eq!(ramdisk, 3);
    assert_eq!(info.nr_p2m_frames, (4099u64 * 8).div_ceil(4096) + 3);
    assert!(hv.platform.translate(p2m + 9 * 4096 - 8, true).is_some(), "mapped in whole pages");
    assert_eq!(
        read64(&hv, p2m + info.first_p2m_pfn * 8) * 4096,
        hv.platform.translate(p2m, false).unwrap().raw()
    );
}

#[test]
fn device_memory_ends_where_addresses_do() {
    let hv = hypervisor();
    let file = elf(0x1000, b"x", 4096, &notes(&[]));
    let domain = build(&hv, &request(&file)).unwrap();
    let rights = domain.permissions.lock();
    let frames = 1 << (0x28 - 12); // the test machine's 40 bits
    assert!(rights.iomem.contains(frames - 1) && !rights.iomem.contains(frames));
    assert!(!rights.iomem.contains(0xfee00));
}

#[test]
fn what_does_not_fit_is_refused() {
    let hv = hypervisor();
    let file = elf(0x1000, b"x", 4096, &notes(&[]));
    let small = Request { memory_bytes: 1 << 20, ..request(&file) };
    assert_eq!(build(&hv, &small).unwrap_err(), Dom0Error::TooSmall(4096 - 12));
    let large = Request { memory_bytes: 1 << 40, ..request(&file) };
    assert_eq!(build(&hypervisor(), &large).unwrap_err(), Dom0Error::NoMemory);
    let unaligned = Request { ramdisk: Some(Range { start: 0x3001, end: 0x4000 }), ..request(&file) };
    assert_eq!(build(&hv, &unaligned).unwrap_err(), Dom0Error::RamdiskUnaligned);
    assert!(matches!(build(&hv, &request(b"MZ")), Err(Dom0Error::Image(_))));
}

#[test]
fn a_kernel_that_fills_the_run_gets_another_four_megabytes() {
    let file = elf(0x1000, b"x", (4 << 20) - 0x1000 - (560 << 10), &notes(&[]));
    let image = KernelImage::parse(&file).unwrap();
    let layout = Layout::new(&image, 4096, 0).unwrap();
    assert_eq!(layout.mapped, 2048);
    assert_eq!(layout.tables.end.raw() - layout.tables.start.raw(), 1 + 1 + 1 + 4);
}
