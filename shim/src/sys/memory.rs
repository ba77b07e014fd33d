//! What an idle shim keeps in memory: the heap it uses, and of the program only what it runs.
//!
//! There is one shim for each container, so what setting one up touched is given back. Invariant: only clean
//! pages of the executable go, which the next access reads again, and free pages of the heap.

use std::ffi::{c_int, c_void};

/// Allocations from this size on are mappings of their own, which go when they are freed.
#[cfg(target_env = "gnu")]
const MAPPED: c_int = 32 << 10;

/// Keeps the heap from holding on to what was large once: without this, freeing the first large buffer would
/// raise the size from which buffers are mapped (mallopt(3)). Musl's never does.
pub fn settle_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes parameters of the allocator only; both values are in their documented ranges.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
        libc::mallopt(libc::M_TOP_PAD, 0);
    }
}

/// Gives back the free pages of the heap, which musl does by itself, and the read-only pages of the executable.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim only returns memory that nothing was allocated in (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0)
    };
    forget_image();
}

/// Gives back the read-only pages of the executable only: allocates nothing, and where a filter denies it nothing
/// happens.
pub fn forget_image() {
    // SAFETY: the callback is `forget` below, which keeps to the objects it is handed and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(forget), std::ptr::null_mut()) };
}

unsafe extern "C" fn forget(object: *mut libc::dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr(3) hands over a valid description that lives for this call.
    let object = unsafe { &*object };
    // SAFETY: the object's program headers are mapped as long as it is, dlpi_phnum of them.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    for header in headers {
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0 {
            let start = (object.dlpi_addr + header.p_vaddr) & !(PAGE - 1);
            let end = object.dlpi_addr + header.p_vaddr + header.p_memsz;
            // SAFETY: a segment without PF_W is a private mapping of the file that nothing was ever written to, so
            // the kernel reads the same bytes again at the next access (madvise(2), MADV_DONTNEED). Failure
            // leaves everything as it is.
            unsafe { libc::madvise(start as *mut c_void, (end - start) as usize, libc::MADV_DONTNEED) };
        }
    }
    0
}

const PAGE: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_is_there_again() {
        static TABLE: [u8; 65_536] = [7; 65_536];
        let kept = vec![9_u8; 100_000];
        settle_heap();
        give_back();
        assert!(TABLE.iter().all(|byte| *byte == 7) && kept.iter().all(|byte| *byte == 9));
    }
}
