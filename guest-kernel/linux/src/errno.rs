//! Linux error numbers. Every handler of a system call answers with one.

use linux_raw_sys::errno as raw;

/// A Linux error number (`asm-generic/errno.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(u32);

macro_rules! errnos {
    ($($name:ident)*) => {
        #[allow(missing_docs, reason = "named as Linux names them")]
        impl Errno {
            $(pub const $name: Self = Self(raw::$name);)*

            /// The symbol, such as `ENOENT`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                    _ => "E?",
                }
            }
        }
    };
}

errnos! {
    EPERM ENOENT EIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT EBUSY EEXIST EXDEV ENODEV ENOTDIR
    EISDIR EINVAL EMFILE ENOTTY EFBIG ENOSPC ESPIPE EROFS ERANGE EDEADLK ENAMETOOLONG ENOSYS
    ENOTEMPTY ELOOP EOVERFLOW EOPNOTSUPP ETIMEDOUT ESRCH
}

impl Errno {
    /// What a Linux system call leaves in `rax` for this error.
    pub fn to_return(self) -> u64 {
        (-i64::from(self.0)) as u64
    }
}
