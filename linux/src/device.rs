//! What Xen's device files have in common: the form of their requests, and how one is missing.

use std::io;

/// Makes a structure the argument of an ioctl: `request!(TYPE, GROUP, NUMBER, OUTPUT, result =>
/// value)`.
///
/// Only for requests of Xen's devices, whose opcode is `_IOC(_IOC_NONE, GROUP, NUMBER, size)` and
/// whose argument is a pointer to the structure, which the driver only reads.
macro_rules! request {
    ($request:ty, $group:literal, $number:literal, $output:ty, $result:ident => $value:expr) => {
        // SAFETY: the macro is only for such requests, and the opcode has the structure's size.
        unsafe impl rustix::ioctl::Ioctl for $request {
            type Output = $output;

            const IS_MUTATING: bool = false;

            fn opcode(&self) -> rustix::ioctl::Opcode {
                let none = rustix::ioctl::Direction::None;
                rustix::ioctl::opcode::from_components(none, $group, $number, size_of::<Self>())
            }

            fn as_ptr(&mut self) -> *mut std::ffi::c_void {
                std::ptr::from_mut(self).cast()
            }

            unsafe fn output_from_ptr(
                $result: rustix::ioctl::IoctlOutput,
                _: *mut std::ffi::c_void,
            ) -> rustix::io::Result<$output> {
                Ok($value)
            }
        }
    };
}
pub(crate) use request;

/// The reason why a device file of Xen cannot be opened, and the remedy.
pub(crate) fn explain(path: &str, module: &str, error: impl Into<io::Error>) -> String {
    let error = error.into();
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "run this program as root, or as the user that owns the file".to_string()
        }
        io::ErrorKind::NotFound => {
            format!("run this program in a domain under Xen, and load the kernel module {module}")
        }
        _ => format!("check that this is a domain under Xen with the kernel module {module}"),
    };
    format!("cannot open {path}: {error}; {advice}")
}
