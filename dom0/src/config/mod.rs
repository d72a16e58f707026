//! Domain configurations: the language of `xl.cfg` files, and what a file says about a domain.
//!
//! [`Config`] is any file of that language: `key = value` lines with strings, numbers and nested lists. Words
//! of a command line are added to it as further lines. [`DomainConfig`] takes out what `xl create` needs,
//! checked; unknown keys come back as warnings.
//!
//! A file may come from anybody: its length and the number of its values are limited, so that the memory for it fits
//! into what one poll may allocate, and the work grows only with its length.
//!
//! Format: `xl.cfg(5)`, `xl-disk-configuration(5)`, `xl-network-configuration(5)` of Xen 4.17.
#![forbid(unsafe_code)]

mod cpuid;
mod cpus;
mod disk;
mod domain;
pub mod keys;
mod syntax;
mod value;
mod vdev;
mod vif;

pub use cpuid::CpuidPolicy;
pub use cpus::{CPU_MAX, CpuMask, CpuSet};
pub use disk::{BackendType, DiskConfig};
pub use domain::{Action, DomainConfig, MEMORY_MAX_MIB, TscMode, USUAL_WEIGHT, check_name};
pub use value::{
    Config, Diagnostic, FILE_MAX, Position, Setting, VALUES_MAX, Value, ValueKind, is_setting_word,
};
pub use vdev::vdev_number;
pub use vif::{DEFAULT_BRIDGE, DEFAULT_MTU, Rate, VifConfig};
