#![cfg_attr(freestanding, no_std)]
#![cfg_attr(freestanding, no_main)]
//! The hello image.

#[cfg(not(freestanding))]
fn main() {
    eprintln!("hello is a freestanding image: build it with `cargo xtask build`");
}
