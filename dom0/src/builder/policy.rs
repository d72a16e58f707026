//! What a restored domain sees of the CPU.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pvrt::hypercall::domctl;
use ring_abi::guest_context::XenCpuidLeaf;
use ring_abi::types::DomId;

/// The first leaves of either kind, which say how many there are.
const FIRST_LEAVES: [u32; 2] = [0, 0x8000_0000];

/// The leaves of a saved domain as this machine's hypervisor takes them: those that it knows, and no more of them. Another hypervisor
/// shows leaves that say nothing of what a guest can use.
fn known_leaves(given: &[XenCpuidLeaf], own: &[XenCpuidLeaf]) -> Vec<XenCpuidLeaf> {
    let same = |a: &XenCpuidLeaf, b: &XenCpuidLeaf| (a.leaf, a.subleaf) == (b.leaf, b.subleaf);
    let known = given.iter().filter_map(|leaf| Some((*leaf, own.iter().find(|own| same(own, leaf))?)));
    let clamp = |(mut leaf, own): (XenCpuidLeaf, &XenCpuidLeaf)| {
        if FIRST_LEAVES.contains(&leaf.leaf) {
            leaf.a = leaf.a.min(own.a);
        }
        leaf
    };
    known.map(clamp).collect()
}

/// Hides from the guest what it has not seen so far; refuses a machine that lacks what the guest has seen.
pub(super) fn set_policy(id: DomId, given: &[XenCpuidLeaf]) -> Result<(), String> {
    let own = domctl::cpu_policy(id).map_err(|errno| format!("get_cpu_policy: {errno}"))?;
    let leaves = known_leaves(given, &own);
    domctl::set_cpu_policy(id, &leaves).map_err(|(errno, leaf)| {
        let Some(at) = leaf else { return format!("what the domain sees of the CPU: {errno}") };
        let find = |all: &[XenCpuidLeaf]| all.iter().find(|leaf| (leaf.leaf, leaf.subleaf) == at).copied();
        let (had, has) = (find(&leaves).unwrap_or_default(), find(&own).unwrap_or_default());
        let registers =
            [("eax", had.a, has.a), ("ebx", had.b, has.b), ("ecx", had.c, has.c), ("edx", had.d, has.d)];
        let missing = registers.iter().filter(|(_, had, has)| had & !has != 0);
        let bits: Vec<String> = missing.map(|(name, had, has)| format!("{name} {:#x}", had & !has)).collect();
        let bits = bits.join(", ");
        format!("this machine's CPU lacks what the domain has seen in CPUID leaf {:#x}: {bits}", at.0)
    })
}
