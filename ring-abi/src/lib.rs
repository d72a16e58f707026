#![cfg_attr(freestanding, no_std)]
//! The public ABI of Xen for x86_64 PV domains: wire structures, rings, hypercall numbers, the xenstore protocol.
//!
//! Every name and number is the public header's: structures in Rust's spelling, constants in upper case, members as
//! they are. Members that hold numbers are plain integers, since a guest may have written anything; the types of
//! [`types`] are for checked values. Structures have no hidden padding, so that a copy to another domain carries
//! nothing but what was put in. `Default` is all zero.
//!
//! [`shared`] reaches memory that another domain can write; [`ring`] has both ends of every ring on such memory.

extern crate alloc;

pub mod layout;

pub mod callback;
pub mod console_io;
pub mod domctl;
pub mod elfnote;
pub mod errno;
pub mod evtchn;
pub mod grant;
pub mod guest_context;
pub mod hypercall;
pub mod io;
pub mod memory;
pub mod mmu;
pub mod nmi;
pub mod payload;
pub mod physdev;
pub mod platform;
pub mod pte;
pub mod ring;
pub mod sched;
pub mod segment;
pub mod shared;
pub mod shared_info;
pub mod start_info;
pub mod sysctl;
pub mod types;
pub mod vcpu;
pub mod version;
pub mod vm_assist;
