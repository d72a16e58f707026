//! Passes the PV kernel's linker script, only when the build is freestanding.
fn main() {
    println!("cargo::rerun-if-changed=../../pvrt/pv.ld");
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_CFG_FREESTANDING").is_some() {
        let dir = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
        println!("cargo::rustc-link-arg-bins=-T{dir}/../../pvrt/pv.ld");
    }
}
