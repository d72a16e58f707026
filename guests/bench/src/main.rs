#![cfg_attr(freestanding, no_std)]
#![cfg_attr(freestanding, no_main)]
//! The bench image.

#[cfg(not(freestanding))]
fn main() {
    eprintln!("bench is a freestanding image: build it with `cargo xtask build`");
}
