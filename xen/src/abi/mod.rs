//! Xen's public interface as Rust types: one file per header of `xen/include/public`, however
//! short, so that a definition is found where Xen has it.
//!
//! Constants keep Xen's names, structures take Rust's spelling of them. Only what a guest of this
//! project uses is here. Sizes and offsets are those of x86-64, and asserted at compile time.

/// Declares structures in C's layout, which is asserted: `Name: size { field: type = offset, }`.
macro_rules! structures {
    ($(
        $(#[$about:meta])*
        $name:ident: $size:literal {
            $($(#[$doc:meta])* $field:ident: $type:ty = $offset:literal,)+
        }
    )+) => { $(
        $(#[$about])*
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub struct $name {
            $($(#[$doc])* pub $field: $type,)+
        }

        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(core::mem::offset_of!($name, $field) == $offset);)+
        };
    )+ };
}

pub mod console;
pub mod cpuid;
pub mod event_channel;
pub mod grant_table;
pub mod hvm_op;
pub mod hvm_params;
pub mod memory;
pub mod netif;
pub mod ring;
pub mod sched;
pub mod vcpu;
pub mod version;
pub mod xen;
pub mod xs_wire;
