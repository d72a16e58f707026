//! What is known of the machine and of the image.

/// The four result registers of `cpuid`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidResult {
    /// eax.
    pub eax: u32,
    /// ebx.
    pub ebx: u32,
    /// ecx.
    pub ecx: u32,
    /// edx.
    pub edx: u32,
}

/// What is known of the machine, as `sysctl` tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineInfo {
    /// CPUs in use.
    pub cpus: u32,
    /// TSC frequency.
    pub cpu_khz: u32,
    /// CPUID leaf 1 edx, ecx; 0x80000001 edx, ecx; 7 ebx ...: the words of `xen_sysctl_physinfo.hw_cap`.
    pub hw_cap: [u32; 8],
    /// Bytes of the hypervisor's heap that are in use.
    pub heap_used_bytes: u64,
    /// Bytes that the heap has taken from the frame allocator.
    pub heap_bytes: u64,
}

/// Facts.
pub trait MachineFacts {
    /// What the CPU answers to `cpuid`.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult;
    /// XCR0 bits that guests may set; 0 where microhv switches by `FXSAVE`.
    fn xcr0_mask(&self) -> u64;
    /// IA32_EFER of this CPU.
    fn efer(&self) -> u64;
    /// Whether the hypervisor's heap can give a piece of `bytes` and still has what a call needs for itself while the
    /// call runs. The number of free frames says little about that: a guest chooses which frames are free, and the heap
    /// grows by frames in a row.
    fn heap_has_room(&self, bytes: usize) -> bool;
    /// The hypervisor's command line.
    fn command_line(&self) -> &str;
    /// The image's build id; empty: none.
    fn build_id(&self) -> &[u8];
    /// Facts for `sysctl`.
    fn machine_info(&self) -> MachineInfo;
}
