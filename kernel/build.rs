//! Tells the linker the folder of `linker.ld`, which the target's JSON names without a folder. A
//! search path reaches every image that depends on this crate; a link argument would reach only
//! its own.

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets this variable");
    // Whole paths: this runs again if the tree was moved after a build.
    println!("cargo::rerun-if-changed={folder}/linker.ld");
    println!("cargo::rerun-if-changed={folder}/symbols-ld");
    println!("cargo::rustc-link-search=native={folder}");
}
