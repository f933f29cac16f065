//! Tells the linker where `linker.ld` lies, which the target's JSON names without a folder. A search
//! path reaches every image that depends on this crate; a link argument would reach only its own.

use std::path::Path;

fn main() {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    println!("cargo::rerun-if-changed={}", root.join("linker.ld").display());
    println!("cargo::rerun-if-changed={}", root.join("kernel/symbols-ld").display());
    println!("cargo::rustc-link-search=native={}", root.display());
}
