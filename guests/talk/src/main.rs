#![cfg_attr(freestanding, no_std)]
#![cfg_attr(freestanding, no_main)]
//! The guest `talk`: says to its peer what its command line tells, and answers what it hears. `talk.cfg` has the words.

#[cfg(freestanding)]
extern crate alloc;

#[cfg(freestanding)]
mod frames;
#[cfg(freestanding)]
mod guest;

#[cfg(freestanding)]
pvrt::kernel!(async guest::start);

#[cfg(not(freestanding))]
fn main() {
    eprintln!("talk is a freestanding image: build it with `cargo xtask build`");
}
