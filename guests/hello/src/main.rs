#![cfg_attr(freestanding, no_std)]
#![cfg_attr(freestanding, no_main)]
//! The hello image.

pvrt::kernel!(async start);

/// Says who this is.
#[cfg_attr(not(freestanding), allow(dead_code))]
async fn start(boot: pvrt::BootInfo) {
    pvrt::println!("hello from {} pages", boot.nr_pages);
    pvrt::time::sleep(1_000_000).await;
    pvrt::println!("slept; {:?}", pvrt::mem::usage());
}

#[cfg(not(freestanding))]
fn main() {
    eprintln!("hello is a freestanding image: build it with `cargo xtask build`");
}
