//! The kernel's image with the apps that come with it.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod image {
    use kernel::boot::{Boot, Entry};
    #[unsafe(no_mangle)]
    static XENSOCK_KERNEL_ENTRY: Entry = main;

    fn main(_boot: Boot) -> ! {
        panic!("nothing to do yet");
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this program is an operating system's kernel: build it with `make kernel`");
    std::process::exit(1);
}
