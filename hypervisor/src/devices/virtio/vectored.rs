//! Guest memory as the scatter-gather lists of system calls. Used by devices that move data between
//! guest memory and host descriptors.

use vm_memory::VolatileSlice;

/// Most entries one system call takes (`IOV_MAX`).
pub(super) const MAX_IOVECS: usize = 1024;

/// An entry for each slice. They hold raw pointers: good for as long as the slices' memory is mapped.
pub(super) fn iovecs(slices: &[VolatileSlice<'_>]) -> Vec<libc::iovec> {
    let iovec = |slice: &VolatileSlice<'_>| libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    };
    // One more, for what callers put beside guest memory.
    let mut all = Vec::with_capacity(slices.len() + 1);
    all.extend(slices.iter().map(iovec));
    all
}
