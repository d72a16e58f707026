use core::sync::atomic::Ordering;

use super::*;
use crate::domain::Current;
use crate::domain::DomainConfig;
use crate::hypercall::{HypercallError, physdev::physdev_op};
use crate::platform::MachineMemory;
use crate::testing::TestMachine;
use ring_abi::guest_context::CpuUserRegs;
use ring_abi::types::Mfn;

const MSIX_AT: u32 = 0x40;
const MSI_AT: u32 = 0x60;
const DEVFN: u8 = 4 << 3;
const TABLE: u64 = 0xfebd_0000;

/// A function with MSI-X (4 entries, table at the start of BAR 1, pending bits a page later) and 64-bit MSI.
fn machine() -> (Hypervisor<TestMachine>, Arc<Domain>) {
    let platform = TestMachine::new(8);
    let hv = Hypervisor::new(platform, crate::frames::FrameTable::default());
    let dom0 = add_domain(&hv, 0, true);
    let base = u32::from(DEVFN) << 8;
    let mut pci = hv.platform.pci.lock();
    for (at, word) in [
        (0x00, 0x1042_1af4),
        (0x04, 0x0010_0006),
        (0x14, TABLE as u32),
        (0x34, MSIX_AT),
        (MSIX_AT, 3 << 16 | MSI_AT << 8 | 0x11),
        (MSIX_AT + 4, 1),
        (MSIX_AT + 8, 0x1000 | 1),
        (MSI_AT, 1 << 23 | 0x05),
        (MSI_AT + 4, 0),
        (MSI_AT + 8, 0),
        (MSI_AT + 12, 0),
    ] {
        pci.words.insert(base | at, word);
    }
    drop(pci);
    (hv, dom0)
}

fn add_domain(hv: &Hypervisor<TestMachine>, id: u16, privileged: bool) -> Arc<Domain> {
    let mfn = Mfn::new(u64::from(id) + 1);
    let config = DomainConfig { privileged, ..DomainConfig::default() };
    let domain = Domain::new(DomId::new(id), config, mfn, hv.platform.shared(mfn));
    assert!(hv.domains.insert(&domain));
    domain
}

fn word(hv: &Hypervisor<TestMachine>, at: u32) -> u32 {
    hv.platform.pci.lock().words[&(u32::from(DEVFN) << 8 | at)]
}

fn protected(hv: &Hypervisor<TestMachine>, page: u64) -> bool {
    hv.frames.is_protected_device_frame(Mfn::new((TABLE >> 12) + page))
}

const FUNCTION: PciFunction = PciFunction { bus: 0, devfn: DEVFN };

#[test]
fn capabilities_out_of_bounds_are_none() {
    let (hv, dom0) = machine();
    let set = |at: u32, word: u32| hv.platform.pci.lock().words.insert(u32::from(DEVFN) << 8 | at, word);
    set(0x34, 0xf8);
    set(0xf8, 1 << 23 | 0x05);
    set(0xfc, 0);
    assert_eq!(hv.map_message(&dom0, FUNCTION, None, None), Err(PirqError::NoCapability));
    hv.irqs.address.store(1 << 31 | u32::from(DEVFN) << 8 | 0xf8, Ordering::Relaxed);
    hv.pci_port_out(pci::DATA_PORT, 4, 0); // this write, too, is checked against the capabilities
    set(0x34, MSIX_AT);
    set(0x14, 0xffff_fff4); // a 64-bit base address at the end of the address space
    set(0x18, u32::MAX);
    assert_eq!(hv.map_message(&dom0, FUNCTION, Some(0), None), Err(PirqError::NoCapability));
}

#[test]
fn msix_entry_is_written_masked_and_unmasked_when_bound() {
    let (hv, dom0) = machine();
    let pirq = hv.map_message(&dom0, FUNCTION, Some(2), None).unwrap();
    assert_eq!(pirq, Pirq::new(NR_LINES));
    let entry = TABLE + 32;
    {
        let mmio = &hv.platform.events.lock().mmio;
        assert_eq!(mmio[..4], [(entry + 12, 1), (entry, 0xfee0_0000), (entry + 4, 0), (entry + 8, 0x40)]);
        assert!(mmio[4..].iter().all(|&(at, value)| at != entry + 12 && value == 1), "the others are masked");
    }
    assert_eq!(word(&hv, MSIX_AT) >> 16 & 0xc000, 0x8000, "enabled, not masked as a whole");
    hv.pirq_bind(&dom0, pirq, Port::new(1)).unwrap();
    assert_eq!(hv.platform.events.lock().mmio.last(), Some(&(entry + 12, 0)));
    assert_eq!(hv.pirq_bind(&dom0, pirq, Port::new(2)), Err(PirqError::Bound));
    hv.pirq_unbind(&dom0, pirq);
    assert_eq!(hv.platform.events.lock().mmio.last(), Some(&(entry + 12, 1)));
    hv.unmap_pirq(&dom0, pirq).unwrap();
    assert_eq!(word(&hv, MSIX_AT) >> 31, 0, "the last entry disables the capability");
    assert_eq!(hv.unmap_pirq(&dom0, pirq), Err(PirqError::NoSuchPirq));
}

#[test]
fn message_tables_are_read_only_while_mapped() {
    let (hv, dom0) = machine();
    let pirq = hv.map_message(&dom0, FUNCTION, Some(0), None).unwrap();
    assert!(protected(&hv, 0));
    assert!(protected(&hv, 1));
    assert!(!protected(&hv, 2));
    let other = hv.map_message(&dom0, FUNCTION, Some(1), None).unwrap();
    hv.unmap_pirq(&dom0, pirq).unwrap();
    assert!(protected(&hv, 0), "another entry is still mapped");
    hv.unmap_pirq(&dom0, other).unwrap();
    assert!(!protected(&hv, 0));
}

#[test]
fn entries_beyond_the_table_and_twice_the_same_are_refused() {
    let (hv, dom0) = machine();
    assert_eq!(hv.map_message(&dom0, FUNCTION, Some(4), None), Err(PirqError::NoSuchEntry));
    let absent = PciFunction { bus: 3, devfn: 0 };
    assert_eq!(hv.map_message(&dom0, absent, Some(0), None), Err(PirqError::NoCapability));
    hv.map_message(&dom0, FUNCTION, Some(3), Some(Pirq::new(40))).unwrap();
    assert_eq!(hv.map_message(&dom0, FUNCTION, Some(3), None), Err(PirqError::Mapped));
    assert_eq!(hv.map_message(&dom0, FUNCTION, Some(1), Some(Pirq::new(40))), Err(PirqError::NoneFree));
}

#[test]
fn a_domain_cannot_write_messages_through_configuration_space() {
    let (hv, _dom0) = machine();
    let select = |at: u32| hv.pci_port_out(0xcf8, 4, 1 << 31 | u32::from(DEVFN) << 8 | at);
    for at in [MSI_AT, MSI_AT + 4, MSI_AT + 8, MSI_AT + 12, MSIX_AT] {
        let before = word(&hv, at);
        select(at);
        assert_eq!(hv.pci_port_in(0xcfc, 4), before);
        hv.pci_port_out(0xcfc, 4, 0xffff_ffff);
        if at != MSI_AT + 12 {
            hv.pci_port_out(0xcfe, 2, 0xffff); // the capability ended below this register
        }
        assert_eq!(word(&hv, at), before, "register {at:#x}");
    }
    select(0x04);
    hv.pci_port_out(0xcfc, 2, 0x0407);
    assert_eq!(word(&hv, 0x04), 0x0010_0407, "other registers are the domain's");
    // A capability list that loops ends.
    hv.platform.pci.lock().words.insert(u32::from(DEVFN) << 8 | MSIX_AT, 3 << 16 | MSIX_AT << 8 | 0x09);
    assert_eq!(hv.map_message(&_dom0, FUNCTION, Some(0), None), Err(PirqError::NoCapability));
}

#[test]
fn a_line_is_masked_until_the_domain_has_served_it() {
    let (hv, dom0) = machine();
    dom0.permissions.lock().irqs.add(4, 4);
    assert_eq!(hv.pirq_bind(&dom0, Pirq::new(5), Port::new(1)), Err(PirqError::NotPermitted));
    hv.pirq_bind(&dom0, Pirq::new(4), Port::new(1)).unwrap();
    let (line, vector) = hv.platform.events.lock().lines[0];
    assert_eq!(line, 4);
    hv.device_interrupt(vector.unwrap());
    assert_eq!(hv.platform.events.lock().masked_lines.last(), Some(&(4, true)));
    hv.pirq_eoi(&dom0, Pirq::new(4)).unwrap();
    assert_eq!(hv.platform.events.lock().masked_lines.last(), Some(&(4, false)));
    hv.pirq_eoi(&dom0, Pirq::new(4)).unwrap();
    assert_eq!(
        hv.platform.events.lock().masked_lines.iter().filter(|l| !l.1).count(),
        2,
        "an EOI counts once"
    );
    assert_eq!(hv.pirq_eoi(&dom0, Pirq::new(NR_PIRQS)), Err(PirqError::NoSuchPirq));
    hv.device_interrupt(Vector(0xff));
    hv.device_interrupt(Vector(0));
}

#[test]
fn another_domain_has_no_say() {
    let (hv, dom0) = machine();
    let pirq = hv.map_message(&dom0, FUNCTION, Some(0), None).unwrap();
    let guest = add_domain(&hv, 1, false);
    assert_eq!(hv.pirq_bind(&guest, pirq, Port::new(1)), Err(PirqError::NotPermitted));
    assert_eq!(hv.unmap_pirq(&guest, pirq), Err(PirqError::NoSuchPirq));
    let mut regs = CpuUserRegs::default();
    let mut cur = Current { hv: &hv, domain: &guest, vcpu: &guest.vcpus[0], regs: &mut regs };
    for cmd in [13, 14, 23, 25, 26, 30] {
        let refused = physdev_op(&mut cur, &[cmd, 0x1000, 0, 0, 0, 0]);
        assert_eq!(refused, Err(HypercallError::NotPermitted), "operation {cmd}");
    }
    assert_eq!(physdev_op(&mut cur, &[99, 0, 0, 0, 0, 0]), Err(HypercallError::NoSys));
    hv.release_pirqs(&dom0);
    assert_eq!(hv.map_message(&dom0, FUNCTION, Some(0), None), Ok(Pirq::new(NR_LINES)), "all was given back");
}

#[test]
fn no_device_gets_the_vector_of_int_0x80() {
    let (hv, _) = machine();
    let mut state = hv.irqs.state.lock();
    let owner = DomId::new(0);
    let map = || state.map(Pirq::new(16), Source::Line, owner).ok();
    let given: Vec<u8> = core::iter::from_fn(map).map(|vector| vector.0).collect();
    assert_eq!(given.len(), usize::from(LAST_VECTOR - FIRST_VECTOR));
    assert!(!given.contains(&0x80) && given.contains(&0x7f) && given.contains(&0x81));
}
