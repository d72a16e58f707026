#![cfg_attr(freestanding, no_std)]
#![cfg_attr(freestanding, no_main)]
//! The microhv image: what of the hypervisor needs the machine. All policy is in the library.

#[cfg(freestanding)]
extern crate alloc;

#[cfg(freestanding)]
mod arch;

#[cfg(not(freestanding))]
fn main() {
    eprintln!("microhv is a freestanding image: build it with `cargo xtask build`");
}
