#![cfg_attr(freestanding, no_std)]
//! The control domain: one asynchronous kernel that drives the disks, serves the domains' devices, keeps xenstore,
//! makes and ends domains, and has the shell.
//!
//! From [`start::start`] on everything is a task of `pvrt`'s executor; nothing blocks. Each module uses those before its own
//! alone: [`pci`], [`hw`], [`virtio`], [`e1000e`], [`nvme`] and [`ahci`] over [`blkqueue`], are devices, [`blkdev`] the disks and [`netdev`] the network cards; [`xenstore`] is the store and its rings; [`xenbus`] starts a
//! backend for each device there, of which [`blkback`] serves disks to domains, and [`netback`] network interfaces, where
//! [`net`] decides what becomes of a packet; [`shell`] edits and splits lines; [`consoled`] serves consoles;
//! [`bundle`] and [`config`] read what a domain is made from; [`builder`] makes the domain, and [`toolstack`] keeps account of it to its end; [`commands`] carries the shell's
//! lines out. `docs/ARCHITECTURE.md` has the same order.
//!
//! A library, so that all of it but `main` runs on the host under test, where `pvrt` stands in for the hypervisor.
extern crate alloc;

pub mod ahci;
pub mod blkback;
pub mod blkdev;
pub mod blkqueue;
pub mod builder;
pub mod bundle;
pub mod commands;
pub mod config;
pub mod consoled;
pub mod e1000e;
pub mod hw;
pub mod net;
pub mod netback;
pub mod netdev;
pub mod nvme;
pub mod pci;
pub mod shell;
pub mod start;
pub mod toolstack;
pub mod virtio;
pub mod xenbus;
pub mod xenstore;

/// Host tests charge allocations to accounts, as the image does.
#[cfg(test)]
#[global_allocator]
static HEAP: pvrt::host::Heap = pvrt::host::Heap;
