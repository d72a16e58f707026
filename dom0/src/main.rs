#![cfg_attr(freestanding, no_std)]
#![cfg_attr(freestanding, no_main)]
//! The dom0 image.

pvrt::kernel!(async dom0::start::start);

#[cfg(not(freestanding))]
fn main() {
    eprintln!("dom0 is a freestanding image: build it with `cargo xtask build`");
}
