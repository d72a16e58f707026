#![cfg_attr(freestanding, no_std)]
//! The control domain: one asynchronous kernel that drives the disks, serves the domains' devices, keeps xenstore,
//! makes and ends domains, and has the shell.
//!
//! From [`start::start`] on everything is a task of `pvrt`'s executor; nothing blocks. By layer, each on those before:
//! [`pci`], [`virtio`] and [`blkdev`] are the disks; [`xenstore`] is the store and its rings; [`blkback`] and
//! [`consoled`] are the backends; [`bundle`] and [`config`] read what a domain is made from, [`builder`] makes it,
//! [`toolstack`] knows all of them to their end; [`shell`] edits and splits lines, [`commands`] carries them out.
//!
//! A library, so that all of it but `main` runs on the host under test, where `pvrt` stands in for the hypervisor.
extern crate alloc;

pub mod blkback;
pub mod blkdev;
pub mod builder;
pub mod bundle;
pub mod commands;
pub mod config;
pub mod consoled;
pub mod pci;
pub mod shell;
pub mod start;
pub mod toolstack;
pub mod virtio;
pub mod xenstore;

/// Host tests charge what is allocated to accounts, as the image does.
#[cfg(test)]
#[global_allocator]
static HEAP: pvrt::host::Heap = pvrt::host::Heap;
