//! User addresses. What a program passes is an allegation; [`UserRange`] is what is left of it
//! after the checks that need no page table, and the only thing [`crate::paging`] accepts.

use bulkhead_abi::layout::{PAGE_SIZE, USER_END};
use bulkhead_abi::syscall::Status;

/// Lowest address that can be mapped: page 0 stays empty, so that a null pointer faults.
pub const USER_START: u64 = PAGE_SIZE;
/// End of what can be mapped: the last page stays empty, so that no `syscall` can end on a return
/// address that is not canonical.
pub const USER_LIMIT: u64 = USER_END - PAGE_SIZE;

/// Whole pages of user addresses, not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserRange {
    start: u64,
    end: u64,
}

impl UserRange {
    /// Checks an alleged page-aligned range.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] when it is empty or not on 4 KiB, [`Status::InvalidAddress`]
    /// when it leaves the mappable user addresses.
    pub fn pages(address: u64, bytes: u64) -> Result<Self, Status> {
        if bytes == 0 || !address.is_multiple_of(PAGE_SIZE) || !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(Status::InvalidArgument);
        }
        let end = address.checked_add(bytes).ok_or(Status::InvalidAddress)?;
        if address < USER_START || end > USER_LIMIT {
            return Err(Status::InvalidAddress);
        }
        Ok(Self {
            start: address,
            end,
        })
    }

    /// First address.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// End (exclusive).
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Number of 4 KiB pages.
    #[must_use]
    pub const fn page_count(self) -> u64 {
        (self.end - self.start) / PAGE_SIZE
    }

    /// True when `address` lies inside.
    #[must_use]
    pub const fn contains(self, address: u64) -> bool {
        self.start <= address && address < self.end
    }
}

/// Bytes of user addresses, aligned or not: a buffer that a program names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserSlice {
    address: u64,
    len: u64,
}

impl UserSlice {
    /// Checks an alleged buffer. Whether it is mapped shows when it is translated, page by page.
    ///
    /// # Errors
    /// [`Status::InvalidAddress`] when a part of it is no user address.
    pub fn new(address: u64, len: u64) -> Result<Self, Status> {
        let end = address.checked_add(len).ok_or(Status::InvalidAddress)?;
        if end > USER_LIMIT {
            return Err(Status::InvalidAddress);
        }
        Ok(Self { address, len })
    }

    /// First address.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.address
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.len
    }

    /// True when there is no byte in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// What is left behind the first `bytes`.
    #[must_use]
    pub const fn skip(self, bytes: u64) -> Self {
        let bytes = if bytes < self.len { bytes } else { self.len };
        Self {
            address: self.address + bytes,
            len: self.len - bytes,
        }
    }

    /// At most the first `bytes`.
    #[must_use]
    pub const fn first(self, bytes: u64) -> Self {
        Self {
            address: self.address,
            len: if bytes < self.len { bytes } else { self.len },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_ranges() {
        let good = UserRange::pages(0x1000, 0x3000).unwrap();
        assert_eq!(
            (good.start(), good.end(), good.page_count()),
            (0x1000, 0x4000, 3)
        );
        assert!(good.contains(0x3fff) && !good.contains(0x4000) && !good.contains(0xfff));
        for (address, bytes, status) in [
            (0x1000, 0, Status::InvalidArgument),
            (0x1001, 0x1000, Status::InvalidArgument),
            (0x1000, 0xfff, Status::InvalidArgument),
            (0, 0x1000, Status::InvalidAddress),
            (USER_LIMIT, 0x1000, Status::InvalidAddress),
            (0x1000, USER_LIMIT, Status::InvalidAddress),
            (0xffff_8000_0000_0000, 0x1000, Status::InvalidAddress),
            (!0xfff, 0x1000, Status::InvalidAddress),
            (0x1000, !0xfff, Status::InvalidAddress),
        ] {
            assert_eq!(
                UserRange::pages(address, bytes),
                Err(status),
                "{address:#x}+{bytes:#x}"
            );
        }
        assert!(UserRange::pages(USER_LIMIT - 0x1000, 0x1000).is_ok());
    }

    #[test]
    fn slices() {
        assert!(UserSlice::new(USER_LIMIT, 0).is_ok());
        for (address, len) in [(USER_LIMIT, 1), (0, u64::MAX), (u64::MAX, 1), (1 << 63, 0)] {
            assert_eq!(UserSlice::new(address, len), Err(Status::InvalidAddress));
        }
        let slice = UserSlice::new(0x1234, 10).unwrap();
        assert_eq!(
            slice.skip(4),
            UserSlice {
                address: 0x1238,
                len: 6
            }
        );
        assert!(slice.skip(99).is_empty());
        assert_eq!(slice.first(3).len(), 3);
        assert_eq!(slice.first(99).len(), 10);
    }
}
