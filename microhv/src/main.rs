#![cfg_attr(freestanding, no_std)]
#![cfg_attr(freestanding, no_main)]
//! The microhv image.

#[cfg(not(freestanding))]
fn main() {
    eprintln!("microhv is a freestanding image: build it with `cargo xtask build`");
}
