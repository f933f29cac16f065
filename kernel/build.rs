//! Tells the linker the folder of `linker.ld`, which the target's JSON names without a folder. A
//! search path reaches every image that depends on this crate; a link argument would reach only
//! its own.

fn main() {
    println!("cargo::rerun-if-changed=linker.ld");
    println!("cargo::rerun-if-changed=symbols-ld");
    println!("cargo::rustc-link-search=native={}", env!("CARGO_MANIFEST_DIR"));
}
