//! The lab: real Xen inside QEMU, driven from the host.
