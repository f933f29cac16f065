//! Error numbers, as Xen and the PV protocols use them (`xen/include/public/errno.h`).

use core::fmt;

/// A positive error number. Hypercalls and PV Calls return it negated, xenstored by its name.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! names {
    ($($name:ident $number:literal $kind:ident $meaning:literal,)*) => {
        impl Errno {
            $(#[doc = $meaning] pub const $name: Errno = Errno($number);)*

            /// The number's name, such as `ECONNREFUSED`, if it is known.
            pub fn name(self) -> Option<&'static str> {
                match self.0 { $($number => Some(stringify!($name)),)* _ => None }
            }

            /// What the number means, in words.
            pub fn meaning(self) -> &'static str {
                match self.0 { $($number => $meaning,)* _ => "unknown error" }
            }

            /// The error with this name, as xenstored replies it.
            pub fn from_name(name: &str) -> Option<Errno> {
                match name { $(stringify!($name) => Some(Errno::$name),)* _ => None }
            }
        }

        impl embedded_io::Error for Errno {
            fn kind(&self) -> embedded_io::ErrorKind {
                match self.0 {
                    $($number => embedded_io::ErrorKind::$kind,)*
                    _ => embedded_io::ErrorKind::Other,
                }
            }
        }
    };
}

names! {
    EPERM 1 PermissionDenied "operation not permitted",
    ENOENT 2 NotFound "no such entry",
    ESRCH 3 NotFound "no such process or domain",
    EINTR 4 Interrupted "interrupted",
    EIO 5 Other "input or output error",
    E2BIG 7 InvalidInput "too big",
    EBADF 9 InvalidInput "bad descriptor",
    EAGAIN 11 Other "try again",
    ENOMEM 12 OutOfMemory "out of memory",
    EACCES 13 PermissionDenied "permission denied",
    EFAULT 14 InvalidInput "bad address",
    EBUSY 16 Other "busy",
    EEXIST 17 AlreadyExists "exists already",
    ENODEV 19 NotFound "no such device",
    EISDIR 21 InvalidInput "is a directory",
    EINVAL 22 InvalidInput "invalid argument",
    ENFILE 23 Other "too many open files in the system",
    EMFILE 24 Other "too many open files",
    ENOSPC 28 OutOfMemory "no space left",
    EROFS 30 PermissionDenied "read-only",
    EPIPE 32 BrokenPipe "broken pipe",
    ENOSYS 38 Unsupported "not implemented",
    ENOTEMPTY 39 Other "not empty",
    EPROTO 71 InvalidData "protocol violation",
    EDESTADDRREQ 89 InvalidInput "destination address required",
    EMSGSIZE 90 InvalidInput "message too long",
    ENOPROTOOPT 92 Unsupported "no such socket option",
    EOPNOTSUPP 95 Unsupported "operation not supported",
    EAFNOSUPPORT 97 Unsupported "address family not supported",
    EADDRINUSE 98 AddrInUse "address in use",
    EADDRNOTAVAIL 99 AddrNotAvailable "address not available",
    ENETDOWN 100 Other "network is down",
    ENETUNREACH 101 Other "network unreachable",
    ECONNABORTED 103 ConnectionAborted "connection aborted",
    ECONNRESET 104 ConnectionReset "connection reset",
    ENOBUFS 105 OutOfMemory "no buffer space",
    EISCONN 106 InvalidInput "already connected",
    ENOTCONN 107 NotConnected "not connected",
    ETIMEDOUT 110 TimedOut "timed out",
    ECONNREFUSED 111 ConnectionRefused "connection refused",
    EHOSTUNREACH 113 Other "host unreachable",
    EALREADY 114 Other "already in progress",
    ENOTSUP 524 Unsupported "command not supported",
}

impl Errno {
    /// Converts a hypercall's result: a negative value is an error.
    pub fn check(result: i64) -> Result<u64, Errno> {
        let error = |_| Errno(i32::try_from(result.unsigned_abs()).unwrap_or(i32::MAX));
        u64::try_from(result).map_err(error)
    }

    /// The negated number, as protocols carry it.
    pub fn negated(self) -> i32 {
        -self.0
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{} ({name})", self.meaning()),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negative_result_is_an_error_and_keeps_its_number() {
        assert_eq!(Errno::check(-111), Err(Errno::ECONNREFUSED));
        assert_eq!(Errno::check(7), Ok(7));
        assert_eq!(Errno::check(i64::MIN), Err(Errno(i32::MAX)));
    }

    #[test]
    fn an_error_names_itself() {
        assert_eq!(Errno::ENOENT.to_string(), "no such entry (ENOENT)");
        assert_eq!(Errno(9999).to_string(), "error 9999");
        assert_eq!(Errno::from_name("EAGAIN"), Some(Errno::EAGAIN));
    }
}
