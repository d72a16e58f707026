//! Passes the PV kernel's linker script, only when the build is freestanding, and where each image lies.

/// Pseudo-physical addresses: apart from each other and from dom0's image, and below Linux's, which begins at 16 MiB.
const IMAGES: [(&str, u32); 2] = [("netload", 0x80_0000), ("netload-peer", 0xc0_0000)];

fn main() {
    println!("cargo::rerun-if-changed=../../pvrt/pv.ld");
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_CFG_FREESTANDING").is_some() {
        let dir = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
        for (image, load) in IMAGES {
            println!("cargo::rustc-link-arg-bin={image}=-Wl,--defsym=pv_load={load:#x}");
        }
        println!("cargo::rustc-link-arg-bins=-T{dir}/../../pvrt/pv.ld");
    }
}
