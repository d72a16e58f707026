//! What the policy needs of a machine: a trait for each subject, and [`Platform`] for all of them.
//!
//! The binary implements the traits for the hardware, [`crate::testing`] for plain memory. This room knows nothing of
//! guests' domains: a method that concerns a vCPU takes what the machine keeps for the vCPU. Code that needs one subject
//! asks for that trait alone.

mod clock;
mod cpus;
mod devices;
mod facts;
mod memory;
mod vcpu;

pub use clock::{Clock, TimeParams};
pub use cpus::{CpuId, CpuSet, Cpus, MAX_CPUS, SOFTIRQ_SCHEDULE, SOFTIRQ_TIMER};
pub use devices::{Devices, PowerAction, SerialConsole, Vector};
pub use facts::{CpuidResult, MachineFacts, MachineInfo};
pub use memory::{GROUP, GuestFault, GuestMemory, MachineMemory, Paging, Settled};
pub use vcpu::{DescriptorPage, DescriptorWindow, DescriptorWindows, Registers, SegmentBase};

/// The machine. All methods take `&self`: implementations are shared by all CPUs.
///
/// Interrupts are off in every call.
pub trait Platform:
    MachineMemory
    + GuestMemory
    + Paging
    + DescriptorWindows
    + Registers
    + Clock
    + Cpus
    + SerialConsole
    + Devices
    + MachineFacts
    + Sync
    + Sized
    + 'static
{
}
