#![cfg_attr(freestanding, no_std)]
#![cfg_attr(freestanding, no_main)]
//! The guest `netload`: see [`netload_guest`].

#[cfg(freestanding)]
pvrt::kernel!(async netload_guest::start);

#[cfg(not(freestanding))]
fn main() {
    eprintln!("netload is a freestanding image: build it with `cargo xtask build`");
}
