//! From the loader to dom0: what was handed over, where memory is, what ACPI tells, and the first domain.

pub mod acpi;
pub mod clock;
pub mod command_line;
pub mod dom0;
pub mod kernel_image;
pub mod local_apic;
pub mod memory_map;
pub mod multiboot;
pub mod speculation;
pub mod topology;

pub use command_line::Options;
